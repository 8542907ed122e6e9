//! What several runs say of each other: from their directories to `compare.json`, its table, and nothing that was measured by hand.
//!
//! | figure | how it is computed |
//! |---|---|
//! | perplexity | of the evaluation after a run's last step; its mean and standard deviation (n − 1) over the seeds |
//! | difference | paired: a run's perplexity less that of the baseline's run with the same seed, and the 95 % interval of its mean ([`statistics`]) |
//! | steps to the baseline's loss | for each seed, where the run's validation loss first falls to the last one of the baseline's run with that seed, on straight lines between evaluations; then the mean over the seeds, if all of them get there |
//! | acceleration | the baseline's steps over those |
//! | tokens/s | median over all steps of the arm's runs, from their `metrics.jsonl` |
//! | gates | the smallest and the largest α at the last step of any of the arm's runs |
//! | diverged | see [`RunSummary::diverged`] |
//!
//! A diverged run counts as every other one: where its perplexity is not a number, neither are mean and difference.
//!
//! Everything but tokens/s is the same whether or not the runs were interrupted: in `compare.json`, `tokens_per_s` is the one key that a
//! clock decides.

mod plan;
pub mod statistics;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Value;

use gpas_train::metrics::{EvalRecord, GateRange, Metrics, null_is_nan};
use gpas_train::recipe::{Recipe, RecipeError, suggestion};
use gpas_train::run::{RunDirectory, RunError, RunInfo, replace};
use statistics::{Difference, Sample, median};

pub use plan::{Arm, Plan, PlannedRun};
pub use table::{COLUMNS, METHOD, cells, markdown, notes, plain};

/// A rise of the validation loss over its lowest value, in nats, from which on a run counts as diverged.
const BLOW_UP: f64 = 1.0;

/// A comparison as it stands in `compare.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Name of the arm that the others are compared with.
    pub baseline: String,
    /// How many runs it will have; as many as `runs` once it is complete.
    pub planned: usize,
    /// The runs that are done, arm by arm.
    pub runs: Vec<RunSummary>,
    /// The arms that have such a run.
    pub summary: Vec<ArmSummary>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Name of its arm.
    pub name: String,
    /// Normalisation scheme.
    pub scheme: String,
    /// Seed.
    pub seed: u64,
    /// Values of the varied keys.
    pub varied: BTreeMap<String, Value>,
    /// Steps done: fewer than the recipe's if it stopped because its numbers were no longer finite.
    pub steps: u64,
    /// Tokens scored in training.
    pub tokens: u64,
    /// Validation loss after the last step, in nats; `null` if it stopped before it, or is not finite.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// `exp(loss)`.
    #[serde(deserialize_with = "null_is_nan")]
    pub perplexity: f64,
    /// Whether it stopped because its numbers were no longer finite, or ended with a validation loss that is not finite, above that before
    /// training, or more than 1 nat above its own lowest.
    pub diverged: bool,
    /// Its directory below that of the comparison.
    pub directory: String,
    /// Number of parameters, gates not counted.
    pub parameters: u64,
    /// Smallest gate α at the last step; absent without GPAS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate_min: Option<f64>,
    /// Largest gate α at the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate_max: Option<f64>,
    /// Positions per second at the median step.
    pub tokens_per_s: Option<f64>,
}

/// An arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmSummary {
    /// Its name.
    pub name: String,
    /// Number of runs.
    pub n: usize,
    /// How many of them diverged.
    pub diverged: usize,
    /// Mean of the final validation perplexity; `null` if a run has none.
    pub perplexity_mean: Option<f64>,
    /// Its standard deviation; `null` of a single run.
    pub perplexity_sd: Option<f64>,
    /// Number of seeds that both this arm and the baseline have run.
    pub pairs: usize,
    /// Mean of the paired differences of perplexity from the baseline; `null` for the baseline itself.
    pub difference_mean: Option<f64>,
    /// Lower end of its 95 % interval; `null` of a single pair.
    pub difference_low: Option<f64>,
    /// Upper end.
    pub difference_high: Option<f64>,
    /// Whether the interval leaves out 0; `null` without one.
    pub resolved: Option<bool>,
    /// In how many of the pairs the loss came down to the baseline's last.
    pub reached: usize,
    /// Steps that took, the mean over the pairs; `null` unless all of them got there.
    pub steps_to_baseline: Option<f64>,
    /// Tokens that took.
    pub tokens_to_baseline: Option<f64>,
    /// The baseline's steps over `steps_to_baseline`.
    pub acceleration: Option<f64>,
    /// Positions per second at the median step of all its runs.
    pub tokens_per_s: Option<f64>,
    /// Smallest gate α at the last step of any run; `null` without GPAS.
    pub gate_min: Option<f64>,
    /// Largest gate α at the last step of any run.
    pub gate_max: Option<f64>,
}

