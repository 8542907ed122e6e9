//! The commands of the binary `gpas`, one file each.

pub mod bench;
pub mod compare;
pub mod config;
pub mod data;
pub mod eval;
pub mod export;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod logits;
pub mod opened;
pub mod provenance;
pub mod report;
pub mod selfcheck;
pub mod serve;
pub mod tokenizer;
pub mod train;
