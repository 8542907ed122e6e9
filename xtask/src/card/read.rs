//! Results of a card as the README has them: one row for each training step that was timed, then what else was learned, in lines.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

use super::run::MACHINE;
use super::stages::{PROCESSOR, TRAINING, TRAINING_STEPS};
use crate::bench::write_table;
use crate::peers::number;

/// Print the results of a card as a table
#[derive(Debug, Args)]
pub(super) struct ReadArgs {
    /// What `run` has left
    results: PathBuf,
    /// What `pack` made, for the losses of the processor [default: a folder `card` in cargo's target directory]
    #[arg(long, value_name = "DIR")]
    pack: Option<PathBuf>,
    /// Put the table into the README
    #[arg(long)]
    write: bool,
}

/// Where the table stands in the README.
const MARKS: [&str; 2] = [
    "<!-- cards: cargo xtask card read DIR --write -->",
    "<!-- end of cards -->",
];

pub(super) fn run(args: &ReadArgs) -> Result<()> {
    let found = Found::read(&args.results)?;
    let mut text = found.table()?;
    text.push('\n');
    for line in found.lines()? {
        writeln!(text, "- {line}")?;
    }
    let pack = match &args.pack {
        Some(pack) => pack.clone(),
        None => crate::peers::target()?.join("card"),
    };
    let losses = |file: PathBuf| losses(&fs::read_to_string(file).ok()?);
    let ours = losses(args.results.join(TRAINING).join("metrics.jsonl"));
    let processor = losses(pack.join(TRAINING).join(PROCESSOR));
    if let Some((ours, processor)) = ours.zip(processor) {
        writeln!(text, "- {}", like_the_processor(&ours, &processor)?)?;
    }
    writeln!(text, "\n{}", found.caption())?;
    println!("{text}");
    for line in found.kernels() {
        println!("{line}");
    }
    if args.write {
        write_table(MARKS, &text)?;
    }
    Ok(())
}

/// What lies in a directory of results.
struct Found {
    machine: Value,
    /// Every command with what became of it, with the name of its stage.
    pieces: Vec<(String, Value)>,
}

/// Size, sequences, tokens of each, and number format of a step.
type Work = (String, u64, u64, String);

/// The lines of JSON that timed one such step.
#[derive(Default)]
struct Row<'a> {
    ours: Option<&'a Value>,
    versus: Option<&'a Value>,
    eager: Option<&'a Value>,
    compiled: Option<&'a Value>,
}

impl Found {
    fn read(results: &Path) -> Result<Self> {
        let json = |file: &Path| -> Result<Value> {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            serde_json::from_str(&text).with_context(|| file.display().to_string())
        };
        let machine = json(&results.join(MACHINE)).context("no results of a card")?;
        let mut pieces = Vec::new();
        let mut files = fs::read_dir(results)?.collect::<std::io::Result<Vec<_>>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files.iter().map(fs::DirEntry::path) {
            if file.extension().is_none_or(|ending| ending != "json") || file.ends_with(MACHINE) {
                continue;
            }
            let stage = json(&file)?;
            let name = stage["stage"].as_str().context("a stage without a name")?.to_string();
            let of_stage = stage["pieces"].as_array().into_iter().flatten();
            pieces.extend(of_stage.map(|piece| (name.clone(), piece.clone())));
        }
        ensure!(
            !pieces.is_empty(),
            "no stage has left a result in {}",
            results.display()
        );
        Ok(Self { machine, pieces })
    }

    /// The piece of that name in that stage.
    fn piece(&self, stage: &str, name: &str) -> Option<&Value> {
        let mut pieces = self.pieces.iter();
        let found = pieces.find(|(of, piece)| of == stage && piece["piece"] == name)?;
        Some(&found.1)
    }

