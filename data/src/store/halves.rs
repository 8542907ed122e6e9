//! The only document of a directory, cut in two: its beginning to train on and its end to validate on.

use std::fs;
use std::path::Path;

use super::manifest::SplitRecord;
use super::tokens::TokenStore;
use super::writer::SplitWriter;
use crate::error::DataError;

/// Tokens that are copied at once.
const CHUNK: usize = 1 << 20;

/// Moves the tokens of `whole`, a split of one document in `directory`, to the two splits: the last `fraction` of them,
/// at least one, to `validation`, and what is before to `train`. The number of tokens in `train` is returned.
///
/// The text does not end where it is cut, so neither part gains a token there. The bytes of text are shared out in
/// proportion to the tokens.
pub(crate) fn cut_in_two(
    directory: &Path,
    mut whole: SplitRecord,
    token_bytes: u8,
    fraction: f64,
    [train, validation]: [&mut SplitWriter; 2],
) -> Result<u64, DataError> {
    // The names that the shards have are those of the parts.
    for file in whole
        .shards
        .iter_mut()
        .flat_map(|shard| [&mut shard.token_file, &mut shard.document_file])
    {
        let name = format!("whole-{}", file.name);
        let (from, to) = (directory.join(&file.name), directory.join(&name));
        fs::rename(&from, &to).map_err(DataError::io(&from))?;
        file.name = name;
    }
    let held_out = ((whole.tokens as f64 * fraction).round() as u64).clamp(1, whole.tokens.saturating_sub(1).max(1));
    let kept = whole.tokens - held_out;
    let train_bytes = (whole.text_bytes as f64 * kept as f64 / whole.tokens as f64).round() as u64;
    let tokens = TokenStore::open(directory, &whole, token_bytes)?;
    let parts = [
        (train, 0, kept, train_bytes),
        (validation, kept, whole.tokens, whole.text_bytes - train_bytes),
    ];
    let mut ids = Vec::new();
    for (split, start, end, text_bytes) in parts {
        let (mut at, end) = (start as usize, end as usize);
        while at < end {
            ids.resize(CHUNK.min(end - at), 0);
            tokens.range(at, &mut ids)?;
            split.push(&ids)?;
            at += ids.len();
        }
        split.text_bytes(text_bytes);
        if start < end as u64 {
            split.end_document()?;
        }
    }
    drop(tokens);
    for file in whole
        .shards
        .iter()
        .flat_map(|shard| [&shard.token_file, &shard.document_file])
    {
        let path = directory.join(&file.name);
        fs::remove_file(&path).map_err(DataError::io(&path))?;
    }
    Ok(kept)
}
