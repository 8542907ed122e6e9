//! `cargo xtask gpu-bench`: `gpas bench` beside PyTorch on an NVIDIA card, like against like, as a table.
//!
//! Each round times all peers one after the other, so what is reported is the ratio within a round. Like against like: `f32` with `float32`
//! (both in TF32 where they multiply), `bf16` with `mixed`, `bf16_pure` with `bfloat16`. The share is that of the fastest matrix product which
//! `gpas bench` measures on the card in any format, and what GPAS costs is the time of a step over that of `pre`, a step of each in turn.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::bench::{command_line, spread, write_table};
use crate::peers::{Peers, line, number, root, said, torch_version, versions};

/// Time training steps beside PyTorch on an NVIDIA card
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask gpu-bench --setup
  cargo xtask gpu-bench --device cuda:1 --sizes 130m,350m --precisions bf16 --write")]
pub struct GpuBenchArgs {
    /// The card, as `gpas --backend` has it
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Sizes of the model
    #[arg(long, value_delimiter = ',', default_value = "71m,130m,350m,1b", value_name = "SIZE")]
    sizes: Vec<String>,
    /// Tokens in a sequence
    #[arg(long, value_delimiter = ',', default_value = "256,1024", value_name = "N")]
    seqs: Vec<usize>,
    /// Number formats, as `gpas bench --precision` has them
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "f32,bf16,bf16_pure",
        value_name = "FORMAT"
    )]
    precisions: Vec<String>,
    /// Tokens in a step [default: 16384 up to 130m, 4096 at 350m, 2048 above]
    #[arg(long)]
    tokens: Option<usize>,
    /// Steps that are timed in each round
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Steps before them, in which kernels are chosen and compiled
    #[arg(long, default_value_t = 5)]
    warmup: usize,
    /// Rounds of each row
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Do not time the compiled peer
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

/// Where the table stands in the README.
const MARKS: [&str; 2] = ["<!-- cards: cargo xtask gpu-bench --write -->", "<!-- end of cards -->"];

/// Names of the number formats, ours and the peer's.
const PRECISIONS: [(&str, &str); 3] = [("f32", "float32"), ("bf16", "mixed"), ("bf16_pure", "bfloat16")];

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Work {
    size: String,
    batch: usize,
    seq: usize,
    /// Number format, by its place in [`PRECISIONS`].
    precision: usize,
}

/// Who is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Gpas,
    /// Beside `pre`, for what GPAS costs.
    GpasBesidePre,
    Eager,
    Compiled,
}

/// Runs the rows.
///
/// # Errors
/// If there is no card, something does not build, or the README has no place for the table.
pub fn run(args: &GpuBenchArgs) -> Result<()> {
    let rows = rows(args)?;
    let card = card(&args.device)?;
    let (backend, index) = args.device.split_once(':').unwrap_or((&args.device, "0"));
    let peers = Peers::new(args.python.clone(), args.setup, &[backend])?;
    let device = match backend {
        "cuda" => format!("cuda:{index}"),
        _ => "cpu".into(),
    };
    let time = |peer: Peer, work: &Work| line(&mut command(peer, work, &peers, args, &device));
    let table = table(&rows, args.rounds, !args.eager_only, &time)?;
    let root = root()?;
    let text = format!(
        "{table}\nMedian, smallest and largest of {} rounds in turn, `pre_gpas`, vocabulary 32000, {card}, PyTorch {}, {}: `cargo xtask {}`.\n",
        args.rounds,
        torch_version(&peers.python)?,
        versions(root)?,
        command_line(&peers.python),
    );
    println!("\n{text}");
    if args.write {
        write_table(MARKS, &text)?;
    }
    Ok(())
}

fn rows(args: &GpuBenchArgs) -> Result<Vec<Work>> {
    ensure!(args.rounds > 0, "there is nothing to tell of no rounds");
    let mut rows = Vec::new();
    for size in &args.sizes {
        let default = match size.as_str() {
            "350m" => 4096,
            "1b" | "3b" | "7b" => 2048,
            _ => 16_384,
        };
        for seq in &args.seqs {
            let batch = args.tokens.unwrap_or(default) / seq.max(&1);
            ensure!(batch > 0, "a step has fewer tokens than a sequence of {seq}");
            for name in &args.precisions {
                let known = PRECISIONS.iter().position(|(ours, _)| ours == name);
                let names = PRECISIONS.map(|(ours, _)| ours).join(", ");
                rows.push(Work {
                    size: size.clone(),
                    batch,
                    seq: *seq,
                    precision: known.with_context(|| format!("no number format `{name}`; one of {names}"))?,
                });
            }
        }
    }
    Ok(rows)
}

