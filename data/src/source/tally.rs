//! What reading counts: the hash and length of each file, the records that were not used, what a source turned out to hold.

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::left_out::LeftOut;

/// Records that were not used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// How many were malformed.
    pub bad: u64,
    /// The first few, as `file:line: cause`.
    pub first: Vec<String>,
}

/// Bad records that are remembered word for word.
const REMEMBERED: usize = 5;

impl Skipped {
    pub(super) fn add(&mut self, count: u64, said: &str) {
        self.bad += count;
        if self.first.len() < REMEMBERED {
            self.first.push(said.to_owned());
        }
    }
}

/// What a source turned out to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The source as it was given.
    pub path: String,
    /// Files in it.
    pub files: u64,
    /// Bytes of those files, compressed as they are.
    pub bytes: u64,
    /// Documents read from it.
    pub documents: u64,
    /// The SHA-256 of the file; of several files, that of the lines `HASH  NAME` which `sha256sum` prints for them.
    pub sha256: String,
    /// Separators at which its text files were cut into documents.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub separators: u64,
    /// What was found and not read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The hash and length of a file while something else reads it.
#[derive(Clone)]
pub(super) struct Tally {
    hash: Arc<Mutex<(Sha256, u64)>>,
    bytes_read: Arc<AtomicU64>,
}

impl Tally {
    pub(super) fn new(bytes_read: &Arc<AtomicU64>) -> Self {
        Self {
            hash: Arc::default(),
            bytes_read: bytes_read.clone(),
        }
    }

    fn add(&self, bytes: &[u8]) {
        let mut hash = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        hash.0.update(bytes);
        hash.1 += bytes.len() as u64;
        self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    pub(super) fn finish(&self) -> (String, u64) {
        let hash = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        (format!("{:x}", hash.0.clone().finalize()), hash.1)
    }
}

/// A file whose bytes are counted and hashed as they are read.
pub(super) struct Counted {
    pub(super) input: File,
    pub(super) tally: Tally,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.tally.add(&buffer[..count]);
        Ok(count)
    }
}
