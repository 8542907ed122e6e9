//! Runs that begin with a checkpoint of another run: extended, taken back, with another recipe; and what is kept for that.

mod place;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use place::{Place, of_kind};
use serde_json::{Value, json};

/// A run whose every fourth step is evaluated and saved.
const EVERY_FOURTH: &str =
    "--set train.batch=4 --set eval.every=4 --set checkpoint.every=4 --set checkpoint.keep=9 --set train.lr=1e-2";

/// The lines of a run after a step, without what is measured with a clock.
fn lines_after(place: &Place, run: &str, step: u64) -> Vec<Value> {
    let lines = place.timeless_metrics(run).into_iter();
    lines
        .filter(|line| line["step"].as_u64().expect("a step") > step)
        .collect()
}

/// The same lines after a step, and at the end the same weights and moments, to the last bit.
fn assert_same_after(place: &Place, expected: &str, found: &str, step: u64, end: u64) {
    let (wanted, lines) = (lines_after(place, expected, step), lines_after(place, found, step));
    let steps = of_kind(&lines, "train");
    assert!(steps.last().is_some_and(|line| line["step"] == end));
    assert!(steps.iter().all(|line| line["loss"].is_f64()), "a loss is not finite");
    assert_eq!(lines, wanted);
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = |run: &str| fs::read(place.path(run).join(format!("checkpoints/step-{end}/{file}"))).expect(run);
        assert!(bytes(found) == bytes(expected), "{file} differs");
    }
}

fn files_of(place: &Place, run: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = place.files().into_iter();
    files
        .filter(|(path, _)| path.components().any(|part| part.as_os_str() == run))
        .collect()
}

/// The steps of the checkpoints of a run.
fn checkpoints(place: &Place, run: &str) -> Vec<u64> {
    let entries = fs::read_dir(place.path(run).join("checkpoints")).expect("checkpoints");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut steps: Vec<u64> = names
        .map(|name| name["step-".len()..].parse().expect("a step"))
        .collect();
    steps.sort_unstable();
    steps
}

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or(f64::NAN)
}

/// The evaluated step with the lowest loss.
fn best_step(place: &Place, run: &str) -> u64 {
    let lines = place.metrics(run);
    let best = of_kind(&lines, "eval")
        .into_iter()
        .filter(|line| number(line, "loss").is_finite())
        .min_by(|one, other| number(one, "loss").total_cmp(&number(other, "loss")));
    best.expect("an evaluation")["step"].as_u64().expect("a step")
}

fn info(place: &Place, run: &str) -> Value {
    serde_json::from_str(&place.read(&format!("{run}/run.json"))).expect("run.json")
}

#[test]
fn an_extension_with_the_schedule_kept_is_the_undisturbed_run() {
    let place = Place::prepared();
    for (name, options, cut, from, end) in [
        (
            "constant",
            "--set train.schedule=constant --set train.warmup=3",
            12,
            "short",
            24,
        ),
        // It decays in its last fifth: from step 32 of 40, and of 20 from step 16.
        (
            "wsd",
            "--scheme sandwich_gpas --set train.schedule=wsd --set train.warmup=3",
            20,
            "short@16",
            40,
        ),
    ] {
        let place = &place;
        let train = |steps: u64, out: &str| {
            place.does(&format!(
                "train tiny.toml {EVERY_FOURTH} {options} --set train.steps={steps} -o {name}-{out}"
            ))
        };
        train(end, "whole");
        train(cut, "short");
        let before = files_of(place, &format!("{name}-short"));
        let said = place.does(&format!(
            "train --from {name}-{from} --keep-schedule --set train.steps={end} -o {name}-longer"
        ));
        assert!(
            before == files_of(place, &format!("{name}-short")),
            "the other run was written to"
        );
        let step = if name == "wsd" { 16 } else { cut };
        assert!(
            said.contains(&format!("from {name}-short@{step}: train.steps {cut} → {end}\n")),
            "{said}"
        );
        assert_same_after(place, &format!("{name}-whole"), &format!("{name}-longer"), step, end);
    }
}

