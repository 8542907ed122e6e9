//! A comparison as it stands in `compare.json`: the runs that are done, and the summary of each arm.

use std::collections::BTreeMap;

use gpas_train::metrics::null_is_nan;
use serde::{Deserialize, Serialize};
use toml::Value;

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
