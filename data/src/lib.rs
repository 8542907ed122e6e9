//! Text to tokens to shards to batches that are a pure function of (seed, step).
#![doc = include_str!("../README.md")]

pub mod batch;
pub mod bpe;
pub mod corpus;
pub mod error;
pub mod prepare;
pub mod source;
pub mod store;
pub mod tokenizer;

mod aside;

pub use error::DataError;
