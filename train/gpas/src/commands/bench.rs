//! `gpas bench`: tokens per second of training or of generation, on random tokens.

use std::io::Write;

use clap::Args;
use gpas_data::PreparedData;
use indicatif::HumanBytes;

use crate::benchmark::generation::GenerationBenchmark;
use crate::benchmark::launches::{Kernel, KernelTimes, LaunchCount, LaunchReport, Launched};
use crate::benchmark::{Benchmark, BenchmarkError, Candidate};
use crate::failure::Result;
use crate::number::whole;
use crate::options::RecipeArgs;
use crate::tuning;
use gpas_model::traffic::{Path, Traffic};
use gpas_train::backend::{BackendChoice, Selected, Telling};
use gpas_train::recipe::RecipeOptions;
use serde::Serialize;

/// Time optimizer steps, or generation, on random tokens
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas bench
  gpas bench --preset 60m --scheme sandwich_gpas --batch 4 --json
  gpas bench --vs pre --steps 20
  gpas bench --generate 1024
  gpas bench --preset 130m --batch 2 --counts --device vulkan
  gpas bench --preset 350m --device cuda:0 --precision bf16")]
pub struct BenchArgs {
    #[command(flatten)]
    options: RecipeArgs,
    /// Sequences in a step
    #[arg(long, default_value_t = 8, value_parser = whole(1..=1 << 20))]
    batch: u64,
    /// Tokens in a sequence
    #[arg(long, default_value_t = 256, value_parser = whole(1..=1 << 20))]
    seq: u64,
    /// Steps that are timed
    #[arg(long, default_value_t = 8, value_parser = whole(1..=1 << 20))]
    steps: u64,
    /// Steps before them
    #[arg(long, default_value_t = 2, value_parser = whole(0..=1 << 20))]
    warmup: u64,
    /// Number of token ids, where no data decides it
    #[arg(long, default_value_t = 32_000, value_parser = whole(1..=1 << 22))]
    vocab: u64,
    /// Number format: f32, bf16 (matrix products in bfloat16) or bf16_pure [default: f32]
    #[arg(long)]
    precision: Option<String>,
    /// Where to run, as `--backend` has it
    #[arg(long, value_name = "BACKEND", conflicts_with = "backend")]
    device: Option<BackendChoice>,
    /// Also time this scheme, a step of each in turn, and tell the ratio with its 95 % interval
    #[arg(long, value_name = "SCHEME")]
    vs: Option<String>,
    /// Also tell where the time of the steps goes, by kind of work; needs a build with `--features profile`
    #[arg(long)]
    profile: bool,
    /// Instead of timing, reckon the bytes that a step moves and its memory, and on a GPU's backend, be it on a software driver, count the
    /// kernels that it launches
    #[arg(long, conflicts_with_all = ["vs", "profile", "generate"])]
    counts: bool,
    /// Instead of timing steps, time the kernels of one, each by itself; on a GPU's backend
    #[arg(long, conflicts_with_all = ["vs", "profile", "generate", "counts"])]
    kernels: bool,
    /// Time generation instead: this many tokens of a prompt, then `--tokens` more, one at a time
    #[arg(long, value_name = "N", conflicts_with_all = ["vs", "profile"], value_parser = whole(1..=1 << 20))]
    generate: Option<u64>,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 64, requires = "generate", value_parser = whole(1..=1 << 20))]
    tokens: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the sizes do not fit together, or the backend is not there.
pub fn run(args: BenchArgs, backend: Option<BackendChoice>) -> Result<()> {
    let (model, versus) = args.candidates()?;
    let choice = args.device.or(backend).unwrap_or_default();
    if args.counts {
        return run_counts(&args, model, choice);
    }
    if args.kernels {
        return run_kernels(&args, model, choice);
    }
    let selected = tuning::select(choice)?;
    match args.generate {
        Some(length) => run_generation(&args, model, length, selected),
        None => run_training(&args, model, versus, selected),
    }
}

