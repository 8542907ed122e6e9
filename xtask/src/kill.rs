//! `cargo xtask kill`: a run that is killed at random moments and gone on with each time, against one that nobody disturbs.
//!
//! Both have to end with the same bytes: every line of `metrics.jsonl` but for its clock, the weights, and the optimizer's moments.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

/// Kill a training run again and again, go on with it each time, and compare it with one undisturbed run, bit by bit
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask kill --times 20
  cargo xtask kill --times 3 --case ndarray --seed 7")]
pub struct KillArgs {
    /// Kills of each case
    #[arg(long, default_value_t = 20)]
    times: usize,
    /// One case: flex, ndarray, or large (a tensor of over 4.2 million elements and a clip that binds) [default: all]
    #[arg(long, value_name = "CASE")]
    case: Option<String>,
    /// Determines the moments as far as the machine allows
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Name of a case, and its options for `gpas train`.
const CASES: [(&str, &str); 3] = [
    ("flex", "--backend flex --preset nano"),
    ("ndarray", "--backend ndarray --preset nano"),
    (
        "large",
        "--backend flex --preset 20m --set model.layers=2 --set model.vocab=32000 --set train.batch=2 --set data.seq_len=64 \
         --set train.clip=0.1",
    ),
];

/// What every case has.
const COMMON: &str =
    "--set train.steps=60 --set eval.every=6 --set eval.tokens=2048 --set checkpoint.every=3 --set checkpoint.keep=2";

/// Runs the campaigns.
///
/// # Errors
/// If two runs differ, or a run ends otherwise than it should.
pub fn run(args: &KillArgs) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies at the top of the workspace")?;
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--workspace", "--bins"])
        .current_dir(root)
        .status()?;
    ensure!(built.success(), "gpas does not build");
    let cases: Vec<_> = CASES
        .iter()
        .filter(|(name, _)| args.case.as_ref().is_none_or(|wanted| wanted == name))
        .collect();
    ensure!(!cases.is_empty(), "a case is flex, ndarray or large");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    for (name, options) in cases {
        let place = tempfile::tempdir()?;
        let campaign = Campaign {
            gpas: target.join("release/gpas"),
            place: place.path().to_path_buf(),
            options: format!("{options} {COMMON}")
                .split_whitespace()
                .map(Into::into)
                .collect(),
            kills: args.times,
            seed: args.seed,
        };
        println!("\n{name}: gpas train {options} {COMMON}");
        let begin = Instant::now();
        println!("{}", campaign.run()?);
        println!("{name}: {:.0} s", begin.elapsed().as_secs_f64());
    }
    Ok(())
}

/// A run to be killed.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The binary.
    pub gpas: PathBuf,
    /// An empty directory for both runs.
    pub place: PathBuf,
    /// What to train: options of `gpas train`.
    pub options: Vec<String>,
    /// How often.
    pub kills: usize,
    /// Determines the moments as far as the machine allows.
    pub seed: u64,
}

/// A campaign whose two runs are equal.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where each kill landed.
    pub landings: Vec<Landing>,
    /// Steps of the run, each of which has one line.
    pub steps: usize,
    /// Steps whose gradient norm was above the limit of the clip.
    pub clipped: usize,
    /// Bytes of weights and moments that were compared.
    pub bytes: usize,
}

/// Where a kill landed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landing {
    /// Before the run directory was made.
    BeforeTheRun,
    /// Inside the write of a checkpoint: its step, and the files that it had so far.
    InCheckpoint {
        /// Its step.
        step: u64,
        /// Files that were there.
        files: usize,
    },
    /// Anywhere else: after this step, and whether a line of the metrics was cut.
    AfterStep {
        /// Steps that had a line.
        step: usize,
        /// Whether another line was cut.
        torn: bool,
    },
}

