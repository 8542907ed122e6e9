//! Stages within their time: each command has a limit, all of them together have one, and what was found is written as it is found.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::files::{copy_all, write_whole};
use super::pack::{FACTS, PACKED, PEER, unpack};
use super::stages::{Piece, Program, Stage, stages};
use crate::peers::{said, target};

/// Make stages on this machine's card, within a time
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Which, in this order [default: all, the most valuable first]
    stages: Vec<String>,
    /// Time for all of them
    #[arg(long, default_value_t = 840)]
    seconds: u64,
    /// Where the results go
    #[arg(short, long, value_name = "DIR", default_value = "results")]
    out: PathBuf,
    /// Number of the card
    #[arg(long, default_value_t = 0)]
    card: usize,
    /// A Python with torch
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
    /// What `pack` made [default: where this program lies, or what `pack` makes by default]
    #[arg(long, value_name = "DIR")]
    pack: Option<PathBuf>,
}

/// The file in which results say where they come from.
pub(super) const MACHINE: &str = "machine.json";

/// A stage that has less time than this is not begun.
const LEAST: Duration = Duration::from_secs(5);

pub(super) fn run(args: &RunArgs) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(args.seconds);
    let card = card(args.card)?;
    let folder = match &args.pack {
        Some(folder) => folder.clone(),
        None => own_folder()?,
    };
    let folder =
        fs::canonicalize(&folder).with_context(|| format!("{} is no pack; `card pack` makes one", folder.display()))?;
    let facts = fs::read_to_string(folder.join(FACTS)).with_context(|| format!("{} is no pack", folder.display()))?;
    fs::create_dir_all(&args.out)?;
    let out = fs::canonicalize(&args.out)?;
    let chosen = choose(&args.stages, stages(&folder, &out, args.card))?;
    let gpas = unpack(&folder, &out)?;
    let cache = out.join("cache");
    if folder.join(PACKED).exists() && !cache.exists() {
        copy_all(&folder.join(PACKED), &cache)?;
    }
    let mut machine: Value = serde_json::from_str(&facts).context("the facts of the pack")?;
    machine["card"] = json!(card);
    let print = "import torch; print(torch.__version__)";
    let torch = said(Command::new(&args.python).args(["-c", print])).unwrap_or_default();
    machine["torch"] = json!(torch);
    write_whole(&out.join(MACHINE), &machine)?;
    println!("{card}: {} stages in {} s", chosen.len(), args.seconds);
    let peer = folder.join(PEER);
    let command = |piece: &Piece| {
        let mut command = match piece.program {
            Program::Gpas => Command::new(&gpas),
            Program::Peer => Command::new(&args.python),
            #[cfg(test)]
            Program::Shell => Command::new("sh"),
        };
        if piece.program == Program::Peer {
            command.arg(&peer);
        }
        command.args(&piece.arguments);
        // What was compiled and tuned before would make the first step of a new card quicker than it is.
        command.env("XDG_CACHE_HOME", &cache);
        command
    };
    run_stages(&chosen, deadline, &out, &command)
}

/// The card and its driver.
fn card(index: usize) -> Result<String> {
    let query = [
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader",
        "--id",
    ];
    let found = Command::new("nvidia-smi").args(query).arg(index.to_string()).output();
    let found = found.ok().filter(|output| output.status.success());
    let text = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string());
    match text
        .as_deref()
        .map(|text| text.split(", ").collect::<Vec<_>>())
        .as_deref()
    {
        Some([name, memory, driver]) => Ok(format!("{name} ({memory}), driver {driver}")),
        _ => bail!("no card: `nvidia-smi` names no NVIDIA card {index} on this machine"),
    }
}

/// The pack that this program lies in, or the one that `pack` makes by default.
fn own_folder() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let own = own.parent().context("a program lies in a folder")?;
    if own.join(FACTS).exists() {
        return Ok(own.to_path_buf());
    }
    Ok(target()?.join("card"))
}

/// The stages of these names, in this order; all of them where none is named.
fn choose(names: &[String], all: Vec<Stage>) -> Result<Vec<Stage>> {
    if names.is_empty() {
        return Ok(all);
    }
    let find = |name: &String| {
        let found = all.iter().find(|stage| stage.name == name).cloned();
        let known: Vec<&str> = all.iter().map(|stage| stage.name).collect();
        found.with_context(|| format!("no stage `{name}`; one of {}", known.join(", ")))
    };
    names.iter().map(find).collect()
}

