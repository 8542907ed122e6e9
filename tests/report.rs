//! The page of a run and of a comparison: it holds the numbers of the records, needs nothing from elsewhere, and lets no name break it.

mod place;

use std::fs;

use place::Place;
use scraper::{Html, Selector};
use serde_json::Value;

/// A prepared place with a comparison in it.
fn compared(options: &str) -> Place {
    let place = Place::prepared();
    place.does(&format!(
        "compare tiny.toml --schemes pre,pre_gpas --set train.steps=12 --set eval.every=4 --set train.inspect_every=3 \
         --set train.warmup=0 {options} -o all"
    ));
    place
}

fn parsed(html: &str) -> Html {
    let page = Html::parse_document(html);
    assert!(page.errors.is_empty(), "{:?}", page.errors);
    page
}

fn selected<'a>(page: &'a Html, selector: &str) -> Vec<scraper::ElementRef<'a>> {
    page.select(&Selector::parse(selector).expect("a selector")).collect()
}

fn texts(page: &Html, selector: &str) -> Vec<String> {
    selected(page, selector)
        .iter()
        .map(|element| element.text().collect())
        .collect()
}

/// Nothing is fetched, everything is labelled.
fn assert_self_contained(page: &Html) {
    for element in page.tree.nodes().filter_map(|node| node.value().as_element()) {
        assert!(
            !["script", "link", "img", "iframe", "object", "image", "use"].contains(&element.name()),
            "{element:?}"
        );
        for (name, value) in element.attrs() {
            assert!(
                !["src", "srcset", "data", "xlink:href", "style"].contains(&name),
                "{element:?}"
            );
            assert!(!name.starts_with("on"), "{element:?}");
            if name == "href" {
                assert!(
                    value.starts_with("https://arxiv.org/") || value.ends_with("/report.html"),
                    "{value}"
                );
            }
        }
    }
    let styles = texts(page, "style").concat();
    assert!(!styles.contains("url(") && !styles.contains("@import"), "{styles}");
    assert_eq!(selected(page, "html[lang=en]").len(), 1);
    let drawings = selected(page, "svg[role=img]");
    assert!(drawings.len() >= 6, "{} drawings", drawings.len());
    assert_eq!(selected(page, "svg[role=img] > title").len(), drawings.len());
    assert_eq!(selected(page, "svg[role=img] > desc").len(), drawings.len());
    assert!(selected(page, "th:not([scope])").is_empty());
}

#[test]
fn the_page_of_a_comparison_has_the_numbers_of_its_file() {
    let place = compared("--seeds 1,2");
    let html = place.read("all/report.html");
    let page = parsed(&html);
    assert_self_contained(&page);
    let comparison: Value = serde_json::from_str(&place.read("all/compare.json")).unwrap();
    let cells = texts(&page, "td").join("\n");
    for run in comparison["runs"].as_array().unwrap() {
        for text in [
            format!("{:.4}", run["loss"].as_f64().unwrap()),
            format!("{:.3}", run["perplexity"].as_f64().unwrap()),
        ] {
            assert!(cells.contains(&text), "{text}");
        }
    }
    for arm in comparison["summary"].as_array().unwrap() {
        let figure = |key: &str| arm[key].as_f64().unwrap();
        let mean = format!("{:.3} ± {:.3}", figure("perplexity_mean"), figure("perplexity_sd"));
        assert!(cells.contains(&mean), "{mean}");
        if arm["name"] == "pre_gpas" {
            let difference = format!("{:+.3} ({:+.3} … ", figure("difference_mean"), figure("difference_low"));
            assert!(cells.contains(&difference.replace('-', "−")), "{difference}");
        }
    }
    let titles = texts(&page, "h2");
    for title in [
        "The result",
        "Validation perplexity",
        "Validation bits per byte",
        "Training loss",
        "Variance of the residual stream",
        "Gradient norm by layer",
        "Gates over training",
        "What a layer is worth",
        "Angular distance between layers",
        "The runs",
        "How it was made",
    ] {
        assert!(titles.iter().any(|have| have == title), "{title} in {titles:?}");
    }
    // Every figure says how it was computed and has its numbers.
    assert_eq!(
        texts(&page, "figcaption").iter().filter(|text| text.len() > 60).count(),
        9
    );
    assert!(html.contains("in model.scheme, train.seed, and in nothing else"));
    assert!(texts(&page, "pre")[0].contains("scheme = \"pre\""));
    // The same records make the same page.
    place.does("report all");
    assert!(place.read("all/report.html") == html);
    // A drawing of its own, for where there is no page.
    let svg = place.read("all/compare.svg");
    assert!(
        svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && svg.contains("pre_gpas"),
        "{svg}"
    );
}

