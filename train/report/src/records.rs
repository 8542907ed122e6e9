//! What a run has recorded, as a report reads it from its directory.

use std::fs;
use std::io;

use gpas_train::inspect::ModelInspection;
use gpas_train::metrics::Metrics;
use gpas_train::recipe::Recipe;
use gpas_train::run::{RunDirectory, RunInfo, replace};

use crate::error::ReportError;

/// Everything that a run has recorded.
#[derive(Clone, Debug)]
pub struct RunRecords {
    /// Its recipe.
    pub recipe: Recipe,
    /// Its facts.
    pub info: RunInfo,
    /// Its steps, evaluations and layers.
    pub metrics: Metrics,
    /// The inspection of its last checkpoint, if there has been one.
    pub inspection: Option<ModelInspection>,
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
pub fn read_inspection(run: &RunDirectory) -> Result<Option<ModelInspection>, ReportError> {
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
pub fn write_inspection(run: &RunDirectory, inspection: &ModelInspection) -> Result<(), ReportError> {
    let path = run.inspection_path();
    let json = serde_json::to_vec(inspection).map_err(|cause| ReportError::Json {
        path: path.clone(),
        cause,
    })?;
    Ok(replace(&path, &json)?)
}
