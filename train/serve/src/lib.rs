#![doc = include_str!("../README.md")]

pub mod generate;
pub mod inference;
pub mod sampler;
pub mod server;
pub mod task;
pub mod text;
