//! `cargo xtask bench`: `gpas bench` beside PyTorch on the same machine, in turn, as a table of ratios.
//!
//! A machine's speed drifts, so each round times all of them one after the other, and what is reported is the ratio within a round: its
//! smallest, median and largest. The peer is `xtask/peer.py`, eager and compiled.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::peers::{Peers, line, number, root, torch_version, versions};

/// Time training steps beside PyTorch, in turn, and print the ratios
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask bench --setup
  cargo xtask bench --rows 20m,9m --pairs 7 --write")]
pub struct BenchArgs {
    /// Rounds of each row
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Rows to run, by the first word of each [default: all]
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    rows: Vec<String>,
    /// Do not time the compiled peer, whose compiler takes a minute a round
    #[arg(long)]
    eager_only: bool,
    /// A Python with torch [default: the one that --setup makes]
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// Make that Python environment first: PyTorch, some 3 GB
    #[arg(long)]
    setup: bool,
    /// Put the table into the README
    #[arg(long)]
    write: bool,
}

/// Name, and options for both peers.
const ROWS: [(&str, &str); 5] = [
    (
        "20m",
        "--preset 20m --scheme pre_gpas --batch 8 --seq 256 --vocab 32000",
    ),
    ("9m", "--preset 9m --scheme pre_gpas --batch 8 --seq 256 --vocab 32000"),
    (
        "60m",
        "--preset 60m --scheme sandwich_gpas --batch 4 --seq 256 --vocab 32000",
    ),
    (
        "20m-long",
        "--preset 20m --scheme pre_gpas --batch 2 --seq 1024 --vocab 32000",
    ),
    (
        "35m",
        "--preset 35m --scheme pre_gpas --batch 16 --seq 128 --vocab 8192",
    ),
];

/// Where the table stands in the README.
const MARKS: [&str; 2] = ["<!-- speed: cargo xtask bench --write -->", "<!-- end of speed -->"];

/// Runs the rows.
///
/// # Errors
/// If something does not build or run, or the README has no place for the table.
pub fn run(args: &BenchArgs) -> Result<()> {
    ensure!(args.pairs > 0, "there is nothing to tell of no pairs");
    let Peers { gpas, python, peer } = Peers::new(args.python.clone(), args.setup)?;
    let root = root()?;

    let rows: Vec<_> = ROWS
        .iter()
        .filter(|(name, _)| args.rows.is_empty() || args.rows.iter().any(|row| row == name))
        .collect();
    ensure!(
        !rows.is_empty(),
        "a row is one of {}",
        ROWS.map(|(name, _)| name).join(", ")
    );
    let mut table = String::from(
        "| work | tokens/s | of torch eager | of torch.compile | peak memory of torch eager | share of the matmul peak |\n\
         |---|---|---|---|---|---|\n",
    );
    for (name, options) in rows {
        let words: Vec<&str> = options.split_whitespace().collect();
        let mut rounds = Vec::new();
        for round in 1..=args.pairs {
            let ours = line(Command::new(&gpas).args(["bench", "--json"]).args(&words))?;
            let eager = line(Command::new(&python).arg(&peer).args(&words))?;
            let compiled = match args.eager_only {
                true => None,
                false => Some(line(Command::new(&python).arg(&peer).args(&words).arg("--compile"))?),
            };
            println!(
                "{name} {round}/{}: gpas {} torch {} compiled {} tokens/s",
                args.pairs,
                ours["tokens_per_s"],
                eager["tokens_per_s"],
                compiled.as_ref().map_or(&Value::Null, |line| &line["tokens_per_s"]),
            );
            rounds.push(Round { ours, eager, compiled });
        }
        table += &row(options, &rounds)?;
    }
    let caption = caption(root, &python, &command_line(&python))?;
    let text = format!("{table}\n{caption}\n");
    println!("\n{text}");
    if args.write {
        write_table(MARKS, &text)?;
    }
    Ok(())
}

/// One round: the JSON objects of the peers.
struct Round {
    ours: Value,
    eager: Value,
    compiled: Option<Value>,
}

