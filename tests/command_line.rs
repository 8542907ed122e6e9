//! The command line as its user meets it: what the commands make of a small corpus.

mod place;

use std::fs;
use std::process::Stdio;

use gpas_model::Scheme;
use gpas_train::backend::BackendName;
use place::{Place, corpus, keys, of_kind};
use serde_json::Value;

#[test]
fn every_command_has_help_with_an_example() {
    fn walk(place: &Place, command: &str) -> usize {
        let help = place.does(&format!("{command} --help"));
        let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let subcommands: Vec<&str> = listed
            .take_while(|line| !line.is_empty())
            // Where a description runs on in a second line, that is indented further.
            .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
            .filter(|name| !["", "help"].contains(name))
            .collect();
        if subcommands.is_empty() {
            assert!(help.contains("\nExample"), "gpas {command} --help\n{help}");
            return 1;
        }
        let below = subcommands.iter().map(|name| walk(place, &format!("{command} {name}")));
        below.sum()
    }
    let place = Place::new();
    assert!(place.does("--help").contains("\nExample"));
    assert!(walk(&place, "") >= 9, "a command was lost");
}

#[test]
fn a_run_directory_is_complete_and_eval_repeats_its_last_evaluation_exactly() {
    let place = Place::prepared();
    place.does(
        "train --preset nano --data data --set train.steps=3 --set train.batch=2 --set data.seq_len=16 \
         --set eval.tokens=200 --plain -o runs/first",
    );
    for file in [
        "recipe.toml",
        "run.json",
        "tokenizer.json",
        "metrics.jsonl",
        "checkpoints/step-3/model.safetensors",
        "checkpoints/step-3/optimizer.safetensors",
        "checkpoints/step-3/state.json",
        "checkpoints/step-3/manifest.json",
    ] {
        assert!(place.path("runs/first").join(file).is_file(), "{file}");
    }
    assert_eq!(place.read("runs/first/tokenizer.json"), place.read("tokenizer.json"));
    let metrics = place.read("runs/first/metrics.jsonl");
    let last = metrics.lines().rfind(|line| line.contains("\"eval\"")).unwrap();
    assert_eq!(place.does("eval runs/first --json").trim_end(), last);
    assert_eq!(place.does("eval runs/first --data data --json").trim_end(), last);
}

#[test]
fn metrics_have_one_line_per_step_with_the_documented_keys() {
    let place = Place::prepared();
    place.does("train tiny.toml -o gated");
    place.does("train tiny.toml --scheme pre -o plain");
    let common = [
        "gate_grad_norm",
        "grad_norm",
        "kind",
        "loss",
        "lr",
        "step",
        "tokens",
        "tokens_per_s",
    ];
    for (run, gated) in [("gated", true), ("plain", false)] {
        let lines = place.metrics(run);
        let train = of_kind(&lines, "train");
        let steps: Vec<_> = train.iter().map(|line| line["step"].as_u64()).collect();
        assert_eq!(steps, [Some(1), Some(2), Some(3)], "{run}");
        for (index, line) in train.iter().enumerate() {
            let expected: Vec<&str> = if gated {
                [&common[..1], &["gates"], &common[1..]].concat()
            } else {
                common.to_vec()
            };
            let mut keys = keys(line);
            keys.sort_unstable();
            assert_eq!(keys, expected, "{run}");
            assert_eq!(line["tokens"], 2 * 16 * (index + 1), "{run}");
            assert!(line["loss"].is_f64(), "{run}: {line}");
        }
        let evaluations = of_kind(&lines, "eval");
        assert_eq!(
            keys(evaluations[0]),
            ["bits_per_byte", "kind", "loss", "perplexity", "step", "tokens"]
        );
        assert_eq!(evaluations[0]["step"], 0);
        assert_eq!(evaluations.last().unwrap()["step"], 3);
        let layers = of_kind(&lines, "layers");
        assert_eq!(
            keys(layers[0]),
            ["gate", "grad_norm", "kind", "step", "variance", "weight_norm"]
        );
        let lengths =
            ["variance", "grad_norm", "weight_norm", "gate"].map(|key| layers[0][key].as_array().unwrap().len());
        assert_eq!(lengths, [3, 2, 2, if gated { 2 } else { 0 }], "{run}");
        let sum_of_squares: f64 = layers[0]["grad_norm"]
            .as_array()
            .unwrap()
            .iter()
            .map(|norm| norm.as_f64().unwrap().powi(2))
            .sum();
        assert!(sum_of_squares.sqrt() < train[0]["grad_norm"].as_f64().unwrap(), "{run}");
        let known = train.len() + evaluations.len() + layers.len();
        assert_eq!(known, lines.len(), "{run}: no other lines");
    }
}

