//! What every way of showing a run knows of it: which numbers there are, and how far it has come.

use burn_train::renderer::TrainingProgress;
use gpas_train::metrics::{EvalRecord, TrainRecord};

/// Names of the declared metrics in the order in which they are shown.
pub fn declared_names() -> impl Iterator<Item = &'static str> {
    let evaluations = EvalRecord::QUANTITIES.iter().map(|quantity| quantity.name);
    evaluations.chain(TrainRecord::QUANTITIES.iter().map(|quantity| quantity.name))
}

/// Optimizer steps done.
pub fn step(item: &TrainingProgress) -> usize {
    item.iteration.unwrap_or(item.global_progress.items_processed)
}
