//! Comparisons as their user meets them: what stands in their files, that interruptions change nothing of it, and what is refused.

mod place;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gpas_model::weights::read_safetensors;
use place::{Place, keys, of_kind};
use serde_json::{Value, json};

/// A recipe with a `[compare]` table over the one of the other tests.
fn place() -> Place {
    let place = Place::prepared();
    let table = "[compare]\nschemes = [\"pre\", \"pre_gpas\"]\nseeds = [1, 2]\n";
    let steps = "[train]\nsteps = 6\nbatch = 2\nlr = 1e-2\n[checkpoint]\nevery = 2\nkeep = 9\n";
    let tiny = place
        .read("tiny.toml")
        .replace("[train]\nsteps = 3\nbatch = 2\n", steps);
    place.write("compare.toml", tiny.clone() + table);
    place
}

fn comparison(place: &Place, directory: &str) -> Value {
    serde_json::from_str(&place.read(&format!("{directory}/compare.json"))).expect("json")
}

/// Without what a clock decides.
fn timeless(mut comparison: Value) -> Value {
    for list in ["runs", "summary"] {
        for row in comparison[list].as_array_mut().expect("a list") {
            row.as_object_mut()
                .expect("an object")
                .remove("tokens_per_s")
                .expect("a speed");
        }
    }
    comparison
}

#[test]
fn a_comparison_has_a_run_for_every_arm_and_seed_and_says_what_their_records_say() {
    let place = place();
    let said = place.does("compare compare.toml -o all");
    let comparison = comparison(&place, "all");
    assert_eq!(
        (&comparison["baseline"], &comparison["planned"]),
        (&json!("pre"), &json!(4))
    );
    let runs = comparison["runs"].as_array().unwrap();
    let names: Vec<_> = runs
        .iter()
        .map(|run| (run["name"].as_str().unwrap(), run["seed"].as_u64().unwrap()))
        .collect();
    assert_eq!(names, [("pre", 1), ("pre", 2), ("pre_gpas", 1), ("pre_gpas", 2)]);
    for run in runs {
        for key in [
            "name",
            "scheme",
            "seed",
            "varied",
            "steps",
            "tokens",
            "loss",
            "perplexity",
            "diverged",
        ] {
            assert!(keys(run).contains(&key), "{key}");
        }
        let lines = place.metrics(&format!("all/{}", run["directory"].as_str().unwrap()));
        let last = of_kind(&lines, "eval").last().copied().unwrap().clone();
        let near = |key: &str| (run[key].as_f64().unwrap() - last[key].as_f64().unwrap()).abs() < 1e-12;
        assert!(near("loss") && (last["step"] == 6) && (run["steps"] == 6), "{run}");
        assert_eq!(run["tokens"], of_kind(&lines, "train").last().unwrap()["tokens"]);
        assert_eq!((&run["diverged"], &run["varied"]), (&json!(false), &json!({})));
    }
    let perplexity = |index: usize| runs[index]["perplexity"].as_f64().unwrap();
    let [pre, gated] = &comparison["summary"].as_array().unwrap()[..] else {
        panic!("{comparison}")
    };
    for key in [
        "name",
        "n",
        "perplexity_mean",
        "perplexity_sd",
        "difference_mean",
        "difference_low",
        "difference_high",
        "resolved",
        "steps_to_baseline",
        "tokens_per_s",
    ] {
        assert!(keys(gated).contains(&key), "{key}");
    }
    let near = |found: &Value, expected: f64| assert!((found.as_f64().unwrap() - expected).abs() < 1e-9, "{found}");
    near(&pre["perplexity_mean"], (perplexity(0) + perplexity(1)) / 2.0);
    near(
        &pre["perplexity_sd"],
        (perplexity(0) - perplexity(1)).abs() / 2f64.sqrt(),
    );
    let differences = [perplexity(2) - perplexity(0), perplexity(3) - perplexity(1)];
    near(&gated["difference_mean"], (differences[0] + differences[1]) / 2.0);
    // With two pairs, t is 12.7062 and sd/√2 half their distance.
    let half = 12.706_204_736 * (differences[0] - differences[1]).abs() / 2.0;
    near(&gated["difference_low"], (differences[0] + differences[1]) / 2.0 - half);
    assert_eq!(
        (&pre["resolved"], &pre["difference_mean"]),
        (&Value::Null, &Value::Null)
    );
    assert!(gated["gate_max"].as_f64().unwrap() != 0.0 && pre["gate_max"].is_null());
    // The same table in the terminal and in the file.
    let mean = format!(
        "{:.3} ± {:.3}",
        pre["perplexity_mean"].as_f64().unwrap(),
        pre["perplexity_sd"].as_f64().unwrap()
    );
    for text in [&said, &place.read("all/compare.md")] {
        assert!(text.contains(&mean) && text.contains("pre_gpas"), "{mean} in\n{text}");
    }
}

