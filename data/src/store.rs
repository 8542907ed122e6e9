//! Prepared data on disk: the manifest, memory-mapped token shards, and the checks that tell a damaged directory.
//!
//! A directory holds `manifest.json`, `tokenizer.json`, and for each shard of each split `NAME.tokens`, the ids in
//! little-endian `u16` or `u32` one after the other, and `NAME.documents`, for each document the position (little-endian
//! `u64`, in tokens of the shard) at which it ends. Both open with 16 bytes: eight of magic, the format version and the
//! width of an entry.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::source::{SourceRecord, hex};
use crate::tokenizer::Tokenizer;

pub(crate) const FORMAT: &str = "gpas-tokens";
pub(crate) const VERSION: u32 = 1;
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const HEADER_BYTES: usize = 16;
pub(crate) const TOKEN_MAGIC: &[u8; 8] = b"GPASTOKN";
pub(crate) const DOCUMENT_MAGIC: &[u8; 8] = b"GPASDOCS";

/// The first bytes of a shard's file.
pub(crate) fn header(magic: &[u8; 8], width: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(magic);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..].copy_from_slice(&width.to_le_bytes());
    header
}

/// What a directory of prepared data holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `gpas-tokens`.
    pub format: String,
    /// The version of the format.
    pub version: u32,
    /// The program that prepared the data.
    pub created_by: String,
    /// Bytes of a token on disk: 2 or 4.
    pub token_bytes: u8,
    /// The largest id in any shard.
    pub largest_id: u32,
    /// Tokens of the longest document.
    pub longest_document: u64,
    /// The tokenizer.
    pub tokenizer: TokenizerRecord,
    /// The training split.
    pub train: SplitRecord,
    /// The validation split.
    pub validation: SplitRecord,
    /// The sources of the training split, or of both where validation is a fraction.
    pub sources: Vec<SourceRecord>,
    /// The sources of the validation split, where it has its own.
    pub validation_sources: Vec<SourceRecord>,
    /// Records that were malformed and left out.
    pub bad_records: u64,
    /// Documents without a token, left out.
    pub empty_documents: u64,
}

/// The tokenizer that data was prepared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerRecord {
    /// The SHA-256 of its `tokenizer.json`.
    pub sha256: String,
    /// Its largest id plus one.
    pub vocab_size: usize,
    /// The token at the end of each document.
    pub end_of_document: u32,
    /// The token that fills windows up.
    pub pad: u32,
}

/// One split of the data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitRecord {
    /// Tokens in all shards.
    pub tokens: u64,
    /// Documents in all shards.
    pub documents: u64,
    /// Bytes of the text they were made from.
    pub text_bytes: u64,
    /// The largest id.
    pub largest_id: u32,
    /// Tokens of the longest document.
    pub longest_document: u64,
    /// The shards, in order.
    pub shards: Vec<ShardRecord>,
}

/// One shard of a split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// Its tokens.
    pub tokens: u64,
    /// Its documents.
    pub documents: u64,
    /// The file of its tokens.
    pub token_file: ShardFile,
    /// The file of its documents' ends.
    pub document_file: ShardFile,
}

/// A file of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFile {
    /// Its name in the directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// An open directory of prepared data.
#[derive(Debug, Clone)]
pub struct PreparedData {
    directory: PathBuf,
    manifest: Arc<Manifest>,
    tokenizer: Tokenizer,
    train: TokenStore,
    validation: TokenStore,
}