/// Why runs cannot be compared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum CompareError {
    #[error("a comparison needs schemes")]
    NoSchemes,
    #[error("unknown scheme `{0}`")]
    UnknownScheme(String),
    #[error("`{0}` is varied over no values")]
    NoValues(String),
    #[error("{0} is named twice")]
    Repeated(String),
    #[error("`{0}` is decided by `{1}`")]
    OwnKey(String, &'static str),
    #[error("the baseline `{name}` is not one of the arms")]
    Baseline { name: String, arms: Vec<String> },
    #[error("{0} is a run, not a comparison")]
    ARun(PathBuf),
    #[error("{0} is not a comparison: it has no compare.json")]
    NotAComparison(PathBuf),
    #[error("{run} was made with `{key}` = {before}, not {after}")]
    Changed {
        run: PathBuf,
        key: String,
        before: String,
        after: String,
    },
    #[error("{0} was made from other data")]
    DataChanged(PathBuf),
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("{path}: {cause}")]
    Json { path: PathBuf, cause: serde_json::Error },
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Run(#[from] RunError),
}

impl CompareError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let schemes = || {
            gpas_model::Scheme::all()
                .map(|scheme| scheme.to_string())
                .collect::<Vec<_>>()
        };
        Some(match self {
            CompareError::NoSchemes => {
                "`--schemes pre,pre_gpas`, or a recipe with a [compare] table such as compare-quick".into()
            }
            CompareError::UnknownScheme(name) => suggestion(name, schemes().iter().map(String::as_str)),
            CompareError::NoValues(key) => format!("for example `--vary {key}=V1,V2`"),
            CompareError::Repeated(_) => "each once".into(),
            CompareError::OwnKey(_, option) => format!("name them all with `{option}`"),
            CompareError::Baseline { name, arms } => suggestion(name, arms.iter().map(String::as_str)),
            CompareError::ARun(_) => "name a directory for the comparison with `-o`; its runs lie below it".into(),
            CompareError::NotAComparison(_) => "a comparison is what `gpas compare -o DIR` makes".into(),
            CompareError::Changed { .. } => {
                "runs that are compared are made alike: give what it was made with, or another directory with `-o`"
                    .into()
            }
            CompareError::DataChanged(_) => "give the data it was made from, or another directory with `-o`".into(),
            CompareError::Recipe(error) => return error.hint(),
            CompareError::Run(error) => return error.hint(),
            CompareError::File { .. } | CompareError::Json { .. } => return None,
        })
    }
}

/// Whether a run of a comparison may have another value of a key than the recipe it is now asked for with: what may change in a run that
/// goes on, but for how it is evaluated.
pub fn may_differ(key: &str) -> bool {
    Recipe::may_change(key) && !key.starts_with("eval.")
}

/// A run that is done, with its records.
#[derive(Clone, Debug)]
pub struct FinishedRun {
    /// Its place in the plan's runs.
    pub planned: usize,
    /// Its facts.
    pub info: RunInfo,
    /// Its records.
    pub metrics: Metrics,
}

