//! Writing aside: a result appears under its name when it is whole, or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::DataError;

/// A path beside the target that is removed again unless it is published.
pub(crate) struct Aside {
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Aside {
    fn new(target: &Path) -> Result<Self, DataError> {
        if target.symlink_metadata().is_ok() {
            return Err(DataError::OutputExists { path: target.into() });
        }
        let name = target
            .file_name()
            .ok_or_else(|| DataError::Range(format!("{}: not a name for a result", target.display())))?;
        let parent = parent(target);
        fs::create_dir_all(parent).map_err(DataError::io(parent))?;
        let path = parent.join(format!(".{}.partial-{}", name.to_string_lossy(), std::process::id()));
        Ok(Self {
            path,
            target: target.into(),
            published: false,
        })
    }

    /// A new directory beside `target`.
    pub(crate) fn directory(target: &Path) -> Result<Self, DataError> {
        let aside = Self::new(target)?;
        // A killed process with the same number may have left one.
        if aside.path.is_dir() {
            fs::remove_dir_all(&aside.path).map_err(DataError::io(&aside.path))?;
        }
        fs::create_dir(&aside.path).map_err(DataError::io(&aside.path))?;
        Ok(aside)
    }

    /// Writes `bytes` to a new file `target`.
    pub(crate) fn write_file(target: &Path, bytes: &[u8]) -> Result<(), DataError> {
        let aside = Self::new(target)?;
        let write = || {
            let mut file = File::create(&aside.path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(DataError::io(&aside.path))?;
        aside.publish()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the result its name.
    pub(crate) fn publish(mut self) -> Result<(), DataError> {
        if self.target.symlink_metadata().is_ok() {
            return Err(DataError::OutputExists {
                path: self.target.clone(),
            });
        }
        fs::rename(&self.path, &self.target).map_err(|cause| {
            // Another process was faster: a rename never replaces a directory that holds something.
            if self.target.exists() {
                DataError::OutputExists {
                    path: self.target.clone(),
                }
            } else {
                DataError::Io {
                    path: self.target.clone(),
                    cause,
                }
            }
        })?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.published {
            let removed = if self.path.is_dir() {
                fs::remove_dir_all(&self.path)
            } else {
                fs::remove_file(&self.path)
            };
            // Nothing can be done about a leftover here, and it does not carry the result's name.
            drop(removed);
        }
    }
}

/// The directory of a path; that of a bare name is the current one.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_is_not_published_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("result");
        let aside = Aside::directory(&target).unwrap();
        fs::write(aside.path().join("half"), "text").unwrap();
        drop(aside);
        assert_eq!(place.path().read_dir().unwrap().count(), 0);
        Aside::write_file(&target, b"whole").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert!(matches!(
            Aside::write_file(&target, b"again"),
            Err(DataError::OutputExists { .. })
        ));
        assert_eq!(fs::read(&target).unwrap(), b"whole");
    }
}
