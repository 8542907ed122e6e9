//! How many bytes of text a token stands for, so that losses can be given in bits per byte.

use tokenizers::{DecoderWrapper, ModelWrapper};

use super::Tokenizer;
use super::decode::fallback_byte;

/// The bytes of text that each token of a vocabulary stands for.
#[derive(Clone, Debug)]
pub struct ByteLengths {
    /// By id; 0 for special tokens and unused ids.
    lengths: Vec<u32>,
    /// Bytes of the space that the tokenizer puts before a document's text.
    prefix: u32,
    /// The tokens that may stand right before a document's text.
    before_text: [Option<u32>; 2],
}

impl ByteLengths {
    /// Bytes of the token `id` after the token `previous`. The space that SentencePiece's tokenizers put before a document's text is
    /// part of the first token and not of the text, so it does not count.
    pub fn after(&self, previous: u32, id: u32) -> u64 {
        let length = self.lengths.get(id as usize).copied().unwrap_or(0);
        let is_first = self.before_text.contains(&Some(previous));
        u64::from(length.saturating_sub(if is_first { self.prefix } else { 0 }))
    }
}

impl Tokenizer {
    /// How many bytes of text each id stands for. There is no answer where that cannot be told from the tokens: where the vocabulary is
    /// spelled neither in bytes (GPT-2's) nor with `▁` for a space (SentencePiece's), and where characters that it lacks are lost.
    pub fn byte_lengths(&self) -> Option<ByteLengths> {
        let length = self.length_of_token()?;
        let tokenizer = &self.shared.tokenizer;
        let mut lengths = vec![0; self.vocab_size()];
        for (token, id) in tokenizer.get_vocab(false) {
            lengths[id as usize] = length(&token) as u32;
        }
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            lengths[id as usize] = if token.special { 0 } else { token.content.len() as u32 };
        }
        let probe: u32 = self.encode("a").ok()?.iter().map(|id| lengths[*id as usize]).sum();
        Some(ByteLengths {
            lengths,
            prefix: probe.saturating_sub(1),
            before_text: [self.opening().last().copied(), self.end_of_document()],
        })
    }

    /// The number of bytes that a token stands for, from its spelling.
    fn length_of_token(&self) -> Option<fn(&str) -> usize> {
        let decoder = self.shared.tokenizer.get_decoder()?;
        if has(decoder, &|decoder| matches!(decoder, DecoderWrapper::ByteLevel(_))) {
            // A character for each byte.
            return Some(|token| token.chars().count());
        }
        let spells_spaces = |decoder: &DecoderWrapper| match decoder {
            DecoderWrapper::Metaspace(_) => true,
            DecoderWrapper::Replace(_) => serde_json::to_string(decoder).is_ok_and(|json| json.contains('▁')),
            _ => false,
        };
        (has(decoder, &spells_spaces) && self.loses_nothing()).then_some(|token| match fallback_byte(token) {
            Some(_) => 1,
            None => token.replace('▁', " ").len(),
        })
    }

    /// Whether every character that is not in the vocabulary becomes tokens of its bytes.
    fn loses_nothing(&self) -> bool {
        let falls_back = match self.shared.tokenizer.get_model() {
            ModelWrapper::BPE(model) => model.byte_fallback,
            ModelWrapper::Unigram(model) => model.byte_fallback(),
            ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => false,
        };
        falls_back && (0..=u8::MAX).all(|byte| self.token_to_id(&format!("<0x{byte:02X}>")).is_some())
    }
}

/// Whether a decoder, or one of its steps, is of a kind.
fn has(decoder: &DecoderWrapper, is: &dyn Fn(&DecoderWrapper) -> bool) -> bool {
    match decoder {
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(|step| has(step, is)),
        decoder => is(decoder),
    }
}