impl PreparedData {
    /// Opens a directory, checking all that costs nothing: the manifest, the tokenizer's hash, each file's length,
    /// magic, version and width. [`verify`] checks every byte.
    ///
    /// # Errors
    /// Each kind of damage has its own, naming the file.
    pub fn open(directory: &Path) -> Result<Self, DataError> {
        let manifest = read_manifest(directory)?;
        let path = directory.join(TOKENIZER);
        let bytes = fs::read(&path).map_err(|cause| missing_or(cause, &path))?;
        let found = hex(&Sha256::digest(&bytes));
        if found != manifest.tokenizer.sha256 {
            let expected = manifest.tokenizer.sha256.clone();
            return Err(DataError::TokenizerMismatch { path, expected, found });
        }
        let tokenizer = Tokenizer::from_bytes(bytes, &path)?;
        let open = |split: &SplitRecord| TokenStore::open(directory, split, manifest.token_bytes);
        let (train, validation) = (open(&manifest.train)?, open(&manifest.validation)?);
        Ok(Self {
            directory: directory.into(),
            manifest: Arc::new(manifest),
            tokenizer,
            train,
            validation,
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tokenizer that the data was prepared with.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The largest id in the data: what a model's vocabulary must exceed, whatever the tokenizer's size.
    pub fn max_id(&self) -> u32 {
        self.manifest.largest_id
    }

    /// The token that fills windows up.
    pub fn pad(&self) -> u32 {
        self.manifest.tokenizer.pad
    }

    /// The training split.
    pub fn train(&self) -> &TokenStore {
        &self.train
    }

    /// The validation split.
    pub fn validation(&self) -> &TokenStore {
        &self.validation
    }
}

fn missing_or(cause: io::Error, path: &Path) -> DataError {
    match cause.kind() {
        io::ErrorKind::NotFound => DataError::FileMissing { path: path.into() },
        _ => DataError::Io {
            path: path.into(),
            cause,
        },
    }
}

fn read_manifest(directory: &Path) -> Result<Manifest, DataError> {
    let path = directory.join(MANIFEST);
    let refused = |cause: String| DataError::Manifest {
        path: path.clone(),
        cause,
    };
    if !directory.exists() {
        return Err(DataError::Manifest {
            path: directory.into(),
            cause: "no such directory".into(),
        });
    }
    let bytes = fs::read(&path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => DataError::Manifest {
            path: directory.into(),
            cause: format!("it holds no {MANIFEST}"),
        },
        _ => DataError::Io {
            path: path.clone(),
            cause,
        },
    })?;
    // The version decides how the rest is to be read, so it is looked at first.
    #[derive(Deserialize)]
    struct Opening {
        format: String,
        version: u64,
    }
    let opening: Opening = serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))?;
    if opening.format != FORMAT {
        return Err(refused(format!("its format is `{}`, not `{FORMAT}`", opening.format)));
    }
    if opening.version != u64::from(VERSION) {
        return Err(DataError::Version {
            path,
            found: opening.version,
            expected: u64::from(VERSION),
        });
    }
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))?;
    if !matches!(manifest.token_bytes, 2 | 4) {
        return Err(refused(format!("tokens of {} bytes", manifest.token_bytes)));
    }
    if manifest.largest_id as usize >= manifest.tokenizer.vocab_size
        || manifest.tokenizer.pad as usize >= manifest.tokenizer.vocab_size
    {
        return Err(refused("an id is outside the tokenizer's vocabulary".into()));
    }
    for split in [&manifest.train, &manifest.validation] {
        let sum = |count: fn(&ShardRecord) -> u64| {
            split
                .shards
                .iter()
                .try_fold(0_u64, |sum, shard| sum.checked_add(count(shard)))
        };
        if sum(|shard| shard.tokens) != Some(split.tokens) || sum(|shard| shard.documents) != Some(split.documents) {
            return Err(refused("its shards do not add up to its totals".into()));
        }
        if split.largest_id > manifest.largest_id {
            return Err(refused("a split's largest id is above the largest id".into()));
        }
    }
    Ok(manifest)
}

/// The tokens of one split, memory-mapped; clones share them.
#[derive(Clone)]
pub struct TokenStore {
    shared: Arc<Shards>,
}

struct Shards {
    shards: Vec<Shard>,
    tokens: usize,
    documents: usize,
    largest_id: u32,
}

struct Shard {
    tokens: Mapped,
    documents: Mapped,
    first_token: usize,
    first_document: usize,
}

impl fmt::Debug for TokenStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TokenStore")
            .field("tokens", &self.tokens())
            .field("documents", &self.documents())
            .field("shards", &self.shared.shards.len())
            .finish()
    }
}

impl TokenStore {
    fn open(directory: &Path, split: &SplitRecord, token_bytes: u8) -> Result<Self, DataError> {
        let mut shards = Vec::with_capacity(split.shards.len());
        let (mut first_token, mut first_document) = (0, 0);
        for record in &split.shards {
            let width = usize::from(token_bytes);
            let tokens = Mapped::open(directory, &record.token_file, TOKEN_MAGIC, width, record.tokens)?;
            let documents = Mapped::open(directory, &record.document_file, DOCUMENT_MAGIC, 8, record.documents)?;
            let last = documents.len().checked_sub(1).map_or(0, |last| documents.entry(last));
            if last != record.tokens {
                return Err(documents.damaged(format!(
                    "its last document ends at {last}, the shard at {}",
                    record.tokens
                )));
            }
            let next = (first_token + tokens.len(), first_document + documents.len());
            shards.push(Shard {
                tokens,
                documents,
                first_token,
                first_document,
            });
            (first_token, first_document) = next;
        }
        let largest_id = split.largest_id;
        Ok(Self {
            shared: Arc::new(Shards {
                shards,
                tokens: first_token,
                documents: first_document,
                largest_id,
            }),
        })
    }

