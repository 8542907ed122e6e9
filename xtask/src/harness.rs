//! `cargo xtask verify-harness`: lm-evaluation-harness against `gpas serve`, and `gpas eval --task` on the same items: the same scores.
//!
//! It trains a small model on the built-in corpus (or takes a run that there is), makes 48 minimal pairs and 48 questions of multiple choice,
//! starts the server, lets the harness ask it (`local-completions`, tokens as prompts, one task of its own for each kind), and compares.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::peers::{build, find_python, line, number, said};

/// Compare lm-evaluation-harness against `gpas serve` with `gpas eval --task`
#[derive(Debug, Args)]
#[command(after_help = "Example:
  cargo xtask verify-harness --setup")]
pub struct HarnessArgs {
    /// A run to ask [default: one that is trained for it in a minute]
    #[arg(long, value_name = "RUN")]
    run: Option<PathBuf>,
    /// A Python with lm-eval and transformers [default: the one that --setup makes]
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Make that Python environment first: some 700 MB, without PyTorch
    #[arg(long)]
    setup: bool,
}

/// The names of the two tasks, which are also those of their files.
const TASKS: [&str; 2] = ["gpas_pairs", "gpas_choices"];
/// The figures that are compared, as `gpas eval` names them, and by how much they may differ.
const FIGURES: [&str; 4] = ["acc", "acc_stderr", "acc_norm", "acc_bytes"];
const TOLERANCE: f64 = 1e-9;

/// Makes the items, asks both, and compares.
///
/// # Errors
/// If something does not build or run, or a score differs.
pub fn run(args: &HarnessArgs) -> Result<()> {
    // Its `api` needs no PyTorch; `transformers` is for the tokenizer alone.
    let packages = ["lm-eval[api]", "transformers"];
    let python = find_python(args.python.clone(), args.setup, "harness", &packages)?;
    let gpas = build(&[])?;
    let place = tempfile::tempdir()?;
    let run = match &args.run {
        Some(run) => run.clone(),
        None => train(&gpas, &place.path().join("run"))?,
    };

    write_tasks(place.path())?;
    let tokenizer = place.path().join("tokenizer");
    write_tokenizer(&run, &tokenizer)?;
    let (server, address, context) = serve(&gpas, &run)?;
    let found = ask_harness(&python, place.path(), &tokenizer, &address, context);
    drop(server);
    let found = found?;

    let mut table = String::from("| task | figure | lm-evaluation-harness | gpas eval |\n|---|---|---|---|\n");
    let mut differs = Vec::new();
    for task in TASKS {
        let file = place.path().join(task).with_extension("jsonl");
        let own = line(
            Command::new(&gpas)
                .arg("eval")
                .arg(&run)
                .arg("--task")
                .arg(&file)
                .arg("--json"),
        )?;
        ensure!(
            own["truncated"] == 0,
            "items of {task} are longer than the model's context"
        );
        for figure in FIGURES {
            let theirs = number(&found["results"][task], &format!("{figure},none"))?;
            let ours = number(&own, figure)?;
            writeln!(table, "| `{task}` | {figure} | {theirs:.6} | {ours:.6} |")?;
            // What is no number agrees with nothing.
            let agrees = (theirs - ours).abs() <= TOLERANCE;
            if !agrees {
                differs.push(format!("{figure} of {task}"));
            }
        }
    }
    println!("{table}");
    let print = "import importlib.metadata as m; print(m.version('lm_eval'))";
    let version = said(Command::new(&python).args(["-c", print]))?;
    ensure!(
        differs.is_empty(),
        "lm-evaluation-harness {version} differs in {}",
        differs.join(", ")
    );
    println!("lm-evaluation-harness {version} and gpas eval agree on every figure.");
    Ok(())
}

/// A small model that knows a little: chance would not tell one way of scoring from another.
fn train(gpas: &Path, run: &Path) -> Result<PathBuf> {
    let trained = Command::new(gpas)
        .args([
            "train",
            "--preset",
            "nano",
            "--plain",
            "--set",
            "train.steps=300",
            "--set",
            "eval.tokens=5000",
            "-o",
        ])
        .arg(run)
        .stdout(Stdio::null())
        .status()?;
    ensure!(trained.success(), "gpas train ended with {trained}");
    Ok(run.to_path_buf())
}

/// The items, in our format, which the harness reads too, and a task of the harness for each file.
fn write_tasks(place: &Path) -> Result<()> {
    let text = |items: &[Value]| items.iter().map(|item| format!("{item}\n")).collect::<String>();
    for (task, items) in TASKS.into_iter().zip([pairs(), choices()]) {
        let file = place.join(task).with_extension("jsonl");
        fs::write(&file, text(&items))?;
        let (context, choices, label) = match task {
            "gpas_pairs" => ("", "{{[sentence_good, sentence_bad]}}", "0"),
            _ => ("{{context}}", "{{choices}}", "{{label}}"),
        };
        let metrics: String = ["acc", "acc_norm", "acc_bytes"]
            .map(|metric| format!("  - metric: {metric}\n    aggregation: mean\n    higher_is_better: true\n"))
            .concat();
        let yaml = format!(
            "task: {task}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {}\ntest_split: test\n\
             output_type: multiple_choice\ndoc_to_text: {context:?}\ndoc_to_choice: {choices:?}\ndoc_to_target: {label:?}\n\
             metric_list:\n{metrics}",
            file.display()
        );
        fs::write(
            place.join(task).with_extension("yaml"),
            yaml.replace("doc_to_target: \"0\"", "doc_to_target: 0"),
        )?;
    }
    Ok(())
}