/// Runs stages until the deadline. Every one of them has a file in the end, the ones that there was no time for too.
fn run_stages(stages: &[Stage], deadline: Instant, out: &Path, command: &dyn Fn(&Piece) -> Command) -> Result<()> {
    let mut failed = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let file = out.join(format!("{}.json", stage.name));
        let begin = Instant::now();
        let mut pieces = Vec::new();
        for piece in &stage.pieces {
            let left = deadline.saturating_duration_since(Instant::now());
            let outcome = if left < LEAST {
                Outcome::NoTime
            } else {
                let limit = Duration::from_secs(piece.limit).min(left);
                let logs = out.join(format!("{}-{}", stage.name, piece.name.replace(' ', "-")));
                run_piece(command(piece), limit, &logs)?
            };
            println!(
                "{}/{} {}, {}: {}",
                index + 1,
                stages.len(),
                stage.name,
                piece.name,
                outcome.line()
            );
            if !matches!(outcome, Outcome::Done { .. }) {
                failed.push(format!("{} of {}", piece.name, stage.name));
            }
            pieces.push(outcome.json(piece));
            let found = json!({
                "stage": stage.name,
                "asks": stage.asks,
                "seconds": begin.elapsed().as_secs_f64(),
                "pieces": pieces,
            });
            write_whole(&file, &found)?;
        }
    }
    ensure!(
        failed.is_empty(),
        "without a result: {}; see {}",
        failed.join(", "),
        out.display()
    );
    Ok(())
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// It ended well, and this is the object in its last line; null where it prints none.
    Done { seconds: f64, result: Value },
    /// It ended otherwise, with these last lines of its complaint.
    Failed { seconds: f64, result: Value, why: String },
    /// It was ended at its limit.
    TooLong { seconds: f64 },
    /// There was no time left to begin it.
    NoTime,
}

impl Outcome {
    /// For people.
    fn line(&self) -> String {
        match self {
            Outcome::Done { seconds, result } => match result["tokens_per_s"].as_f64() {
                Some(rate) => format!("{rate:.0} tokens/s, {seconds:.0} s"),
                None => format!("done, {seconds:.0} s"),
            },
            Outcome::Failed { seconds, why, .. } => format!("failed after {seconds:.0} s: {why}"),
            Outcome::TooLong { seconds } => format!("ended after {seconds:.0} s, its time"),
            Outcome::NoTime => "skipped: the time is over".into(),
        }
    }

    fn json(&self, piece: &Piece) -> Value {
        let mut value = match self {
            Outcome::Done { seconds, result } => json!({"outcome": "done", "seconds": seconds, "result": result}),
            Outcome::Failed { seconds, result, why } => {
                json!({"outcome": "failed", "seconds": seconds, "result": result, "why": why})
            }
            Outcome::TooLong { seconds } => json!({"outcome": "too long", "seconds": seconds}),
            Outcome::NoTime => json!({"outcome": "no time"}),
        };
        value["piece"] = json!(piece.name);
        value["command"] = json!(piece.arguments.join(" "));
        value
    }
}

/// Runs a command for at most `limit`; what it prints is kept in files of this name, with `.out` and `.err` behind it.
fn run_piece(mut command: Command, limit: Duration, logs: &Path) -> Result<Outcome> {
    let [out, err] = ["out", "err"].map(|ending| PathBuf::from(format!("{}.{ending}", logs.display())));
    let begin = Instant::now();
    command
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let why = format!("cannot start {}: {error}", command.get_program().display());
            let (seconds, result) = (0.0, Value::Null);
            return Ok(Outcome::Failed { seconds, result, why });
        }
    };
    let ended = wait(&mut child, begin + limit)?;
    let seconds = begin.elapsed().as_secs_f64();
    let Some(success) = ended else {
        return Ok(Outcome::TooLong { seconds });
    };
    let printed = String::from_utf8_lossy(&fs::read(&out)?).into_owned();
    let last = printed.lines().last().unwrap_or_default();
    let result = serde_json::from_str::<Value>(last)
        .ok()
        .filter(Value::is_object)
        .unwrap_or_default();
    if success {
        return Ok(Outcome::Done { seconds, result });
    }
    let complaint = String::from_utf8_lossy(&fs::read(&err)?).into_owned();
    let lines: Vec<&str> = complaint.lines().rev().take(3).collect();
    let why = lines.into_iter().rev().collect::<Vec<_>>().join(" | ");
    Ok(Outcome::Failed { seconds, result, why })
}