/// Cosine: a run that has come to step 8 of 24 goes on as though nothing had happened, in a directory of its own, and again from there.
/// The branches of `prores` grow with the steps of the whole run.
#[test]
fn a_run_of_a_falling_rate_and_growing_branches_is_continued_exactly() {
    let place = Place::prepared();
    place.does(&format!(
        "train tiny.toml --scheme prores_gpas {EVERY_FOURTH} --set train.steps=24 --set model.residual_warmup=9 -o whole"
    ));
    place.does("train --from whole@8 --keep-schedule -o again");
    assert_same_after(&place, "whole", "again", 8, 24);
    place.does("train --from again@12 --keep-schedule -o third");
    assert_same_after(&place, "whole", "third", 12, 24);
    // What was evaluated before the first step of the new run is what the other run found there.
    let at_begin = |run: &str, step: u64| {
        let lines = place.timeless_metrics(run);
        let found = of_kind(&lines, "eval").into_iter().find(|line| line["step"] == step);
        found.cloned().expect("an evaluation")
    };
    assert_eq!(at_begin("again", 8), at_begin("whole", 8));
    assert_eq!(place.metrics("again")[0]["kind"], "eval");
    // A step of another seed is another step.
    place.does("train --from whole@8 --keep-schedule --set train.seed=7 -o other");
    assert_ne!(lines_after(&place, "other", 8), lines_after(&place, "whole", 8));
}

#[test]
fn a_new_run_has_a_schedule_of_its_own_over_the_steps_that_are_left() {
    let place = Place::prepared();
    place.does(&format!(
        "train tiny.toml {EVERY_FOURTH} --set train.steps=12 --set train.warmup=3 -o short"
    ));
    place.does("train --from short --set train.steps=28 --set train.lr=2e-2 -o longer");
    let lines = place.metrics("longer");
    let rates: Vec<(u64, f64)> = of_kind(&lines, "train")
        .into_iter()
        .map(|line| (line["step"].as_u64().unwrap(), number(line, "lr")))
        .collect();
    assert_eq!(rates.len(), 16);
    for (at, (step, rate)) in rates.into_iter().enumerate() {
        assert_eq!(step, 13 + at as u64);
        // A quarter of the other run was warm-up, and so is a quarter of the 16 steps.
        let factor = match at {
            0..4 => at as f64 / 4.0,
            _ => 0.1 + 0.9 * 0.5 * (1.0 + (std::f64::consts::PI * (at as f64 - 4.0) / 12.0).cos()),
        };
        assert!((rate - 2e-2 * factor).abs() < 1e-12, "{rate} at {step}");
    }
    let recipe = place.read("longer/recipe.toml");
    for line in ["steps = 28", "warmup = 4", "schedule_from = 12", "lr = 0.02"] {
        assert!(recipe.lines().any(|found| found == line), "{line} in\n{recipe}");
    }
    // Tokens are counted on, and moments and bias corrections with them: a fresh Adam would make larger steps.
    let tokens = number(of_kind(&lines, "train")[0], "tokens");
    assert_eq!(
        tokens,
        13.0 * number(of_kind(&place.metrics("short"), "train")[0], "tokens")
    );
    // It goes on exactly, as any run.
    fs::remove_dir_all(place.path("longer/checkpoints/step-28")).unwrap();
    let before = place.timeless_metrics("longer");
    place.does("train longer --resume");
    assert_eq!(place.timeless_metrics("longer"), before);
    place.refuses(
        "train longer --resume --set train.schedule_from=0",
        "a run cannot go on with `train.schedule_from` = 0: it was begun with 12",
        "…`gpas train --from longer --set train.steps=56 --set train.schedule_from=0 -o NEW` begins a new run with its weights and moments",
    );
    place.refuses(
        "train longer/recipe.toml -o fresh",
        "`train.schedule_from` = 12 lies after step 0, at which the run begins",
        "`--set train.schedule_from=0`",
    );
    place.does("train longer/recipe.toml --set train.schedule_from=0 -o fresh");
}

