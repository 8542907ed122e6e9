//! Tokenizers: any Hugging Face `tokenizer.json`, and what preparing data must know of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokenizers::{ModelWrapper, PaddingParams};

use crate::error::DataError;
use crate::format::is_lfs_pointer;

/// Tokens that end a document in tokenizers in use, in the order in which they are looked for.
const END_OF_DOCUMENT: [&str; 5] = ["</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>"];

/// Tokens that pad in tokenizers in use.
const PAD: [&str; 4] = ["<pad>", "[PAD]", "<|pad|>", "<|padding|>"];

/// A tokenizer, with the tokens that open and end a document.
///
/// A document becomes `opening tokens · its text · closing tokens`: those that the tokenizer's own
/// post-processor puts around a text, and the end-of-document token if that has not put it there.
/// A special token spelled out in a text is text: no document can forge its own end.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
    opening: Vec<u32>,
    closing: Vec<u32>,
    end_of_document: Option<u32>,
}

struct Shared {
    tokenizer: tokenizers::Tokenizer,
    path: PathBuf,
    bytes: Vec<u8>,
    sha256: String,
    vocabulary: usize,
    pad: u32,
    pad_token: Option<&'static str>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, or the one in the directory `path`.
    ///
    /// # Errors
    /// When the file cannot be read or is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self, DataError> {
        let inside = path.join("tokenizer.json");
        let path = match (path.is_dir(), inside.exists()) {
            (true, true) => inside.as_path(),
            (true, false) => {
                return Err(DataError::Tokenizer {
                    path: path.into(),
                    cause: "a directory without a tokenizer.json".into(),
                });
            }
            (false, _) => path,
        };
        let bytes = fs::read(path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => DataError::Tokenizer {
                path: path.into(),
                cause: "no such file".into(),
            },
            _ => DataError::io(path)(cause),
        })?;
        Self::from_bytes(bytes, path)
    }

    /// Parses the bytes of a `tokenizer.json`; `path` names them in errors.
    ///
    /// # Errors
    /// When the bytes are not a tokenizer.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Self, DataError> {
        if is_lfs_pointer(&bytes) {
            return Err(DataError::LfsPointer { path: path.into() });
        }
        let refused = |cause: String| DataError::Tokenizer {
            path: path.into(),
            cause: one_line(&cause),
        };
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| refused(error.to_string()))?;
        let ids = tokenizer.get_vocab(true);
        let vocabulary = ids.values().max().map_or(0, |&largest| largest as usize + 1);
        if vocabulary < 2 {
            return Err(refused("its vocabulary is empty".into()));
        }
        if vocabulary > i32::MAX as usize {
            return Err(refused(format!("its largest id, {}, is not an id", vocabulary - 1)));
        }
        let pad_token = PAD.into_iter().find(|token| tokenizer.token_to_id(token).is_some());
        let pad = pad_token
            .and_then(|token| tokenizer.token_to_id(token))
            .or(tokenizer.get_padding().map(|padding: &PaddingParams| padding.pad_id))
            .unwrap_or(0);
        // Windows cut and pad documents, not the tokenizer.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| refused(error.to_string()))?;
        tokenizer.set_encode_special_tokens(true);
        if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
            && bpe.dropout.is_some()
        {
            // Merges left out at random would give other tokens on each run.
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            tokenizer.with_model(bpe);
        }

        let encode = |special| {
            let encoding = tokenizer
                .encode_fast("a", special)
                .map_err(|error| refused(error.to_string()))?;
            Ok::<_, DataError>(encoding.get_ids().to_vec())
        };
        let (plain, dressed) = (encode(false)?, encode(true)?);
        let at = (0..=dressed.len().saturating_sub(plain.len()))
            .find(|&at| dressed[at..].starts_with(&plain))
            .ok_or_else(|| refused("its post-processor changes the tokens of the text".into()))?;
        let (opening, closing) = (dressed[..at].to_vec(), dressed[at + plain.len()..].to_vec());

        let named = END_OF_DOCUMENT.iter().find_map(|token| tokenizer.token_to_id(token));
        let end_of_document = closing.last().copied().or(named);
        let sha256 = format!("{:x}", Sha256::digest(&bytes));
        let shared = Shared {
            tokenizer,
            path: path.into(),
            bytes,
            sha256,
            vocabulary,
            pad,
            pad_token,
        };
        let mut this = Self {
            shared: Arc::new(shared),
            opening,
            closing,
            end_of_document: None,
        };
        if let Some(id) = end_of_document {
            this.end_documents_with(id);
        }
        Ok(this)
    }

    /// The same tokenizer with another token at the end of each document.
    ///
    /// # Errors
    /// When the vocabulary lacks the token.
    pub fn with_end_of_document(mut self, token: &str) -> Result<Self, DataError> {
        let id = self
            .token_to_id(token)
            .ok_or_else(|| DataError::TokenUnknown { token: token.into() })?;
        self.end_documents_with(id);
        Ok(self)
    }

    fn end_documents_with(&mut self, id: u32) {
        self.end_of_document = Some(id);
        if self.closing.last() != Some(&id) {
            self.closing.push(id);
        }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.shared.bytes
    }

    /// The SHA-256 of the file.
    pub fn sha256(&self) -> &str {
        &self.shared.sha256
    }

    /// Ids that the tokenizer can give: its largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocabulary
    }

    /// The token at the end of a document, if one is known.
    pub fn end_of_document(&self) -> Option<u32> {
        self.end_of_document
    }

    /// How [`Self::end_of_document`] is spelled, where it is a token of its own and not one of ordinary text.
    pub fn end_of_document_spelling(&self) -> Option<String> {
        let added = self.shared.tokenizer.get_added_tokens_decoder();
        added.get(&self.end_of_document?).map(|token| token.content.clone())
    }

    /// The token that fills windows up.
    pub fn pad(&self) -> u32 {
        self.shared.pad
    }

    /// The token that is there for padding, if there is one.
    pub fn pad_token(&self) -> Option<&str> {
        self.shared.pad_token
    }

    /// The id of a token as the tokenizer spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.shared.tokenizer.token_to_id(token)
    }

    /// The tokens that open a document: none for most tokenizers.
    pub fn opening(&self) -> &[u32] {
        &self.opening
    }

    /// The tokens that end a document; the last is [`Self::end_of_document`].
    pub fn closing(&self) -> &[u32] {
        &self.closing
    }

    /// The tokens of a text, without any that open or end a document.
    ///
    /// # Errors
    /// When the tokenizer refuses the text, for instance because it has no unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.shared.tokenizer.encode_fast(text, false);
        encoding
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| self.refused(&error.to_string()))
    }

    /// The text of tokens; special tokens are spelled out. Ids outside the vocabulary give nothing.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses them.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.shared
            .tokenizer
            .decode(ids, false)
            .map_err(|error| self.refused(&error.to_string()))
    }

    /// The text of tokens without special ones.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses them.
    pub fn decode_plain(&self, ids: &[u32]) -> Result<String, DataError> {
        let text = self.shared.tokenizer.decode(ids, true);
        text.map_err(|error| self.refused(&error.to_string()))
    }

    /// How many bytes of text each id stands for, 0 for special tokens and unused ids. There is no answer where the vocabulary is
    /// spelled in none of the ways in use: in bytes (GPT-2's) or with `▁` for a space (SentencePiece's).
    pub fn byte_lengths(&self) -> Option<Vec<u32>> {
        let tokenizer = &self.shared.tokenizer;
        let decoder = serde_json::to_string(tokenizer.get_decoder()?).ok()?;
        let is = |kind: &str| decoder.contains(&format!("\"type\":\"{kind}\""));
        let length: fn(&str) -> usize = if is("ByteLevel") {
            // A character for each byte.
            |token| token.chars().count()
        } else if is("Metaspace") || (is("Replace") && decoder.contains('▁')) {
            |token| match token.strip_prefix("<0x") {
                Some(rest) if rest.len() == 3 && rest.ends_with('>') => 1,
                _ => token.replace('▁', " ").len(),
            }
        } else {
            return None;
        };
        let mut lengths = vec![0; self.vocab_size()];
        for (token, id) in tokenizer.get_vocab(false) {
            lengths[id as usize] = length(&token) as u32;
        }
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            lengths[id as usize] = if token.special { 0 } else { token.content.len() as u32 };
        }
        Some(lengths)
    }

    /// A token as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.shared.tokenizer.id_to_token(id)
    }

    fn refused(&self, cause: &str) -> DataError {
        DataError::Tokenizer {
            path: self.shared.path.clone(),
            cause: one_line(cause),
        }
    }

    /// The error for a tokenizer without an end-of-document token.
    pub(crate) fn end_of_document_unknown(&self) -> DataError {
        DataError::EndOfDocumentUnknown {
            path: self.shared.path.clone(),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("path", &self.shared.path)
            .field("sha256", &self.shared.sha256)
            .field("vocab_size", &self.shared.vocabulary)
            .field("end_of_document", &self.end_of_document)
            .field("pad", &self.shared.pad)
            .finish_non_exhaustive()
    }
}

