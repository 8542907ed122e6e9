//! Reading every byte of prepared data, to compare it with the manifest.

use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::manifest::MANIFEST;
use super::prepared::PreparedData;
use crate::error::DataError;
use crate::tokenizer_config::TokenizerConfig;

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
    // Opening has compared the tokenizer and its configuration.
    let config = data.tokenizer().config().map(TokenizerConfig::file);
    let mut verified = Verified {
        files: 1 + usize::from(config.is_some()),
        bytes: (data.tokenizer().bytes().len() + config.map_or(0, |file| file.len())) as u64,
        tokens: 0,
    };
    let mut largest = 0;
    for (store, record) in [
        (data.train(), &manifest.train),
        (data.validation(), &manifest.validation),
    ] {
        let (mut split_largest, mut longest) = (0, 0);
        for (shard, record) in store.shards().iter().zip(&record.shards) {
            for (mapped, file) in [
                (&shard.tokens, &record.token_file),
                (&shard.documents, &record.document_file),
            ] {
                let found = format!("{:x}", Sha256::digest(mapped.bytes()));
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
