//! `cargo xtask card`: everything that is to be learned of a graphics card, in the quarter of an hour that it may be there.
//!
//! `pack` makes, on a machine that builds, one directory that needs nothing where the card is but its driver, CUDA and a Python with torch:
//! no cargo, no network. This program lies in it too, so what runs there is what is tested here. `run` there makes the stages, the most
//! valuable first, each within its time and all within theirs, and writes what was found as it is found. `read` makes the table of it.

mod files;
mod pack;
mod read;
mod run;
mod stages;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Time and check everything on an NVIDIA card, without cargo or network there
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask card pack -o card
  cargo xtask card run smoke selfcheck --seconds 300
  cargo xtask card run --seconds 840 -o results
  cargo xtask card read results --write")]
pub struct CardArgs {
    #[command(subcommand)]
    command: CardCommand,
}

#[derive(Debug, Subcommand)]
enum CardCommand {
    Pack(pack::PackArgs),
    Run(run::RunArgs),
    Read(read::ReadArgs),
}

/// Runs the command.
///
/// # Errors
/// If something does not build, there is no card, or there is nothing to read.
pub fn run(args: &CardArgs) -> Result<()> {
    match &args.command {
        CardCommand::Pack(args) => pack::run(args),
        CardCommand::Run(args) => run::run(args),
        CardCommand::Read(args) => read::run(args),
    }
}