impl fmt::Display for Landing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Landing::BeforeTheRun => write!(f, "before the run directory was made"),
            Landing::InCheckpoint { step, files } => {
                write!(
                    f,
                    "inside the write of the checkpoint of step {step}, {files} files begun"
                )
            }
            Landing::AfterStep { step, torn: false } => write!(f, "after step {step}"),
            Landing::AfterStep { step, torn: true } => write!(f, "after step {step}, inside a line of the metrics"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, landing) in self.landings.iter().enumerate() {
            writeln!(f, "  kill {:>2}: {landing}", index + 1)?;
        }
        let inside = |landing: &&Landing| matches!(landing, Landing::InCheckpoint { .. });
        write!(
            f,
            "  {} kills, {} of them inside a checkpoint; {} steps with one line each ({} of them clipped), all losses equal to the last \
             bit; {} bytes of weights and moments equal",
            self.landings.len(),
            self.landings.iter().filter(inside).count(),
            self.steps,
            self.clipped,
            self.bytes
        )
    }
}

impl Campaign {
    /// Trains both runs and compares them.
    ///
    /// # Errors
    /// If they differ, or a run ends otherwise than it should.
    pub fn run(&self) -> Result<Report> {
        let (calm, killed) = (self.place.join("calm"), self.place.join("killed"));
        finish(self.begin(&calm)?)?;
        let steps = train_lines(&calm)?.len();
        let mut dice = Dice(self.seed);
        let mut landings = Vec::new();
        while landings.len() < self.kills {
            let mut child = self.begin_or_resume(&killed)?;
            let left = self.kills - landings.len();
            let moment = self.moment(&killed, steps, left, &mut dice);
            if !moment.wait(&killed, &mut child)? {
                bail!("the run ended before kill {}: give it more steps", landings.len() + 1);
            }
            child.kill()?;
            child.wait()?;
            landings.push(landing(&killed)?);
        }
        finish(self.begin_or_resume(&killed)?)?;
        compare(&calm, &killed, landings)
    }

    fn begin(&self, run: &Path) -> Result<Child> {
        self.spawn(&[&["train"], self.options().as_slice(), &["-o", utf8(run)?]].concat())
    }

    fn begin_or_resume(&self, run: &Path) -> Result<Child> {
        if run.exists() {
            self.spawn(&["train", utf8(run)?, "--resume"])
        } else {
            self.begin(run)
        }
    }

    fn options(&self) -> Vec<&str> {
        self.options.iter().map(String::as_str).collect()
    }

    fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        Command::new(&self.gpas)
            .args(arguments)
            .arg("--plain")
            .current_dir(&self.place)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.gpas.display()))
    }

    /// Every third kill waits for a checkpoint to be written; the others come after a few steps, so few that there is a step left for
    /// every kill to come.
    fn moment(&self, run: &Path, steps: usize, left: usize, dice: &mut Dice) -> Moment {
        let done = train_lines(run).map_or(0, |lines| lines.len());
        let room = steps.saturating_sub(done + left).min(7);
        match left % 3 {
            0 => Moment::Checkpoint {
                delay: Duration::from_micros(dice.below(4000)),
            },
            _ => Moment::Step {
                after: dice.below(room as u64 + 1) as usize,
                delay: Duration::from_micros(dice.below(200_000)),
            },
        }
    }
}

/// When to kill.
enum Moment {
    /// After `delay` of writing a checkpoint.
    Checkpoint { delay: Duration },
    /// `delay` after this many more steps, or before any of them.
    Step { after: usize, delay: Duration },
}

impl Moment {
    /// Waits for the moment; false if the process ended before it.
    fn wait(&self, run: &Path, child: &mut Child) -> Result<bool> {
        let mut begun = None;
        loop {
            if child.try_wait()?.is_some() {
                return Ok(false);
            }
            let delay = match self {
                Moment::Checkpoint { delay } if being_written(run).is_some() => *delay,
                Moment::Step { after: 0, delay } => *delay,
                Moment::Step { after, delay } => {
                    let now = count_lines(run);
                    // The process first drops the lines that it will write again.
                    let first = *begun.get_or_insert(now);
                    if now < first {
                        begun = Some(now);
                    }
                    if now < first + after {
                        sleep(Duration::from_micros(300));
                        continue;
                    }
                    *delay
                }
                Moment::Checkpoint { .. } => {
                    sleep(Duration::from_micros(200));
                    continue;
                }
            };
            sleep(delay);
            return Ok(child.try_wait()?.is_none());
        }
    }
}

