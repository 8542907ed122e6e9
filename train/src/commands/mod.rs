//! The commands of the binary `gpas`, one file each.

pub mod config;