#[test]
fn the_parent_is_recorded_and_shown() {
    let place = Place::prepared();
    place.does(&format!("train tiny.toml {EVERY_FOURTH} --set train.steps=8 -o first"));
    place.does("train --from first@4 --set train.lr=1e-3 -o second");
    let manifest: Value = serde_json::from_str(&place.read("first/checkpoints/step-4/manifest.json")).unwrap();
    let parent = &info(&place, "second")["parent"];
    let expected = json!({
        "run": "first",
        "path": place.path("first"),
        "step": 4,
        "commit": info(&place, "first")["commit"],
        "weights_sha256": manifest["model.safetensors"]["sha256"],
        "data_sha256": info(&place, "first")["data_sha256"],
        "changes": {"train.lr": [0.01, 0.001], "train.schedule_from": [0, 4]},
    });
    assert_eq!(parent, &expected);
    assert_eq!(info(&place, "first").get("parent"), None);
    let page = place.read("second/report.html");
    for shown in [
        "begun with",
        "after step 4",
        manifest["model.safetensors"]["sha256"].as_str().unwrap(),
        "0.01 → 0.001",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
    // A run that goes on says it again.
    let said = place.does("train second --resume --set checkpoint.keep=2");
    assert!(said.contains("from first@4: train.lr 0.01 → 0.001"), "{said}");
    // The weights are the other run's, and the first checkpoint is there from the beginning.
    let weights = |run: &str| fs::read(place.path(run).join("checkpoints/step-4/model.safetensors")).unwrap();
    assert!(weights("first") == weights("second"));
}

#[test]
fn any_change_that_leaves_the_parameters_what_they_are_is_taken() {
    let place = Place::prepared();
    place.does(&format!("train tiny.toml {EVERY_FOURTH} --set train.steps=8 -o first"));
    place.does("data prepare text.jsonl --tokenizer tokenizer.json --validation 0.3 -o other");
    for (index, changes) in [
        "--set train.optimizer=adamw --set train.weight_decay=0.1 --set train.clip=0.5",
        "--set train.batch=6 --set train.micro_batch=2 --set data.seq_len=32",
        "--set train.precision=bf16",
        "--data other --set train.seed=1 --set data.mode=padded",
        "--set train.schedule=linear --set train.warmup=0 --set eval.every=2 --set checkpoint.every=1",
        "--set train.betas=[0.8,0.9] --set model.gate.act=tanh --set model.norm_eps=1e-5",
        "--set model.gate.learnable=false",
        "--set train.tokens=640",
        "--backend ndarray",
    ]
    .into_iter()
    .enumerate()
    {
        let steps = if changes.contains("tokens") {
            ""
        } else {
            "--set train.steps=11"
        };
        place.does(&format!("train --from first {steps} {changes} -o new-{index}"));
        let lines = place.metrics(&format!("new-{index}"));
        let losses: Vec<f64> = of_kind(&lines, "train")
            .into_iter()
            .map(|line| number(line, "loss"))
            .collect();
        // Untrained, the loss is ln 300 = 5.7.
        assert!(
            losses.len() >= 2 && losses.iter().all(|loss| *loss < 5.5),
            "{changes}: {losses:?}"
        );
    }
    // Gates that were not trained have no moments; when they are, these begin at zero.
    place.does("train --from new-6 --set model.gate.learnable=true --set train.steps=14 -o gates");
    assert_eq!(of_kind(&place.metrics("gates"), "train").len(), 3);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let place = Place::prepared();
    place.does(&format!("train tiny.toml {EVERY_FOURTH} --set train.steps=8 -o run"));
    let more = "--set train.steps=16";
    let hint = "what decides the parameters is the other run's: its sizes, its vocabulary, `model.tied_head` and the parameters of its \
                scheme";
    let misfit = "the weights of run@8 do not fit the recipe: ";
    for (change, found) in [
        ("--scheme sandwich_gpas", "missing: model.layers.0.… and 1 more"),
        ("--scheme pre", "not used: model.layers.0.…, model.layers.1.…"),
        (
            "--set model.hidden=32",
            "of another shape: lm_head.weight ([300, 16], expected [300, 32]), … more",
        ),
        ("--set model.layers=1", "not used: model.layers.1.… more"),
        (
            "--set model.vocab=400",
            "of another shape: lm_head.weight ([300, 16], expected [400, 16]), model.embed_tokens.weight ([300, 16], expected [400, 16])",
        ),
    ] {
        place.refuses(
            &format!("train --from run {more} {change} -o new"),
            &format!("{misfit}{found}"),
            hint,
        );
    }
    place.does("tokenizer train text.jsonl --vocab 290 -o words.json");
    place.does("data prepare text.jsonl --tokenizer words.json --validation 0.2 -o other");
    place.refuses(
        &format!("train --from run {more} --data other -o new"),
        "the data in {place}/other was prepared with another tokenizer than the run's",
        "`--data DIR` names data that was prepared with `--tokenizer run/tokenizer.json`",
    );
    place.refuses(
        "train --from run -o new",
        "`train.steps` = 8 is reached by the checkpoint, which is after step 8",
        "`train.steps` is the total, those of the checkpoint included: `--set train.steps=16` trains as long again",
    );
    place.refuses(
        "train --from run@4 --set train.tokens=100 -o new",
        "`train.tokens` = 100 are reached by the checkpoint, which has seen 256",
        "`train.tokens` is the total, those of the checkpoint included: `--set train.tokens=512` trains as long again",
    );
    place.refuses(
        &format!("train --from run {more} -o data"),
        "data already exists",
        "name another directory with `-o`",
    );
    place.refuses(
        "train --from run@5 -o new",
        "run has no checkpoint of step 5",
        "it has run@0, run@4, run@8",
    );
    place.refuses(
        "train --from run@bset -o new",
        "run@bset is not a run directory: it has no recipe.toml",
        "a run directory is what `gpas train -o DIR` makes; `RUN@STEP` and `RUN@best` name a checkpoint of one to begin with or to ask",
    );
    let weights = place.path("run/checkpoints/step-4/model.safetensors");
    fs::write(&weights, "half of").unwrap();
    let said = String::from_utf8(place.run("train --from run@4 -o new").stderr).unwrap();
    assert!(
        said.contains("step-4 is damaged: model.safetensors has 7 bytes, not "),
        "{said}"
    );
    assert!(!place.path("new").exists());
}

/// There is one checkpoint, the first, which the directory had before anybody could see it.
#[test]
fn a_run_that_is_killed_in_its_first_steps_goes_on_exactly() {
    let place = Place::prepared();
    place.does(&format!("train tiny.toml {EVERY_FOURTH} --set train.steps=8 -o first"));
    let options = "--from first --set train.steps=400 --set checkpoint.every=100000 --set eval.every=100000";
    place.does(&format!("train {options} -o calm"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_gpas"))
        .args(format!("train {options} -o killed --plain").split_whitespace())
        .current_dir(place.root())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let begin = Instant::now();
    let lines = || fs::read_to_string(place.path("killed/metrics.jsonl")).unwrap_or_default();
    while lines().matches(r#""kind":"train""#).count() < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        assert!(begin.elapsed() < Duration::from_secs(60), "no third step");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(checkpoints(&place, "killed"), [8]);
    let said = place.does("train killed --resume");
    assert!(said.contains(", going on after step 8\n"), "{said}");
    assert_same_after(&place, "calm", "killed", 0, 400);

    // Without its first checkpoint, there is nothing to go on from: the weights were not drawn.
    fs::remove_dir_all(place.path("killed/checkpoints/step-8")).unwrap();
    fs::remove_dir_all(place.path("killed/checkpoints/step-400")).unwrap();
    fs::remove_file(place.path("killed/metrics.jsonl")).unwrap();
    place.refuses(
        "train killed --resume",
        "killed/checkpoints has no checkpoint",
        "a run writes one every `checkpoint.every` steps and at its end",
    );
}

/// A rate that grows until nothing is left of what was learned.
const DIVERGES: &str = "--set train.batch=4 --set train.steps=60 --set train.warmup=60 --set train.lr=2 --set train.clip=0 \
                        --set checkpoint.every=2 --set checkpoint.keep=2 --set eval.every=1000";

#[test]
fn a_diverged_run_is_taken_back_with_a_lower_rate() {
    let place = Place::prepared();
    place.run(&format!("train tiny.toml {DIVERGES} -o wild"));
    let lines = place.metrics("wild");
    let train = of_kind(&lines, "train");
    let loss = |step: u64| number(train[step as usize - 1], "loss");
    let last = train.len() as u64;
    assert!(
        loss(last).is_nan() || loss(last) > 6.7,
        "it did not diverge: {}",
        loss(last)
    );
    // The newest checkpoint whose weights were still of use, by the loss that the next step computed with them.
    let largest = number(of_kind(&lines, "eval")[0], "loss").min(300f64.ln()) + 1.0;
    let sound = (0..last)
        .filter(|step| step.is_multiple_of(2) && loss(step + 1) <= largest)
        .max();
    let sound = sound.expect("it began well");
    let kept = checkpoints(&place, "wild");
    println!(
        "{last} steps, the last loss {}; kept are {kept:?}, sound is {sound}",
        loss(last)
    );
    assert!(kept.contains(&sound), "{kept:?} has no {sound}");
    assert!(sound < kept[kept.len() - 2], "the newest two are useless");

    place.does(&format!(
        "train --from wild@{sound} --set train.lr=1e-2 --set train.clip=1 --set train.warmup=0.1 --set train.steps=120 --set eval.every=20 -o tame"
    ));
    let lines = place.metrics("tame");
    let losses: Vec<f64> = of_kind(&lines, "train")
        .into_iter()
        .map(|line| number(line, "loss"))
        .collect();
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    assert!(
        losses[losses.len() - 1] < losses[0] - 1.0 && losses[losses.len() - 1] < 4.5,
        "{losses:?}"
    );
}

#[test]
fn a_run_that_stops_at_steps_that_are_not_finite_names_the_way_back() {
    let place = Place::prepared();
    let hint = "`gpas train --from bad@0 --set train.lr=RATE -o NEW` goes back to before it, with a lower rate; a longer `train.warmup` or \
                `train.clip = 1.0` may help too";
    let output = place.run(
        "train tiny.toml --set train.steps=40 --set train.warmup=0 --set train.lr=1e38 --set train.max_bad_steps=5 --plain -o bad",
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("hint: {hint}\n")), "{said}");
    // Asked again with what a run cannot change, it names the best, since the newest is of no use.
    place.refuses(
        "train bad --resume --set train.clip=0.5",
        "a run cannot go on with `train.clip` = 0.5: it was begun with 1.0",
        "…`gpas train --from bad@best --set train.clip=0.5 -o NEW` begins a new run with its weights and moments",
    );
    let last = checkpoints(&place, "bad").pop().unwrap();
    let output = place.run("train --from bad --set train.steps=60 --set train.lr=1e-3 -o useless");
    let said = String::from_utf8(output.stderr).unwrap();
    let warning = format!("warning: the last 5 steps of bad@{last} made no update; bad@0 is from before that\n");
    assert!(said.contains(&warning), "{said}");
    let said = String::from_utf8(place.run("train --from bad@best --set train.lr=1e-3 -o good").stderr).unwrap();
    assert_eq!(
        said,
        "note: bad@0 has made no update, so that the moments begin at zero\n"
    );
    let lines = place.metrics("good");
    assert_eq!(of_kind(&lines, "train").len(), 40);
    assert!(
        of_kind(&lines, "train")
            .into_iter()
            .all(|line| number(line, "loss").is_finite())
    );
}

/// Rises and falls, so that the best is neither the newest nor one at which a checkpoint is due.
const UP_AND_DOWN: &str = "--set train.batch=2 --set train.steps=60 --set train.warmup=60 --set train.lr=2 --set train.clip=0 \
                           --set checkpoint.every=25 --set checkpoint.keep=1 --set eval.every=3";

#[test]
fn the_best_checkpoint_outlives_the_newest_and_changes_nothing() {
    let place = Place::prepared();
    place.does(&format!("train tiny.toml {UP_AND_DOWN} -o plain"));
    place.does(&format!(
        "train tiny.toml {UP_AND_DOWN} --set train.keep_best=true -o kept"
    ));
    assert_eq!(place.timeless_metrics("plain"), place.timeless_metrics("kept"));
    let best = best_step(&place, "kept");
    println!(
        "the best is {best}; kept are {:?} and {:?}",
        checkpoints(&place, "plain"),
        checkpoints(&place, "kept")
    );
    assert!(!best.is_multiple_of(25) && best < 57, "{best}");
    assert!(!checkpoints(&place, "plain").contains(&best));
    let kept = checkpoints(&place, "kept");
    assert!(kept.contains(&best) && kept.contains(&60), "{kept:?}");
    // At most one more: the newest before a loss worse than that of even guesses.
    assert!(kept.len() <= 3, "{kept:?}");

    // What is found by its name is the best, by the record of the run.
    let lines = place.metrics("kept");
    let record = of_kind(&lines, "eval")
        .into_iter()
        .find(|line| line["step"] == best)
        .unwrap();
    let evaluated: Value = serde_json::from_str(&place.does("eval kept@best --json")).unwrap();
    assert_eq!(&evaluated, record);

    // Interrupted and gone on with, it is the same.
    place.does(&format!(
        "train tiny.toml {UP_AND_DOWN} --set train.keep_best=true -o cut"
    ));
    fs::remove_dir_all(place.path("cut/checkpoints/step-60")).unwrap();
    place.does("train cut --resume");
    assert_eq!(place.timeless_metrics("cut"), place.timeless_metrics("kept"));
    assert_eq!(checkpoints(&place, "cut"), kept);

    // A run from the best, which only becomes worse, keeps the checkpoint that it began with.
    place.does("train --from kept@best --set train.lr=30 --set train.warmup=0 --set train.clip=0 -o worse");
    assert_eq!(best_step(&place, "worse"), best);
    assert!(checkpoints(&place, "worse").contains(&best));
}

#[test]
fn every_command_that_asks_a_run_takes_a_checkpoint_of_it() {
    let place = Place::prepared();
    place.does(&format!("train tiny.toml {EVERY_FOURTH} --set train.steps=12 -o run"));
    let lines = place.metrics("run");
    for (name, step) in [("run@4", 4), ("run@best", best_step(&place, "run")), ("run", 12)] {
        let record = of_kind(&lines, "eval")
            .into_iter()
            .find(|line| line["step"] == step)
            .unwrap();
        let evaluated: Value = serde_json::from_str(&place.does(&format!("eval {name} --json"))).unwrap();
        assert_eq!(&evaluated, record);
    }
    let logits = |run: &str, out: &str| {
        place.does(&format!("logits {run} --ids 5,17,9 -o {out}"));
        fs::read(place.path(out)).unwrap()
    };
    assert!(logits("run@4", "four.safetensors") != logits("run", "newest.safetensors"));
    assert!(logits("run@12", "twelve.safetensors") == logits("run", "again.safetensors"));
    place.does("generate run@4 --prompt fox --max-tokens 4");
    let look: Value = serde_json::from_str(&place.does("inspect run@4 --json")).unwrap();
    assert_eq!(look["step"], 4);
    place.does("export run@4 out");
    assert!(Path::new(&place.path("out")).is_dir());
    place.refuses(
        "eval run@9",
        "run has no checkpoint of step 9",
        "it has run@0, run@4, run@8, run@12",
    );
    // A model from elsewhere has been evaluated by nobody, and has no moments.
    place.does("import out imported");
    place.refuses(
        "logits imported@best --ids 5 -o x",
        "no checkpoint of imported was evaluated",
        "it has imported@0",
    );
    let output = place.run(
        "train --from imported --data data --set train.steps=3 --set data.seq_len=16 --set train.warmup=0 -o further",
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said,
        "note: imported@0 has made no update, so that the moments begin at zero\n"
    );
    assert!(output.status.success());
    let info = info(&place, "further");
    assert!(info["imported"].is_object() && info["parent"]["step"] == 0, "{info}");
    // Its recipe is as binding as any other run's.
    place.refuses(
        "train further --resume --set train.lr=0.5",
        "a run cannot go on with `train.lr` = 0.5: it was begun with 0.001",
        "…",
    );
}

/// What a finished run says when it is to go on, with the way to more steps.
#[test]
fn a_finished_run_names_the_way_to_more_steps() {
    let place = Place::prepared();
    place.does("train tiny.toml -o run");
    let said = String::from_utf8(place.run("train run --resume").stderr).unwrap();
    let command = "train --from run --set train.steps=6 -o NEW";
    assert_eq!(
        said,
        format!("note: all 3 steps are done; `gpas {command}` trains as long again\n")
    );
    place.refuses(
        "train run --resume --set train.steps=6",
        "a run cannot go on with `train.steps` = 6: it was begun with 3",
        &format!(
            "it may change when it evaluates, what it keeps, `train.micro_batch`, `train.recompute` and the backend; `gpas {command}` begins \
             a new run with its weights and moments"
        ),
    );
    place.does(command);
    assert_eq!(of_kind(&place.metrics("NEW"), "train").len(), 3);
}