/// The card and its driver. The processor, which the peer knows as well, is for trying this out.
fn card(device: &str) -> Result<String> {
    let (backend, index) = device.split_once(':').unwrap_or((device, "0"));
    match backend {
        "flex" => return Ok("on the processor".into()),
        "cuda" => {}
        _ => bail!("`{device}` has no peer: PyTorch knows cuda"),
    }
    let query = [
        "--query-gpu=name,driver_version",
        "--format=csv,noheader",
        "--id",
        index,
    ];
    let found = said(Command::new("nvidia-smi").args(query)).unwrap_or_default();
    match found.split_once(", ") {
        Some((name, driver)) => Ok(format!("{name}, driver {driver}")),
        None => bail!("no NVIDIA card {index} here: `nvidia-smi` names none, so there is nothing to time"),
    }
}

fn command(peer: Peer, work: &Work, peers: &Peers, args: &GpuBenchArgs, device: &str) -> Command {
    let (ours, others) = PRECISIONS[work.precision];
    let mut command = match peer {
        Peer::Gpas | Peer::GpasBesidePre => {
            let mut command = Command::new(&peers.gpas);
            command.args(["bench", "--json", "--device", &args.device, "--precision", ours]);
            command
        }
        Peer::Eager | Peer::Compiled => {
            let mut command = Command::new(&peers.python);
            command.arg(&peers.peer).args(["--device", device, "--dtype", others]);
            command
        }
    };
    match peer {
        Peer::GpasBesidePre => command.args(["--vs", "pre"]),
        Peer::Compiled => command.arg("--compile"),
        Peer::Gpas | Peer::Eager => &mut command,
    };
    command.args(["--preset", &work.size, "--scheme", "pre_gpas", "--vocab", "32000"]);
    for (option, value) in [
        ("--batch", work.batch),
        ("--seq", work.seq),
        ("--steps", args.steps),
        ("--warmup", args.warmup),
    ] {
        command.args([option, &value.to_string()]);
    }
    command
}

/// What was timed of a row, round by round; what did not run, for want of memory for example, is missing.
#[derive(Default)]
struct Rounds {
    ours: Vec<Option<Value>>,
    beside_pre: Vec<Option<Value>>,
    eager: Vec<Option<Value>>,
    compiled: Vec<Option<Value>>,
}

/// Times every row and sets what was found against each other.
fn table(rows: &[Work], rounds: usize, compiled: bool, time: &dyn Fn(Peer, &Work) -> Result<Value>) -> Result<String> {
    let mut found = Vec::new();
    for work in rows {
        let run = |peer: Peer| match time(peer, work) {
            Ok(value) => {
                println!("{work:?} {peer:?}: {} tokens/s", value["tokens_per_s"]);
                Some(value)
            }
            Err(error) => {
                println!("{work:?} {peer:?}: {error:#}");
                None
            }
        };
        let mut row = Rounds::default();
        for _ in 0..rounds {
            row.ours.push(run(Peer::Gpas));
            row.eager.push(run(Peer::Eager));
            row.compiled.push(if compiled { run(Peer::Compiled) } else { None });
            row.beside_pre.push(run(Peer::GpasBesidePre));
        }
        found.push(row);
    }
    let rates = found.iter().flat_map(|row| row.ours.iter().flatten());
    let rates = rates
        .map(|ours| number(ours, "matmul_flops_per_s"))
        .collect::<Result<Vec<_>>>()?;
    // A rate that is no number counts as the largest, so that it shows.
    let fastest = rates.into_iter().max_by(f64::total_cmp).unwrap_or(0.0);
    let mut text = format!(
        "| work | tokens/s | of torch eager | of torch.compile | model TFLOP/s | of the fastest product ({:.1} TFLOP/s) | peak GiB | peak of \
         torch eager | step over `pre` |\n|---|---|---|---|---|---|---|---|---|\n",
        fastest / 1e12
    );
    for (work, row) in rows.iter().zip(&found) {
        let (ours, others) = PRECISIONS[work.precision];
        writeln!(
            text,
            "| {}, {} × {}, {ours} ({others}) | {} | {} | {} | {} | {} | {} | {} | {} |",
            work.size,
            work.batch,
            work.seq,
            cell(&row.ours, |ours| number(ours, "tokens_per_s"), 0)?,
            ratio(&row.ours, &row.eager, "tokens_per_s")?,
            ratio(&row.ours, &row.compiled, "tokens_per_s")?,
            cell(&row.ours, |ours| Ok(number(ours, "flops_per_s")? / 1e12), 1)?,
            cell(&row.ours, |ours| Ok(number(ours, "flops_per_s")? / fastest), 2)?,
            cell(
                &row.ours,
                |ours| Ok(number(ours, "peak_bytes")? / f64::from(1 << 30)),
                2
            )?,
            ratio(&row.ours, &row.eager, "peak_bytes")?,
            cell(&row.beside_pre, |line| number(&line["versus"], "ratio"), 3)?,
        )?;
    }
    Ok(text)
}