#[test]
fn one_seed_gives_one_result_to_the_last_bit_and_another_seed_another() {
    let place = Place::prepared();
    place.does("train tiny.toml -o first");
    place.does("train tiny.toml -o second");
    place.does("train tiny.toml --set train.seed=43 -o other");
    assert_eq!(place.timeless_metrics("first"), place.timeless_metrics("second"));
    assert_ne!(place.timeless_metrics("first"), place.timeless_metrics("other"));
    for file in ["recipe.toml", "tokenizer.json"] {
        assert_eq!(
            place.read(&format!("first/{file}")),
            place.read(&format!("second/{file}"))
        );
    }
    let weights = |run: &str| fs::read(place.path(run).join("checkpoints/step-3/model.safetensors")).unwrap();
    assert_eq!(weights("first"), weights("second"));
}

#[test]
fn a_run_is_inspected_layer_by_layer() {
    let place = Place::prepared();
    place.does("train tiny.toml --scheme pre_gpas --set train.inspect_every=1 -o run");
    let json: Value = serde_json::from_str(&place.does("inspect run --json")).unwrap();
    let evaluation: Value = serde_json::from_str(&place.does("eval run --json")).unwrap();
    for key in ["step", "loss", "tokens"] {
        assert_eq!(json[key], evaluation[key], "{key}");
    }
    assert_eq!(json["scheme"], "pre_gpas");
    assert_eq!(
        keys(&json),
        [
            "angular_distance",
            "history",
            "last_variance",
            "layers",
            "loss",
            "scheme",
            "step",
            "tokens"
        ]
    );
    let layers = json["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        let expected = [
            "block_influence",
            "formula",
            "gates",
            "loss_change",
            "running_scale",
            "scales",
            "variance",
            "weight_norms",
        ];
        assert_eq!(keys(layer), expected);
        assert_eq!(layer["formula"], "x ← G(x + F(N(x)))");
        assert_eq!(layer["weight_norms"].as_object().unwrap().len(), 7);
    }
    // One layer on for both, two layers on for the first.
    let distances = json["angular_distance"].as_array().unwrap();
    assert_eq!(
        distances
            .iter()
            .map(|of| of.as_array().unwrap().len())
            .collect::<Vec<_>>(),
        [2, 1]
    );
    // The history is what stands in the file.
    let lines = place.metrics("run");
    let recorded = of_kind(&lines, "layers");
    let history = json["history"].as_array().unwrap();
    assert_eq!((history.len(), recorded.len()), (3, 3));
    for (found, recorded) in history.iter().zip(recorded) {
        for key in ["step", "variance", "grad_norm", "weight_norm", "gate"] {
            assert_eq!(found[key], recorded[key], "{key}");
        }
    }

    let text = place.does("inspect run --data data --tokens 20");
    println!("{text}");
    for line in [
        " layer    variance   influence loss change        gate       scale     running",
        "     i  n = 1  n = 2",
        " layer         key      output       query       value        down        gate          up",
        "gradient norm in training, as recorded",
        "  step           1           2           3",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    // The least number of whole windows that hold 20 tokens.
    assert!(text.starts_with("pre_gpas after step 3: validation loss "), "{text}");
    assert!(text.lines().next().unwrap().ends_with("over 32 tokens"), "{text}");
}

#[test]
fn every_scheme_trains_by_its_name() {
    let place = Place::prepared();
    for scheme in Scheme::all() {
        place.does(&format!("train tiny.toml --scheme {scheme} -o {scheme}"));
        let lines = place.metrics(&scheme.to_string());
        for line in of_kind(&lines, "train") {
            assert!(line["loss"].as_f64().is_some_and(f64::is_finite), "{scheme}: {line}");
        }
        assert_eq!(lines.last().unwrap()["step"], 3, "{scheme}");
    }
}

#[test]
fn every_cpu_backend_that_is_compiled_in_trains() {
    let place = Place::prepared();
    for backend in BackendName::ALL.iter().filter(|backend| backend.is_cpu()) {
        if backend.is_compiled_in() {
            place.does(&format!("train tiny.toml --backend {backend} -o {backend}"));
            let run: Value = serde_json::from_str(&place.read(&format!("{backend}/run.json"))).unwrap();
            assert_eq!(run["backend"], backend.name());
        } else {
            println!("skipped: {backend} is not built in");
        }
    }
}