/// Whether the child ended well, or none where it had to be ended at the deadline.
fn wait(child: &mut Child, deadline: Instant) -> Result<Option<bool>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &'static str, line: &str, limit: u64) -> Piece {
        Piece {
            name,
            program: Program::Shell,
            arguments: vec!["-c".into(), line.into()],
            limit,
        }
    }

    fn stage(name: &'static str, pieces: Vec<Piece>) -> Stage {
        let asks = "?";
        Stage { name, asks, pieces }
    }

    fn read(out: &Path, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(out.join(name).with_extension("json")).unwrap()).unwrap()
    }

    /// One that answers, one that fails, one that would take for ever, and one for which no time is left.
    #[test]
    fn every_stage_is_within_its_time_and_has_a_file() {
        let out = tempfile::tempdir().unwrap();
        let stages = [
            stage("good", vec![shell("a", r#"echo x; echo '{"tokens_per_s": 7.0}'"#, 30)]),
            stage(
                "bad",
                vec![
                    shell("b", "echo one >&2; echo two >&2; exit 3", 30),
                    shell("c d", "exit 0", 30),
                ],
            ),
            stage("slow", vec![shell("e", "exec sleep 60", 1)]),
            stage("last", vec![shell("f", "exit 0", 30)]),
        ];
        let shell = |piece: &Piece| {
            let mut command = Command::new("sh");
            command.args(&piece.arguments);
            command
        };
        let begin = Instant::now();
        let error = run_stages(&stages[..3], begin + Duration::from_secs(60), out.path(), &shell).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert!(
            error
                .to_string()
                .starts_with("without a result: b of bad, e of slow; see "),
            "{error}"
        );
        let error = run_stages(&stages[3..], Instant::now() + LEAST / 2, out.path(), &shell).unwrap_err();
        assert!(error.to_string().starts_with("without a result: f of last"), "{error}");

        let good = &read(out.path(), "good")["pieces"][0];
        assert_eq!(
            (good["outcome"].as_str(), good["result"]["tokens_per_s"].as_f64()),
            (Some("done"), Some(7.0))
        );
        let bad = &read(out.path(), "bad")["pieces"];
        assert_eq!(
            (bad[0]["outcome"].as_str(), bad[0]["why"].as_str()),
            (Some("failed"), Some("one | two"))
        );
        assert_eq!(
            (bad[1]["piece"].as_str(), bad[1]["outcome"].as_str()),
            (Some("c d"), Some("done"))
        );
        assert_eq!(read(out.path(), "slow")["pieces"][0]["outcome"], "too long");
        assert_eq!(read(out.path(), "last")["pieces"][0]["outcome"], "no time");
        assert_eq!(fs::read_to_string(out.path().join("bad-b.err")).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_program_that_is_missing_is_said() {
        let out = tempfile::tempdir().unwrap();
        let missing = Command::new("/no/such/program");
        let found = run_piece(missing, Duration::from_secs(9), &out.path().join("x")).unwrap();
        assert!(
            matches!(&found, Outcome::Failed { why, .. } if why.starts_with("cannot start /no/such/program: ")),
            "{found:?}"
        );
    }

    #[test]
    fn stages_are_chosen_by_name() {
        let all = || ["a", "b", "c"].map(|name| stage(name, Vec::new())).to_vec();
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            choose(&names, all()).map(|found| found.iter().map(|stage| stage.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["c", "a"]).unwrap(), ["c", "a"]);
        assert_eq!(names(&[]).unwrap(), ["a", "b", "c"]);
        assert_eq!(names(&["d"]).unwrap_err().to_string(), "no stage `d`; one of a, b, c");
    }

    /// A card that is there on the machine of this test is named.
    #[test]
    fn without_a_card_one_line_says_so() {
        match card(99) {
            Ok(card) => panic!("{card}"),
            Err(error) => assert_eq!(
                error.to_string(),
                "no card: `nvidia-smi` names no NVIDIA card 99 on this machine"
            ),
        }
    }
}
