//! What the program `gpas` is made of besides its libraries: the command line, the screen, the benchmark and the self-check.

/// Writes a line to standard error, as `eprintln` does. A reader of it who has gone, as `head` does, ends nothing: `eprintln` would panic.
macro_rules! complain {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

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
pub mod tuning;