/// What `measure` makes of the rounds that ran.
fn cell(lines: &[Option<Value>], measure: impl Fn(&Value) -> Result<f64>, digits: usize) -> Result<String> {
    let values = lines.iter().flatten().map(measure).collect::<Result<Vec<f64>>>()?;
    Ok(if values.is_empty() {
        "–".into()
    } else {
        spread(values, digits)
    })
}

/// Ours over another's, of the rounds in which both ran.
fn ratio(ours: &[Option<Value>], others: &[Option<Value>], key: &str) -> Result<String> {
    let both = ours
        .iter()
        .zip(others)
        .filter_map(|(ours, other)| ours.as_ref().zip(other.as_ref()));
    let ratios = both.map(|(ours, other)| Ok(number(ours, key)? / number(other, key)?));
    let ratios = ratios.collect::<Result<Vec<f64>>>()?;
    Ok(if ratios.is_empty() {
        "–".into()
    } else {
        spread(ratios, 2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: GpuBenchArgs,
    }

    fn args(line: &str) -> GpuBenchArgs {
        Line::parse_from(line.split_whitespace()).args
    }

    #[test]
    fn every_size_and_length_is_set_against_its_like() {
        let rows = rows(&args("gpu-bench")).unwrap();
        assert_eq!(rows.len(), 4 * 2 * 3);
        let work = rows
            .iter()
            .find(|work| work.size == "1b" && work.seq == 1024 && work.precision == 1);
        let work = work.unwrap();
        let args = args("gpu-bench --device cuda:1 --steps 7");
        let peers = Peers {
            gpas: "gpas".into(),
            python: "python".into(),
            peer: "peer.py".into(),
        };
        let words = |peer| {
            let command = command(peer, work, &peers, &args, "cuda:1");
            let words = [command.get_program()].into_iter().chain(command.get_args());
            words
                .map(|word| word.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let rest = "--preset 1b --scheme pre_gpas --vocab 32000 --batch 2 --seq 1024 --steps 7 --warmup 5";
        assert_eq!(
            words(Peer::GpasBesidePre),
            format!("gpas bench --json --device cuda:1 --precision bf16 --vs pre {rest}")
        );
        assert_eq!(
            words(Peer::Compiled),
            format!("python peer.py --device cuda:1 --dtype mixed --compile {rest}")
        );
        let wrong = super::rows(&self::args("gpu-bench --precisions fp8")).unwrap_err();
        assert_eq!(wrong.to_string(), "no number format `fp8`; one of f32, bf16, bf16_pure");
    }

    /// The compiled peer had no memory; the share is of the fastest product of all rows.
    #[test]
    fn a_row_has_what_ran() {
        let rows = rows(&args("gpu-bench --sizes 71m --seqs 256 --precisions f32,bf16")).unwrap();
        let time = |peer: Peer, work: &Work| {
            let rate = if work.precision == 0 { 1e14 } else { 4e14 };
            let gib = f64::from(1 << 30);
            Ok(match peer {
                Peer::Gpas => {
                    json!({"tokens_per_s": 300.0, "flops_per_s": 1e14, "matmul_flops_per_s": rate, "peak_bytes": 2.0 * gib})
                }
                Peer::GpasBesidePre => json!({"versus": {"ratio": 1.01}}),
                Peer::Eager => json!({"tokens_per_s": 200.0, "peak_bytes": 4.0 * gib}),
                Peer::Compiled => bail!("out of memory"),
            })
        };
        let table = table(&rows, 2, true, &time).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].contains("(400.0 TFLOP/s)"), "{table}");
        assert_eq!(
            lines[3],
            "| 71m, 64 × 256, bf16 (mixed) | **300** (300–300) | **1.50** (1.50–1.50) | – | **100.0** (100.0–100.0) | \
             **0.25** (0.25–0.25) | **2.00** (2.00–2.00) | **0.50** (0.50–0.50) | **1.010** (1.010–1.010) |"
        );
        assert_eq!(lines.len(), 4);
        let columns = |line: &str| line.matches('|').count();
        assert!(lines.iter().all(|line| columns(line) == columns(lines[0])), "{table}");
    }

    #[test]
    fn only_what_the_peer_knows_is_timed() {
        assert_eq!(card("flex").unwrap(), "on the processor");
        assert!(card("vulkan").unwrap_err().to_string().contains("has no peer"));
    }

    #[test]
    fn the_table_goes_between_the_marks_of_the_readme() {
        let readme = include_str!("../../README.md");
        assert!(
            crate::bench::between_marks(readme, MARKS, "TABLE\n")
                .unwrap()
                .contains("-->\nTABLE\n<!--")
        );
    }
}