/// The tensors of the first checkpoint, which is before the first step.
fn initial(place: &Place, run: &str) -> BTreeMap<String, Vec<f32>> {
    let path = place.path(run).join("checkpoints/step-0/model.safetensors");
    let tensors = read_safetensors(&fs::read(path).expect("a checkpoint"), "").expect("weights");
    tensors.into_iter().map(|(name, data)| (name, data.values)).collect()
}

#[test]
fn runs_of_a_seed_share_initial_weights_and_data() {
    let place = place();
    place.does("compare compare.toml --schemes pre,pre_gpas,sandwich_gpas -o all");
    let (pre, gated, sandwich) = (
        initial(&place, "all/pre/seed-1"),
        initial(&place, "all/pre_gpas/seed-1"),
        initial(&place, "all/sandwich_gpas/seed-1"),
    );
    for (name, weights) in &pre {
        assert!(gated[name] == *weights && sandwich[name] == *weights, "{name}");
    }
    assert!(initial(&place, "all/pre/seed-2") != pre, "seeds differ");
    let steps = |run: &str, key: &str| -> Vec<Value> {
        of_kind(&place.metrics(run), "train")
            .iter()
            .map(|line| line[key].clone())
            .collect()
    };
    // A gate of 0 is the identity, and the first update is made at rate 0: with the same data, the first two losses are the same.
    let loss = |run: &str| steps(run, "loss");
    assert_eq!(loss("all/pre/seed-1")[..2], loss("all/pre_gpas/seed-1")[..2]);
    assert_ne!(loss("all/pre/seed-1")[2..], loss("all/pre_gpas/seed-1")[2..]);
    assert_ne!(loss("all/pre/seed-1")[0], loss("all/pre/seed-2")[0]);
    assert_eq!(
        steps("all/pre/seed-1", "tokens"),
        steps("all/sandwich_gpas/seed-1", "tokens")
    );
}

