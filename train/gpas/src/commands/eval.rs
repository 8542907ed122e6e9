//! `gpas eval`: loss and perplexity of a run's newest checkpoint, or its accuracy at a likelihood task.

use std::io::Write;
use std::path::{Path, PathBuf};

use burn::tensor::backend::AutodiffBackend;
use clap::Args;

use super::opened::{OpenedRun, RunAndText};
use crate::failure::Result;
use gpas_serve::inference::Context;
use gpas_serve::task::{Item, TaskReport, read_task};
use gpas_train::backend::{BackendChoice, BackendTask};
use gpas_train::evaluate::{ValidationText, evaluate};
use gpas_train::metrics::{EvalRecord, Record};

/// Evaluate a run's newest checkpoint on validation text, or at a likelihood task
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas eval runs/pre_gpas-nano-001
  gpas eval runs/pre_gpas-nano-001 --tokens 1000000 --json
  gpas eval runs/pre_gpas-nano-001 --task pairs.jsonl

A line of a task is a minimal pair, {\"sentence_good\": …, \"sentence_bad\": …}, or multiple choice, {\"context\": …, \"choices\": […],
\"label\": 0}. Texts are cut into context and choice, tokenized and scored as in lm-evaluation-harness, which makes of the same items the same
acc, acc_norm (per character) and acc_bytes (per byte).")]
pub struct EvalArgs {
    /// The run directory, for its newest checkpoint; with @STEP or @best, for another
    #[arg(value_name = "RUN[@STEP|@best]")]
    run: PathBuf,
    /// Prepared data whose validation split is used [default: the run's]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Tokens to score, at most [default: the recipe's eval.tokens]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tokens: Option<u64>,
    /// A file of likelihood items to score, rather than the validation text
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["data", "tokens"])]
    task: Option<PathBuf>,
    /// Positions that may be used by an item [default: those of a sequence in training; of an imported model all]
    #[arg(long, value_name = "N", requires = "task")]
    context: Option<usize>,
    /// Print one JSON object; of an evaluation on validation text, as it stands in metrics.jsonl
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the run, its checkpoint or its data cannot be read or do not fit each other.
pub fn run(args: EvalArgs, backend: Option<BackendChoice>) -> Result<()> {
    if let Some(task) = &args.task {
        return run_task(&args, task, backend);
    }
    let (selected, on) = RunAndText::open(&args.run, args.data.as_deref(), args.tokens, backend)?;
    let record = selected.run(Evaluation(on))??;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&Record::Eval(record))?)?;
    } else {
        let EvalRecord {
            step,
            loss,
            perplexity,
            bits_per_byte,
            tokens,
        } = record;
        let bits = bits_per_byte.map_or(String::new(), |bits| format!("  {bits:.6} bits per byte"));
        writeln!(
            out,
            "step {step}  validation loss {loss:.6}  perplexity {perplexity:.6}{bits}  {tokens} tokens"
        )?;
    }
    Ok(())
}

fn run_task(args: &EvalArgs, path: &Path, backend: Option<BackendChoice>) -> Result<()> {
    let items = read_task(path)?;
    let opened = OpenedRun::open(&args.run, backend)?;
    let context = opened.context(args.context)?;
    let selected = opened.selected;
    let task = Task { opened, items, context };
    let report = selected.run(task)??;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    let TaskReport { items, truncated, .. } = report;
    writeln!(out, "{items} items, {truncated} texts cut to {} tokens", context.tokens)?;
    let rows = [
        ("acc", report.acc, report.acc_stderr),
        ("acc_norm", report.acc_norm, report.acc_norm_stderr),
        ("acc_bytes", report.acc_bytes, report.acc_bytes_stderr),
    ];
    for (name, accuracy, error) in rows {
        let error = error.map_or(String::new(), |error| format!(" ± {error:.4}"));
        writeln!(out, "{name:<9} {accuracy:.4}{error}")?;
    }
    Ok(())
}

struct Task {
    opened: OpenedRun,
    items: Vec<Item>,
    context: Context,
}

impl BackendTask for Task {
    type Output = Result<TaskReport>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let model = self.opened.model::<B>(&device)?;
        let generator = self.opened.generator(&model, self.context);
        Ok(generator.task(&self.items)?)
    }
}

struct Evaluation(RunAndText);

impl BackendTask for Evaluation {
    type Output = Result<EvalRecord>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let RunAndText {
            opened,
            windows,
            bytes,
            tokens,
        } = self.0;
        let model = opened.model::<B>(&device)?;
        let (micro_batch, step) = (opened.recipe.train.micro_batch, opened.checkpoint.state.step);
        let text = ValidationText { windows, bytes };
        let record = evaluate(&model, &text, micro_batch, Some(tokens), step, &device, || false)?;
        Ok(record.expect("nothing asks an evaluation of its own to stop"))
    }
}
