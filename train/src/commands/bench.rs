//! `gpas bench`: tokens per second of training, on random tokens.

use std::io::Write;

use anyhow::Result;
use clap::Args;

use crate::backend::BackendChoice;
use crate::benchmark::Benchmark;
use crate::recipe::{RecipeArgs, resolve};

/// Time optimizer steps on random tokens
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas bench
  gpas bench --preset 60m --scheme sandwich_gpas --batch 4 --json")]
pub struct BenchArgs {
    #[command(flatten)]
    options: RecipeArgs,
    /// Sequences in a step
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens in a sequence
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Steps that are timed
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Steps before them
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// Number of token ids
    #[arg(long, default_value_t = 32_000)]
    vocab: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Where to run: auto, flex, ndarray, vulkan, wgpu, metal, cuda; cuda:1 for the second card
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
}

/// Runs the command.
///
/// # Errors
/// If the sizes do not fit together, or the backend is not there.
pub fn run(args: BenchArgs) -> Result<()> {
    let mut options = args.options;
    options.preset.get_or_insert_with(|| "20m".into());
    let own = [
        format!("train.batch={}", args.batch),
        format!("data.seq_len={}", args.seq),
        format!("model.vocab={}", args.vocab),
        format!("train.steps={}", args.warmup + args.steps),
        "train.schedule=constant".into(),
        "train.warmup=0".into(),
    ];
    // The user's own `--set` come later and win.
    options.set.splice(0..0, own);
    let recipe = resolve(None, &options)?;
    let config = recipe.llama(args.vocab)?;
    let selected = args.backend.select()?;
    let benchmark = Benchmark {
        recipe,
        config,
        steps: args.steps as usize,
        warmup: args.warmup as usize,
        selected,
    };
    let report = selected.run(benchmark)?;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        writeln!(
            out,
            "{} {} on {}: {:.0} tokens/s, {:.4} s a step of {} × {}, peak memory {}",
            report.preset,
            report.scheme,
            selected,
            report.tokens_per_s,
            report.step_s,
            report.batch,
            report.seq,
            indicatif::HumanBytes(report.peak_bytes),
        )?;
    }
    Ok(())
}
