//! The tokens of a split, across its shards.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::manifest::SplitRecord;
use super::shard::{DOCUMENT_MAGIC, Mapped, TOKEN_MAGIC};
use crate::error::DataError;

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

/// One shard and what stands before it in the split.
pub(super) struct Shard {
    pub(super) tokens: Mapped,
    pub(super) documents: Mapped,
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
    pub(super) fn open(directory: &Path, split: &SplitRecord, token_bytes: u8) -> Result<Self, DataError> {
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

    pub(super) fn shards(&self) -> &[Shard] {
        &self.shared.shards
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