    /// Steps that were timed beside PyTorch.
    fn rows(&self) -> BTreeMap<Work, Row<'_>> {
        let mut rows: BTreeMap<Work, Row<'_>> = BTreeMap::new();
        for (stage, piece) in &self.pieces {
            let result = &piece["result"];
            // The stages of their own have lines of their own.
            if piece["outcome"] != "done" || ["smoke", "memory", "kernels", "vulkan"].contains(&stage.as_str()) {
                continue;
            }
            let (Some(peer), Some(preset), Some(dtype)) = (
                result["peer"].as_str(),
                result["preset"].as_str(),
                result["dtype"].as_str(),
            ) else {
                continue;
            };
            let size = |key: &str| result[key].as_u64().unwrap_or_default();
            let row = rows
                .entry((preset.into(), size("batch"), size("seq"), dtype.into()))
                .or_default();
            match peer {
                "torch" => row.eager = Some(result),
                "torch.compile" => row.compiled = Some(result),
                _ if result["versus"].is_object() => row.versus = Some(result),
                _ => row.ours = Some(result),
            }
        }
        rows
    }

    fn table(&self) -> Result<String> {
        let mut text = String::from(
            "| work | tokens/s | of torch eager | of torch.compile | peak GiB | of torch eager | model TFLOP/s | first step | step over `pre` |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for ((preset, batch, seq, dtype), row) in self.rows() {
            let over = |other: Option<&Value>, key: &str| match row.ours.zip(other) {
                Some((ours, other)) => Ok(format!("{:.2}", number(ours, key)? / number(other, key)?)),
                None => Ok::<_, anyhow::Error>("–".into()),
            };
            let own = |key: &str, unit: f64, digits: usize| match row.ours {
                Some(ours) => Ok(format!("{:.digits$}", number(ours, key)? / unit)),
                None => Ok::<_, anyhow::Error>("–".into()),
            };
            let versus = match row.versus {
                Some(line) => format!("{:.3}", number(&line["versus"], "ratio")?),
                None => "–".into(),
            };
            writeln!(
                text,
                "| {preset}, {batch} × {seq}, {dtype} | {} | {} | {} | {} | {} | {} | {} s | {versus} |",
                own("tokens_per_s", 1.0, 0)?,
                over(row.eager, "tokens_per_s")?,
                over(row.compiled, "tokens_per_s")?,
                own("peak_bytes", f64::from(1 << 30), 2)?,
                over(row.eager, "peak_bytes")?,
                own("flops_per_s", 1e12, 1)?,
                own("first_step_s", 1.0, 1)?,
            )?;
        }
        Ok(text)
    }

    /// What is no row of the table.
    fn lines(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let first = |name: &str| self.piece("smoke", name).map(|piece| &piece["result"]["first_step_s"]);
        if let Some((new, again)) = first("first")
            .zip(first("again"))
            .filter(|(new, again)| new.is_number() && again.is_number())
        {
            lines.push(format!(
                "First step of `20m` in the first process: {new} s; of the next process: {again} s."
            ));
        }
        for (stage, name) in [("selfcheck", "cuda"), ("vulkan", "vulkan")] {
            lines.extend(self.piece(stage, name).and_then(selfcheck));
        }
        let timed = [
            ("memory", "micro-batches", "In micro-batches of 16"),
            ("memory", "recompute", "With recomputation"),
            ("vulkan", "vulkan f32", "Through Vulkan, in f32"),
        ];
        for (stage, name, what) in timed {
            let done = self.piece(stage, name).filter(|piece| piece["outcome"] == "done");
            if let Some(result) = done.map(|piece| &piece["result"]) {
                let gib = number(result, "peak_bytes")? / f64::from(1 << 30);
                let rate = number(result, "tokens_per_s")?;
                lines.push(format!(
                    "{what}, `130m` with 64 × 256: {rate:.0} tokens/s, peak {gib:.2} GiB."
                ));
            }
        }
        let without = self.pieces.iter().filter(|(_, piece)| piece["outcome"] != "done");
        let without: Vec<String> = without
            .map(|(stage, piece)| {
                format!(
                    "{stage}/{} ({})",
                    piece["piece"].as_str().unwrap_or("?"),
                    piece["outcome"].as_str().unwrap_or("?")
                )
            })
            .collect();
        if !without.is_empty() {
            lines.push(format!("Without a result: {}.", without.join(", ")));
        }
        Ok(lines)
    }

    /// The kernels that a step spends most on.
    fn kernels(&self) -> Vec<String> {
        let Some(piece) = self.piece("kernels", "kernels") else {
            return Vec::new();
        };
        let kernels = piece["result"]["kernels"].as_array().into_iter().flatten();
        kernels.take(30).map(Value::to_string).collect()
    }

    fn caption(&self) -> String {
        let field = |name: &str| self.machine[name].as_str().unwrap_or("unknown").to_string();
        format!(
            "`pre_gpas`, vocabulary 32000, one call each, on {}, PyTorch {} (eager and compiled, autocast where we are in bf16), {}.",
            field("card"),
            field("torch"),
            field("build")
        )
    }
}