/// Numbers that a seed determines, after SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is UTF-8")
}

fn finish(child: Child) -> Result<()> {
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "gpas ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The folder of a checkpoint that is being written, with its step.
fn being_written(run: &Path) -> Option<(u64, PathBuf)> {
    let entries = fs::read_dir(run.join("checkpoints")).ok()?;
    entries.flatten().find_map(|entry| {
        let step = entry
            .file_name()
            .to_str()?
            .strip_prefix(".step-")?
            .split('.')
            .next()?
            .parse()
            .ok()?;
        Some((step, entry.path()))
    })
}

fn landing(run: &Path) -> Result<Landing> {
    if !run.exists() {
        return Ok(Landing::BeforeTheRun);
    }
    if let Some((step, path)) = being_written(run) {
        let files = fs::read_dir(path)?.count();
        return Ok(Landing::InCheckpoint { step, files });
    }
    let text = fs::read(run.join("metrics.jsonl")).unwrap_or_default();
    Ok(Landing::AfterStep {
        step: train_lines(run)?.len(),
        torn: text.last().is_some_and(|byte| *byte != b'\n'),
    })
}

fn count_lines(run: &Path) -> usize {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter(|line| line.contains(r#""kind":"train""#)).count()
}

/// The whole lines of a run's metrics, without what is measured with a clock.
fn lines(run: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).with_context(|| format!("metrics.jsonl: {line}"))?;
            if let Some(object) = value.as_object_mut() {
                object.remove("tokens_per_s");
            }
            Ok(value)
        })
        .collect()
}

fn train_lines(run: &Path) -> Result<Vec<Value>> {
    let lines = lines(run)?;
    Ok(lines.into_iter().filter(|line| line["kind"] == "train").collect())
}

fn compare(calm: &Path, killed: &Path, landings: Vec<Landing>) -> Result<Report> {
    let (expected, found) = (lines(calm)?, lines(killed)?);
    for (index, (expected, found)) in expected.iter().zip(&found).enumerate() {
        ensure!(expected == found, "line {} differs:\n{expected}\n{found}", index + 1);
    }
    ensure!(
        expected.len() == found.len(),
        "{} lines undisturbed, {} killed",
        expected.len(),
        found.len()
    );
    let train = train_lines(calm)?;
    let numbered = train.iter().zip(1..).all(|(line, step)| line["step"] == step);
    ensure!(numbered, "the steps are not numbered from 1");
    let (expected, found) = (checkpoints(calm)?, checkpoints(killed)?);
    ensure!(
        expected.keys().eq(found.keys()),
        "checkpoints {:?} undisturbed, {:?} killed",
        expected.keys(),
        found.keys()
    );
    for (name, bytes) in &expected {
        ensure!(found[name] == *bytes, "{name} differs");
    }
    let recipe: toml::Table = fs::read_to_string(calm.join("recipe.toml"))?.parse()?;
    let clip = recipe["train"]["clip"].as_float().unwrap_or(0.0);
    let norm = |line: &&Value| clip > 0.0 && line["grad_norm"].as_f64().is_some_and(|norm| norm > clip);
    Ok(Report {
        landings,
        steps: train.len(),
        clipped: train.iter().filter(norm).count(),
        bytes: expected.values().map(Vec::len).sum(),
    })
}

/// Weights and moments of every checkpoint by their names.
fn checkpoints(run: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(run.join("checkpoints"))? {
        let folder = entry?.path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let path = folder.join(file);
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            files.insert(format!("{name}/{file}"), bytes);
        }
    }
    Ok(files)
}
