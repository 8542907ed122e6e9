//! From the records of runs to the numbers of a comparison.

use gpas_train::metrics::{EvalRecord, GateRange, Metrics};
use gpas_train::run::{RunDirectory, RunInfo};

use super::comparison::{ArmSummary, Comparison, RunSummary};
use super::error::CompareError;
use super::plan::Plan;
use super::statistics::{Difference, Sample, median};

/// A rise of the validation loss over its lowest value, in nats, from which on a run counts as diverged.
const BLOW_UP: f64 = 1.0;

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
    /// Compares the runs of a plan that are done.
    pub fn of(plan: &Plan, finished: &[FinishedRun]) -> Self {
        let runs: Vec<SummarisedRun<'_>> = finished
            .iter()
            .map(|records| SummarisedRun::of(plan, records))
            .collect();
        let runs_of = |arm: usize| -> Vec<&SummarisedRun<'_>> {
            let own = |run: &&SummarisedRun<'_>| plan.runs[run.records.planned].arm == arm;
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
}

/// A run with its summary.
struct SummarisedRun<'a> {
    records: &'a FinishedRun,
    summary: RunSummary,
}

impl<'a> SummarisedRun<'a> {
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
    fn of(runs: &[&SummarisedRun<'_>], baseline: &[&SummarisedRun<'_>], baseline_name: &str) -> Self {
        let pairs: Vec<(&SummarisedRun<'_>, &SummarisedRun<'_>)> = runs
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
    use std::path::Path;

    use super::super::table::{cells, markdown, notes, plain};
    use gpas_train::metrics::TrainRecord;
    use gpas_train::recipe::{CompareTable, RecipeOptions};

    /// The facts of a run, none of which the comparison looks at.
    fn info() -> RunInfo {
        let text = r#"{"gpas": "0", "commit": "c", "burn": "0", "backend": "flex", "device": "2 cores", "platform": "linux",
            "command": ["gpas"], "data": "d", "data_sha256": "a", "tokenizer_sha256": "b", "parameters": 1, "gates": 4, "seed": 42,
            "started": 0}"#;
        serde_json::from_str(text).unwrap()
    }

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
            tokens: 1,
            ..EvalRecord::default()
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
                    tokens: 100 * step,
                    tokens_per_s: 50.0 + step as f64,
                    grad_norm: 1.0,
                    ..TrainRecord::default()
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
