//! The developer's commands: `cargo xtask ci` is all that has to pass, on any machine.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{
    bench, ci, circles, dependencies, examples, generation_bench, gpu_bench, harness, kill, picture, verify_hf,
};

/// The developer's commands
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", after_help = "Example:\n  cargo xtask ci --quick")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::BenchArgs),
    Ci(ci::CiArgs),
    Circles(circles::CirclesArgs),
    Dependencies(dependencies::DependenciesArgs),
    Examples(examples::ExamplesArgs),
    GenerationBench(generation_bench::GenerationBenchArgs),
    GpuBench(gpu_bench::GpuBenchArgs),
    Kill(kill::KillArgs),
    Picture(picture::PictureArgs),
    VerifyHarness(harness::HarnessArgs),
    VerifyHf(verify_hf::VerifyArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Ci(args) => ci::run(&args),
        Command::Circles(args) => circles::run(&args),
        Command::Dependencies(args) => dependencies::run(&args),
        Command::Examples(args) => examples::run(&args),
        Command::GenerationBench(args) => generation_bench::run(&args),
        Command::GpuBench(args) => gpu_bench::run(&args),
        Command::Kill(args) => kill::run(&args),
        Command::Picture(args) => picture::run(&args),
        Command::VerifyHarness(args) => harness::run(&args),
        Command::VerifyHf(args) => verify_hf::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
