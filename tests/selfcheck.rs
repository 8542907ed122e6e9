//! `gpas selfcheck` on a GPU's backend, which must be built in: `cargo test --release -p gpas-tests --features gpas/vulkan --test
//! selfcheck`. `GPAS_TEST_BACKEND=cuda:1` chooses among several.
//!
//! A file of its own, since the parity tests take minutes to compile and are of the CPU's backends.

use gpas::selfcheck::{Check, Status, check};
use gpas_train::backend::{BackendChoice, BackendName};

/// On the backend of `$GPAS_TEST_BACKEND`, or on the GPU's backend that is built in. A device that is missing is a failure where it was
/// asked for by name and where CI is set, which has a driver for it.
#[test]
fn selfcheck_on_a_gpu() {
    let asked = std::env::var("GPAS_TEST_BACKEND").ok();
    let mut built_in = BackendName::ALL.iter().copied().filter(|name| name.is_compiled_in());
    let built_in = built_in.find(|name| !name.is_cpu());
    let choice = match (&asked, built_in) {
        (Some(asked), _) => asked.parse().expect("GPAS_TEST_BACKEND names a backend"),
        (None, Some(name)) => BackendChoice::Named(name, 0),
        (None, None) => return println!("skipped: no GPU's backend is built in"),
    };
    let selected = match choice.select() {
        Ok(selected) => selected,
        Err(error) => {
            assert!(asked.is_none() && std::env::var_os("CI").is_none(), "{error}");
            let name = built_in.map_or("GPU", |name| if name == BackendName::Vulkan { "Vulkan" } else { "GPU" });
            return println!("skipped: no {name} device");
        }
    };
    let mut show = |check: &Check| {
        println!("{check:?}");
        if check.status == Status::Skipped {
            println!(
                "skipped: {}: {}",
                check.name,
                check.reason.as_deref().unwrap_or_default()
            );
        }
    };
    let report = check(selected, &mut show).expect("a backend that is built in");
    println!("{selected} on {:?}: {:?}", report.device, report.speed);
    let passed = report
        .checks
        .iter()
        .filter(|check| check.status == Status::Pass)
        .count();
    assert!(report.passed && passed > 24, "{selected}: {passed} passed");
}