#[test]
fn what_config_show_prints_is_a_recipe_that_train_takes() {
    let place = Place::prepared();
    place.write("shown.toml", place.does("config show"));
    place.does(
        "train shown.toml --data data --set train.steps=1 --set train.warmup=0 --set train.batch=1 \
         --set data.seq_len=16 --set eval.tokens=16 -o run",
    );
    place.write(
        "tiny-shown.toml",
        place.does("config show tiny.toml --scheme sandwich_gpas"),
    );
    let again = place.does("config show tiny-shown.toml");
    assert_eq!(place.read("tiny-shown.toml"), again);
    let shown: Value = serde_json::from_str(&place.does("config show tiny.toml --json")).unwrap();
    assert_eq!(shown["recipe"]["train"]["steps"], 3);
}

#[test]
fn what_config_keys_prints_is_the_default_recipe_explained() {
    let place = Place::prepared();
    let keys = place.does("config keys");
    place.write("keys.toml", &keys);
    assert_eq!(place.does("config show keys.toml"), place.does("config show"));
    let list: Value = serde_json::from_str(&place.does("config keys --json")).unwrap();
    let warmup = list.as_array().unwrap().iter().find(|key| key["key"] == "train.warmup");
    let expected = serde_json::json!({
        "key": "train.warmup",
        "doc": "Steps from rate 0 to the highest.",
        "allowed": "a whole number of steps or a fraction from 0 to below 1",
        "default": "a tenth of `train.steps`",
        "may_change": false,
    });
    assert_eq!(warmup, Some(&expected));
}

#[test]
fn a_run_keeps_a_recipe_that_trains_it_again() {
    let place = Place::prepared();
    place.does("train tiny.toml --scheme post_pre_gpas --set train.lr=5e-3 -o first");
    place.does("train first/recipe.toml -o second");
    assert_eq!(place.timeless_metrics("first"), place.timeless_metrics("second"));
    assert_eq!(place.read("first/recipe.toml"), place.read("second/recipe.toml"));
}

#[test]
fn prepared_data_is_inspected_and_verified() {
    let place = Place::prepared();
    assert!(place.does("data verify data").contains("are as they were prepared"));
    let inspection: Value = serde_json::from_str(&place.does("data inspect data --json --samples 1")).unwrap();
    assert!(inspection.is_object());
    place.does("data inspect data");
}

