//! Pre-training with GPAS: recipes, the optimizer step, the training loop, evaluation and run directories; a library without a command
//! line, a terminal or a server, which are the business of the program `gpas`.
//!
//! Data flows one way: text → tokens → batches → model → loss → optimizer → run directory → report.
//!
//! # From text to a trained model
//!
//! ```
#![doc = include_str!("../examples/text_to_llama.rs")]
//! ```

pub mod backend;
pub mod checkpoint;
pub mod chosen;
pub mod evaluate;
pub mod inspect;
pub mod kernels;
pub mod learner;
pub mod metrics;
pub mod optimizer;
pub mod recipe;
pub mod run;
pub mod schedule;
pub mod signals;
pub mod telemetry;
pub mod trainer;
pub mod training;