impl FinishedRun {
    /// Reads the directory of a run.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(planned: usize, run: &RunDirectory) -> Result<Self, CompareError> {
        let path = run.metrics_path();
        let metrics = Metrics::read(&path).map_err(|cause| CompareError::File { path, cause })?;
        Ok(Self {
            planned,
            info: run.info()?,
            metrics,
        })
    }

    fn speeds(&self) -> impl Iterator<Item = f64> + '_ {
        self.metrics.train.iter().map(|record| record.tokens_per_s)
    }

    fn gates(&self) -> Option<GateRange> {
        self.metrics.train.last().and_then(|record| record.gates)
    }

    /// Step, tokens and loss of every evaluation.
    fn curve(&self) -> Vec<Point> {
        let mut train = self.metrics.train.iter().peekable();
        let mut tokens = 0;
        let mut points = Vec::new();
        for record in &self.metrics.eval {
            while let Some(step) = train.next_if(|step| step.step <= record.step) {
                tokens = step.tokens;
            }
            points.push(Point {
                step: record.step as f64,
                tokens: tokens as f64,
                loss: record.loss,
            });
        }
        points
    }
}

/// An evaluation and what had been trained until then.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    step: f64,
    tokens: f64,
    loss: f64,
}

/// Where a curve first falls to a loss, on straight lines between its points.
fn reaches(curve: &[Point], loss: f64) -> Option<Point> {
    let index = curve.iter().position(|point| point.loss <= loss)?;
    let end = curve[index];
    let Some(begin) = index.checked_sub(1).map(|before| curve[before]) else {
        return Some(end);
    };
    // From a loss that is not finite there is no straight line.
    let fraction = Some((begin.loss - loss) / (begin.loss - end.loss)).filter(|fraction| fraction.is_finite());
    let at = |begin: f64, end: f64| begin + fraction.unwrap_or(1.0) * (end - begin);
    Some(Point {
        step: at(begin.step, end.step),
        tokens: at(begin.tokens, end.tokens),
        loss,
    })
}

fn has_diverged(evaluations: &[EvalRecord], last: f64) -> bool {
    let first = evaluations
        .iter()
        .find(|record| record.step == 0)
        .map(|record| record.loss);
    let lowest = evaluations
        .iter()
        .map(|record| record.loss)
        .fold(f64::INFINITY, f64::min);
    !last.is_finite() || first.is_some_and(|first| last > first) || last > lowest + BLOW_UP
}

impl Comparison {
    /// Of the runs of a plan that are done.
    pub fn of(plan: &Plan, finished: &[FinishedRun]) -> Self {
        let runs: Vec<Run<'_>> = finished.iter().map(|records| Run::of(plan, records)).collect();
        let runs_of = |arm: usize| -> Vec<&Run<'_>> {
            let own = |run: &&Run<'_>| plan.runs[run.records.planned].arm == arm;
            runs.iter().filter(own).collect()
        };
        let baseline = runs_of(plan.baseline);
        let arms: Vec<_> = (0..plan.arms.len())
            .map(runs_of)
            .filter(|runs| !runs.is_empty())
            .collect();
        let name = &plan.arms[plan.baseline].name;
        Self {
            baseline: name.clone(),
            planned: plan.runs.len(),
            runs: arms.iter().flatten().map(|run| run.summary.clone()).collect(),
            summary: arms.iter().map(|runs| ArmSummary::of(runs, &baseline, name)).collect(),
        }
    }

    /// Writes `compare.json` and `compare.md` into a directory, each in one piece.
    ///
    /// # Errors
    /// If the disk does not take them.
    pub fn write(&self, directory: &Path) -> Result<(), CompareError> {
        let path = directory.join("compare.json");
        let json = serde_json::to_string_pretty(self).map_err(|cause| CompareError::Json {
            path: path.clone(),
            cause,
        })?;
        replace(&path, (json + "\n").as_bytes())?;
        Ok(replace(&directory.join("compare.md"), markdown(self).as_bytes())?)
    }

    /// Reads the `compare.json` of a directory.
    ///
    /// # Errors
    /// If there is none, or it is not one.
    pub fn read(directory: &Path) -> Result<Self, CompareError> {
        let path = directory.join("compare.json");
        let text = fs::read(&path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => CompareError::NotAComparison(directory.to_path_buf()),
            _ => CompareError::File {
                path: path.clone(),
                cause,
            },
        })?;
        serde_json::from_slice(&text).map_err(|cause| CompareError::Json { path, cause })
    }
}

