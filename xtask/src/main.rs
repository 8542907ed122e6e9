//! The developer's commands: `cargo xtask ci` is all that has to pass, on any machine.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, card, ci, circles, dependencies, examples, generation_bench, harness, kill, picture, verify_hf};

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
    Card(card::CardArgs),
    Ci(ci::CiArgs),
    Circles(circles::CirclesArgs),
    Dependencies(dependencies::DependenciesArgs),
    Examples(examples::ExamplesArgs),
    GenerationBench(generation_bench::GenerationBenchArgs),
    Kill(kill::KillArgs),
    Picture(picture::PictureArgs),
    VerifyHarness(harness::HarnessArgs),
    VerifyHf(verify_hf::VerifyArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Card(args) => card::run(&args),
        Command::Ci(args) => ci::run(&args),
        Command::Circles(args) => circles::run(&args),
        Command::Dependencies(args) => dependencies::run(&args),
        Command::Examples(args) => examples::run(&args),
        Command::GenerationBench(args) => generation_bench::run(&args),
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

    /// A command takes minutes or needs what not every machine has, so that it is not run here; but it is understood.
    #[test]
    fn every_command_that_a_text_names_is_understood() {
        fn helps(command: &clap::Command) -> String {
            let own = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let inner: String = command.get_subcommands().map(helps).collect();
            format!("{own}\n{inner}")
        }
        let readme = include_str!("../../README.md");
        let text = format!("{}\n{readme}", helps(&Cli::command()));
        let named = text.split("cargo xtask ").skip(1);
        let mut count = 0;
        for command in named.map(|rest| {
            rest.split(['`', '\n'])
                .next()
                .unwrap_or_default()
                .trim_end_matches([':', ' '])
        }) {
            let words = command.split([' ']).map(|word| word.trim_end_matches([',', '.']));
            let words: Vec<&str> = words.take_while(|word| *word != "-->").collect();
            let parsed = Cli::try_parse_from([&["cargo xtask"], &words[..]].concat());
            assert!(
                parsed.is_ok(),
                "cargo xtask {command}\n{}",
                parsed.err().map(|error| error.to_string()).unwrap_or_default()
            );
            count += 1;
        }
        assert!(count > 20, "{count}");
    }
}
