//! `gpas report`: the page of a run or of a comparison, made again.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::inspect::Look;
use super::opened::RunAndText;
use crate::failure::Result;
use gpas_report::compare::Comparison;
use gpas_report::{ReportError, read_inspection, write_comparison, write_inspection, write_run};
use gpas_train::backend::BackendChoice;
use gpas_train::checkpoint::newest_step;
use gpas_train::run::RunDirectory;

/// Tokens of the look at the layers for a report, at most: it costs about as many forward passes as the model has half layers.
const INSPECTED_TOKENS: usize = 65_536;

/// Write report.html of a run or of a comparison
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas report runs/pre_gpas-nano-001
  gpas report runs/quick

`gpas train` and `gpas compare` write it at their end; this makes it again, or makes it of a run that is under way. It is one file that
needs no network. A look at the newest checkpoint, as `gpas inspect` takes it, is kept as inspection.json in the run.")]
pub struct ReportArgs {
    /// The directory of a run or of a comparison
    #[arg(value_name = "RUN|DIR")]
    directory: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// If the directory is neither, or cannot be read or written.
pub fn run(args: &ReportArgs, backend: Option<BackendChoice>) -> Result<()> {
    let directory = &args.directory;
    let path = if directory.join("recipe.toml").is_file() {
        of_run(&RunDirectory::open(directory)?, backend)?
    } else {
        let comparison = Comparison::read(directory).map_err(ReportError::from)?;
        for run in &comparison.runs {
            of_run(&RunDirectory::open(&directory.join(&run.directory))?, backend)?;
        }
        write_comparison(directory, &comparison)?
    };
    writeln!(std::io::stdout(), "report {}", path.display())?;
    Ok(())
}

/// The report of a run, with a look at its newest checkpoint if there can be one.
pub(super) fn of_run(run: &RunDirectory, backend: Option<BackendChoice>) -> Result<PathBuf> {
    // A failure here is only a warning: the other parts of the report do not depend on the layers.
    if let Err(error) = inspect(run, backend) {
        complain!(
            "warning: {}: the layers cannot be looked at: {error}",
            run.path().display()
        );
    }
    Ok(write_run(run)?)
}

/// Looks at the newest checkpoint of a run, unless that was done before.
fn inspect(run: &RunDirectory, backend: Option<BackendChoice>) -> Result<()> {
    let Some(newest) = newest_step(&run.checkpoints_path()) else {
        return Ok(());
    };
    if read_inspection(run).is_ok_and(|look| look.is_some_and(|look| look.step == newest)) {
        return Ok(());
    }
    let (selected, mut asked) = RunAndText::open(run.path(), None::<&Path>, None, backend)?;
    asked.tokens = asked.tokens.min(INSPECTED_TOKENS);
    let inspection = selected.run(Look(asked))??;
    Ok(write_inspection(run, &inspection)?)
}
