//! Writes `report.html`: a run, or a comparison of runs, on one page that needs nothing but itself.

use std::path::{Path, PathBuf};

use gpas_model::Scheme;
use gpas_train::run::{RunDirectory, replace};

use crate::compare::{Comparison, RunSummary};
use crate::error::ReportError;
use crate::figure::Subject;
use crate::figures::differences;
use crate::ink::Ink;
use crate::page;
use crate::records::RunRecords;

/// Writes the report of a run into its directory; where it is.
///
/// # Errors
/// If the run cannot be read, or the report not be written.
pub fn write_run(run: &RunDirectory) -> Result<PathBuf, ReportError> {
    let records = RunRecords::read(run)?;
    let path = run.path().join("report.html");
    replace(&path, page::of_run(run.path(), &records).as_bytes())?;
    Ok(path)
}

/// Writes the report of a comparison into its directory, and the figure of its differences as `compare.svg`; where the report is.
///
/// # Errors
/// If a run cannot be read, or the report not be written.
pub fn write_comparison(directory: &Path, comparison: &Comparison) -> Result<PathBuf, ReportError> {
    let read = |run: &RunSummary| RunRecords::read(&RunDirectory::open(&directory.join(&run.directory))?);
    let records: Vec<RunRecords> = comparison.runs.iter().map(read).collect::<Result<_, _>>()?;
    let subjects = subjects(comparison, &records);
    let path = directory.join("report.html");
    replace(&path, page::of_comparison(comparison, &records, &subjects).as_bytes())?;
    let figure = page::standalone(&differences(comparison, &subjects));
    replace(&directory.join("compare.svg"), figure.as_bytes())?;
    Ok(path)
}

/// The arms of a comparison with the records of their runs, in the order of its table.
fn subjects<'a>(comparison: &Comparison, records: &'a [RunRecords]) -> Vec<Subject<'a>> {
    let mut schemes: Vec<Scheme> = Vec::new();
    let mut subjects = Vec::new();
    for arm in &comparison.summary {
        let own = comparison
            .runs
            .iter()
            .zip(records)
            .filter(|(run, _)| run.name == arm.name);
        let runs: Vec<&RunRecords> = own.map(|(_, records)| records).collect();
        let Some(first) = runs.first() else { continue };
        let scheme = first.recipe.model.scheme;
        let variant = schemes.iter().filter(|other| **other == scheme).count();
        schemes.push(scheme);
        subjects.push(Subject {
            name: arm.name.clone(),
            ink: Ink::of(scheme, variant),
            runs,
        });
    }
    subjects
}