    /// Tokens in the split.
    pub fn tokens(&self) -> usize {
        self.shared.tokens
    }

    /// Documents in the split.
    pub fn documents(&self) -> usize {
        self.shared.documents
    }

    /// The largest id that the manifest states for the split.
    pub fn max_id(&self) -> u32 {
        self.shared.largest_id
    }

    /// Copies the tokens from `start` on into `ids`, across shards.
    ///
    /// # Errors
    /// When the range is outside the split, or an id is above the manifest's largest.
    pub fn range(&self, start: usize, ids: &mut [u32]) -> Result<(), DataError> {
        let inside = start.checked_add(ids.len()).is_some_and(|end| end <= self.tokens());
        if !inside {
            let (count, tokens) = (ids.len(), self.tokens());
            return Err(DataError::Range(format!(
                "tokens {start} to {start}+{count} of a split of {tokens}"
            )));
        }
        let shards = &self.shared.shards;
        let mut at = shards.partition_point(|shard| shard.first_token + shard.tokens.len() <= start);
        let mut done = 0;
        while done < ids.len() {
            let shard = &shards[at];
            let from = start + done - shard.first_token;
            let count = (ids.len() - done).min(shard.tokens.len() - from);
            let part = &mut ids[done..done + count];
            shard.tokens.read(from, part);
            if let Some(bad) = part.iter().position(|&id| id > self.shared.largest_id) {
                return Err(shard.tokens.damaged(format!(
                    "id {} at token {} is above the manifest's largest, {}",
                    part[bad],
                    from + bad,
                    self.shared.largest_id
                )));
            }
            done += count;
            at += 1;
        }
        Ok(())
    }

    /// Where document `index` lies: its first token and its length.
    ///
    /// # Errors
    /// When there is no such document, or the index of documents is damaged.
    pub fn document_span(&self, index: usize) -> Result<(usize, usize), DataError> {
        if index >= self.documents() {
            let documents = self.documents();
            return Err(DataError::Range(format!("document {index} of a split of {documents}")));
        }
        let shards = &self.shared.shards;
        let at = shards.partition_point(|shard| shard.first_document + shard.documents.len() <= index);
        let shard = &shards[at];
        let within = index - shard.first_document;
        let start = within.checked_sub(1).map_or(0, |before| shard.documents.entry(before));
        let end = shard.documents.entry(within);
        if start > end || end > shard.tokens.len() as u64 {
            return Err(shard
                .documents
                .damaged(format!("document {within} runs from {start} to {end}")));
        }
        Ok((shard.first_token + start as usize, (end - start) as usize))
    }

    /// The tokens of document `index`.
    ///
    /// # Errors
    /// Those of [`Self::document_span`] and [`Self::range`].
    pub fn document(&self, index: usize) -> Result<Vec<u32>, DataError> {
        let (start, length) = self.document_span(index)?;
        let mut ids = vec![0; length];
        self.range(start, &mut ids)?;
        Ok(ids)
    }
}

/// A shard's file: entries of a fixed width after a header.
struct Mapped {
    path: PathBuf,
    map: Mmap,
    width: usize,
}

impl Mapped {
    fn open(
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
        let file = File::open(&path).map_err(|cause| missing_or(cause, &path))?;
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

    fn entries(&self) -> &[u8] {
        &self.map[HEADER_BYTES..]
    }

    fn len(&self) -> usize {
        self.entries().len() / self.width
    }

    fn read(&self, from: usize, ids: &mut [u32]) {
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
    fn entry(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.entries()[at * 8..at * 8 + 8]);
        u64::from_le_bytes(bytes)
    }

    fn damaged(&self, cause: String) -> DataError {
        DataError::Shard {
            path: self.path.clone(),
            cause,
        }
    }
}

/// What [`verify`] read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Files whose hash was recomputed.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Tokens whose id was looked at.
    pub tokens: u64,
}