#[test]
fn special_tokens_in_documents_are_warned_of_or_taken() {
    let place = Place::prepared();
    let text = format!("{{\"text\": \"<|endoftext|>fox\"}}\n{}", place.read("text.jsonl"));
    place.write("chat.jsonl", text);
    let prepare = |options: &str| {
        let output = place.run(&format!(
            "data prepare chat.jsonl --tokenizer tokenizer.json --validation text.jsonl {options}"
        ));
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let warning = "warning: the texts spell out special tokens, 1 in all, the first `<|endoftext|>`; they were taken as text, \
                   letter by letter; `--special-tokens` takes them as the tokens they are\n";
    assert_eq!(prepare("-o as_text"), warning);
    assert_eq!(prepare("-o as_tokens --special-tokens"), "");
    for (directory, is_taken) in [("as_text", false), ("as_tokens", true)] {
        let shown = place.does(&format!("data inspect {directory} --samples 2"));
        assert_eq!(
            shown.contains("special tokens that the texts spell out are tokens"),
            is_taken
        );
        assert_eq!(shown.matches("  its ids: [").count(), 1, "{shown}");
        assert_eq!(shown.contains("  its ids: [0, "), is_taken, "{shown}");
    }
}

#[test]
fn one_text_gives_one_tokenizer() {
    let place = Place::prepared();
    place.does("tokenizer train text.jsonl --vocab 300 -o again.json");
    assert_eq!(place.read("tokenizer.json"), place.read("again.json"));
}

/// Every figure with its limit; the CPU's backends do all of it but what ndarray has no bfloat16 for.
#[test]
fn a_reader_of_errors_who_has_gone_ends_nothing() {
    let place = Place::prepared();
    for (line, code) in [
        ("train --set x=1", 1),
        (
            "train tiny.toml --set train.steps=40 --set train.warmup=0 --set train.lr=1e38 --set train.max_bad_steps=5 -o run",
            1,
        ),
    ] {
        let mut command = place.command(line);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{line}");
    }
    assert!(place.path("run/report.html").is_file());
}

#[test]
fn bench_prints_the_keys_of_its_peers() {
    let place = Place::new();
    let line = place.does("bench --preset nano --batch 1 --seq 8 --steps 1 --warmup 0 --vocab 64 --json");
    let line: Value = serde_json::from_str(&line).unwrap();
    let mut keys = keys(&line);
    keys.sort_unstable();
    // The peer's, and how the step compares with bare matrix products.
    let expected = [
        "batch",
        "dtype",
        "fastest_step_s",
        "first_step_s",
        "flops_per_s",
        "matmul_flops_per_s",
        "matmul_share",
        "peak_bytes",
        "peer",
        "preset",
        "scheme",
        "seq",
        "step_s",
        "tokens_per_s",
        "vocab",
    ];
    assert_eq!(keys, expected);
    let words = "bench --preset nano --batch 1 --seq 8 --steps 1 --warmup 0 --vocab 64 --json";
    let line = place.does(&format!("{words} --device flex --precision bf16"));
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["peer"], &line["dtype"]), (&"gpas-flex".into(), &"mixed".into()));
    let line = place.does("bench --preset nano --batch 1 --seq 8 --steps 3 --warmup 0 --vocab 64 --json --vs pre");
    let line: Value = serde_json::from_str(&line).unwrap();
    let [low, ratio, high] = ["low", "ratio", "high"].map(|key| line["versus"][key].as_f64().unwrap());
    assert!(0.0 < low && low <= ratio && ratio <= high, "{line}");
    assert_eq!(line["versus"]["scheme"], "pre");
    let line = place.does("bench --preset 130m --batch 64 --precision bf16 --counts --json --device flex");
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["batch"], &line["launches"]), (&64.into(), &Value::Null));
    let bytes = |path: &str, part: &str| line[path][part].as_u64().unwrap();
    for part in ["embedding", "forward", "backward", "head", "optimizer"] {
        assert!(
            bytes("fused", part) > 0 && bytes("fused", part) <= bytes("separate", part),
            "{line}"
        );
    }
    if cfg!(feature = "profile") {
        println!("skipped: the profiler is built in, so `--profile` is not refused");
    } else {
        place.refuses(
            "bench --preset nano --batch 1 --seq 8 --steps 1 --warmup 0 --vocab 64 --profile",
            "this program was built without the profiler",
            "build with `--features profile`, on Unix",
        );
    }
}

/// What a step is predicted to hold is what a process grows by, less what the fused operations of a processor save.
#[test]
fn the_peak_of_memory_is_near_the_one_that_is_predicted() {
    let place = Place::new();
    let number = |words: &str, key: &str| {
        let line: Value = serde_json::from_str(&place.does(words)).unwrap();
        line[key].as_f64().unwrap()
    };
    let steps = "--steps 1 --warmup 1 --json --device flex";
    let work = "bench --preset 9m --batch 4 --seq 256";
    let program = number(
        &format!("bench --preset nano --batch 1 --seq 8 --vocab 64 {steps}"),
        "peak_bytes",
    );
    let peak = number(&format!("{work} {steps}"), "peak_bytes") - program;
    let predicted = number(&format!("{work} --counts --json --device flex"), "memory");
    let ratio = peak / predicted;
    assert!((0.6..1.2).contains(&ratio), "{peak} of {predicted}");
}

#[test]
fn malformed_lines_of_a_big_corpus_are_counted_reported_and_skipped() {
    let place = Place::prepared();
    let bad = "{\"text\": \n{\"nope\": 1}\n{\"text\": 5}\n";
    place.write("mixed.jsonl", corpus() + bad);
    let output = place.run("data prepare mixed.jsonl --tokenizer tokenizer.json --validation 0.2 -o mixed");
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    for line in [
        "warning: 3 bad records were skipped",
        "  mixed.jsonl:121: malformed json",
        "  mixed.jsonl:122: field `text` is missing",
        "  mixed.jsonl:123: field `text` is not a string",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    let manifest =
        |data: &str| -> Value { serde_json::from_str(&place.read(&format!("{data}/manifest.json"))).unwrap() };
    assert_eq!(manifest("mixed")["bad_records"], 3);
    assert_eq!(
        manifest("mixed")["train"]["tokens"],
        manifest("data")["train"]["tokens"]
    );
    place.refuses(
        "data prepare mixed.jsonl --strict --tokenizer tokenizer.json --validation 0.2 -o strict",
        "mixed.jsonl:121: malformed json…",
        "without --strict, bad records are counted, reported and skipped",
    );
}