fn row(options: &str, rounds: &[Round]) -> Result<String> {
    let ours = |key: &str| {
        rounds
            .iter()
            .map(|round| number(&round.ours, key))
            .collect::<Result<Vec<f64>>>()
    };
    let ratio = |key: &str, other: fn(&Round) -> Option<&Value>| -> Result<Option<Vec<f64>>> {
        let ratios = rounds.iter().filter_map(|round| Some((&round.ours, other(round)?)));
        let ratios: Vec<f64> = ratios
            .map(|(ours, other)| Ok(number(ours, key)? / number(other, key)?))
            .collect::<Result<_>>()?;
        Ok((!ratios.is_empty()).then_some(ratios))
    };
    let cell = |values: Option<Vec<f64>>, digits: usize| values.map_or("–".into(), |values| spread(values, digits));
    let mut text = String::new();
    writeln!(
        text,
        "| `{options}` | {} | {} | {} | {} | {} |",
        cell(Some(ours("tokens_per_s")?), 0),
        cell(ratio("tokens_per_s", |round| Some(&round.eager))?, 2),
        cell(ratio("tokens_per_s", |round| round.compiled.as_ref())?, 2),
        cell(ratio("peak_bytes", |round| Some(&round.eager))?, 2),
        cell(Some(ours("matmul_share")?), 2),
    )?;
    Ok(text)
}

/// Median, then smallest and largest.
pub(crate) fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (low, middle, high) = (values[0], median(&values), values[values.len() - 1]);
    format!("**{middle:.digits$}** ({low:.digits$}–{high:.digits$})")
}

/// The number in the middle of sorted ones, or between the two there.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let last = sorted.len() - 1;
    f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)])
}

/// What the table was made on and with.
fn caption(root: &Path, python: &Path, command: &str) -> Result<String> {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = processor.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split(':').nth(1))
            .unwrap_or_default()
            .trim()
            .to_string()
    };
    let flags = field("flags");
    let units = match (flags.contains("avx512f"), flags.contains("amx_bf16")) {
        (true, true) => "AVX-512, AMX",
        (true, false) => "AVX-512",
        (false, _) => "AVX2",
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let torch = torch_version(python)?;
    Ok(format!(
        "Median, smallest and largest of rounds in turn, f32, {cores} cores of {} ({units}), PyTorch {torch} on as many threads, {}: \
         `cargo xtask {command}`.",
        field("model name"),
        versions(root)?,
    ))
}

/// The command line of this table, for its reader, who has another Python.
pub(crate) fn command_line(python: &Path) -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    words.join(" ").replace(&python.display().to_string(), "PYTHON")
}

/// Puts a table between its marks in the README.
pub(crate) fn write_table(marks: [&str; 2], table: &str) -> Result<()> {
    let readme = root()?.join("README.md");
    let old = fs::read_to_string(&readme)?;
    let new = between_marks(&old, marks, table).context("README.md has no marks for the table")?;
    Ok(fs::write(&readme, new)?)
}

/// The text with what stands between the marks replaced.
pub(crate) fn between_marks(text: &str, [begin, end]: [&str; 2], table: &str) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n{table}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_has_the_ratios_within_its_rounds() {
        let ours = |speed: f64| json!({"tokens_per_s": speed, "peak_bytes": 10, "matmul_share": 0.5});
        let peer = |speed: f64| json!({"tokens_per_s": speed, "peak_bytes": 40});
        let round = |a, b, c: Option<f64>| Round {
            ours: ours(a),
            eager: peer(b),
            compiled: c.map(peer),
        };
        let rounds = [
            round(10.0, 5.0, None),
            round(30.0, 10.0, Some(20.0)),
            round(20.0, 20.0, None),
        ];
        assert_eq!(
            row("--x", &rounds).unwrap(),
            "| `--x` | **20** (10–30) | **2.00** (1.00–3.00) | **1.50** (1.50–1.50) | **0.25** (0.25–0.25) | **0.50** (0.50–0.50) |\n"
        );
    }

    #[test]
    fn an_even_number_of_rounds_has_its_median_between_two() {
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 8.0], 1), "**3.0** (1.0–8.0)");
        assert_eq!(spread(vec![4.0, 1.0, 2.0], 1), "**2.0** (1.0–4.0)");
    }

    #[test]
    fn the_table_goes_between_the_marks_of_the_readme() {
        let readme = include_str!("../../README.md");
        let once = between_marks(readme, MARKS, "TABLE\n").unwrap();
        assert!(once.contains("-->\nTABLE\n<!--"));
        assert_eq!(between_marks(&once, MARKS, "TABLE\n").unwrap(), once);
    }
}
