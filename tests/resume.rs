//! Interrupted, damaged and diverging runs: whatever happens to a run, it goes on as if nothing had, or says why it cannot.

mod place;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gpas_model::compare;
use gpas_model::weights::{HostTensor, NamedTensors, read_safetensors};
use place::{Place, of_kind};
use portable_pty::{CommandBuilder, PtySize, native_pty_system};
use serde_json::Value;
use xtask::kill::Campaign;

/// A run of some seconds, so that there is time to disturb it; every eighth step is checked and saved.
const LONG: &str = "--set train.steps=120 --set train.batch=4 --set data.seq_len=32 --set eval.every=8 --set checkpoint.every=8 \
                    --set model.hidden=64 --set model.intermediate=160";

fn gpas() -> Command {
    Command::new(env!("CARGO_BIN_EXE_gpas"))
}

/// Starts a run and waits until it has made `step` steps.
fn started(place: &Place, arguments: &str, run: &str, step: usize) -> Child {
    let child = gpas()
        .args(arguments.split_whitespace())
        .args(["--plain"])
        .current_dir(place.root())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let begin = Instant::now();
    let lines = || fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap_or_default();
    let mut child = child;
    while lines().matches(r#""kind":"train""#).count() < step {
        assert!(
            child.try_wait().expect("a process").is_none(),
            "{run} ended before step {step}"
        );
        assert!(begin.elapsed() < Duration::from_secs(60), "no step {step} of {run}");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(sent.expect("kill").success());
}

fn weights(place: &Place, run: &str, step: u64) -> Vec<u8> {
    let path = place
        .path(run)
        .join(format!("checkpoints/step-{step}/model.safetensors"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Same lines, same weights, to the last bit.
fn assert_equal_runs(place: &Place, one: &str, other: &str, step: u64) {
    let (expected, found) = (place.timeless_metrics(one), place.timeless_metrics(other));
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
    assert!(
        weights(place, one, step) == weights(place, other, step),
        "the weights differ"
    );
}

/// Runs a command that fails with this code; its standard error.
fn fails(place: &Place, arguments: &str, code: i32) -> String {
    let output = place.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "gpas {arguments}\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn three_kills_change_nothing() {
    let place = Place::prepared();
    let campaign = Campaign {
        gpas: env!("CARGO_BIN_EXE_gpas").into(),
        place: place.root(),
        options: format!("train tiny.toml {LONG} --set train.batch=24 --set checkpoint.every=2 --set train.steps=60")
            .split_whitespace()
            .skip(1)
            .map(Into::into)
            .collect(),
        kills: 3,
        seed: 5,
    };
    let report = campaign.run().unwrap();
    println!("{report}");
    assert_eq!((report.landings.len(), report.steps), (3, 60));
}

#[test]
#[cfg(unix)]
fn signals_finish_the_step_and_the_run_goes_on_as_if_undisturbed() {
    let place = Place::prepared();
    place.does(&format!("train tiny.toml {LONG} -o calm"));
    for (index, (name, code)) in [("TERM", 143), ("INT", 130), ("HUP", 143)].into_iter().enumerate() {
        let run = format!("stopped-{name}");
        let mut child = started(
            &place,
            &format!("train tiny.toml {LONG} -o {run}"),
            &run,
            11 + 9 * index,
        );
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
        let lines = place.metrics(&run);
        let last = of_kind(&lines, "train").last().unwrap()["step"].as_u64().unwrap();
        assert!(last < 120, "{name} came after the end");
        assert!(
            place
                .path(&run)
                .join(format!("checkpoints/step-{last}/manifest.json"))
                .is_file()
        );
        let said = place.does(&format!("train {run} --resume"));
        assert!(said.contains(&format!("going on after step {last}")), "{said}");
        assert_equal_runs(&place, "calm", &run, 120);
    }
    // A run that is complete stays as it is.
    place.does("train stopped-INT --resume");
    assert_equal_runs(&place, "calm", "stopped-INT", 120);
}

#[test]
#[cfg(unix)]
fn a_second_signal_leaves_at_once() {
    let place = Place::prepared();
    let slow =
        format!("train tiny.toml {LONG} --set train.batch=64 --set train.micro_batch=1 --set eval.tokens=32 -o slow");
    let mut child = started(&place, &slow, "slow", 1);
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(30));
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        !place.path("slow/checkpoints/step-2").exists(),
        "it did not wait for the step"
    );
}

/// The dashboard's thread waits for events of a terminal that will never have any again; the run does not wait for it.
#[test]
fn a_run_ends_though_its_terminal_has_gone() {
    let place = Place::prepared();
    let terminal = native_pty_system().openpty(PtySize::default()).unwrap();
    let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_gpas"));
    command.args(["train", "tiny.toml", "--set", "train.steps=1000000", "-o", "run"]);
    command.cwd(place.root());
    command.env("TERM", "xterm-256color");
    let mut child = terminal.slave.spawn_command(command).unwrap();
    drop(terminal.slave);
    let mut reader = terminal.master.try_clone_reader().unwrap();
    // What the dashboard draws is read, so that it is never held up, until the run has made some steps.
    let metrics = place.path("run/metrics.jsonl");
    let has_begun = || fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 5);
    let mut drawn = [0; 4096];
    while !has_begun() {
        assert!(reader.read(&mut drawn).unwrap() > 0, "the run has ended");
    }
    drop(reader);
    drop(terminal.master);

    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > Duration::from_secs(30) {
            child.kill().unwrap();
            panic!("the run has not ended");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.exit_code(), 143, "{status:?}");
    let steps = place.read("run/metrics.jsonl").matches(r#""kind":"train""#).count();
    assert!(place.path(&format!("run/checkpoints/step-{steps}")).is_dir(), "{steps}");
}

#[test]
fn a_run_goes_on_with_another_micro_batch_and_records_it() {
    let place = Place::prepared();
    place.does("train tiny.toml --set train.steps=8 --set train.batch=4 --set checkpoint.every=4 -o whole");
    place.does("train tiny.toml --set train.steps=8 --set train.batch=4 --set checkpoint.every=4 -o cut");
    fs::remove_dir_all(place.path("cut/checkpoints/step-8")).unwrap();
    place.does("train cut --resume --set train.micro_batch=3 --set checkpoint.keep=9 --set data.path=data");
    let (whole, cut) = (place.metrics("whole"), place.metrics("cut"));
    assert_eq!(whole.len(), cut.len());
    for (whole, cut) in of_kind(&whole, "train").iter().zip(of_kind(&cut, "train")) {
        let (whole, cut) = (whole["loss"].as_f64().unwrap(), cut["loss"].as_f64().unwrap());
        assert!((whole / cut - 1.0).abs() < 1e-6, "{whole} and {cut}");
    }
    let info: Value = serde_json::from_str(&place.read("cut/run.json")).unwrap();
    assert_eq!(info["resumes"][0]["step"], 4);
    assert_eq!(
        info["resumes"][0]["changes"]["train.micro_batch"],
        serde_json::json!([4, 3])
    );
    assert!(place.read("cut/recipe.toml").contains("micro_batch = 3"));
}

#[test]
fn what_would_change_the_mathematics_is_refused() {
    let place = Place::prepared();
    place.does("train tiny.toml -o run");
    let may_change =
        "it may change when it evaluates, what it keeps, `train.micro_batch`, `train.recompute` and the backend";
    let from = |change: &str| {
        format!(
            "{may_change}; `gpas train --from run --set train.steps=6 --set {change} -o NEW` begins a new run with its weights and moments"
        )
    };
    place.refuses(
        "train run --resume --set train.lr=0.5",
        "a run cannot go on with `train.lr` = 0.5: it was begun with 0.001",
        &from("train.lr=0.5"),
    );
    place.refuses(
        "train run --resume --scheme pre",
        "a run cannot go on with `model.scheme` = \"pre\": it was begun with \"pre_gpas\"",
        &format!("{may_change}; begin a new run for the rest"),
    );
    // Nor by an edit of the file.
    let edited = place.read("run/recipe.toml").replace("seed = 42", "seed = 43");
    place.write("run/recipe.toml", edited);
    place.refuses(
        "train run --resume",
        "a run cannot go on with `train.seed` = 43: it was begun with 42",
        &from("train.seed=43"),
    );
    let edited = place.read("run/recipe.toml").replace("seed = 43", "seed = 42");
    place.write("run/recipe.toml", edited);
    place.does("data prepare text.jsonl --tokenizer tokenizer.json --validation 0.3 -o other");
    place.refuses(
        "train run --resume --data other",
        "the data in {place}/other is not what the run was trained on",
        "…",
    );
    place.refuses(
        "train data --resume",
        "data is not a run directory: it has no recipe.toml",
        "a run directory is what `gpas train -o DIR` makes",
    );
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same() {
    let place = Place::prepared();
    place.does(&format!("train tiny.toml {LONG} --set train.steps=24 -o calm"));
    place.does(&format!("train tiny.toml {LONG} --set train.steps=24 -o hurt"));
    let model = place.path("hurt/checkpoints/step-24/model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&model, &bytes).unwrap();
    let output = place.run("train hurt --resume");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains(
            "step-24 is damaged: model.safetensors has another SHA-256 than when it was written; passed over"
        ),
        "{said}"
    );
    assert_equal_runs(&place, "calm", "hurt", 24);
    let info: Value = serde_json::from_str(&place.read("hurt/run.json")).unwrap();
    assert_eq!(info["resumes"][0]["step"], 16);
    assert_eq!(info["resumes"][0]["passed_over"].as_array().unwrap().len(), 1);
    assert!(place.path("hurt/checkpoints/damaged-step-24").is_dir());

    for entry in fs::read_dir(place.path("hurt/checkpoints")).unwrap() {
        fs::write(entry.unwrap().path().join("manifest.json"), "").unwrap();
    }
    place.refuses(
        "train hurt --resume",
        "no checkpoint in hurt/checkpoints is valid: …step-24 is damaged: manifest.json is no manifest: …",
        "nothing was changed; put one back from a copy",
    );
}

#[test]
#[cfg(unix)]
fn a_full_disk_stops_the_run_and_harms_nothing() {
    let place = Place::prepared();
    let short = format!("{LONG} --set train.steps=24");
    let small = "--set train.steps=1000 --set checkpoint.every=100";
    // No file may grow over the limit, in blocks of 512 bytes: one that no checkpoint fits under, and one that the metrics reach first.
    for (options, limit, expected, steps) in [
        (short.as_str(), 64, "cannot write the checkpoint ", 24),
        (small, 400, "full/metrics.jsonl: ", 1000),
    ] {
        place.does(&format!("train tiny.toml {options} -o calm"));
        let line = format!(
            "trap '' XFSZ; ulimit -f {limit}; exec {} train tiny.toml {options} --plain -o full",
            env!("CARGO_BIN_EXE_gpas")
        );
        let limited = Command::new("sh")
            .args(["-c", &line])
            .current_dir(place.root())
            .output();
        let output = limited.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(&format!("error: {expected}")) && said.contains("File too large"),
            "{said}"
        );
        assert!(said.contains("hint: make room"), "{said}");
        place.does("train full --resume");
        assert_equal_runs(&place, "calm", "full", steps);
        fs::remove_dir_all(place.path("calm")).unwrap();
        fs::remove_dir_all(place.path("full")).unwrap();
    }
}

#[test]
#[cfg(unix)]
fn a_run_in_use_is_refused_until_its_process_ends() {
    let place = Place::prepared();
    let mut child = started(
        &place,
        &format!("train tiny.toml {LONG} --set train.steps=100000 -o busy"),
        "busy",
        2,
    );
    let said = fails(&place, "train busy --resume", 1);
    assert!(
        said.starts_with("error: busy is in use by another process\nhint: "),
        "{said}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let done = of_kind(&place.metrics("busy"), "train").len();
    let mut child = started(&place, "train busy --resume", "busy", done + 20);
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn steps_that_are_not_finite_are_skipped_and_then_stop_the_run() {
    let place = Place::prepared();
    let said = fails(
        &place,
        "train tiny.toml --set train.steps=40 --set train.warmup=0 --set train.lr=1e38 --set train.max_bad_steps=5 --plain -o bad",
        1,
    );
    let lines = place.metrics("bad");
    let train = of_kind(&lines, "train");
    let skipped: Vec<u64> = train
        .iter()
        .filter(|line| line["skipped"] == true)
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    let first = skipped[0];
    assert_eq!(skipped, (first..first + 5).collect::<Vec<_>>());
    assert!(
        train
            .iter()
            .filter(|line| line["skipped"] == true)
            .all(|line| line["loss"].is_null())
    );
    let last = first + 4;
    assert!(
        said.contains(&format!(
            "error: 5 steps in a row up to step {last} were not finite, beginning with the "
        )),
        "{said}"
    );
    assert!(
        said.contains(&format!("at step {first}; the run is saved and stops")),
        "{said}"
    );
    assert!(
        place
            .path(&format!("bad/checkpoints/step-{last}/manifest.json"))
            .is_file()
    );
    assert!(!of_kind(&lines, "notice").is_empty());
    // The updates before it are kept, and it goes on where it stopped: nowhere, unless it is given more room.
    fails(&place, "train bad --resume", 1);
    fails(&place, "train bad --resume --set train.max_bad_steps=7", 1);
    assert_eq!(of_kind(&place.metrics("bad"), "train").len() as u64, last + 2);
}

#[test]
fn a_gate_past_the_zero_of_the_scale_is_reported_once() {
    let place = Place::prepared();
    place.does("train tiny.toml --set model.gate.init=1.5 --set train.steps=4 --set checkpoint.every=2 -o past");
    fs::remove_dir_all(place.path("past/checkpoints/step-4")).unwrap();
    place.does("train past --resume");
    let lines = place.metrics("past");
    let notices: Vec<_> = of_kind(&lines, "notice");
    assert_eq!(notices.len(), 2, "one for each layer: {notices:?}");
    let said = notices[1]["message"].as_str().unwrap();
    assert!(
        said.starts_with("the gate 1.5000 of layer 1 is past the zero of 1 − act(α)"),
        "{said}"
    );
}

/// The update does not depend on how the batch is cut, nor on whether the layers are computed again.
#[test]
fn every_cut_of_a_batch_gives_the_same_run() {
    let place = Place::prepared();
    for scheme in ["pre_gpas", "sandwich_gpas"] {
        let run = |name: &str, set: &str| {
            let run = format!("{scheme}-{name}");
            place.does(&format!(
                "train tiny.toml --scheme {scheme} --set train.batch=8 --set train.steps=5 --set train.warmup=0 {set} -o {run}"
            ));
            let losses: Vec<f64> = of_kind(&place.metrics(&run), "train")
                .iter()
                .map(|line| line["loss"].as_f64().unwrap())
                .collect();
            (losses, read_safetensors(&weights(&place, &run, 5), "").unwrap())
        };
        let (losses, expected) = run("whole", "--set train.micro_batch=8");
        for (name, set) in [
            ("one", "--set train.micro_batch=1"),
            ("two", "--set train.micro_batch=2"),
            ("three", "--set train.micro_batch=3"),
            ("four", "--set train.micro_batch=4"),
            ("again", "--set train.recompute=true"),
        ] {
            let (found_losses, found) = run(name, set);
            let loss = largest_ratio(&losses, &found_losses);
            let (weight, key) = farthest(&expected, &found);
            println!("{scheme:14} {name:6} loss {loss:.1e} weights {weight:.1e} ({key})");
            assert!(
                loss <= 1e-6 && weight <= 1e-5,
                "{scheme}, {name}: loss {loss:.1e}, weights {weight:.1e} ({key})"
            );
            // What is not a number is farther away than anything else.
            for key in expected.keys() {
                let mut broken = found.clone();
                broken.get_mut(key).unwrap().values[0] = f32::NAN;
                let (weight, farthest) = farthest(&expected, &broken);
                assert!(weight.is_nan() && farthest == key, "{weight} ({farthest})");
            }
            let mut broken = found_losses;
            broken[3] = f64::NAN;
            assert!(largest_ratio(&losses, &broken).is_nan());
        }
    }
}

/// By how much the ratio of two losses of one step differs from 1, at the step where it does most.
fn largest_ratio(expected: &[f64], found: &[f64]) -> f64 {
    assert_eq!(expected.len(), found.len());
    compare::largest(expected.iter().zip(found).map(|(a, b)| (a / b - 1.0).abs()))
}

/// The tensor with the largest difference, as a share of its largest expected number.
fn farthest<'a>(expected: &'a NamedTensors, found: &NamedTensors) -> (f64, &'a str) {
    let share = |(key, tensor): (&'a String, &HostTensor)| {
        let difference = compare::largest_difference(&found[key].values, &tensor.values);
        let largest = compare::largest_magnitude(&tensor.values).max(f64::from(f32::MIN_POSITIVE));
        (difference / largest, key.as_str())
    };
    // In the order of `total_cmp` a NaN may come first or last, by its sign; here it is to come last.
    let rank = |share: f64| if share.is_nan() { f64::INFINITY } else { share };
    let shares = expected.iter().map(share);
    shares.max_by(|a, b| rank(a.0).total_cmp(&rank(b.0))).expect("a tensor")
}

#[test]
fn bfloat16_trains_where_the_backend_has_it() {
    let place = Place::prepared();
    let last = |run: &str| {
        of_kind(&place.metrics(run), "eval").last().unwrap()["loss"]
            .as_f64()
            .unwrap()
    };
    place.does("train tiny.toml --set train.steps=20 -o f32");
    for precision in ["bf16", "bf16_pure"] {
        place.does(&format!(
            "train tiny.toml --set train.steps=20 --set train.precision={precision} -o {precision}"
        ));
        let (exact, rounded) = (last("f32"), last(precision));
        assert!(
            (rounded / exact - 1.0).abs() < 0.02 && rounded != exact,
            "{precision}: {rounded}, f32: {exact}"
        );
        place.refuses(
            &format!("train tiny.toml --backend ndarray --set train.precision={precision} -o never"),
            &format!("backend `ndarray` cannot compute in train.precision = {precision}"),
            "it computes in f32: `--set train.precision=f32`",
        );
    }
}

#[test]
fn tensorboard_gets_every_number_once() {
    let place = Place::prepared();
    let events = |run: &str| -> Vec<u64> {
        let folder = place.path(run).join("tensorboard");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        records(&fs::read(folder.join("events.out.tfevents.0.gpas")).unwrap())
    };
    place.does("train tiny.toml --set train.steps=4 --set checkpoint.every=2 --tensorboard -o seen");
    // The version, four steps, and the evaluations and layers of each step.
    let lines = place.metrics("seen").len();
    assert_eq!(events("seen").len(), lines + 1);
    fs::remove_dir_all(place.path("seen/checkpoints/step-4")).unwrap();
    place.does("train seen --resume --tensorboard");
    assert_eq!((events("seen").len(), place.metrics("seen").len()), (lines + 1, lines));
}

/// Lengths of the records of an event file.
fn records(bytes: &[u8]) -> Vec<u64> {
    let mut lengths = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        lengths.push(length);
        at += 16 + length as usize;
    }
    assert_eq!(at, bytes.len());
    lengths
}

/// A run that was killed before its first checkpoint was complete begins again; one that has lost its checkpoints does not.
#[test]
fn a_run_without_a_checkpoint_begins_again_only_if_it_made_no_step() {
    let place = Place::prepared();
    place.does("train tiny.toml -o calm");
    place.does("train tiny.toml -o early");
    let folder = place.path("early/checkpoints");
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir_all(folder.join(".step-0")).unwrap();
    fs::write(folder.join(".step-0/model.safetensors"), "half of").unwrap();
    place.refuses(
        "train early --resume",
        "early/checkpoints has no checkpoint",
        "a run writes one every `checkpoint.every` steps and at its end",
    );
    let metrics = place.read("early/metrics.jsonl");
    place.write("early/metrics.jsonl", metrics.lines().next().unwrap());
    place.does("train early --resume");
    assert_equal_runs(&place, "calm", "early", 3);
    assert!(!Path::new(&folder).join(".step-0").exists());
}