/// Starts a comparison, and ends it with a signal as soon as a run has made so many steps.
#[cfg(unix)]
fn interrupted(place: &Place, arguments: &str, signal: &str, run: &str, step: usize) -> Option<i32> {
    let mut child: Child = Command::new(env!("CARGO_BIN_EXE_gpas"))
        .args(arguments.split_whitespace())
        .current_dir(place.root())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let begin = Instant::now();
    let lines = || fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap_or_default();
    while lines().matches(r#""kind":"train""#).count() < step {
        assert!(
            child.try_wait().expect("a process").is_none(),
            "it ended before step {step} of {run}"
        );
        assert!(begin.elapsed() < Duration::from_secs(120), "no step {step} of {run}");
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = Command::new("kill")
        .args([&format!("-{signal}"), &child.id().to_string()])
        .status();
    assert!(sent.expect("kill").success());
    child.wait().expect("a process").code()
}

/// Every `metrics.jsonl` below a directory.
fn records(place: &Place, directory: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let root = place.path(directory);
    let files = place.files().into_iter();
    let files = files.filter(|(path, _)| path.ends_with("metrics.jsonl"));
    let below = |(path, bytes): (PathBuf, Vec<u8>)| Some((path.strip_prefix(&root).ok()?.to_path_buf(), bytes));
    files.filter_map(below).collect()
}

#[test]
#[cfg(unix)]
fn interrupted_twice_it_ends_with_the_same_file_and_finished_runs_are_not_repeated() {
    let place = place();
    // Long enough to be disturbed.
    let options = "compare compare.toml --set train.steps=60 --set train.batch=4 --set data.seq_len=32 --set eval.every=8 \
                   --set checkpoint.every=8 --set model.hidden=64 --set model.intermediate=160 --plain";
    place.does(&format!("{options} -o calm"));
    let disturbed = format!("{options} -o disturbed");
    let code = interrupted(&place, &disturbed, "TERM", "disturbed/pre_gpas/seed-1", 11);
    assert_eq!(code, Some(143));
    let first = fs::read(place.path("disturbed/pre/seed-1/metrics.jsonl")).unwrap();
    let partial = comparison(&place, "disturbed");
    assert_eq!(
        (&partial["planned"], partial["runs"].as_array().unwrap().len()),
        (&json!(4), 1)
    );
    let code = interrupted(&place, &disturbed, "KILL", "disturbed/pre/seed-2", 21);
    assert_eq!(code, None);
    let said = place.does(&disturbed);
    assert!(said.contains("[1/4] pre seed 1: done before"), "{said}");
    assert!(said.contains("going on after step"), "{said}");
    assert!(
        fs::read(place.path("disturbed/pre/seed-1/metrics.jsonl")).unwrap() == first,
        "a finished run was touched"
    );

    assert_eq!(
        timeless(comparison(&place, "disturbed")),
        timeless(comparison(&place, "calm"))
    );
    for run in ["pre/seed-1", "pre/seed-2", "pre_gpas/seed-1", "pre_gpas/seed-2"] {
        let lines = |directory: &str| place.timeless_metrics(&format!("{directory}/{run}"));
        assert_eq!(lines("disturbed"), lines("calm"), "{run}");
    }
    // Once more, and nothing is done: not one byte of any file differs, the speeds included.
    let before = place.files();
    place.does(&disturbed);
    let after = place.files();
    let changed: Vec<_> = after
        .keys()
        .filter(|path| before.get(*path) != after.get(*path))
        .collect();
    assert!(changed.is_empty(), "{changed:?}");
}

#[test]
fn runs_can_be_added_and_what_was_made_otherwise_is_refused() {
    let place = place();
    place.does("compare compare.toml --seeds 1 -o grown");
    let before = records(&place, "grown");
    let said = place.does("compare compare.toml --schemes pre,pre_gpas,lns --seeds 1,2 --baseline lns -o grown");
    assert!(
        said.contains("pre seed 1: done before") && !said.contains("lns seed 1: done before"),
        "{said}"
    );
    let after = records(&place, "grown");
    assert_eq!((before.len(), after.len()), (2, 6));
    assert!(before.iter().all(|(path, bytes)| after[path] == *bytes));
    assert_eq!(comparison(&place, "grown")["baseline"], "lns");

    let alike = "runs that are compared are made alike: …";
    for (set, error) in [
        (
            "train.lr=0.5",
            "grown/pre/seed-1 was made with `train.lr` = 0.01, not 0.5",
        ),
        (
            "eval.tokens=50",
            "grown/pre/seed-1 was made with `eval.tokens` = 100, not 50",
        ),
        ("train.steps=7", "grown/pre/seed-1 was made with `…"),
    ] {
        place.refuses(&format!("compare compare.toml --set {set} -o grown"), error, alike);
    }
    place.does("compare compare.toml --set checkpoint.keep=1 --set train.micro_batch=1 -o grown");
    place.does("data prepare text.jsonl --tokenizer tokenizer.json --validation 0.3 -o other");
    place.refuses(
        "compare compare.toml --data other -o grown",
        "grown/pre/seed-1 was made from other data",
        "give the data it was made from, or another directory with `-o`",
    );
}

#[test]
fn a_diverged_run_is_a_result() {
    let place = place();
    let arguments = "compare compare.toml --schemes pre --set train.max_bad_steps=3 --set train.warmup=0 --set train.steps=20 \
                     --vary train.lr=1e-3,1e38 -o apart";
    for _ in 0..2 {
        let said = place.does(arguments);
        assert!(said.contains("Diverged: pre+lr=1"), "{said}");
        let comparison = comparison(&place, "apart");
        let run = &comparison["runs"][2];
        assert_eq!(
            (&run["diverged"], &run["loss"], &run["perplexity"]),
            (&json!(true), &Value::Null, &Value::Null)
        );
        assert_eq!(run["varied"]["train.lr"], json!(1e38));
        assert!(run["steps"].as_u64().unwrap() < 20);
        let arm = &comparison["summary"][1];
        assert_eq!(
            (&arm["n"], &arm["diverged"], &arm["perplexity_mean"]),
            (&json!(2), &json!(2), &Value::Null)
        );
        assert_eq!(comparison["summary"][0]["diverged"], 0);
    }
}

#[test]
fn a_dry_run_lists_and_times_and_leaves_nothing() {
    let place = place();
    let before = place.files();
    let said = place.does("compare compare.toml --vary model.gate.act=silu,tanh --dry-run -o never");
    assert_eq!(place.files(), before);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 8 + 2, "{said}");
    assert!(
        lines[0].starts_with("pre+act=silu/seed-1") && lines[0].contains("192 tokens"),
        "{said}"
    );
    assert!(lines[8].starts_with("8 runs, about "), "{said}");
    assert!(lines[9].starts_with("estimated from the fastest of 8 steps"), "{said}");
}

