//! `cargo xtask generation-bench`: `gpas bench --generate` beside `transformers` on the same machine, in turn.
//!
//! Each round times both one after the other at each length; what is reported is the speed, and the ratio within a round. The peer is
//! `xtask/generation_peer.py`. A token costs the products, which do not depend on the length, and the attention, which is linear in it, so
//! its time may grow by the ratio of the lengths at most.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::bench::{median, spread};
use crate::peers::{Peers, line, number, root, torch_version, versions};

/// Time generation beside transformers, in turn, and print the ratios
#[derive(Debug, Args)]
#[command(after_help = "Example:
  cargo xtask generation-bench --setup")]
pub struct GenerationBenchArgs {
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Size of the model
    #[arg(long, default_value = "20m")]
    preset: String,
    /// Tokens of the prompts
    #[arg(long, value_delimiter = ',', default_value = "64,256,1024", value_name = "N")]
    lengths: Vec<usize>,
    /// A Python with torch and transformers [default: the one that --setup makes]
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Make that Python environment first: PyTorch, some 3 GB
    #[arg(long)]
    setup: bool,
}

/// Runs the rounds.
///
/// # Errors
/// If something does not build or run.
pub fn run(args: &GenerationBenchArgs) -> Result<()> {
    let peers = Peers::new(args.python.clone(), args.setup)?;
    let script = root()?.join("xtask/generation_peer.py");
    // The rounds of each length, ours and theirs.
    let mut rounds: Vec<Vec<[Value; 2]>> = vec![Vec::new(); args.lengths.len()];
    for round in 1..=args.rounds {
        for (length, rounds) in args.lengths.iter().zip(&mut rounds) {
            let text = length.to_string();
            let sizes = ["--preset", &args.preset];
            let ours = line(
                Command::new(&peers.gpas)
                    .args(["bench", "--json", "--generate", &text])
                    .args(sizes),
            )?;
            let theirs = line(
                Command::new(&peers.python)
                    .arg(&script)
                    .args(["--length", &text])
                    .args(sizes),
            )?;
            println!(
                "{length} {round}/{}: gpas {} transformers {} tokens/s",
                args.rounds, ours["tokens_per_s"], theirs["tokens_per_s"]
            );
            rounds.push([ours, theirs]);
        }
    }
    println!(
        "\n| `{}` after a prompt of | tokens/s | ms a token | of transformers | prompt, of transformers |\n|---|---|---|---|---|",
        args.preset
    );
    let mut medians = Vec::new();
    for (length, rounds) in args.lengths.iter().zip(&rounds) {
        let of = |peer: usize, key: &str| -> Result<Vec<f64>> {
            rounds.iter().map(|round| number(&round[peer], key)).collect()
        };
        let ratio = |key: &str| -> Result<Vec<f64>> {
            Ok(of(0, key)?
                .into_iter()
                .zip(of(1, key)?)
                .map(|(ours, theirs)| ours / theirs)
                .collect())
        };
        let (speed, prompt) = (ratio("tokens_per_s")?, ratio("prompt_tokens_per_s")?);
        let mut own = of(0, "tokens_per_s")?;
        println!(
            "| {length} | {} | {} | {} | {} |",
            spread(own.clone(), 0),
            spread(own.iter().map(|speed| 1e3 / speed).collect(), 2),
            spread(speed, 2),
            spread(prompt, 2)
        );
        own.sort_by(f64::total_cmp);
        medians.push((*length, median(&own)));
    }
    if let [(short, fast), .., (long, slow)] = medians[..] {
        let (grows, allowed) = (fast / slow, long as f64 / short as f64);
        println!(
            "\nThe time of a token grows {grows:.2}-fold from {short} to {long} tokens, which are {allowed:.0} times as many."
        );
        ensure!(grows <= allowed, "that is more than linear");
    }
    println!("{}, PyTorch {}", versions(root()?)?, torch_version(&peers.python)?);
    Ok(())
}
