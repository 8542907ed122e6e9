//! The files of a comparison, `compare.json` and `compare.md`, and where they may be written.

use std::fs;
use std::io;
use std::path::Path;

use gpas_train::run::replace;

use super::comparison::Comparison;
use super::error::CompareError;
use super::table::markdown;

/// Refuses a directory for a comparison that holds something else, which the files of the comparison might overwrite. A comparison that was
/// interrupted before its first run was done has only the directories of its arms; hidden files do not count.
///
/// # Errors
/// If it is a run, holds something else, or cannot be read.
pub fn check_directory(directory: &Path) -> Result<(), CompareError> {
    if directory.join("recipe.toml").exists() {
        return Err(CompareError::ARun(directory.to_path_buf()));
    }
    let foreign = || CompareError::Foreign(directory.to_path_buf());
    match fs::read(directory.join("compare.json")) {
        Ok(text) => {
            let found: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
            return found["runs"].is_array().then_some(()).ok_or_else(foreign);
        }
        Err(cause) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&cause.kind()) => {}
        Err(cause) => return Err(unreadable(directory)(cause)),
    }
    if directory.symlink_metadata().is_err() {
        return Ok(());
    }
    if !directory.is_dir() {
        return Err(foreign());
    }
    for name in names(directory)? {
        let is_arm = || names(&directory.join(&name)).is_ok_and(|runs| runs.iter().all(|run| run.starts_with("seed-")));
        if !is_arm() {
            return Err(foreign());
        }
    }
    Ok(())
}

/// The names in a directory that are not hidden.
fn names(directory: &Path) -> Result<Vec<String>, CompareError> {
    let entries = fs::read_dir(directory).map_err(unreadable(directory))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names
        .collect::<io::Result<Vec<String>>>()
        .map_err(unreadable(directory))?;
    Ok(names.into_iter().filter(|name| !name.starts_with('.')).collect())
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> CompareError {
    let path = path.to_path_buf();
    move |cause| CompareError::File { path, cause }
}

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
