//! The zip archives that `torch.save` writes, and no others: entries that are stored as they are, each within the file.
//!
//! An archive is not trusted:
//!
//! 1. Its directory is at most [`LARGEST_DIRECTORY`] bytes, all of which are in the file, before anything is allocated, and memory is asked
//!    for by the entries that are found in it, never by a number of entries that is claimed.
//! 2. A compressed entry is refused, and so are entries that lie in the same bytes: all entries together are no larger than the file.
//! 3. Two entries of one name are refused.
//!
//! The `zip` crate (version 7.4) holds none of the three, which is why it does not stand here. It reserves 216 bytes for each entry that the
//! end of the archive claims wherever the file has 46 bytes for it: for a file of 94 MB with no entry at all, of which 8 kB are on disk, it
//! asks for 432 MB. It has no limit on the directory, of which it keeps every name, comment and extra field. It finds entries that lie over
//! each other only if asked, in time that is quadratic in their number. Of two entries with one name it keeps the later one without a word.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// A directory of a million entries; a model has hundreds.
const LARGEST_DIRECTORY: u64 = 64 << 20;

const END: usize = 22;
const END_64: usize = 56;
const LOCATOR_64: usize = 20;
const ENTRY: usize = 46;
const LOCAL: u64 = 30;

/// Why something is no archive of `torch.save`; the caller knows which file it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not a file")]
    NotAFile,
    #[error("it is no archive of torch.save (or one of before PyTorch 1.6)")]
    NotAnArchive,
    #[error("its directory is damaged")]
    Directory,
    #[error("its directory claims {0} bytes")]
    DirectorySize(u64),
    #[error("its entry {0} is compressed or encrypted, which torch.save does not do")]
    Compressed(String),
    #[error("its entry {0} reaches beyond the file")]
    Beyond(String),
    #[error("its entries claim more bytes than it has: they lie over each other")]
    Overlap,
    #[error("it has no entry {0}")]
    Missing(String),
    #[error("its entry {name} has {bytes} bytes, more than {most}")]
    Large { name: String, bytes: u64, most: u64 },
    #[error("its entry {0} is damaged: it has another checksum than the directory says")]
    Checksum(String),
}

/// An archive whose directory has been read.
#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where its own header begins.
    header: u64,
    bytes: u64,
    checksum: u32,
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Self, ArchiveError> {
        let mut file = File::open(path)?;
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(ArchiveError::NotAFile);
        }
        let length = facts.len();
        let (start, bytes) = directory_place(&mut file, length)?;
        if bytes > LARGEST_DIRECTORY {
            return Err(ArchiveError::DirectorySize(bytes));
        }
        if start.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(ArchiveError::Directory);
        }
        let mut directory = vec![0; bytes as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut directory)?;
        let entries = entries(&directory, start, length)?;
        Ok(Self { file, entries })
    }

    /// Names of the entries.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The size of an entry.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.entries.get(name).map(|entry| entry.bytes)
    }

    /// The bytes of an entry of at most `most`, compared with its checksum.
    pub(super) fn read(&mut self, name: &str, most: u64) -> Result<Vec<u8>, ArchiveError> {
        let entry = *self
            .entries
            .get(name)
            .ok_or_else(|| ArchiveError::Missing(name.into()))?;
        if entry.bytes > most {
            return Err(ArchiveError::Large {
                name: name.into(),
                bytes: entry.bytes,
                most,
            });
        }
        // The entry's own header repeats the name and may pad, so that data is aligned.
        let mut header = [0; LOCAL as usize];
        self.file.seek(SeekFrom::Start(entry.header))?;
        self.file.read_exact(&mut header)?;
        if &header[..4] != b"PK\x03\x04" {
            return Err(ArchiveError::Directory);
        }
        let skipped = u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let start = entry.header + LOCAL + skipped;
        let length = self.file.metadata()?.len();
        if start.checked_add(entry.bytes).is_none_or(|end| end > length) {
            return Err(ArchiveError::Beyond(name.into()));
        }
        let mut bytes = vec![0; entry.bytes as usize];
        self.file.seek(SeekFrom::Start(start))?;
        self.file.read_exact(&mut bytes)?;
        if crc32fast::hash(&bytes) != entry.checksum {
            return Err(ArchiveError::Checksum(name.into()));
        }
        Ok(bytes)
    }
}