impl BenchArgs {
    /// The model to time, and the one to time beside it.
    fn candidates(&self) -> Result<(Candidate, Option<Candidate>)> {
        let mut options = RecipeOptions::from(self.options.clone());
        options.preset.get_or_insert_with(|| "20m".into());
        let vocab = match &options.data {
            Some(directory) => PreparedData::open(directory)?.tokenizer().vocab_size() as u64,
            None => self.vocab,
        };
        let seq_len = self.generate.map_or(self.seq, |length| length + self.tokens);
        let mut own = vec![
            format!("train.batch={}", self.batch),
            format!("data.seq_len={seq_len}"),
            format!("model.vocab={vocab}"),
            format!("train.steps={}", self.warmup + self.steps),
            "train.schedule=constant".into(),
            "train.warmup=0".into(),
        ];
        let precision = self.precision.iter();
        own.extend(precision.map(|precision| format!("train.precision={precision}")));
        // The user's own `--set` come later and win.
        options.set.splice(0..0, own);
        let model = Candidate::new(&options, vocab as usize)?;
        let Some(scheme) = self.vs.clone() else {
            return Ok((model, None));
        };
        options.scheme = Some(scheme);
        Ok((model, Some(Candidate::new(&options, vocab as usize)?)))
    }
}

/// Times generation after a prompt of `length` tokens, and prints what it took.
fn run_generation(args: &BenchArgs, model: Candidate, length: u64, selected: Selected) -> Result<()> {
    let benchmark = GenerationBenchmark {
        model,
        length: length as usize,
        tokens: args.tokens as usize,
        selected,
    };
    let report = selected.run(benchmark)??;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        writeln!(
            out,
            "{} {} on {selected}: {:.1} tokens/s after {length} tokens of a prompt, which went at {:.1} tokens/s",
            report.preset, report.scheme, report.tokens_per_s, report.prompt_tokens_per_s,
        )?;
    }
    Ok(())
}

/// What a step costs besides time.
#[derive(Serialize)]
struct Counts {
    preset: String,
    scheme: String,
    batch: u64,
    seq: u64,
    /// None on a processor, which launches no kernels.
    launches: Option<LaunchReport>,
    /// Bytes moved by tensor operations.
    separate: Traffic,
    /// Bytes moved by fused kernels.
    fused: Traffic,
    /// Predicted peak of memory, in bytes.
    memory: u64,
}

/// Counts launches and reckons bytes.
fn run_counts(args: &BenchArgs, model: Candidate, choice: BackendChoice) -> Result<()> {
    let launched = Launched::listen()?;
    let selected = choice.select_telling(Telling::Launches)?;
    let Candidate { recipe, config } = &model;
    let (batch, micro_batch, seq) = (recipe.train.batch, recipe.train.micro_batch, recipe.data.seq_len);
    let traffic = |path| config.traffic(batch, micro_batch, seq, path);
    let mut counts = Counts {
        preset: recipe.model.preset.clone(),
        scheme: recipe.model.scheme.to_string(),
        batch: batch as u64,
        seq: seq as u64,
        launches: None,
        separate: traffic(Path::Separate),
        fused: traffic(Path::Fused),
        memory: config.training_memory(batch, micro_batch, seq).total(),
    };
    if !selected.is_cpu() {
        counts.launches = Some(selected.run(LaunchCount { model, launched })??);
    }
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&counts)?)?;
    } else {
        write!(out, "{}", counts.describe())?;
    }
    Ok(())
}

impl Counts {
    /// For people.
    fn describe(&self) -> String {
        let mut text = format!(
            "{} {}, a step of {} × {}\n\n{:<22}{:>12}{:>16}\n",
            self.preset, self.scheme, self.batch, self.seq, "GB moved, reckoned", "operations", "fused kernels"
        );
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let parts = self.separate.parts().into_iter().zip(self.fused.parts());
        let total = ("step", self.separate.total(), self.fused.total());
        let rows = parts.map(|((part, separate), (_, fused))| (part, separate, fused));
        for (part, separate, fused) in rows.chain([total]) {
            let (separate, fused) = (gigabytes(separate), gigabytes(fused));
            text += &format!("{part:<22}{separate:>12.2}{fused:>16.2}\n");
        }
        text += &format!("predicted peak of memory: {}\n\n", HumanBytes(self.memory));
        match &self.launches {
            Some(report) => text += &launches(report),
            None => text += "a processor launches no kernels\n",
        }
        text
    }
}

