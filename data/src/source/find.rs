//! Finding the files behind a source: a file, a directory or a glob.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::DataError;
use crate::format::Format;

#[derive(Debug, Clone)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    pub(super) name: Arc<str>,
    pub(super) format: Format,
}

/// The files behind one source of the command line.
#[derive(Debug, Clone)]
pub struct Source {
    pub(super) given: String,
    pub(super) files: Vec<SourceFile>,
}

impl Source {
    /// Finds the files of a source: a file, a directory (searched recursively, in sorted order) or a glob.
    ///
    /// # Errors
    /// When nothing is there, or nothing of a format that is read.
    pub fn find(given: &str) -> Result<Self, DataError> {
        let path = Path::new(given);
        let mut files = Vec::new();
        let empty = |cause: &str| DataError::SourceEmpty {
            given: given.into(),
            cause: cause.into(),
        };
        if path.is_dir() {
            walk(path, &mut files)?;
            if files.is_empty() {
                return Err(empty("holds no file of a format that is read"));
            }
        } else if path.exists() {
            files.push(source_file(path).ok_or_else(|| DataError::UnknownFormat { path: path.into() })?);
        } else if given.contains(['*', '?', '[']) {
            let matches = glob::glob(given).map_err(|error| empty(&format!("is not a glob: {error}")))?;
            for found in matches {
                let found = found.map_err(|error| DataError::Io {
                    path: error.path().to_path_buf(),
                    cause: error.into(),
                })?;
                if found.is_dir() {
                    walk(&found, &mut files)?;
                } else {
                    files.extend(source_file(&found));
                }
            }
            if files.is_empty() {
                return Err(empty("matches no file of a format that is read"));
            }
        } else {
            return Err(DataError::SourceMissing { given: given.into() });
        }
        Ok(Self {
            given: given.into(),
            files,
        })
    }

    /// A source made of text files of any extension, each one document, under names of their own.
    pub(crate) fn of_texts(given: String, files: Vec<(String, PathBuf)>) -> Self {
        let files = files
            .into_iter()
            .map(|(name, path)| SourceFile {
                path,
                name: name.into(),
                format: Format::Text,
            })
            .collect();
        Self { given, files }
    }

    /// Leaves out the files that `other` has too, whatever path they were found by.
    pub(crate) fn leave_out(&mut self, other: &Self) -> Result<(), DataError> {
        let identity = |file: &SourceFile| file.path.canonicalize().ok();
        let others: HashSet<PathBuf> = other.files.iter().filter_map(identity).collect();
        self.files
            .retain(|file| identity(file).is_none_or(|path| !others.contains(&path)));
        if self.files.is_empty() {
            return Err(DataError::OnlyValidation {
                given: self.given.clone(),
            });
        }
        Ok(())
    }

    /// Bytes on disk, for a progress bar.
    pub(super) fn bytes(&self) -> u64 {
        self.files
            .iter()
            .filter_map(|file| file.path.metadata().ok())
            .map(|data| data.len())
            .sum()
    }
}

fn source_file(path: &Path) -> Option<SourceFile> {
    let format = Format::of(path)?;
    Some(SourceFile {
        path: path.into(),
        name: path.display().to_string().into(),
        format,
    })
}

fn walk(directory: &Path, files: &mut Vec<SourceFile>) -> Result<(), DataError> {
    let entries = directory.read_dir().map_err(DataError::io(directory))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(DataError::io(directory))?;
        paths.push((entry.path(), entry.file_type().map_err(DataError::io(&entry.path()))?));
    }
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, kind) in paths {
        // A link to a directory is not followed: it could lead back here.
        if kind.is_dir() {
            walk(&path, files)?;
        } else if path.is_file() {
            files.extend(source_file(&path));
        }
    }
    Ok(())
}
