//! From tokens to text, for every family of tokenizers: byte-level, byte fallback, SentencePiece and WordPiece.
//!
//! All but one are the `tokenizers` library's own decoders. The exception is byte fallback, where a character that the vocabulary lacks is
//! one token for each of its bytes. The library gives up a whole run of such tokens if a single character in it is incomplete, so that the
//! characters before it would vanish from a text while it grows. Here the incomplete character alone becomes U+FFFD, as it does in
//! byte-level tokenizers.

use tokenizers::{Decoder, DecoderWrapper};

/// The byte that a token of a byte-fallback vocabulary stands for: 228 for `<0xE4>`.
pub(super) fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Whether one of a decoder's steps makes characters of the tokens of bytes.
pub(super) fn has_byte_fallback(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteFallback(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(has_byte_fallback),
        _ => false,
    }
}

/// The text of tokens as the vocabulary spells them, by a decoder that has byte fallback.
pub(super) fn decode_with_byte_fallback(decoder: &DecoderWrapper, tokens: Vec<String>) -> tokenizers::Result<String> {
    let mut mended = Vec::with_capacity(tokens.len());
    let mut run = Vec::new();
    for token in tokens {
        match fallback_byte(&token) {
            Some(byte) => run.push(byte),
            None => {
                mended.extend(characters(&run));
                run.clear();
                mended.push(token);
            }
        }
    }
    mended.extend(characters(&run));
    decoder.decode(mended)
}

/// A run of bytes as tokens: those of whole characters as they were, and U+FFFD for each incomplete character.
fn characters(run: &[u8]) -> impl Iterator<Item = String> {
    run.utf8_chunks().flat_map(|chunk| {
        let whole = chunk.valid().bytes().map(|byte| format!("<0x{byte:02X}>"));
        let incomplete = (!chunk.invalid().is_empty()).then(|| char::REPLACEMENT_CHARACTER.to_string());
        whole.chain(incomplete)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_bytes_are_told_from_others() {
        assert_eq!(fallback_byte("<0xE4>"), Some(0xe4));
        assert_eq!(fallback_byte("<0x0a>"), Some(10));
        for other in ["<0x+1>", "<0x1>", "<0x123>", "<0xé>", "<0xZZ>", "<0x>", "0x41", "a"] {
            assert_eq!(fallback_byte(other), None, "{other}");
        }
    }
}
