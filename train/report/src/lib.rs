//! `report.html`: a run, or a comparison of runs, on one page that needs nothing but itself.
//!
//! A page is made from what a run has recorded ([`RunRecords`]): `metrics.jsonl`, `run.json`, `recipe.toml`, and `inspection.json`, the look
//! at its last checkpoint layer by layer. Nothing on it is loaded from anywhere, and the same records make the same page.
//!
//! Data flows from records to `figures` (what is shown, with its numbers and how they were computed), from there to `plot` (drawings)
//! and to `page` (HTML).

pub mod compare;
mod figures;
mod ink;
mod page;
mod plot;
pub mod tensorboard;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use gpas_model::Scheme;

use crate::compare::{CompareError, Comparison, RunSummary};
use figures::Subject;
use gpas_train::inspect::Inspection;
use gpas_train::metrics::Metrics;
use gpas_train::recipe::Recipe;
use gpas_train::run::{RunDirectory, RunError, RunInfo, replace};
use ink::Ink;

pub use plot::PlotError;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ReportError {
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("{path}: {cause}")]
    Json { path: PathBuf, cause: serde_json::Error },
    #[error(transparent)]
    Plot(#[from] PlotError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Compare(#[from] CompareError),
}

impl ReportError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ReportError::Run(RunError::NotARun(_)) | ReportError::Compare(CompareError::NotAComparison(_)) => {
                Some("a run is what `gpas train -o RUN` makes, a comparison what `gpas compare -o DIR` makes".into())
            }
            ReportError::Run(error) => error.hint(),
            ReportError::Compare(error) => error.hint(),
            _ => None,
        }
    }
}

/// Everything that a run has recorded.
#[derive(Clone, Debug)]
pub struct RunRecords {
    /// Its recipe.
    pub recipe: Recipe,
    /// Its facts.
    pub info: RunInfo,
    /// Its steps, evaluations and looks at the layers.
    pub metrics: Metrics,
    /// The look at its last checkpoint, if there has been one.
    pub inspection: Option<Inspection>,
}

impl RunRecords {
    /// Reads a run directory.
    ///
    /// # Errors
    /// If a file of it cannot be read.
    pub fn read(run: &RunDirectory) -> Result<Self, ReportError> {
        let path = run.metrics_path();
        let metrics = Metrics::read(&path).map_err(|cause| ReportError::File { path, cause })?;
        let last = metrics.train.last().map_or(0, |record| record.step);
        Ok(Self {
            recipe: run.recipe()?,
            info: run.info()?,
            // One of an earlier step is of another model.
            inspection: read_inspection(run)?.filter(|inspection| inspection.step == last),
            metrics,
        })
    }
}

/// The `inspection.json` of a run, if it has one.
///
/// # Errors
/// If it cannot be read.
pub fn read_inspection(run: &RunDirectory) -> Result<Option<Inspection>, ReportError> {
    let path = run.inspection_path();
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(ReportError::File { path, cause }),
    };
    let inspection = serde_json::from_slice(&text).map_err(|cause| ReportError::Json { path, cause })?;
    Ok(Some(inspection))
}

/// Writes the `inspection.json` of a run.
///
/// # Errors
/// If the disk does not take it.
pub fn write_inspection(run: &RunDirectory, inspection: &Inspection) -> Result<(), ReportError> {
    let path = run.inspection_path();
    let json = serde_json::to_vec(inspection).map_err(|cause| ReportError::Json {
        path: path.clone(),
        cause,
    })?;
    Ok(replace(&path, &json)?)
}

/// Writes the report of a run into its directory; where it is.
///
/// # Errors
/// If the run cannot be read, or the report not be written.
pub fn write_run(run: &RunDirectory) -> Result<PathBuf, ReportError> {
    let records = RunRecords::read(run)?;
    let path = run.path().join("report.html");
    replace(&path, page::of_run(run.path(), &records)?.as_bytes())?;
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
    replace(&path, page::of_comparison(comparison, &records, &subjects)?.as_bytes())?;
    let figure = page::standalone(&figures::differences(comparison, &subjects)?, &subjects);
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
