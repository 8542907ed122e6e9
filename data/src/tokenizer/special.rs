//! Special tokens that a text spells out, such as `<|im_start|>` in a conversation: counted, and taken as tokens on request.

use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};
use serde::{Deserialize, Serialize};
use tokenizers::ModelWrapper;
use tokenizers::models::unigram::Unigram;

use super::decode::fallback_byte;

/// What a special token is that a text spells out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpelledOut {
    /// Text like any other, so that no document can forge its own end.
    #[default]
    AsText,
    /// The token itself.
    AsTokens,
}

impl SpelledOut {
    /// `AsTokens` if they are to be taken as tokens.
    pub fn taken(as_tokens: bool) -> Self {
        if as_tokens { Self::AsTokens } else { Self::AsText }
    }
}

/// Special tokens that texts spell out, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpelledTokens {
    /// How often.
    pub count: u64,
    /// The first of them.
    pub first: Option<String>,
}

impl SpelledTokens {
    /// Those that a text spells out, found by [`finder`].
    pub(super) fn of(text: &str, finder: &AhoCorasick) -> Self {
        let mut found = finder.find_iter(text);
        let first = found.next();
        Self {
            count: first.map_or(0, |_| 1 + found.count() as u64),
            first: first.map(|first| text[first.range()].to_string()),
        }
    }

    /// Adds those of a later text.
    pub fn add(&mut self, later: SpelledTokens) {
        self.count += later.count;
        self.first = self.first.take().or(later.first);
    }
}

/// Takes the spellings of special tokens out of a Unigram model's reach. It cuts a text into whatever pieces are the most probable, and would
/// find special tokens among them wherever a text spells one out, although these are to be found by the tokenizer alone.
pub(super) fn hide_from_unigram(tokenizer: &mut tokenizers::Tokenizer, bytes: &[u8]) -> Result<(), String> {
    let ModelWrapper::Unigram(model) = tokenizer.get_model() else {
        return Ok(());
    };
    // The library's model does not tell which of its pieces is for the unknown.
    #[derive(Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        unk_id: Option<usize>,
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let added = tokenizer.get_added_tokens_decoder();
    let is_special = |id: usize| added.get(&(id as u32)).is_some_and(|token| token.special);
    let pieces = model
        .iter()
        .enumerate()
        .map(|(id, (piece, score))| match is_special(id) {
            // U+10FFFF is no character, so no text should hold one.
            true => (format!("\u{10ffff}{id}\u{10ffff}"), *score),
            false => (piece.clone(), *score),
        });
    let hidden = Unigram::from(pieces.collect(), file.model.unk_id, model.byte_fallback());
    tokenizer.with_model(hidden.map_err(|error| error.to_string())?);
    Ok(())
}

/// The special tokens that no text may become as text. Models of whole words have a special token as a word of their own where white space
/// stands around it.
pub(super) struct Reserved {
    ids: HashSet<u32>,
    /// The token for what the vocabulary lacks, which any text may become.
    unknown: Option<u32>,
}

impl Reserved {
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        let unknown = match tokenizer.get_model() {
            ModelWrapper::BPE(model) => model.unk_token.as_deref(),
            ModelWrapper::WordLevel(model) => Some(model.unk_token.as_str()),
            ModelWrapper::WordPiece(model) => Some(model.unk_token.as_str()),
            // Its special tokens are out of its reach.
            ModelWrapper::Unigram(_) => {
                return Self {
                    ids: HashSet::new(),
                    unknown: None,
                };
            }
        };
        let unknown = unknown.and_then(|token| tokenizer.token_to_id(token));
        let added = tokenizer.get_added_tokens_decoder();
        let special = added
            .iter()
            .filter(|(_, token)| token.special && fallback_byte(&token.content).is_none());
        let ids = special.map(|(id, _)| *id).filter(|id| Some(*id) != unknown);
        Self {
            ids: ids.collect(),
            unknown,
        }
    }

    /// Puts the unknown token in their place; the first of them where there is none.
    pub(super) fn replace(&self, ids: &mut [u32]) -> Result<(), u32> {
        for id in ids.iter_mut().filter(|id| self.ids.contains(id)) {
            *id = self.unknown.ok_or(*id)?;
        }
        Ok(())
    }
}

/// Finds the special tokens of a vocabulary in texts.
pub(super) fn finder(tokenizer: &tokenizers::Tokenizer) -> Option<AhoCorasick> {
    let added = tokenizer.get_added_tokens_decoder();
    let special = added
        .values()
        .filter(|token| token.special && !token.content.is_empty());
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(special.map(|token| &token.content))
        .ok()
}