/// A run with its figures.
struct Run<'a> {
    records: &'a FinishedRun,
    summary: RunSummary,
}

impl<'a> Run<'a> {
    fn of(plan: &Plan, records: &'a FinishedRun) -> Self {
        let planned = &plan.runs[records.planned];
        let arm = &plan.arms[planned.arm];
        let last = records.metrics.train.last();
        let steps = last.map_or(0, |record| record.step);
        // A run that stopped early has no final evaluation, even where its last step was evaluated.
        let is_complete = steps == planned.recipe.train.steps;
        let evaluation = records
            .metrics
            .eval
            .last()
            .filter(|record| is_complete && record.step == steps);
        let loss = evaluation.map_or(f64::NAN, |record| record.loss);
        let gates = records.gates();
        let summary = RunSummary {
            name: arm.name.clone(),
            scheme: arm.scheme.to_string(),
            seed: planned.seed,
            varied: arm.varied.clone(),
            steps,
            tokens: last.map_or(0, |record| record.tokens),
            loss,
            perplexity: loss.exp(),
            diverged: has_diverged(&records.metrics.eval, loss),
            directory: planned.directory.clone(),
            parameters: records.info.parameters,
            gate_min: gates.map(|gates| gates.min),
            gate_max: gates.map(|gates| gates.max),
            tokens_per_s: median(records.speeds().collect()),
        };
        Self { records, summary }
    }
}

