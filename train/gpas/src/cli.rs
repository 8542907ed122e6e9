//! The command line: which command was asked for, and how its failure is told: one cause, one hint, a code that is not 0.

use std::error::Error as _;
use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{
    bench, compare, config, data, eval, export, generate, import, inspect, logits, report, selfcheck, serve, tokenizer,
    train,
};
use crate::failure::{Failure, Result};
use crate::memory::keep_freed_memory;
use gpas_train::backend::{BackendChoice, BackendError, BackendName};

/// Pre-train language models with Gradient-Preserving Activation Scaling, on any GPU or CPU
#[derive(Debug, Parser)]
#[command(
    name = "gpas",
    version,
    after_help = "Example:\n  gpas train --preset nano --scheme pre_gpas"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[arg(long, global = true, help = backend_help())]
    backend: Option<BackendChoice>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::TrainArgs),
    Compare(compare::CompareArgs),
    Eval(eval::EvalArgs),
    Inspect(inspect::InspectArgs),
    Export(export::ExportArgs),
    Generate(generate::GenerateArgs),
    Import(import::ImportArgs),
    Logits(logits::LogitsArgs),
    Report(report::ReportArgs),
    Serve(serve::ServeArgs),
    Bench(bench::BenchArgs),
    Selfcheck(selfcheck::SelfcheckArgs),
    /// Show what a recipe resolves to and what its model costs
    Config(config::ConfigArgs),
    Data(data::DataArgs),
    Tokenizer(tokenizer::TokenizerArgs),
}

fn backend_help() -> String {
    let names: Vec<&str> = BackendName::ALL.iter().map(|name| name.name()).collect();
    let names = names.join(", ");
    format!("Where to run: auto, {names}; cuda:1 for the second card [default: auto; for a run, its own]")
}

/// The command line as clap knows it, with every command and its arguments.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    keep_freed_memory();
    let result = match Cli::try_parse() {
        Ok(cli) => run(cli),
        // An unknown backend is reported as every other error is: with its cause and its hint.
        Err(error) => match error.source().and_then(|cause| cause.downcast_ref::<BackendError>()) {
            Some(cause) => Err(cause.clone().into()),
            None => error.exit(),
        },
    };
    match result {
        Ok(code) => code,
        // The reader of our output has closed it, as `head` does; that is no failure.
        Err(failure) if is_broken_pipe(&failure) => ExitCode::SUCCESS,
        Err(failure) => {
            complain!("error: {failure}");
            if let Some(hint) = failure.hint() {
                complain!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Train(args) => return train::run(args, cli.backend),
        Command::Compare(args) => return compare::run(args, cli.backend),
        Command::Selfcheck(args) => return selfcheck::run(&args, cli.backend.unwrap_or_default()),
        Command::Eval(args) => eval::run(args, cli.backend),
        Command::Generate(args) => generate::run(args, cli.backend),
        Command::Inspect(args) => inspect::run(args, cli.backend),
        Command::Export(args) => export::run(args, cli.backend),
        Command::Import(args) => import::run(args, cli.backend.unwrap_or_default()),
        Command::Logits(args) => logits::run(args, cli.backend),
        Command::Report(args) => report::run(&args, cli.backend),
        Command::Serve(args) => serve::run(args, cli.backend),
        Command::Bench(args) => bench::run(args, cli.backend),
        Command::Config(args) => config::run(args),
        Command::Data(args) => data::run(args),
        Command::Tokenizer(args) => tokenizer::run(args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(failure: &Failure) -> bool {
    failure
        .causes()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }
}