/// Times the kernels of a step.
fn run_kernels(args: &BenchArgs, model: Candidate, choice: BackendChoice) -> Result<()> {
    let launched = Launched::listen()?;
    let selected = choice.select_telling(Telling::Times)?;
    if selected.is_cpu() {
        return Err(BenchmarkError::NoKernels(selected).into());
    }
    let kernels = selected.run(KernelTimes { model, launched })??;
    let mut out = std::io::stdout();
    if args.json {
        let kernels: Vec<_> = kernels
            .iter()
            .map(|(name, Kernel { launches, seconds })| {
                serde_json::json!({"kernel": name, "launches": launches, "seconds": seconds})
            })
            .collect();
        writeln!(out, "{}", serde_json::json!({"kernels": kernels}))?;
        return Ok(());
    }
    let all: f64 = kernels.iter().map(|(_, kernel)| kernel.seconds).sum();
    writeln!(out, "{:.2} ms in the kernels of a step", all * 1e3)?;
    for (name, Kernel { launches, seconds }) in kernels.iter().take(NAMED) {
        writeln!(out, "{:>9.3} ms {launches:>6} ×  {name}", seconds * 1e3)?;
    }
    Ok(())
}

/// Kernels that are named to people: the rest of them matter little.
const NAMED: usize = 24;

/// Launches as a table for people.
fn launches(report: &LaunchReport) -> String {
    let mut text = format!("kernels launched, {} layers\n", report.layers);
    let mut line = |what: &str, count: i64, layer: Option<i64>| {
        let layer = layer.map_or(String::new(), |layer| format!(", {layer} a layer"));
        text += &format!("{what:<22}{count:>8}{layer}\n");
    };
    line("forward", report.forward, report.layer_forward);
    line("head and loss", report.head, None);
    line("backward", report.backward, report.layer_backward);
    line("norms and optimizer", report.update, report.layer_update);
    line("step", report.step, None);
    for (name, kernel) in report.kernels.iter().take(NAMED) {
        text += &format!("{:>8}  {name}\n", kernel.launches);
    }
    text
}

/// Times optimizer steps, and prints what they took.
fn run_training(args: &BenchArgs, model: Candidate, versus: Option<Candidate>, selected: Selected) -> Result<()> {
    let benchmark = Benchmark {
        model,
        versus,
        steps: args.steps as usize,
        warmup: args.warmup as usize,
        profile: args.profile,
        selected,
    };
    let report = selected.run(benchmark)??;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    let memory = report
        .peak_bytes
        .map_or("not known here".into(), |bytes| HumanBytes(bytes).to_string());
    writeln!(
        out,
        "{} {} on {}: {:.0} tokens/s, {:.4} s a step of {} × {}, peak memory {}",
        report.preset, report.scheme, selected, report.tokens_per_s, report.step_s, report.batch, report.seq, memory,
    )?;
    writeln!(
        out,
        "{:.1} GFLOP/s, {:.1} % of the {:.1} that the fastest matrix product makes",
        report.flops_per_s / 1e9,
        report.matmul_share * 1e2,
        report.matmul_flops_per_s / 1e9,
    )?;
    for share in &report.profile {
        writeln!(out, "{:>6.1} %  {}", share.share * 1e2, share.kind)?;
    }
    if let Some(versus) = &report.versus {
        writeln!(
            out,
            "a step takes {:.4} times that of {}, 95 % interval {:.4} to {:.4} over {} pairs",
            versus.ratio, versus.scheme, versus.low, versus.high, args.steps,
        )?;
    }
    Ok(())
}