impl ArmSummary {
    fn of(runs: &[&Run<'_>], baseline: &[&Run<'_>], baseline_name: &str) -> Self {
        let pairs: Vec<(&Run<'_>, &Run<'_>)> = runs
            .iter()
            .filter_map(|run| {
                let base = baseline.iter().find(|base| base.summary.seed == run.summary.seed)?;
                Some((*run, *base))
            })
            .collect();
        let rows = || runs.iter().map(|run| &run.summary);
        let name = rows().next().map_or(String::new(), |row| row.name.clone());

        let perplexities: Vec<f64> = rows().map(|row| row.perplexity).collect();
        let perplexity = Sample::of(&perplexities).filter(|sample| sample.mean.is_finite());
        let perplexities: Vec<(f64, f64)> = pairs
            .iter()
            .map(|(run, base)| (run.summary.perplexity, base.summary.perplexity))
            .collect();
        let difference = Difference::of(&perplexities).filter(|_| name != baseline_name);
        let ends = difference.and_then(|difference| difference.interval);

        let arrivals: Vec<Point> = pairs
            .iter()
            .filter_map(|(run, base)| reaches(&run.records.curve(), base.summary.loss))
            .collect();
        let mean = |figure: fn(&Point) -> f64| {
            let figures: Vec<f64> = arrivals.iter().map(figure).collect();
            let sample = Sample::of(&figures).filter(|sample| sample.n == pairs.len())?;
            Some(sample.mean)
        };
        let steps_to_baseline = mean(|point| point.step);
        let speedup = |steps: f64| {
            let (_, base) = pairs.first()?;
            Some(base.summary.steps as f64 / steps).filter(|factor| factor.is_finite())
        };
        Self {
            n: runs.len(),
            diverged: rows().filter(|row| row.diverged).count(),
            perplexity_mean: perplexity.map(|sample| sample.mean),
            perplexity_sd: perplexity.and_then(|sample| sample.sd),
            pairs: pairs.len(),
            difference_mean: difference.map(|difference| difference.mean),
            difference_low: ends.map(|[low, _]| low),
            difference_high: ends.map(|[_, high]| high),
            resolved: difference.and_then(|difference| difference.resolved()),
            reached: arrivals.len(),
            steps_to_baseline,
            tokens_to_baseline: mean(|point| point.tokens),
            acceleration: steps_to_baseline.and_then(speedup),
            tokens_per_s: median(runs.iter().flat_map(|run| run.records.speeds()).collect()),
            gate_min: rows().filter_map(|row| row.gate_min).reduce(f64::min),
            gate_max: rows().filter_map(|row| row.gate_max).reduce(f64::max),
            name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The facts of a run, none of which the comparison looks at.
    fn info() -> RunInfo {
        let text = r#"{"gpas": "0", "commit": "c", "burn": "0", "backend": "flex", "device": "2 cores", "platform": "linux",
            "command": ["gpas"], "data": "d", "data_sha256": "a", "tokenizer_sha256": "b", "parameters": 1, "gates": 4, "seed": 42,
            "started": 0}"#;
        serde_json::from_str(text).unwrap()
    }

    use gpas_train::metrics::TrainRecord;
    use gpas_train::recipe::{CompareTable, RecipeOptions};

    fn point(step: f64, tokens: f64, loss: f64) -> Point {
        Point { step, tokens, loss }
    }

    /// Half-way between 6 and 4, so half-way between the steps and between the tokens.
    #[test]
    fn a_loss_is_reached_on_a_straight_line() {
        let curve = [
            point(0.0, 0.0, 6.0),
            point(10.0, 90.0, 4.0),
            point(20.0, 200.0, 5.0),
            point(30.0, 300.0, 3.0),
        ];
        assert_eq!(reaches(&curve, 5.0), Some(point(5.0, 45.0, 5.0)));
        assert_eq!(reaches(&curve, 4.0), Some(point(10.0, 90.0, 4.0)), "at a point");
        assert_eq!(reaches(&curve, 3.5), Some(point(27.5, 275.0, 3.5)), "after a rise");
        assert_eq!(reaches(&curve, 7.0), Some(point(0.0, 0.0, 6.0)), "from the start");
        assert_eq!(reaches(&curve, 2.9), None);
        assert_eq!(reaches(&curve, f64::NAN), None, "a baseline that diverged");
        let gap = [point(0.0, 0.0, f64::INFINITY), point(10.0, 90.0, 4.0)];
        assert_eq!(reaches(&gap, 5.0), Some(point(10.0, 90.0, 5.0)));
    }

    fn eval(step: u64, loss: f64) -> EvalRecord {
        EvalRecord {
            step,
            loss,
            perplexity: loss.exp(),
            bits_per_byte: None,
            tokens: 1,
        }
    }

    #[test]
    fn what_counts_as_diverged() {
        let diverged = |losses: &[f64]| {
            let evaluations: Vec<_> = (0..).zip(losses).map(|(step, loss)| eval(step, *loss)).collect();
            has_diverged(&evaluations, losses[losses.len() - 1])
        };
        assert!(!diverged(&[8.0, 5.0, 4.0]));
        assert!(!diverged(&[8.0, 4.0, 4.9]));
        assert!(diverged(&[8.0, 4.0, 5.1]), "more than a nat above its best");
        assert!(diverged(&[8.0, 7.5, 8.1]), "above where it began");
        assert!(diverged(&[8.0, 4.0, f64::NAN]));
    }

    /// Three seeds, of which `pre` ends with perplexities 10, 20, 30 and `lns` with what is given.
    fn comparison(seeds: &[u64], others: &[f64]) -> Comparison {
        let table = CompareTable {
            schemes: vec!["pre".into(), "lns".into()],
            seeds: seeds.to_vec(),
            ..CompareTable::default()
        };
        let options = RecipeOptions {
            set: vec!["train.steps=10".into()],
            ..RecipeOptions::default()
        };
        let plan = Plan::new(None, &options, table, Path::new("dir")).unwrap();
        let finished: Vec<_> = plan
            .runs
            .iter()
            .enumerate()
            .map(|(planned, run)| {
                let place = seeds.iter().position(|seed| *seed == run.seed).unwrap();
                let last = if run.arm == 0 {
                    10.0 * (place + 1) as f64
                } else {
                    others[place]
                };
                let steps = if last.is_finite() { 10 } else { 7 };
                let train = (1..=steps).map(|step| TrainRecord {
                    step,
                    loss: 1.0,
                    lr: 0.0,
                    tokens: 100 * step,
                    tokens_per_s: 50.0 + step as f64,
                    grad_norm: 1.0,
                    gate_grad_norm: 0.0,
                    gates: None,
                    skipped: false,
                });
                FinishedRun {
                    planned,
                    info: info(),
                    metrics: Metrics {
                        train: train.collect(),
                        eval: vec![eval(0, 8.0), eval(10, last.ln())],
                        ..Metrics::default()
                    },
                }
            })
            .collect();
        Comparison::of(&plan, &finished)
    }

    fn near(found: Option<f64>, expected: f64) {
        assert!(
            found.is_some_and(|found| (found - expected).abs() < 1e-4),
            "{found:?}, not {expected}"
        );
    }

    /// The differences are −1, −2, −3: see `statistics`.
    #[test]
    fn the_summary_is_that_of_hand_computed_numbers() {
        let comparison = comparison(&[4, 5, 6], &[9.0, 18.0, 27.0]);
        let [pre, lns] = &comparison.summary[..] else {
            panic!("{comparison:?}")
        };
        near(pre.perplexity_mean, 20.0);
        near(pre.perplexity_sd, 10.0);
        near(lns.perplexity_mean, 18.0);
        near(lns.difference_mean, -2.0);
        near(lns.difference_low, -4.4842);
        near(lns.difference_high, 0.4842);
        assert_eq!(
            (lns.resolved, lns.pairs, pre.difference_mean, pre.resolved),
            (Some(false), 3, None, None)
        );
        // Each falls from 8 to ln p in 10 steps, and meets the baseline's ln(p/0.9) on the way.
        let expected = [10f64, 20.0, 30.0].map(|base| 10.0 * (8.0 - base.ln()) / (8.0 - (0.9 * base).ln()));
        near(lns.steps_to_baseline, expected.iter().sum::<f64>() / 3.0);
        near(lns.tokens_to_baseline, 100.0 * expected.iter().sum::<f64>() / 3.0);
        near(pre.steps_to_baseline, 10.0);
        near(pre.acceleration, 1.0);
        near(pre.tokens_per_s, 55.5);
        assert_eq!((comparison.baseline.as_str(), comparison.runs.len()), ("pre", 6));
        assert_eq!(
            (
                comparison.runs[0].seed,
                comparison.runs[3].seed,
                comparison.runs[3].name.as_str()
            ),
            (4, 4, "lns")
        );
        let row = &cells(&comparison)[1];
        assert_eq!(row[3], "−2.000 (−4.484 … +0.484), not resolved");
        assert!(row[4].ends_with("1.02×"), "{row:?}");
        assert!(notes(&comparison).is_empty());
        let json = serde_json::to_string(&comparison).unwrap();
        let read: Comparison = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (plain(&read), markdown(&read)),
            (plain(&comparison), markdown(&comparison))
        );
    }

