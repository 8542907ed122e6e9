//! Tokenizers: any Hugging Face `tokenizer.json`, and what preparing data must know of it.

mod bytes;
mod decode;
mod special;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use aho_corasick::AhoCorasick;
use sha2::{Digest, Sha256};
use tokenizers::{Decoder, ModelWrapper, PaddingParams};

pub use self::bytes::ByteLengths;
use self::special::Reserved;
pub use self::special::{SpelledOut, SpelledTokens};
use crate::error::DataError;
use crate::format::is_lfs_pointer;
use crate::special::{SpecialNames, SpecialTokens};
use crate::tokenizer_config::TokenizerConfig;

/// Tokens that end a document in tokenizers in use, in the order in which they are looked for.
const END_OF_DOCUMENT: [&str; 5] = ["</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eos|>"];

/// Tokens that pad in tokenizers in use.
const PAD: [&str; 4] = ["<pad>", "[PAD]", "<|pad|>", "<|padding|>"];

/// A tokenizer, with the tokens that open and end a document.
///
/// A document becomes `opening tokens · its text · closing tokens`: those that the tokenizer's own
/// post-processor puts around a text, the last of which is the end of a document. That is the token that was named for it, else the
/// post-processor's, else that of the `tokenizer_config.json` beside the tokenizer, else the first of those in use that it has.
/// A special token spelled out in a text is text, so that no document can forge its own end, unless [`SpelledOut::AsTokens`] is asked for.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
    config: Option<TokenizerConfig>,
    opening: Vec<u32>,
    closing: Vec<u32>,
    special: SpecialTokens,
}

struct Shared {
    tokenizer: tokenizers::Tokenizer,
    /// The same, made when it is first needed, for texts whose special tokens are tokens.
    takes_special: OnceLock<tokenizers::Tokenizer>,
    /// Finds special tokens in texts; made when it is first needed.
    special: OnceLock<Option<AhoCorasick>>,
    /// What a text may not become part of.
    reserved: Reserved,
    /// Whether tokens of bytes are put together to characters.
    has_byte_fallback: bool,
    path: PathBuf,
    bytes: Vec<u8>,
    sha256: String,
    vocabulary: usize,
    pad: u32,
    /// Whether the post-processor puts tokens after a text.
    ends_texts: bool,
    /// The special tokens that the file alone tells.
    own_special: SpecialTokens,
}