/// How a self-check went.
fn selfcheck(piece: &Value) -> Option<String> {
    let name = piece["piece"].as_str()?;
    let checks = piece["result"]["checks"].as_array()?;
    let count = |status: &str| checks.iter().filter(|check| check["status"] == status).count();
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| check["status"] == "FAIL")
        .filter_map(|check| check["name"].as_str())
        .collect();
    let all = format!(
        "`gpas selfcheck --backend {name}`: {} passed, {} skipped",
        count("PASS"),
        count("SKIPPED")
    );
    let seconds = piece["seconds"].as_f64()?;
    Some(match failed.is_empty() {
        true => format!("{all}, in {seconds:.0} s."),
        false => format!("{all}, failed: {}; in {seconds:.0} s.", failed.join(", ")),
    })
}

/// The loss of every step in a file of metrics.
fn losses(metrics: &str) -> Option<Vec<f64>> {
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: Vec<Value> = lines.collect::<Option<_>>()?;
    let steps = lines.iter().filter(|line| line["kind"] == "train");
    // A step that was skipped has no loss.
    Some(steps.map(|line| line["loss"].as_f64().unwrap_or(f64::NAN)).collect())
}

/// Two trainings in one line: where the losses end, and how far they part.
fn like_the_processor(ours: &[f64], processor: &[f64]) -> Result<String> {
    let steps = ours.len().min(processor.len());
    ensure!(steps > 0, "a training without a step");
    let mean = |losses: &[f64]| losses[steps - steps.min(20)..steps].iter().sum::<f64>() / steps.min(20) as f64;
    let differences = ours.iter().zip(processor).map(|(ours, other)| (ours - other).abs());
    // A difference that is no number counts as the largest.
    let largest = differences.max_by(f64::total_cmp).unwrap_or(f64::NAN);
    Ok(format!(
        "{steps} of {TRAINING_STEPS} steps of `nano` in f32: mean loss of the last 20 {:.4}, on a processor {:.4}; largest difference of a step {largest:.4}.",
        mean(ours),
        mean(processor)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn results(stages: &[Value]) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        let machine =
            json!({"card": "H100 (80 GB), driver 580", "torch": "2.11", "build": "rustc 1, commit abc, today"});
        fs::write(place.path().join(MACHINE), machine.to_string()).unwrap();
        for stage in stages {
            let file = place
                .path()
                .join(stage["stage"].as_str().unwrap())
                .with_extension("json");
            fs::write(file, stage.to_string()).unwrap();
        }
        place
    }

    fn timed(piece: &str, peer: &str, rate: f64, gib: f64) -> Value {
        json!({"piece": piece, "outcome": "done", "seconds": 9.0, "result": {
            "peer": peer, "preset": "130m", "batch": 64, "seq": 256, "dtype": "mixed", "tokens_per_s": rate,
            "peak_bytes": gib * f64::from(1 << 30), "flops_per_s": 2e14, "first_step_s": 12.34}})
    }

    #[test]
    fn a_row_has_what_ran() {
        let mut versus = timed("vs pre", "gpas-cuda", 290.0, 9.0);
        versus["result"]["versus"] = json!({"ratio": 1.0049});
        let place = results(&[
            json!({"stage": "130m-256", "pieces": [
                timed("gpas", "gpas-cuda", 300.0, 10.0),
                timed("eager", "torch", 200.0, 20.0),
                {"piece": "compile", "outcome": "too long", "seconds": 180.0},
            ]}),
            json!({"stage": "vs-pre", "pieces": [versus]}),
            json!({"stage": "memory", "pieces": [timed("recompute", "gpas-cuda", 250.0, 5.0)]}),
        ]);
        let found = Found::read(place.path()).unwrap();
        let table = found.table().unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[2],
            "| 130m, 64 × 256, mixed | 300 | 1.50 | – | 10.00 | 0.50 | 200.0 | 12.3 s | 1.005 |"
        );
        assert_eq!(lines.len(), 3);
        let columns = |line: &str| line.matches('|').count();
        assert!(lines.iter().all(|line| columns(line) == columns(lines[0])), "{table}");
        assert_eq!(
            found.lines().unwrap(),
            [
                "With recomputation, `130m` with 64 × 256: 250 tokens/s, peak 5.00 GiB.",
                "Without a result: 130m-256/compile (too long)."
            ]
        );
        assert!(found.caption().contains("on H100 (80 GB), driver 580, PyTorch 2.11"));
        assert!(found.caption().ends_with("rustc 1, commit abc, today."));
    }

    #[test]
    fn checks_are_counted_and_failures_named() {
        let check = |name: &str, status: &str| json!({"name": name, "status": status});
        let checks = [check("loss", "PASS"), check("bf16", "SKIPPED"), check("logits", "FAIL")];
        let piece = |checks: &[Value]| json!({"piece": "cuda", "seconds": 61.2, "result": {"checks": checks}});
        assert_eq!(
            selfcheck(&piece(&checks)).unwrap(),
            "`gpas selfcheck --backend cuda`: 1 passed, 1 skipped, failed: logits; in 61 s."
        );
        assert_eq!(
            selfcheck(&piece(&checks[..2])).unwrap(),
            "`gpas selfcheck --backend cuda`: 1 passed, 1 skipped, in 61 s."
        );
    }

    #[test]
    fn trainings_are_set_beside_each_other() {
        let metrics =
            "{\"kind\":\"eval\",\"loss\":9}\n{\"kind\":\"train\",\"loss\":3.5}\n{\"kind\":\"train\",\"loss\":2.5}\n";
        let ours = losses(metrics).unwrap();
        assert_eq!(ours, [3.5, 2.5]);
        assert_eq!(
            like_the_processor(&ours, &[3.0, 2.75]).unwrap(),
            "2 of 300 steps of `nano` in f32: mean loss of the last 20 3.0000, on a processor 2.8750; largest difference of a step 0.5000."
        );
        let skipped = losses("{\"kind\":\"train\",\"loss\":null}\n").unwrap();
        assert!(
            like_the_processor(&skipped, &[3.0])
                .unwrap()
                .contains("largest difference of a step NaN")
        );
        assert!(losses("no json\n").is_none());
    }

    #[test]
    fn a_folder_without_results_says_so() {
        let place = tempfile::tempdir().unwrap();
        let error = format!("{:#}", Found::read(place.path()).err().unwrap());
        assert!(error.starts_with("no results of a card: "), "{error}");
        let error = Found::read(results(&[]).path()).err().unwrap().to_string();
        assert!(error.starts_with("no stage has left a result in "), "{error}");
    }

    #[test]
    fn the_table_goes_between_the_marks_of_the_readme() {
        let readme = include_str!("../../../README.md");
        assert!(
            crate::bench::between_marks(readme, MARKS, "TABLE\n")
                .unwrap()
                .contains("-->\nTABLE\n<!--")
        );
    }
}
