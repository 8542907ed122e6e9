//! Text to tokens to shards to batches that are a pure function of (seed, step).
#![doc = include_str!("../README.md")]

pub mod aside;
pub mod bpe;
pub mod corpus;
pub mod prepare;
pub mod source;
pub mod special;
pub mod store;
pub mod tokenizer;
pub mod tokenizer_config;

mod batches;
mod damage;
mod error;
mod format;
mod lfs;
mod order;
mod progress;
mod windows;

#[cfg(test)]
mod fixture;

pub use batches::{EvaluationBatches, TrainBatches, WindowBatcher, stack};
pub use damage::Damage;
pub use error::DataError;
pub use gpas_batch::{BatchError, IGNORE_INDEX, TokenBatch};
pub use lfs::{has_lfs_pointer, refuse_lfs_pointer};
pub use order::BatchOrder;
pub use special::SpecialTokens;
pub use store::PreparedData;
pub use tokenizer::{SpelledOut, Tokenizer};
pub use windows::{Window, WindowMode, Windows};
