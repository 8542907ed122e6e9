//! The files of a comparison: `compare.json` and `compare.md`.

use std::fs;
use std::io;
use std::path::Path;

use gpas_train::run::replace;

use super::comparison::Comparison;
use super::error::CompareError;
use super::table::markdown;

impl Comparison {
    /// Writes `compare.json` and `compare.md` into a directory, each in one piece.
    ///
    /// # Errors
    /// If the disk does not take them.
    pub fn write(&self, directory: &Path) -> Result<(), CompareError> {
        let path = directory.join("compare.json");
        let json = serde_json::to_string_pretty(self).map_err(|cause| CompareError::Json {
            path: path.clone(),
            cause,
        })?;
        replace(&path, (json + "\n").as_bytes())?;
        Ok(replace(&directory.join("compare.md"), markdown(self).as_bytes())?)
    }

    /// Reads the `compare.json` of a directory.
    ///
    /// # Errors
    /// If there is none, or it is not one.
    pub fn read(directory: &Path) -> Result<Self, CompareError> {
        let path = directory.join("compare.json");
        let text = fs::read(&path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => CompareError::NotAComparison(directory.to_path_buf()),
            _ => CompareError::File {
                path: path.clone(),
                cause,
            },
        })?;
        serde_json::from_slice(&text).map_err(|cause| CompareError::Json { path, cause })
    }
}
