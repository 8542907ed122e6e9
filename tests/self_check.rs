//! `gpas selfcheck` as its user meets it, in a program of its own: it compares times, which other tests beside it would disturb.

mod place;

use place::Place;
use serde_json::Value;

#[test]
fn a_selfcheck_passes_with_figures() {
    let place = Place::new();
    let table = place.does("selfcheck --backend flex");
    assert!(
        table.lines().last().is_some_and(|line| line.starts_with("PASS: ")),
        "{table}"
    );
    let report: Value = serde_json::from_str(&place.does("selfcheck --backend flex --json")).unwrap();
    assert_eq!(report["passed"], true);
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() > 30, "{report}");
    for check in checks.iter().filter(|check| check["status"] == "PASS") {
        let figure = |key: &str| check[key].as_f64().unwrap();
        assert!(figure("measured") <= figure("allowed"), "{check}");
    }
    assert!(report["speed"]["tokens_per_s"].as_f64().unwrap() > 0.0);
}