/// Subject and verb that agree, across words that do not decide it.
fn pairs() -> Vec<Value> {
    let subjects = [
        ("function", "functions"),
        ("type", "types"),
        ("value", "values"),
        ("thread", "threads"),
    ];
    let between = ["", " of this crate", " in the list", " that we add"];
    let verbs = [
        ("is used here", "are used here"),
        ("has no name", "have no name"),
        ("returns early — «ok»", "return early — «ok»"),
    ];
    let mut items = Vec::new();
    for (one, many) in subjects {
        for middle in between {
            for (index, (singular, plural)) in verbs.into_iter().enumerate() {
                let (subject, good, bad) = match index % 2 {
                    0 => (one, singular, plural),
                    _ => (many, plural, singular),
                };
                items.push(json!({
                    "sentence_good": format!("The {subject}{middle} {good}."),
                    "sentence_bad": format!("The {subject}{middle} {bad}."),
                }));
            }
        }
    }
    items
}

/// Ways to go on that differ in length, in characters and in bytes; contexts that end in spaces, and one that is empty.
fn choices() -> Vec<Value> {
    let contexts = [
        "If the index is out of bounds, this function",
        "Returns `true` if the",
        "",
        "Creates a new  ",
        "Über die Größe:\n",
    ];
    let endings = [
        "panics",
        "value is some and the other one is none",
        "éàü",
        "vector, with room for as many elements as were asked for",
        "x",
        "日本語のテキスト",
        "set of options",
        "is not the same as it was before",
    ];
    let mut items = Vec::new();
    for index in 0..48 {
        let choices: Vec<&str> = (0..2 + index % 3)
            .map(|choice| endings[(index * 3 + choice * 5) % endings.len()])
            .collect();
        items.push(json!({
            "context": contexts[index % contexts.len()],
            "choices": choices,
            "label": index / 2 % choices.len(),
        }));
    }
    items
}

/// What `transformers` needs to know of a tokenizer.
fn write_tokenizer(run: &Path, folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    let file = run.join("tokenizer.json");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    fs::write(folder.join("tokenizer.json"), &text)?;
    let tokenizer: Value = serde_json::from_str(&text)?;
    let special = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let ends = ["</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>"];
    let end = special
        .filter_map(|token| token["content"].as_str())
        .find(|token| ends.contains(token));
    let end = end.context("the run's tokenizer has no token that ends a text")?;
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end});
    fs::write(folder.join("tokenizer_config.json"), config.to_string())?;
    Ok(())
}

/// A server that ends with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the server; where it listens, and its context.
fn serve(gpas: &Path, run: &Path) -> Result<(Server, String, usize)> {
    let mut child = Command::new(gpas)
        .arg("serve")
        .arg(run)
        .args(["--port", "0"])
        .stdout(Stdio::piped())
        .spawn()?;
    let out = child.stdout.take().context("it is piped")?;
    let server = Server(child);
    let mut said = String::new();
    BufReader::new(out).read_line(&mut said)?;
    let address = said
        .trim()
        .rsplit(' ')
        .next()
        .context("gpas serve says nothing")?
        .to_string();
    let context = said
        .split(['(', ' '])
        .find_map(|word| word.parse().ok())
        .with_context(|| format!("gpas serve says {said}"))?;
    Ok((server, address, context))
}

/// The harness's results.
fn ask_harness(python: &Path, place: &Path, tokenizer: &Path, address: &str, context: usize) -> Result<Value> {
    // One position is for the token that it asks for besides the prompt.
    let length = context + 1;
    let arguments = format!(
        "model={},base_url={address}/v1/completions,tokenizer_backend=huggingface,max_length={length},num_concurrent=4",
        tokenizer.display()
    );
    let out = place.join("results");
    let status = Command::new(python)
        .args([
            "-m",
            "lm_eval",
            "--model",
            "local-completions",
            "--model_args",
            &arguments,
        ])
        .args(["--batch_size", "4", "--tasks", &TASKS.join(","), "--include_path"])
        .arg(place)
        .arg("--output_path")
        .arg(&out)
        .env("HF_HOME", place.join("cache"))
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_DATASETS_OFFLINE", "1")
        .status()?;
    ensure!(status.success(), "lm_eval ended with {status}");
    let results = newest_json(&out)?;
    serde_json::from_str(&fs::read_to_string(&results)?).with_context(|| results.display().to_string())
}

/// The file that the harness has written, in a folder that it names after the model.
fn newest_json(folder: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            return newest_json(&path);
        }
        if path.extension().is_some_and(|ending| ending == "json") {
            return Ok(path);
        }
    }
    anyhow::bail!("lm_eval has left no results in {}", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_enough_items_of_both_kinds_and_no_two_alike() {
        for items in [pairs(), choices()] {
            assert_eq!(items.len(), 48);
        }
        let mut pairs: Vec<String> = pairs().iter().map(Value::to_string).collect();
        pairs.sort();
        pairs.dedup();
        assert_eq!(pairs.len(), 48);
        for item in choices() {
            let choices = item["choices"].as_array().unwrap();
            assert!((item["label"].as_u64().unwrap() as usize) < choices.len());
            assert!(
                choices
                    .iter()
                    .all(|choice| choices.iter().filter(|other| *other == choice).count() == 1)
            );
        }
    }
}
