//! What several runs say of each other: from their directories to `compare.json`, its table, and nothing that was measured by hand.
//!
//! | number | how it is computed |
//! |---|---|
//! | perplexity | of the evaluation after a run's last step; its mean and standard deviation (n − 1) over the seeds |
//! | difference | paired: a run's perplexity less that of the baseline's run with the same seed, and the 95 % interval of its mean ([`Difference`]) |
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

mod comparison;
mod error;
mod files;
mod plan;
mod statistics;
mod summarize;
mod table;

pub use comparison::{ArmSummary, Comparison, RunSummary};
pub use error::CompareError;
pub use files::check_directory;
pub use plan::{Arm, Plan, PlannedRun, may_differ};
pub use statistics::{Difference, Sample, median};
pub use summarize::FinishedRun;
pub use table::{COLUMNS, METHOD, cells, markdown, notes, plain};
