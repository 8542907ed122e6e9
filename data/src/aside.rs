//! Writing aside: a file or directory appears under its name when it is whole and on the disk, or not at all.
//!
//! What is being written lies beside its target under a hidden name of its own, and is removed again if it is given up. Errors are
//! the operating system's, for callers to say what they were about.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile, TempDir};

/// Writes `bytes` to the file `target`, in place of what is there.
///
/// # Errors
/// When the disk does not take it; `target` is then as it was.
pub fn replace(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AsideFile::beside(target)?;
    file.write_all(bytes)?;
    file.replace()
}

/// Writes `bytes` to a new file `target`, making the directories above it.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when something is there, also if it came while this was written.
pub fn create(target: &Path, bytes: &[u8]) -> io::Result<()> {
    refuse_existing(target)?;
    fs::create_dir_all(parent(target))?;
    let mut file = AsideFile::beside(target)?;
    file.write_all(bytes)?;
    file.file.as_file().sync_all()?;
    file.file.persist_noclobber(target).map_err(|refused| refused.error)?;
    sync_directory(parent(target))
}

/// A file that is being written beside its target.
#[derive(Debug)]
pub struct AsideFile {
    file: NamedTempFile,
    target: PathBuf,
}

impl AsideFile {
    /// An empty file beside `target`, whose directory exists.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn beside(target: &Path) -> io::Result<Self> {
        let prefix = hidden(target)?;
        let mut builder = Builder::new();
        builder.prefix(&prefix);
        // Temporary files are private; what becomes of one is as any other file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        Ok(Self {
            file: builder.tempfile_in(parent(target))?,
            target: target.into(),
        })
    }

    /// Gives the file its name, in place of what has it.
    ///
    /// # Errors
    /// When the disk does not take it; the target is then as it was.
    pub fn replace(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(&self.target).map_err(|refused| refused.error)?;
        sync_directory(parent(&self.target))
    }
}

impl Write for AsideFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A directory that is being written beside its target.
#[derive(Debug)]
pub struct AsideDirectory {
    directory: TempDir,
    target: PathBuf,
    replaces: bool,
}

impl AsideDirectory {
    /// An empty directory beside `target`, making the directories above it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when something is at `target`, or it cannot be made.
    pub fn beside(target: &Path) -> io::Result<Self> {
        refuse_existing(target)?;
        Self::new(target, false)
    }

    /// An empty directory beside `target`, in whose place it will be put.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn in_place_of(target: &Path) -> io::Result<Self> {
        Self::new(target, true)
    }

    fn new(target: &Path, replaces: bool) -> io::Result<Self> {
        let prefix = hidden(target)?;
        fs::create_dir_all(parent(target))?;
        let mut builder = Builder::new();
        builder.prefix(&prefix);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        Ok(Self {
            directory: builder.tempdir_in(parent(target))?,
            target: target.into(),
            replaces,
        })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Waits until all that is in the directory is on the disk, and gives it its name.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when something has that name by now, or the disk does not take it. Nothing is left then.
    pub fn publish(self) -> io::Result<()> {
        sync_all(self.path())?;
        if self.replaces && self.target.exists() {
            fs::remove_dir_all(&self.target)?;
        }
        refuse_existing(&self.target)?;
        fs::rename(self.path(), &self.target).map_err(|cause| match cause.kind() {
            // Another process was faster: a directory that holds something is never replaced.
            ErrorKind::DirectoryNotEmpty => exists(&self.target),
            _ => cause,
        })?;
        // Nothing is left under the old name to be removed.
        let _ = self.directory.keep();
        sync_directory(parent(&self.target))
    }
}

fn exists(target: &Path) -> io::Error {
    io::Error::new(ErrorKind::AlreadyExists, format!("{} already exists", target.display()))
}

fn refuse_existing(target: &Path) -> io::Result<()> {
    match target.symlink_metadata() {
        Ok(_) => Err(exists(target)),
        Err(_) => Ok(()),
    }
}

/// The beginning of a hidden name beside `target`.
fn hidden(target: &Path) -> io::Result<String> {
    let name = target.file_name().ok_or_else(|| {
        let said = format!("{} does not end with a name", target.display());
        io::Error::new(ErrorKind::InvalidInput, said)
    })?;
    Ok(format!(".{}.", name.to_string_lossy()))
}

/// The directory of a path; that of a bare name is the current one.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Waits until every file below a directory, and its name, is on the disk.
fn sync_all(directory: &Path) -> io::Result<()> {
    for entry in directory.read_dir()? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_all(&entry.path())?;
        } else if kind.is_file() {
            // Windows flushes what is open for writing alone.
            let file = OpenOptions::new().read(true).write(cfg!(windows)).open(entry.path())?;
            file.sync_all()?;
        }
    }
    sync_directory(directory)
}

/// Waits until the names in a directory are on the disk, where directories can be opened as files.
fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = directory.read_dir().unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("result");
        let aside = AsideDirectory::beside(&target).unwrap();
        fs::write(aside.path().join("half"), "text").unwrap();
        assert_eq!(names(place.path()).len(), 1);
        drop(aside);
        let mut file = AsideFile::beside(&target).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(names(place.path()), [""; 0]);
    }

    #[test]
    fn a_new_file_replaces_nothing_and_a_replaced_one_is_whole() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("new").join("result");
        create(&target, b"first").unwrap();
        assert_eq!(create(&target, b"second").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&target).unwrap(), b"first");
        replace(&target, b"second").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"second");
        assert_eq!(names(target.parent().unwrap()), ["result"]);
        assert_eq!(
            replace(Path::new("/"), b"").unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }

    #[test]
    fn a_directory_never_replaces_what_came_meanwhile() {
        let place = tempfile::tempdir().unwrap();
        let target = place.path().join("result");
        let [first, second] = [(); 2].map(|()| AsideDirectory::beside(&target).unwrap());
        for (aside, text) in [(&first, "first"), (&second, "second")] {
            fs::create_dir(aside.path().join("part")).unwrap();
            fs::write(aside.path().join("part").join("file"), text).unwrap();
        }
        first.publish().unwrap();
        assert_eq!(second.publish().unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(target.join("part").join("file")).unwrap(), b"first");
        assert_eq!(names(place.path()), ["result"]);
        assert_eq!(
            AsideDirectory::beside(&target).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );

        let third = AsideDirectory::in_place_of(&target).unwrap();
        fs::write(third.path().join("file"), "third").unwrap();
        assert!(
            target.join("part").exists(),
            "the old one stays until the new one is whole"
        );
        third.publish().unwrap();
        assert_eq!(names(&target), ["file"]);
        assert_eq!(names(place.path()), ["result"]);
    }

    #[cfg(unix)]
    #[test]
    fn results_are_as_readable_as_other_files() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        fs::write(path("other"), "").unwrap();
        fs::create_dir(path("others")).unwrap();
        create(&path("file"), b"").unwrap();
        AsideDirectory::beside(&path("directory")).unwrap().publish().unwrap();
        let mode = |name| path(name).metadata().unwrap().permissions().mode();
        assert_eq!((mode("file"), mode("directory")), (mode("other"), mode("others")));
    }
}
