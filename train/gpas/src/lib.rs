//! What the program `gpas` is made of besides its libraries: the command line, the screen, the benchmark and the self-check.

pub mod benchmark;
pub mod cli;
pub mod commands;
pub mod dashboard;
pub mod failure;
pub mod lines;
pub mod memory;
pub mod number;
pub mod options;
pub mod profile;
pub mod screen;
pub mod selfcheck;
pub mod shown;
pub mod terminal;
