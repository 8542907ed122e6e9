//! Why there is no report.

use std::io;
use std::path::PathBuf;

use gpas_train::run::RunError;

use crate::compare::CompareError;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ReportError {
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("{path}: {cause}")]
    Json { path: PathBuf, cause: serde_json::Error },
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