/// Reads every byte of a directory of prepared data and compares it with the manifest.
///
/// # Errors
/// The first difference, naming the file.
pub fn verify(directory: &Path) -> Result<Verified, DataError> {
    let data = PreparedData::open(directory)?;
    let manifest = data.manifest();
    let mut verified = Verified {
        files: 1,
        bytes: data.tokenizer().bytes().len() as u64,
        tokens: 0,
    };
    let mut largest = 0;
    for (store, record) in [(&data.train, &manifest.train), (&data.validation, &manifest.validation)] {
        let (mut split_largest, mut longest) = (0, 0);
        for (shard, record) in store.shared.shards.iter().zip(&record.shards) {
            for (mapped, file) in [
                (&shard.tokens, &record.token_file),
                (&shard.documents, &record.document_file),
            ] {
                let found = hex(&Sha256::digest(&mapped.map));
                if found != file.sha256 {
                    return Err(mapped.damaged("its bytes are not those that were prepared (sha256)".into()));
                }
                verified.files += 1;
                verified.bytes += file.bytes;
            }
            let mut ids = vec![0; 1 << 16];
            for from in (0..shard.tokens.len()).step_by(ids.len()) {
                let count = ids.len().min(shard.tokens.len() - from);
                shard.tokens.read(from, &mut ids[..count]);
                split_largest = ids[..count].iter().copied().fold(split_largest, u32::max);
            }
            verified.tokens += shard.tokens.len() as u64;
        }
        for document in 0..store.documents() {
            longest = longest.max(store.document_span(document)?.1 as u64);
        }
        if split_largest != record.largest_id || longest != record.longest_document {
            return Err(DataError::Manifest {
                path: directory.join(MANIFEST),
                cause: format!(
                    "largest id {} and longest document {} stated, {split_largest} and {longest} found",
                    record.largest_id, record.longest_document
                ),
            });
        }
        largest = split_largest.max(largest);
    }
    if largest != manifest.largest_id {
        return Err(DataError::Manifest {
            path: directory.join(MANIFEST),
            cause: format!("largest id {} stated, {largest} found", manifest.largest_id),
        });
    }
    Ok(verified)
}

/// A look at prepared data, for reading or as json.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The manifest.
    pub manifest: Manifest,
    /// Documents of the training split by length: the entry `(n, c)` counts c documents of n to 2n − 1 tokens.
    pub lengths: Vec<(u64, u64)>,
    /// The first documents of the training split, decoded.
    pub samples: Vec<String>,
}

/// Tokens of a document that a sample shows.
const SAMPLE_TOKENS: usize = 64;

/// Counts the lengths of the documents and decodes the first `samples` of them.
///
/// # Errors
/// Those of opening and reading the directory.
pub fn inspect(directory: &Path, samples: usize) -> Result<Inspection, DataError> {
    let data = PreparedData::open(directory)?;
    let mut buckets = [0_u64; 64];
    for index in 0..data.train.documents() {
        let (_, length) = data.train.document_span(index)?;
        buckets[length.max(1).ilog2() as usize] += 1;
    }
    let first = buckets.iter().position(|&count| count > 0).unwrap_or(0);
    let last = buckets.iter().rposition(|&count| count > 0).unwrap_or(0);
    let lengths = (first..=last).map(|bucket| (1 << bucket, buckets[bucket])).collect();
    let samples = (0..samples.min(data.train.documents()))
        .map(|index| {
            let (start, length) = data.train.document_span(index)?;
            let mut ids = vec![0; length.min(SAMPLE_TOKENS)];
            data.train.range(start, &mut ids)?;
            data.tokenizer.decode(&ids)
        })
        .collect::<Result<_, _>>()?;
    Ok(Inspection {
        manifest: Manifest::clone(&data.manifest),
        lengths,
        samples,
    })
}

