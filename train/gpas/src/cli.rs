//! The command line: which command was asked for, and how its failure is told: one cause, one hint, a code that is not 0.

use std::error::Error as _;
use std::io;
use std::process::ExitCode;

use anyhow::{Error, Result};
use clap::{Parser, Subcommand};
use gpas_data::DataError;

use crate::benchmark::BenchmarkError;
use crate::commands::{
    bench, compare, config, data, eval, export, generate, import, inspect, logits, report, selfcheck, serve, tokenizer,
    train,
};
use crate::memory::keep_freed_memory;
use gpas_exchange::ExchangeError;
use gpas_report::ReportError;
use gpas_report::compare::CompareError;
use gpas_serve::inference::InferenceError;
use gpas_serve::task::TaskError;
use gpas_train::backend::{BackendChoice, BackendError};
use gpas_train::checkpoint::CheckpointError;
use gpas_train::recipe::RecipeError;
use gpas_train::run::RunError;
use gpas_train::training::TrainingError;

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
    /// Where to run: auto, flex, ndarray, vulkan, wgpu, metal, cuda; cuda:1 for the second card [default: auto; for a run, its own]
    #[arg(long, global = true)]
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

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    keep_freed_memory();
    let result = match Cli::try_parse() {
        Ok(cli) => run(cli),
        // What our own types refuse is told as everything else is.
        Err(error) => match error.source().and_then(|cause| cause.downcast_ref::<BackendError>()) {
            Some(cause) => Err(cause.clone().into()),
            None => error.exit(),
        },
    };
    match result {
        Ok(code) => code,
        // Whoever read the output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(hint) = error.chain().find_map(hint) {
                eprintln!("hint: {hint}");
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

fn is_broken_pipe(error: &Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn hint(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    let recipe = || cause.downcast_ref::<RecipeError>().and_then(RecipeError::hint);
    let data = || cause.downcast_ref::<DataError>().and_then(DataError::hint);
    let backend = || cause.downcast_ref::<BackendError>().map(BackendError::hint);
    let run = || cause.downcast_ref::<RunError>().and_then(RunError::hint);
    let checkpoint = || cause.downcast_ref::<CheckpointError>().and_then(CheckpointError::hint);
    let benchmark = || cause.downcast_ref::<BenchmarkError>().and_then(BenchmarkError::hint);
    let exchange = || cause.downcast_ref::<ExchangeError>().and_then(ExchangeError::hint);
    let inference = || cause.downcast_ref::<InferenceError>().and_then(InferenceError::hint);
    let task = || cause.downcast_ref::<TaskError>().and_then(TaskError::hint);
    let training = || cause.downcast_ref::<TrainingError>().and_then(TrainingError::hint);
    let report = || cause.downcast_ref::<ReportError>().and_then(ReportError::hint);
    let compare = || cause.downcast_ref::<CompareError>().and_then(CompareError::hint);
    recipe()
        .or_else(compare)
        .or_else(report)
        .or_else(data)
        .or_else(backend)
        .or_else(run)
        .or_else(checkpoint)
        .or_else(training)
        .or_else(inference)
        .or_else(exchange)
        .or_else(task)
        .or_else(benchmark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