#[test]
fn a_run_has_its_page_and_it_is_made_again_on_demand() {
    let place = Place::prepared();
    place.does("train tiny.toml --set train.steps=12 --set eval.every=4 --set train.inspect_every=3 -o run");
    let html = place.read("run/report.html");
    let page = parsed(&html);
    assert_self_contained(&page);
    let last = place
        .metrics("run")
        .into_iter()
        .rfind(|line| line["kind"] == "eval")
        .unwrap();
    let perplexity = format!("{:.3}", last["perplexity"].as_f64().unwrap());
    assert!(
        texts(&page, "dd").iter().any(|text| text.contains(&perplexity)),
        "{perplexity}"
    );
    let look: Value = serde_json::from_str(&place.read("run/inspection.json")).unwrap();
    let change = format!("{:+.4}", look["layers"][1]["loss_change"].as_f64().unwrap()).replace('-', "−");
    assert!(texts(&page, "td").contains(&change), "{change}");

    fs::remove_file(place.path("run/report.html")).unwrap();
    fs::remove_file(place.path("run/inspection.json")).unwrap();
    let said = place.does("report run");
    assert_eq!(said, "report run/report.html\n");
    assert!(place.read("run/report.html") == html);

    // Without its data the layers cannot be looked at; everything else is there.
    fs::rename(place.path("data"), place.path("gone")).unwrap();
    fs::remove_file(place.path("run/inspection.json")).unwrap();
    let output = place.run("report run");
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with("warning: run: the layers cannot be looked at: "),
        "{said}"
    );
    let titles = texts(&parsed(&place.read("run/report.html")), "h2");
    assert!(titles.contains(&"Validation perplexity".into()) && !titles.contains(&"What a layer is worth".into()));

    place.refuses(
        "report data",
        "data is not a comparison: it has no compare.json",
        "a run is what `gpas train -o RUN` makes, a comparison what `gpas compare -o DIR` makes",
    );
}

#[test]
fn a_hostile_name_is_text() {
    let place = Place::prepared();
    let name = "</title><script>alert(1)</script>&'\"";
    let run = place.path("runs").join(name.replace('/', "∕"));
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_gpas"))
        .args(["train", "tiny.toml", "--plain", "-o"])
        .arg(&run)
        .current_dir(place.root())
        .output()
        .unwrap();
    assert!(status.status.success());
    let page = parsed(&fs::read_to_string(run.join("report.html")).unwrap());
    assert!(selected(&page, "script").is_empty());
    assert_eq!(selected(&page, "main").len(), 1);
    assert_eq!(texts(&page, "h1"), [name.replace('/', "∕")]);
    assert!(texts(&page, "title")[0].starts_with(&name.replace('/', "∕")));
}

#[test]
fn a_diverged_run_and_a_single_seed_have_a_page_that_says_so() {
    let place = compared("--seeds 1 --vary train.lr=1e-3,1e38 --set train.max_bad_steps=3");
    let page = parsed(&place.read("all/report.html"));
    let notes = texts(&page, ".note").join("\n");
    assert!(
        notes.contains("Diverged: pre+lr=1") && notes.contains("Of a single run"),
        "{notes}"
    );
    let runs = texts(&page, "td").iter().filter(|text| *text == "diverged").count();
    assert_eq!(runs, 2);
    let diverged = fs::read_dir(place.path("all"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for path in diverged.filter(|path| path.is_dir()) {
        let html = fs::read_to_string(path.join("seed-1/report.html")).unwrap();
        assert!(!html.contains("NaN"), "{}", path.display());
    }
}
