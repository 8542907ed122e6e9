//! Finding the files behind a source: a file, a directory or a glob.
//!
//! Every file is taken once, whatever paths lead to it, and what is not taken is remembered with the reason.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::left_out::{LeftOut, LeftOutReason};
use super::options::ReadOptions;
use crate::error::DataError;
use crate::format::{Compression, Format};

#[derive(Debug, Clone)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    pub(super) name: Arc<str>,
    pub(super) format: Format,
    pub(super) compression: Option<Compression>,
    /// Whether the source is this file, and not a directory or a glob that it was found by.
    pub(super) named: bool,
}

/// The files behind one source of the command line.
#[derive(Debug, Clone)]
pub struct Source {
    pub(super) given: String,
    pub(super) files: Vec<SourceFile>,
    pub(super) left_out: Vec<LeftOut>,
}

impl Source {
    /// Finds the files of several sources, each a file, a directory (searched with all that is in it, in sorted order)
    /// or a glob. A file that several of them lead to belongs to the first.
    ///
    /// # Errors
    /// When nothing is behind a source, or nothing of a format that is read.
    pub fn find(given: &[PathBuf], options: &ReadOptions) -> Result<Vec<Self>, DataError> {
        let mut taken = HashSet::new();
        given
            .iter()
            .map(|given| {
                let mut source = Self::find_one(given, options)?;
                source.take_once(&mut taken);
                Ok(source)
            })
            .collect()
    }

    fn find_one(path: &Path, options: &ReadOptions) -> Result<Self, DataError> {
        let given = path.display().to_string();
        // A source that is no text is a path, and no pattern of paths.
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']));
        let mut search = Search::new(options.hidden);
        let kind = if path.is_dir() {
            search.walk(path)?;
            "holds"
        } else if path.exists() {
            let file = source_file(path, true).ok_or_else(|| DataError::UnknownFormat { path: path.into() })?;
            search.files.push(file);
            "is"
        } else if let Ok(target) = path.read_link() {
            return Err(DataError::SourceEmpty {
                given,
                cause: format!("is a link to {}, which does not exist", target.display()),
                hidden: false,
            });
        } else if let Some(pattern) = pattern {
            search.glob(pattern)?;
            "matches"
        } else {
            return Err(DataError::SourceMissing { given });
        };
        search.follow_links()?;
        if search.files.is_empty() {
            let left: Vec<String> = search.left_out.iter().map(ToString::to_string).collect();
            let but = if left.is_empty() { "" } else { "; left out: " };
            return Err(DataError::SourceEmpty {
                given,
                cause: format!("{kind} no file of a format that is read{but}{}", left.join("; ")),
                hidden: search.left_out.iter().any(|left| left.reason == LeftOutReason::Hidden),
            });
        }
        Ok(Self {
            given,
            files: search.files,
            left_out: search.left_out,
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
                compression: None,
                named: true,
            })
            .collect();
        Self {
            given,
            files,
            left_out: Vec::new(),
        }
    }

    /// Leaves out the files that are in `taken`, adds the others to it, and leaves out repeats among them.
    fn take_once(&mut self, taken: &mut HashSet<Identity>) {
        // The file itself goes before links to it, so that adding a link changes nothing.
        let mut places: HashMap<Identity, usize> = HashMap::new();
        let identities: Vec<Identity> = self.files.iter().map(|file| identity(&file.path)).collect();
        for (at, (file, identity)) in self.files.iter().zip(&identities).enumerate() {
            let place = places.entry(identity.clone()).or_insert(at);
            if self.files[*place].path.is_symlink() && !file.path.is_symlink() {
                *place = at;
            }
        }
        for (at, (file, identity)) in std::mem::take(&mut self.files).into_iter().zip(identities).enumerate() {
            if places.get(&identity) == Some(&at) && taken.insert(identity) {
                self.files.push(file);
            } else {
                LeftOut::add(&mut self.left_out, LeftOutReason::Repeat, &file.name);
            }
        }
    }