/// Messages of other libraries may run over several lines, or quote a whole file.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::letters;
    use serde_json::json;

    fn load(json: &serde_json::Value) -> Result<Tokenizer, DataError> {
        Tokenizer::from_bytes(json.to_string().into_bytes(), Path::new("letters.json"))
    }

    #[test]
    fn the_end_of_a_document_is_found_and_put_once() {
        for post_processor in [false, true] {
            let tokenizer = load(&letters(post_processor)).unwrap();
            assert_eq!(tokenizer.end_of_document(), Some(1));
            assert_eq!((tokenizer.opening(), tokenizer.closing()), (&[][..], &[1][..]));
            assert_eq!((tokenizer.pad(), tokenizer.vocab_size()), (0, 29));
            assert_eq!(tokenizer.pad_token(), Some("<pad>"));
            assert_eq!(tokenizer.encode("abz").unwrap(), [3, 4, 28]);
            assert_eq!(tokenizer.decode(&[3, 4, 28, 1]).unwrap(), "abz</s>");
            assert!(
                !tokenizer.encode("</s>").unwrap().contains(&1),
                "a text cannot forge its end"
            );
        }
    }

    #[test]
    fn another_end_can_be_named_and_a_missing_one_is_known() {
        let tokenizer = load(&letters(false)).unwrap();
        assert!(matches!(
            tokenizer.clone().with_end_of_document("<eod>"),
            Err(DataError::TokenUnknown { .. })
        ));
        let mut unnamed = letters(false);
        unnamed["added_tokens"].as_array_mut().unwrap().remove(1);
        unnamed["model"]["vocab"].as_object_mut().unwrap().remove("</s>");
        let unnamed = load(&unnamed).unwrap();
        assert_eq!((unnamed.end_of_document(), unnamed.closing()), (None, &[][..]));
        assert!(unnamed.end_of_document_unknown().hint().unwrap().contains("--eos"));
        let named = unnamed.with_end_of_document("z").unwrap();
        assert_eq!((named.end_of_document(), named.closing()), (Some(28), &[28][..]));
    }

    #[test]
    fn the_files_own_padding_and_truncation_do_not_reach_the_data() {
        let mut json = letters(false);
        json["truncation"] = json!({"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
        json["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 7, "pad_type_id": 0, "pad_token": "e"});
        assert_eq!(load(&json).unwrap().encode("abcd").unwrap(), [3, 4, 5, 6]);
    }

    #[test]
    fn a_directory_stands_for_the_tokenizer_in_it_and_a_pointer_is_named() {
        let place = tempfile::tempdir().unwrap();
        let error = Tokenizer::from_file(place.path()).unwrap_err();
        assert!(error.to_string().ends_with(": a directory without a tokenizer.json"), "{error}");
        let path = place.path().join("tokenizer.json");
        fs::write(&path, letters(false).to_string()).unwrap();
        assert_eq!(
            Tokenizer::from_file(place.path()).unwrap().sha256(),
            Tokenizer::from_file(&path).unwrap().sha256()
        );
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n").unwrap();
        for given in [place.path(), &path] {
            let error = Tokenizer::from_file(given).unwrap_err();
            assert!(error.to_string().ends_with("tokenizer.json: a Git LFS pointer, not the file itself"), "{error}");
            assert!(error.hint().unwrap().contains("git lfs pull"));
        }
    }

    #[test]
    fn what_is_not_a_tokenizer_is_refused_in_one_line() {
        let place = tempfile::tempdir().unwrap();
        let missing = Tokenizer::from_file(&place.path().join("none.json")).unwrap_err();
        assert!(missing.to_string().ends_with("none.json: no such file"), "{missing}");
        for text in [
            "",
            "{}",
            "not json",
            "{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}}",
        ] {
            let error = Tokenizer::from_bytes(text.into(), Path::new("t.json")).unwrap_err();
            assert!(matches!(error, DataError::Tokenizer { .. }), "{error}");
            assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}