impl fmt::Display for Inspection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let manifest = &self.manifest;
        writeln!(
            formatter,
            "{:12} {:>14} {:>12} {:>8} {:>12}",
            "split", "tokens", "documents", "shards", "bytes/token"
        )?;
        for (name, split) in [("train", &manifest.train), ("validation", &manifest.validation)] {
            writeln!(
                formatter,
                "{name:12} {:>14} {:>12} {:>8} {:>12.3}",
                split.tokens,
                split.documents,
                split.shards.len(),
                split.text_bytes as f64 / split.tokens.max(1) as f64
            )?;
        }
        writeln!(
            formatter,
            "\ntokenizer    {} ids, end of document {}, padding {}, sha256 {:.12}…",
            manifest.tokenizer.vocab_size,
            manifest.tokenizer.end_of_document,
            manifest.tokenizer.pad,
            manifest.tokenizer.sha256
        )?;
        writeln!(
            formatter,
            "data         {} bytes a token, largest id {}, longest document {} tokens, {} bad records and {} empty documents left out",
            manifest.token_bytes,
            manifest.largest_id,
            manifest.longest_document,
            manifest.bad_records,
            manifest.empty_documents
        )?;
        for source in manifest.sources.iter().chain(&manifest.validation_sources) {
            writeln!(
                formatter,
                "source       {} ({} documents, {} bytes, sha256 {:.12}…)",
                source.path, source.documents, source.bytes, source.sha256
            )?;
        }
        writeln!(formatter, "\ntokens in a document (train)")?;
        let most = self.lengths.iter().map(|&(_, count)| count).max().unwrap_or(0).max(1);
        for &(length, count) in &self.lengths {
            let bar = "#".repeat((count * 40).div_ceil(most) as usize);
            writeln!(formatter, "{length:>10} … {:<10} {count:>10} {bar}", length * 2 - 1)?;
        }
        for (index, sample) in self.samples.iter().enumerate() {
            writeln!(formatter, "\nsample {}: {sample:?}", index + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::prepare::{PrepareOptions, Validation, prepare};
    use crate::source::ReadOptions;
    use crate::tokenizer::tests::letters;

    /// Prepared data of the documents given, one letter a token, with `validation` as its other split.
    pub(crate) fn prepared(place: &Path, documents: &[&str], validation: &[&str]) -> PathBuf {
        let write = |name: &str, texts: &[&str]| {
            let lines: String = texts.iter().map(|text| format!("{{\"text\": \"{text}\"}}\n")).collect();
            fs::write(place.join(name), lines).unwrap();
            place.join(name).to_str().unwrap().to_owned()
        };
        let tokenizer = place.join("letters.json");
        fs::write(&tokenizer, letters(false).to_string()).unwrap();
        let out = place.join("prepared");
        prepare(&PrepareOptions {
            sources: vec![write("train.jsonl", documents)],
            tokenizer,
            validation: Validation::Source(write("validation.jsonl", validation)),
            out: out.clone(),
            read: ReadOptions::default(),
            end_of_document: None,
            quiet: true,
        })
        .unwrap();
        out
    }

    /// What opening and verifying say after `damage` was done to a fresh directory.
    fn after(damage: impl Fn(&Path)) -> (Option<DataError>, Option<DataError>) {
        let place = tempfile::tempdir().unwrap();
        let directory = prepared(place.path(), &["abc", "defgh", "z"], &["xy"]);
        damage(&directory);
        (PreparedData::open(&directory).err(), verify(&directory).err())
    }

    fn rewrite(path: &Path, change: impl Fn(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    fn edit_manifest(directory: &Path, change: impl Fn(&mut serde_json::Value)) {
        let path = directory.join(MANIFEST);
        let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        fs::write(path, manifest.to_string()).unwrap();
    }

    #[test]
    fn each_damage_is_its_own_error_and_names_the_file() {
        type Damage = (&'static str, &'static str, fn(&Path));
        let damages: [Damage; 14] = [
            ("train-00000.tokens", "truncated", |d| {
                rewrite(&d.join("train-00000.tokens"), |b| b.truncate(20))
            }),
            ("train-00000.tokens", "truncated", |d| {
                rewrite(&d.join("train-00000.tokens"), Vec::clear)
            }),
            ("train-00000.tokens", "too long", |d| {
                rewrite(&d.join("train-00000.tokens"), |b| b.push(0))
            }),
            ("train-00000.tokens", "not a shard", |d| {
                rewrite(&d.join("train-00000.tokens"), |b| b[0] ^= 1)
            }),
            ("train-00000.tokens", "format version 9", |d| {
                rewrite(&d.join("train-00000.tokens"), |b| b[8] = 9)
            }),
            ("train-00000.tokens", "entries of 4", |d| {
                rewrite(&d.join("train-00000.tokens"), |b| b[12] = 4)
            }),
            ("train-00000.documents", "last document ends", |d| {
                rewrite(&d.join("train-00000.documents"), |b| {
                    *b.iter_mut().nth_back(7).unwrap() += 1
                });
            }),
            ("validation-00000.tokens", "missing", |d| {
                fs::remove_file(d.join("validation-00000.tokens")).unwrap()
            }),
            ("tokenizer.json", "missing", |d| {
                fs::remove_file(d.join(TOKENIZER)).unwrap()
            }),
            ("tokenizer.json", "not the tokenizer", |d| {
                rewrite(&d.join(TOKENIZER), |b| b.push(b' '))
            }),
            ("prepared", "holds no manifest.json", |d| {
                fs::remove_file(d.join(MANIFEST)).unwrap()
            }),
            ("manifest.json", "not prepared data: ", |d| {
                rewrite(&d.join(MANIFEST), |b| b.truncate(99))
            }),
            ("manifest.json", "its format is `other`", |d| {
                edit_manifest(d, |m| m["format"] = "other".into())
            }),
            ("manifest.json", "format version 7", |d| {
                edit_manifest(d, |m| m["version"] = 7.into())
            }),
        ];
        for (file, cause, damage) in damages {
            let (opened, verified) = after(damage);
            let opened = opened.unwrap_or_else(|| panic!("{file}: {cause}: opened")).to_string();
            assert!(
                opened.contains(file) && opened.contains(cause),
                "{file}: {cause}: {opened}"
            );
            assert_eq!(opened.lines().count(), 1);
            assert_eq!(verified.unwrap().to_string(), opened);
        }
    }

    #[test]
    fn what_opening_cannot_see_verifying_or_reading_does() {
        let flip = |d: &Path| rewrite(&d.join("train-00000.tokens"), |bytes| bytes[16] ^= 1);
        let (opened, verified) = after(flip);
        assert!(opened.is_none() && verified.unwrap().to_string().contains("sha256"));
        let (opened, verified) = after(|d| {
            edit_manifest(d, |m| {
                m["largest_id"] = 20.into();
                m["train"]["largest_id"] = 20.into();
                m["validation"]["largest_id"] = 20.into();
            })
        });
        assert!(opened.is_none() && verified.unwrap().to_string().contains("28 and"));

        let place = tempfile::tempdir().unwrap();
        let directory = prepared(place.path(), &["abc", "d"], &["x"]);
        rewrite(&directory.join("train-00000.tokens"), |bytes| bytes[19] = 0x7f);
        let error = PreparedData::open(&directory)
            .unwrap()
            .train()
            .document(0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("train-00000.tokens") && error.contains("at token 1 is above"),
            "{error}"
        );
        let ends = directory.join("train-00000.documents");
        rewrite(&ends, |bytes| bytes[16] = 200);
        let data = PreparedData::open(&directory).unwrap();
        assert!(
            data.train()
                .document_span(0)
                .unwrap_err()
                .to_string()
                .contains("train-00000.documents")
        );
        assert!(data.train().document_span(1).is_err());
    }

    #[test]
    fn no_single_changed_byte_makes_reading_panic() {
        let place = tempfile::tempdir().unwrap();
        let directory = prepared(place.path(), &["abc", "d"], &["x"]);
        for name in ["train-00000.tokens", "train-00000.documents", MANIFEST] {
            let path = directory.join(name);
            let whole = fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 0x11;
                fs::write(&path, bytes).unwrap();
                let Ok(data) = PreparedData::open(&directory) else {
                    continue;
                };
                for index in 0..data.train().documents() {
                    drop(data.train().document(index));
                }
            }
            fs::write(&path, whole).unwrap();
        }
        assert!(verify(&directory).is_ok());
    }

    #[test]
    fn ranges_outside_the_split_are_errors() {
        let place = tempfile::tempdir().unwrap();
        let data = PreparedData::open(&prepared(place.path(), &["abc", "d"], &["x"])).unwrap();
        let train = data.train();
        assert_eq!((train.tokens(), train.documents()), (6, 2));
        assert!(train.range(6, &mut []).is_ok());
        assert!(train.range(5, &mut [0; 2]).is_err());
        assert!(train.range(usize::MAX, &mut [0; 2]).is_err());
        assert!(train.document(2).is_err());
    }

    #[test]
    fn an_inspection_counts_lengths_and_decodes_samples() {
        let place = tempfile::tempdir().unwrap();
        let directory = prepared(place.path(), &["abc", "d", "efghijkl"], &["x"]);
        let inspection = inspect(&directory, 2).unwrap();
        assert_eq!(inspection.lengths, [(2, 1), (4, 1), (8, 1)]);
        assert_eq!(inspection.samples, ["abc</s>", "d</s>"]);
        let shown = inspection.to_string();
        assert!(
            shown.contains("train                    15            3        1        0.800"),
            "{shown}"
        );
        assert!(shown.contains("sample 1: \"abc</s>\""), "{shown}");
    }
}
