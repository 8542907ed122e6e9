//! A shard's file: entries of a fixed width after a header, memory-mapped.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::manifest::{ShardFile, VERSION};
use crate::error::DataError;
use crate::lfs::refuse_lfs_pointer;

pub(super) const HEADER_BYTES: usize = 16;
pub(super) const TOKEN_MAGIC: &[u8; 8] = b"GPASTOKN";
pub(super) const DOCUMENT_MAGIC: &[u8; 8] = b"GPASDOCS";

/// The first bytes of a shard's file.
pub(super) fn header(magic: &[u8; 8], width: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(magic);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..].copy_from_slice(&width.to_le_bytes());
    header
}

/// A shard's file: entries of a fixed width after a header.
pub(super) struct Mapped {
    path: PathBuf,
    map: Mmap,
    width: usize,
}

impl Mapped {
    pub(super) fn open(
        directory: &Path,
        record: &ShardFile,
        magic: &[u8; 8],
        width: usize,
        entries: u64,
    ) -> Result<Self, DataError> {
        let path = directory.join(&record.name);
        if Path::new(&record.name).components().count() != 1 || record.name.starts_with("..") {
            return Err(DataError::Manifest {
                path,
                cause: "a shard outside the directory".into(),
            });
        }
        refuse_lfs_pointer(&path)?;
        let file = File::open(&path).map_err(DataError::io_of_listed(&path))?;
        let length = file.metadata().map_err(DataError::io(&path))?.len();
        let damaged = |cause: String| {
            Err(DataError::Shard {
                path: path.clone(),
                cause,
            })
        };
        let mut opening = [0; HEADER_BYTES];
        // A foreign file is told from a shortened one by its first bytes.
        if (&file).read_exact(&mut opening).is_err() {
            return damaged(format!("truncated: {length} bytes, the manifest says {}", record.bytes));
        }
        if &opening[..8] != magic {
            return damaged("not a shard of prepared data".into());
        }
        let number = |at: usize| u32::from_le_bytes([opening[at], opening[at + 1], opening[at + 2], opening[at + 3]]);
        if number(8) != VERSION {
            let (found, expected) = (u64::from(number(8)), u64::from(VERSION));
            return Err(DataError::Version { path, found, expected });
        }
        if number(12) as usize != width {
            return damaged(format!("entries of {} bytes, the manifest says {width}", number(12)));
        }
        if length != record.bytes {
            let how = if length < record.bytes { "truncated" } else { "too long" };
            return damaged(format!("{how}: {length} bytes, the manifest says {}", record.bytes));
        }
        let expected = entries
            .checked_mul(width as u64)
            .and_then(|bytes| bytes.checked_add(HEADER_BYTES as u64));
        if expected != Some(length) {
            return damaged(format!(
                "{length} bytes cannot hold the {entries} entries that the manifest says"
            ));
        }
        // SAFETY: the map is read-only and only ever read byte by byte through bounds-checked slices, so that no
        // content can break an invariant. Another process that changes the file changes numbers, which are checked
        // as they are read; one that shortens it ends this process, as for every program that maps a file.
        #[allow(unsafe_code, reason = "a memory map cannot be made without")]
        let map = unsafe { Mmap::map(&file) }.map_err(DataError::io(&path))?;
        // The file may have been shortened since its length was taken.
        if map.len() as u64 != length {
            return damaged("changed while it was opened".into());
        }
        Ok(Self { path, map, width })
    }

    /// The whole file, its header too.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn entries(&self) -> &[u8] {
        &self.map[HEADER_BYTES..]
    }

    pub(super) fn len(&self) -> usize {
        self.entries().len() / self.width
    }

    pub(super) fn read(&self, from: usize, ids: &mut [u32]) {
        let bytes = &self.entries()[from * self.width..(from + ids.len()) * self.width];
        if self.width == 2 {
            for (id, bytes) in ids.iter_mut().zip(bytes.chunks_exact(2)) {
                *id = u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
            }
        } else {
            for (id, bytes) in ids.iter_mut().zip(bytes.chunks_exact(4)) {
                *id = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
    }

    /// An entry of a file of 8-byte entries.
    pub(super) fn entry(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.entries()[at * 8..at * 8 + 8]);
        u64::from_le_bytes(bytes)
    }

    pub(super) fn damaged(&self, cause: String) -> DataError {
        DataError::Shard {
            path: self.path.clone(),
            cause,
        }
    }
}