    #[test]
    fn a_diverged_run_is_named_and_spoils_the_mean_of_its_arm() {
        let comparison = comparison(&[1, 2, 3], &[9.0, f64::NAN, 27.0]);
        let lns = &comparison.summary[1];
        assert_eq!(
            (lns.n, lns.diverged, lns.perplexity_mean, lns.difference_mean),
            (3, 1, None, None)
        );
        assert_eq!((lns.reached, lns.steps_to_baseline), (2, None));
        assert_eq!(comparison.runs[4].steps, 7);
        assert_eq!(
            notes(&comparison),
            ["Diverged: lns seed 2 was no longer finite at step 7."]
        );
        let row = &cells(&comparison)[1];
        assert_eq!(
            (row[1].as_str(), row[2].as_str(), row[4].as_str()),
            ("3 (1 diverged)", "–", "in 2 of 3")
        );
        let json = serde_json::to_value(&comparison).unwrap();
        assert_eq!(json["runs"][4]["loss"], serde_json::Value::Null);
    }

    #[test]
    fn a_single_seed_has_no_spread_and_says_so() {
        let comparison = comparison(&[1], &[9.0]);
        let lns = &comparison.summary[1];
        assert_eq!(
            (lns.perplexity_sd, lns.difference_low, lns.resolved),
            (None, None, None)
        );
        near(lns.difference_mean, -1.0);
        assert_eq!(cells(&comparison)[1][3], "−1.000 (no interval)");
        assert!(notes(&comparison)[0].starts_with("Of a single run"));
    }
}
