//! Pre-training with GPAS: recipes, the optimizer step, the training loop, evaluation and run directories; the library under the
//! binary `gpas`.
//!
//! Data flows one way: text → tokens → batches → model → loss → optimizer → run directory → report.

pub mod commands;
pub mod optimizer;
pub mod recipe;
pub mod schedule;
pub mod trainer;