/// The offset and the size of the directory. The record at the end of the file holds them; if they do not fit there, a larger record before
/// it does.
fn directory_place(file: &mut File, length: u64) -> Result<(u64, u64), ArchiveError> {
    let take = length.min((END + LOCATOR_64) as u64);
    let mut tail = vec![0; take as usize];
    file.seek(SeekFrom::Start(length - take))?;
    file.read_exact(&mut tail)?;
    let Some((locator, end)) = tail.split_at_checked(tail.len().wrapping_sub(END)) else {
        return Err(ArchiveError::NotAnArchive);
    };
    // `torch.save` puts no comment after it.
    if &end[..4] != b"PK\x05\x06" {
        return Err(ArchiveError::NotAnArchive);
    }
    if locator.len() < LOCATOR_64 || &locator[..4] != b"PK\x06\x07" {
        return Ok((u64::from(u32_at(end, 16)), u64::from(u32_at(end, 12))));
    }
    let at = u64_at(locator, 8);
    if at.checked_add(END_64 as u64).is_none_or(|end| end > length) {
        return Err(ArchiveError::Directory);
    }
    let mut record = [0; END_64];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut record)?;
    if &record[..4] != b"PK\x06\x06" {
        return Err(ArchiveError::Directory);
    }
    Ok((u64_at(&record, 48), u64_at(&record, 40)))
}

/// The entries of a directory that begins at `start`: what they hold lies before it, each in bytes of its own.
fn entries(mut directory: &[u8], start: u64, length: u64) -> Result<BTreeMap<String, Entry>, ArchiveError> {
    let mut entries = BTreeMap::new();
    let mut claimed = 0_u64;
    while !directory.is_empty() {
        let (fixed, rest) = directory.split_at_checked(ENTRY).ok_or(ArchiveError::Directory)?;
        if &fixed[..4] != b"PK\x01\x02" {
            return Err(ArchiveError::Directory);
        }
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(fixed, at)));
        let (variable, next) = rest
            .split_at_checked(name + extra + comment)
            .ok_or(ArchiveError::Directory)?;
        directory = next;
        let (name, extra) = (&variable[..name], &variable[name..name + extra]);
        let name = String::from_utf8_lossy(name).into_owned();
        let mut wide = wide_sizes(extra);
        let mut field = |at: usize| match u32_at(fixed, at) {
            u32::MAX => wide.next().ok_or(ArchiveError::Directory),
            narrow => Ok(u64::from(narrow)),
        };
        let (bytes, stored, header) = (field(24)?, field(20)?, field(42)?);
        let is_encrypted = u16_at(fixed, 8) & 1 != 0;
        if u16_at(fixed, 10) != 0 || is_encrypted || bytes != stored {
            return Err(ArchiveError::Compressed(name));
        }
        let end = header.checked_add(LOCAL).and_then(|start| start.checked_add(bytes));
        if end.is_none_or(|end| end > length) {
            return Err(ArchiveError::Beyond(name));
        }
        claimed = claimed.saturating_add(LOCAL + bytes);
        if claimed > start {
            return Err(ArchiveError::Overlap);
        }
        let checksum = u32_at(fixed, 16);
        let entry = Entry {
            header,
            bytes,
            checksum,
        };
        if entries.insert(name, entry).is_some() {
            return Err(ArchiveError::Directory);
        }
    }
    Ok(entries)
}

/// The sizes and the offset that do not fit their fields, in this order, from the extra field of number 1.
fn wide_sizes(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut found: &[u8] = &[];
    while extra.len() >= 4 {
        let (id, size) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some(body) = extra.get(4..4 + size) else {
            break;
        };
        if id == 1 {
            found = body;
        }
        extra = &extra[4 + size..];
    }
    found
        .as_chunks::<8>()
        .0
        .iter()
        .map(|chunk| u64::from_le_bytes(*chunk))
        .collect::<Vec<_>>()
        .into_iter()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
