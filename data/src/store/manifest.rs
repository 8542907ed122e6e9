//! The manifest of prepared data: what the directory holds, and the checks that need nothing but it.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::lfs::refuse_lfs_pointer;
use crate::source::SourceRecord;
use crate::special::SpecialTokens;
use crate::tokenizer::Tokenizer;

pub(crate) const FORMAT: &str = "gpas-tokens";
pub(crate) const VERSION: u32 = 1;
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";

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
    /// Whether special tokens that the texts spell out became the tokens they are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub special_tokens: bool,
    /// The text at which text files were cut into documents, where any was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Where there was one document and it was cut in two: the tokens of the part to train on, its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_at: Option<u64>,
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
    /// The special tokens, where they are others than the tokenizer's file alone tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub special_tokens: Option<SpecialTokens>,
    /// The SHA-256 of the `tokenizer_config.json` beside it, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_sha256: Option<String>,
}

impl TokenizerRecord {
    /// The tokenizer with the special tokens that the data was prepared with. Records that only have the end of a document say that the
    /// other tokens are the tokenizer's own.
    pub(super) fn restore(&self, tokenizer: Tokenizer) -> Tokenizer {
        let special = match &self.special_tokens {
            Some(special) => special.clone(),
            None if tokenizer.end_of_document() == Some(self.end_of_document) => return tokenizer,
            None => SpecialTokens {
                end_of_document: Some(self.end_of_document),
                ends: vec![self.end_of_document],
                ..tokenizer.special_tokens().clone()
            },
        };
        tokenizer.with_special_tokens(special)
    }

    /// Every id that it names.
    fn ids(&self) -> impl Iterator<Item = u32> {
        let special = self.special_tokens.clone().unwrap_or_default();
        let named = [special.end_of_document, special.begin, special.pad, special.unknown];
        let fixed = [self.end_of_document, self.pad];
        fixed.into_iter().chain(special.ends).chain(named.into_iter().flatten())
    }
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

/// Reads the manifest of a directory, its version first.
pub(super) fn read_manifest(directory: &Path) -> Result<Manifest, DataError> {
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
    refuse_lfs_pointer(&path)?;
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
    let is_outside = |id: u32| id as usize >= manifest.tokenizer.vocab_size;
    if is_outside(manifest.largest_id) || manifest.tokenizer.ids().any(is_outside) {
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
