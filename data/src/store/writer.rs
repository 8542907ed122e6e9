//! Writing the shards of one split.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::manifest::{ShardFile, ShardRecord, SplitRecord};
use super::shard::{DOCUMENT_MAGIC, HEADER_BYTES, TOKEN_MAGIC, header};
use crate::error::DataError;

/// Writes the shards of one split.
pub(crate) struct SplitWriter {
    directory: PathBuf,
    name: &'static str,
    token_bytes: u8,
    shard_bytes: u64,
    open: Option<OpenShard>,
    document_tokens: u64,
    record: SplitRecord,
}

struct OpenShard {
    tokens: HashedFile,
    documents: HashedFile,
    token_count: u64,
    document_count: u64,
}

impl SplitWriter {
    pub(crate) fn new(directory: &Path, name: &'static str, token_bytes: u8, shard_bytes: u64) -> Self {
        Self {
            directory: directory.into(),
            name,
            token_bytes,
            shard_bytes,
            open: None,
            document_tokens: 0,
            record: SplitRecord::default(),
        }
    }

    /// Documents written so far.
    pub(crate) fn documents(&self) -> u64 {
        self.record.documents
    }

    pub(crate) fn text_bytes(&mut self, bytes: u64) {
        self.record.text_bytes += bytes;
    }

    pub(crate) fn push(&mut self, tokens: &[u32]) -> Result<(), DataError> {
        if self.open.is_none() {
            let create = |extension: &str, magic, width| {
                let file = format!("{}-{:05}.{extension}", self.name, self.record.shards.len());
                HashedFile::create(&self.directory, file, header(magic, width))
            };
            self.open = Some(OpenShard {
                tokens: create("tokens", TOKEN_MAGIC, u32::from(self.token_bytes))?,
                documents: create("documents", DOCUMENT_MAGIC, 8)?,
                token_count: 0,
                document_count: 0,
            });
        }
        let Some(shard) = &mut self.open else { return Ok(()) };
        let width = usize::from(self.token_bytes);
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|id| id.to_le_bytes().into_iter().take(width))
            .collect();
        shard.tokens.write(&bytes)?;
        shard.token_count += tokens.len() as u64;
        self.document_tokens += tokens.len() as u64;
        self.record.largest_id = tokens.iter().copied().fold(self.record.largest_id, u32::max);
        Ok(())
    }

    pub(crate) fn end_document(&mut self) -> Result<(), DataError> {
        let Some(shard) = &mut self.open else { return Ok(()) };
        shard.documents.write(&shard.token_count.to_le_bytes())?;
        shard.document_count += 1;
        self.record.documents += 1;
        self.record.tokens += self.document_tokens;
        self.record.longest_document = self.record.longest_document.max(self.document_tokens);
        self.document_tokens = 0;
        if shard.token_count * u64::from(self.token_bytes) >= self.shard_bytes {
            self.close()?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), DataError> {
        if let Some(shard) = self.open.take() {
            self.record.shards.push(ShardRecord {
                tokens: shard.token_count,
                documents: shard.document_count,
                token_file: shard.tokens.finish()?,
                document_file: shard.documents.finish()?,
            });
        }
        Ok(())
    }

    pub(crate) fn finish(&mut self) -> Result<SplitRecord, DataError> {
        self.close()?;
        Ok(std::mem::take(&mut self.record))
    }
}

/// A file that is hashed while it is written.
struct HashedFile {
    path: PathBuf,
    name: String,
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl HashedFile {
    fn create(directory: &Path, name: String, header: [u8; HEADER_BYTES]) -> Result<Self, DataError> {
        let path = directory.join(&name);
        let file = File::create_new(&path).map_err(DataError::io(&path))?;
        let file = BufWriter::with_capacity(1 << 18, file);
        let mut this = Self {
            path,
            name,
            file,
            hash: Sha256::new(),
            bytes: 0,
        };
        this.write(&header)?;
        Ok(this)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(DataError::io(&self.path))
    }

    fn finish(self) -> Result<ShardFile, DataError> {
        let flushed = self.file.into_inner().map_err(io::IntoInnerError::into_error);
        flushed
            .and_then(|file| file.sync_all())
            .map_err(DataError::io(&self.path))?;
        Ok(ShardFile {
            name: self.name,
            bytes: self.bytes,
            sha256: format!("{:x}", self.hash.finalize()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_closed_at_the_ends_of_documents_and_read_as_one() {
        let place = tempfile::tempdir().unwrap();
        let mut writer = SplitWriter::new(place.path(), "train", 4, 40);
        for document in [vec![70_000; 9], vec![1; 3], vec![2; 30], vec![3; 1]] {
            writer.push(&document).unwrap();
            writer.end_document().unwrap();
        }
        let record = writer.finish().unwrap();
        let counts: Vec<_> = record
            .shards
            .iter()
            .map(|shard| (shard.tokens, shard.documents))
            .collect();
        assert_eq!(counts, [(12, 2), (30, 1), (1, 1)]);
        assert_eq!(
            (record.largest_id, record.longest_document, record.tokens),
            (70_000, 30, 43)
        );
        assert_eq!(record.shards[1].token_file.bytes, 16 + 30 * 4);
        assert!(place.path().join("train-00002.documents").is_file());
    }
}