#[test]
fn a_recipe_of_a_comparison_is_also_that_of_a_single_run() {
    let place = place();
    place.does("compare compare.toml -o all");
    place.does("train compare.toml --scheme pre_gpas --set train.seed=2 -o single");
    assert_eq!(
        place.timeless_metrics("single"),
        place.timeless_metrics("all/pre_gpas/seed-2")
    );
    assert!(!place.read("single/recipe.toml").contains("compare"));
    place.refuses(
        "compare compare.toml -o single",
        "single is a run, not a comparison",
        "name a directory for the comparison with `-o`; its runs lie below it",
    );
}

#[test]
fn a_comparison_that_cannot_be_made_is_refused_before_the_first_run() {
    let place = place();
    for (arguments, error, hint) in [
        (
            "tiny.toml",
            "a comparison needs schemes",
            "`--schemes pre,pre_gpas`, or …",
        ),
        (
            "tiny.toml --schemes pre,prre",
            "unknown scheme `prre`",
            "did you mean `pre`? …",
        ),
        (
            "compare.toml --scheme pre",
            "`--scheme` is decided by `--schemes`",
            "name them all with `--schemes`",
        ),
        (
            "compare.toml --set train.seed=5",
            "`train.seed` is decided by `--seeds`",
            "name them all with `--seeds`",
        ),
        ("compare.toml --seeds 1,1", "seed 1 is named twice", "each once"),
        (
            "compare.toml --baseline pre_gpass",
            "the baseline `pre_gpass` is not one of the arms",
            "did you mean `pre_gpas`? One of: pre, pre_gpas",
        ),
        ("compare.toml --vary train.lr", "--vary: …", "…"),
        (
            "compare.toml --vary train.lrr=1,2",
            "unknown key `train.lrr` in --vary",
            "did you mean `train.lr`?",
        ),
        // Only the second arm is wrong.
        (
            "compare.toml --vary train.lr=1e-3,-1",
            "`train.lr` in --vary must be a number above 0, not -1",
            "`gpas config show` prints every key with a valid value",
        ),
        (
            "compare.toml --schemes pre,post_gpas --set model.gate.site=after_norm",
            "…",
            "`--set model.gate.site=default` puts the gate where the scheme has it",
        ),
    ] {
        place.refuses(&format!("compare {arguments} -o none"), error, hint);
    }
}