impl Tokenizer {
    /// Reads the `tokenizer.json` that [`Self::file_of`] finds, with the names of special tokens and the other fields of the
    /// `tokenizer_config.json` beside it, and the chat template that lies there, if one does.
    ///
    /// # Errors
    /// When a file cannot be read, the first is not a tokenizer, or what should be a chat template is none.
    pub fn from_file(path: &Path) -> Result<Self, DataError> {
        let path = &Self::file_of(path)?;
        let bytes = fs::read(path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => DataError::Tokenizer {
                path: path.into(),
                cause: "no such file".into(),
            },
            _ => DataError::io(path)(cause),
        })?;
        let tokenizer = Self::from_bytes(bytes, path)?.with_names(&SpecialNames::beside(path)?);
        Ok(tokenizer.with_config(TokenizerConfig::beside(path)?))
    }

    /// The `tokenizer.json` that a path stands for: the one in the directory, or else the path itself.
    ///
    /// # Errors
    /// When a directory has none.
    pub fn file_of(path: &Path) -> Result<PathBuf, DataError> {
        let inside = path.join("tokenizer.json");
        match (path.is_dir(), inside.exists()) {
            (true, true) => Ok(inside),
            (true, false) => Err(DataError::Tokenizer {
                path: path.into(),
                cause: "a directory without a tokenizer.json".into(),
            }),
            (false, _) => Ok(path.into()),
        }
    }

    /// Parses the bytes of a `tokenizer.json`; `path` names them in errors, and nothing is read there.
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
        let pad_token = PAD.into_iter().find_map(|token| tokenizer.token_to_id(token));
        let pad = pad_token
            .or(tokenizer.get_padding().map(|padding: &PaddingParams| padding.pad_id))
            .unwrap_or(0);
        // Windows cut and pad documents, not the tokenizer.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| refused(error.to_string()))?;
        tokenizer.set_encode_special_tokens(true);
        special::hide_from_unigram(&mut tokenizer, &bytes).map_err(&refused)?;
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
        let own_special = SpecialTokens {
            end_of_document,
            ends: end_of_document.into_iter().collect(),
            begin: opening.first().copied(),
            pad: pad_token,
            unknown: None,
        };
        let sha256 = format!("{:x}", Sha256::digest(&bytes));
        let shared = Shared {
            has_byte_fallback: tokenizer.get_decoder().is_some_and(decode::has_byte_fallback),
            takes_special: OnceLock::new(),
            special: OnceLock::new(),
            reserved: Reserved::of(&tokenizer),
            tokenizer,
            path: path.into(),
            bytes,
            sha256,
            vocabulary,
            pad,
            ends_texts: !closing.is_empty(),
            own_special: own_special.clone(),
        };
        let this = Self {
            shared: Arc::new(shared),
            config: None,
            opening,
            closing,
            special: SpecialTokens::default(),
        };
        Ok(this.with_special_tokens(own_special))
    }

    /// The same tokenizer with the special tokens that a configuration names, where its own post-processor does not decide. A token that
    /// begins texts counts only if documents begin with it: the model would never have seen it.
    fn with_names(self, names: &SpecialNames) -> Self {
        let id = |name: &Option<String>| name.as_deref().and_then(|name| self.token_to_id(name));
        let mut special = self.special.clone();
        if let Some(end) = id(&names.end).filter(|_| !self.shared.ends_texts) {
            (special.end_of_document, special.ends) = (Some(end), vec![end]);
        }
        let begins = |begin: &u32| special.end_of_document == Some(*begin);
        special.begin = special.begin.or(id(&names.begin).filter(begins));
        special.pad = id(&names.pad).or(special.pad);
        special.unknown = id(&names.unknown);
        self.with_special_tokens(special)
    }

    /// The same tokenizer with another token at the end of each document.
    ///
    /// # Errors
    /// When the vocabulary lacks the token.
    pub fn with_end_of_document(mut self, token: &str) -> Result<Self, DataError> {
        let id = self
            .token_to_id(token)
            .ok_or_else(|| DataError::TokenUnknown { token: token.into() })?;
        self.special = SpecialTokens {
            end_of_document: Some(id),
            ends: vec![id],
            begin: self.opening.first().copied(),
            ..self.special
        };
        let special = self.special.clone();
        Ok(self.with_special_tokens(special))
    }

    /// The same tokenizer with something else beside it, or nothing.
    pub fn with_config(mut self, config: Option<TokenizerConfig>) -> Self {
        self.config = config;
        self
    }

    /// The same tokenizer with the special tokens that something else has decided. The end of a document takes the place of the one that
    /// stood there.
    pub fn with_special_tokens(mut self, special: SpecialTokens) -> Self {
        if let Some(end) = special.end_of_document {
            self.closing.pop();
            self.closing.push(end);
        }
        self.special = special;
        self
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.shared.bytes
    }

    /// What lay beside the file, such as a chat template.
    pub fn config(&self) -> Option<&TokenizerConfig> {
        self.config.as_ref()
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
        self.special.end_of_document
    }

    /// The special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// The special tokens, if they are others than the file alone tells.
    pub(crate) fn decided_special_tokens(&self) -> Option<&SpecialTokens> {
        Some(&self.special).filter(|special| **special != self.shared.own_special)
    }

    /// How [`Self::end_of_document`] is spelled, where it is a token of its own and not one of ordinary text.
    pub fn end_of_document_spelling(&self) -> Option<String> {
        let added = self.shared.tokenizer.get_added_tokens_decoder();
        added
            .get(&self.special.end_of_document?)
            .map(|token| token.content.clone())
    }

    /// The token that fills windows up.
    pub fn pad(&self) -> u32 {
        self.special.pad.unwrap_or(self.shared.pad)
    }

    /// The tokens before the first of a text: those that open a document. Without any, an empty text is the token that begins a text, or
    /// else the one that ends a document, because another document follows it.
    pub fn start_of_text(&self, is_empty: bool) -> Vec<u32> {
        let mut start = self.opening.clone();
        if start.is_empty() && is_empty {
            start.extend(self.special.begin.or(self.special.end_of_document));
        }
        start
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

    /// The tokens of a text, without any that open or end a document. Special tokens that it spells out are text.
    ///
    /// # Errors
    /// When the tokenizer refuses the text, for instance because it has no unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.encode_with(text, SpelledOut::AsText)
    }

    /// As [`Self::encode`], with the special tokens that the text spells out as text or as tokens.
    ///
    /// # Errors
    /// When the tokenizer refuses the text, for instance because it has no unknown token.
    pub fn encode_with(&self, text: &str, special: SpelledOut) -> Result<Vec<u32>, DataError> {
        let tokenizer = match special {
            SpelledOut::AsText => &self.shared.tokenizer,
            SpelledOut::AsTokens => self.shared.takes_special.get_or_init(|| {
                let mut tokenizer = self.shared.tokenizer.clone();
                tokenizer.set_encode_special_tokens(false);
                tokenizer
            }),
        };
        let encoding = tokenizer.encode_fast(text, false);
        let encoding = encoding.map_err(|error| self.refused(&error.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        if special == SpelledOut::AsText {
            self.shared.reserved.replace(&mut ids).map_err(|id| {
                let token = self.id_to_token(id).unwrap_or_default();
                self.refused(&format!(
                    "its model takes the word `{token}` for the special token, and has none for what is unknown"
                ))
            })?;
        }
        Ok(ids)
    }

    /// The special tokens that a text spells out.
    pub fn spelled_special_tokens(&self, text: &str) -> SpelledTokens {
        let finder = self
            .shared
            .special
            .get_or_init(|| special::finder(&self.shared.tokenizer));
        finder
            .as_ref()
            .map_or_else(SpelledTokens::default, |finder| SpelledTokens::of(text, finder))
    }

    /// The text of tokens; special tokens are spelled out. Ids outside the vocabulary give nothing, and a character whose bytes are not
    /// all there becomes U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses them.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.text_of(ids.iter().filter_map(|id| self.id_to_token(*id)).collect())
    }

    /// The text of tokens without special ones.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses them.
    pub fn decode_plain(&self, ids: &[u32]) -> Result<String, DataError> {
        self.text_of(ids.iter().filter_map(|id| self.text_token(*id)).collect())
    }

    /// Whether an id is part of a text: not a special token, and in the vocabulary.
    pub fn is_text(&self, id: u32) -> bool {
        self.text_token(id).is_some()
    }

    fn text_token(&self, id: u32) -> Option<String> {
        let special = self.shared.tokenizer.get_added_vocabulary();
        self.id_to_token(id).filter(|token| !special.is_special_token(token))
    }

    /// The text of tokens as the vocabulary spells them.
    fn text_of(&self, tokens: Vec<String>) -> Result<String, DataError> {
        if tokens.is_empty() {
            return Ok(String::new());
        }
        let text = match self.shared.tokenizer.get_decoder() {
            Some(decoder) if self.shared.has_byte_fallback => decode::decode_with_byte_fallback(decoder, tokens),
            Some(decoder) => decoder.decode(tokens),
            None => Ok(tokens.join(" ")),
        };
        text.map_err(|error| self.refused(&error.to_string()))
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
            .field("special", &self.special)
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
            assert_eq!(tokenizer.special_tokens().pad, Some(0));
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

    /// Whatever has put an end there: the post-processor, or a name in use.
    #[test]
    fn a_named_end_takes_the_place_of_the_tokenizers_own() {
        for post_processor in [false, true] {
            let named = load(&letters(post_processor))
                .unwrap()
                .with_end_of_document("z")
                .unwrap();
            assert_eq!((named.end_of_document(), named.closing()), (Some(28), &[28][..]));
            assert_eq!(named.special_tokens().ends, [28]);
            assert!(named.decided_special_tokens().is_some());
        }
    }

    #[test]
    fn the_configuration_beside_the_file_decides_what_the_post_processor_does_not() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("tokenizer.json");
        let names = json!({"eos_token": "y", "bos_token": "y", "pad_token": {"content": "z"}, "unk_token": "<unk>"});
        fs::write(place.path().join("tokenizer_config.json"), names.to_string()).unwrap();
        for (post_processor, end, begin) in [(false, 27, Some(27)), (true, 1, None)] {
            fs::write(&path, letters(post_processor).to_string()).unwrap();
            let tokenizer = Tokenizer::from_file(&path).unwrap();
            let expected = SpecialTokens {
                end_of_document: Some(end),
                ends: vec![end],
                begin,
                pad: Some(28),
                unknown: Some(2),
            };
            assert_eq!(tokenizer.special_tokens(), &expected);
            assert_eq!((tokenizer.closing(), tokenizer.pad()), (&[end][..], 28));
            assert_eq!(tokenizer.start_of_text(true), [end]);
            assert!(tokenizer.start_of_text(false).is_empty());
        }
    }

    /// Models of whole words have special tokens among their words.
    #[test]
    fn no_word_forges_the_end_of_a_document() {
        let words = |kind: &str, unknown: bool| {
            let special = |id: u32, content: &str| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                    "special": true})
            };
            let mut model =
                json!({"type": kind, "vocab": {"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, "unk_token": "<unk>"});
            match kind {
                "BPE" => {
                    (model["merges"], model["ignore_merges"]) = (json!([]), json!(true));
                    model["unk_token"] = if unknown { json!("<unk>") } else { json!(null) };
                }
                "WordPiece" => {
                    (model["continuing_subword_prefix"], model["max_input_chars_per_word"]) = (json!("##"), json!(100));
                }
                _ => {}
            }
            load(&json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
                "decoder": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model,
                "added_tokens": [special(0, "<unk>"), special(1, "</s>")]}))
            .unwrap()
        };
        for kind in ["WordLevel", "WordPiece", "BPE"] {
            let tokenizer = words(kind, true);
            assert_eq!(tokenizer.encode("a </s> b").unwrap(), [2, 0, 3], "{kind}");
            let taken = tokenizer.encode_with("a </s> b", SpelledOut::AsTokens).unwrap();
            assert_eq!(taken, [2, 1, 3], "{kind}");
        }
        let error = words("BPE", false).encode("a </s> b").unwrap_err().to_string();
        assert!(error.contains("takes the word `</s>` for the special token"), "{error}");
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
        assert!(
            error.to_string().ends_with(": a directory without a tokenizer.json"),
            "{error}"
        );
        let path = place.path().join("tokenizer.json");
        fs::write(&path, letters(false).to_string()).unwrap();
        assert_eq!(
            Tokenizer::from_file(place.path()).unwrap().sha256(),
            Tokenizer::from_file(&path).unwrap().sha256()
        );
        fs::write(
            &path,
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        )
        .unwrap();
        for given in [place.path(), &path] {
            let error = Tokenizer::from_file(given).unwrap_err();
            assert!(
                error
                    .to_string()
                    .ends_with("tokenizer.json: a Git LFS pointer, not the file itself"),
                "{error}"
            );
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
