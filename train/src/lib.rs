//! Pre-training with GPAS: recipes, the optimizer step, the training loop, evaluation and run directories; the library under the
//! binary `gpas`.
//!
//! Data flows one way: text → tokens → batches → model → loss → optimizer → run directory → report.

pub mod backend;
pub mod benchmark;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod dashboard;
pub mod evaluate;
pub mod exchange;
pub mod generate;
pub mod inference;
pub mod inspect;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod profile;
pub mod recipe;
pub mod report;
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod screen;
pub mod selfcheck;
pub mod serve;
pub mod signals;
pub mod task;
pub mod telemetry;
pub mod tensorboard;
pub mod text;
pub mod trainer;
pub mod training;
