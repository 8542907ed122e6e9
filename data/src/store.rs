//! Prepared data on disk: the manifest, memory-mapped token shards, and the checks that tell a damaged directory.
//!
//! A directory holds `manifest.json`, `tokenizer.json` with `tokenizer_config.json` if it has one, and for each shard of
//! each split `NAME.tokens`, the ids in little-endian `u16` or `u32` one after the other, and `NAME.documents`, for each document the position (little-endian
//! `u64`, in tokens of the shard) at which it ends. Both open with 16 bytes: eight of magic, the format version and the
//! width of an entry.

mod halves;
mod manifest;
mod prepared;
mod shard;
mod summary;
mod tokens;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub(crate) use self::halves::cut_in_two;
pub(crate) use self::manifest::{FORMAT, MANIFEST, TOKENIZER, VERSION};
pub use self::manifest::{Manifest, ShardFile, ShardRecord, SplitRecord, TokenizerRecord};
pub use self::prepared::PreparedData;
pub use self::summary::{DataSummary, summarise};
pub use self::tokens::TokenStore;
pub use self::verify::{Verified, verify};
pub(crate) use self::writer::SplitWriter;