    /// Leaves out the files that `others` have too, whatever path they were found by.
    pub(crate) fn leave_out(&mut self, others: &[Self]) -> Result<(), DataError> {
        let others: HashSet<Identity> = others
            .iter()
            .flat_map(|other| &other.files)
            .map(|file| identity(&file.path))
            .collect();
        let had_files = !self.files.is_empty();
        for file in std::mem::take(&mut self.files) {
            if others.contains(&identity(&file.path)) {
                LeftOut::add(&mut self.left_out, LeftOutReason::Validation, &file.name);
            } else {
                self.files.push(file);
            }
        }
        if had_files && self.files.is_empty() {
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

/// What all paths and links to one file or directory share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Identity {
    /// Device and inode, by which hard links are told to be one file.
    #[cfg(unix)]
    Inode(u64, u64),
    /// The path without links.
    Path(PathBuf),
}

fn identity(path: &Path) -> Identity {
    #[cfg(unix)]
    if let Ok(metadata) = path.metadata()
        && std::os::unix::fs::MetadataExt::ino(&metadata) != 0
    {
        use std::os::unix::fs::MetadataExt;
        // File systems without inodes say 0 of every file.
        return Identity::Inode(metadata.dev(), metadata.ino());
    }
    Identity::Path(path.canonicalize().unwrap_or_else(|_| path.into()))
}

fn source_file(path: &Path, named: bool) -> Option<SourceFile> {
    let (format, compression) = Format::of(path)?;
    Some(SourceFile {
        path: path.into(),
        name: path.display().to_string().into(),
        format,
        compression,
        named,
    })
}

/// A search through directories.
struct Search {
    hidden: bool,
    files: Vec<SourceFile>,
    left_out: Vec<LeftOut>,
    /// The directories that were searched, by what their paths share.
    directories: HashSet<Identity>,
    /// Links to directories, which are followed at the end: what lies in a directory itself is found there.
    links: VecDeque<PathBuf>,
}

impl Search {
    fn new(hidden: bool) -> Self {
        Self {
            hidden,
            files: Vec::new(),
            left_out: Vec::new(),
            directories: HashSet::new(),
            links: VecDeque::new(),
        }
    }

    fn leave_out(&mut self, reason: LeftOutReason, path: &Path) {
        LeftOut::add(&mut self.left_out, reason, path.display());
    }

    fn walk(&mut self, directory: &Path) -> Result<(), DataError> {
        if !self.directories.insert(identity(directory)) {
            self.leave_out(LeftOutReason::Repeat, directory);
            return Ok(());
        }
        let entries = directory.read_dir().map_err(DataError::io(directory))?;
        let mut paths = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(DataError::io(directory))?;
        paths.sort();
        for path in paths {
            let is_hidden = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if is_hidden && !self.hidden {
                self.leave_out(LeftOutReason::Hidden, &path);
            } else {
                self.take(&path)?;
            }
        }
        Ok(())
    }

    /// Takes what is at a path that was found.
    fn take(&mut self, path: &Path) -> Result<(), DataError> {
        if path.is_dir() {
            if path.is_symlink() {
                self.links.push_back(path.into());
                return Ok(());
            }
            return self.walk(path);
        }
        if path.is_file() {
            if is_apple_double(path) {
                self.leave_out(LeftOutReason::AppleDouble, path);
            } else if let Some(file) = source_file(path, false) {
                self.files.push(file);
            } else {
                self.leave_out(LeftOutReason::UnknownFormat, path);
            }
        } else if path.is_symlink() && !path.exists() {
            self.leave_out(LeftOutReason::BrokenLink, path);
        } else {
            self.leave_out(LeftOutReason::NotAFile, path);
        }
        Ok(())
    }

    /// Searches the directories that links lead to; one that was searched already is a repeat, so that circles end.
    fn follow_links(&mut self) -> Result<(), DataError> {
        while let Some(link) = self.links.pop_front() {
            self.walk(&link)?;
        }
        Ok(())
    }

    fn glob(&mut self, given: &str) -> Result<(), DataError> {
        let refused = |error: glob::PatternError| DataError::SourceEmpty {
            given: given.into(),
            cause: format!("is not a glob: {error}"),
            hidden: false,
        };
        // A hidden name is taken where the pattern has its dot, as in a shell.
        let dotted = Path::new(given)
            .components()
            .filter_map(|part| part.as_os_str().to_str().filter(|part| part.starts_with('.')))
            .map(glob::Pattern::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(refused)?;
        let is_asked_for = |part: &str| !part.starts_with('.') || dotted.iter().any(|pattern| pattern.matches(part));
        for found in glob::glob(given).map_err(refused)? {
            let found = found.map_err(|error| DataError::Io {
                path: error.path().to_path_buf(),
                cause: error.into(),
            })?;
            let mut parts = found.components().map(|part| part.as_os_str().to_string_lossy());
            if self.hidden || parts.all(|part| is_asked_for(&part)) {
                self.take(&found)?;
            } else {
                self.leave_out(LeftOutReason::Hidden, &found);
            }
        }
        Ok(())
    }
}

/// Whether a file is what macOS writes as `._NAME` beside `NAME` on disks that cannot hold its attributes.
fn is_apple_double(path: &Path) -> bool {
    let mut magic = [0; 4];
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"._"))
        && File::open(path)
            .and_then(|mut file| file.read_exact(&mut magic))
            .is_ok()
        && magic == [0, 5, 22, 7]
}
