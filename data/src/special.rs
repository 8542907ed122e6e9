//! The tokens that whoever runs a model must know besides its vocabulary: where a text begins, where it ends, and what fills it up.
//!
//! They are decided once, when data is prepared or a model is imported, and kept beside the tokenizer from there on: in the manifest of
//! prepared data, in a run directory, in what is exported. A `tokenizer.json` alone does not tell them.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::DataError;
use crate::lfs::refuse_lfs_pointer;
use crate::tokenizer_config::TOKENIZER_CONFIG;

/// Where older releases of `transformers` name special tokens.
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// The special tokens of a model, as ids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// The token that ends a document that is trained on.
    pub end_of_document: Option<u32>,
    /// Every token at which a generated text ends.
    pub ends: Vec<u32>,
    /// The token that begins a text.
    pub begin: Option<u32>,
    /// The token that is there for padding.
    pub pad: Option<u32>,
    /// The token that stands for what the vocabulary lacks, where a configuration names it.
    pub unknown: Option<u32>,
}

impl SpecialTokens {
    /// Those of a model that is trained further, on documents that end with `end`: a text may end there too.
    pub fn trained_on_documents_with(mut self, end: u32) -> Self {
        self.end_of_document = Some(end);
        if !self.ends.contains(&end) {
            self.ends.push(end);
        }
        self
    }

    /// Those that a model of `vocab` ids has, and the name and id of each that it lacks.
    pub fn within(mut self, vocab: usize) -> (Self, Vec<(&'static str, u32)>) {
        let mut lacking = Vec::new();
        let has = |id: &u32| (*id as usize) < vocab;
        for (name, token) in [
            ("begin", &mut self.begin),
            ("padding", &mut self.pad),
            ("unknown", &mut self.unknown),
        ] {
            lacking.extend(token.filter(|id| !has(id)).map(|id| (name, id)));
            *token = token.filter(has);
        }
        lacking.extend(self.ends.iter().filter(|id| !has(id)).map(|id| ("end", *id)));
        self.ends.retain(has);
        self.end_of_document = self.end_of_document.filter(has);
        (self, lacking)
    }
}

/// How the `tokenizer_config.json` beside a tokenizer spells its special tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialNames {
    /// The token that ends a text.
    pub end: Option<String>,
    /// The token that begins a text.
    pub begin: Option<String>,
    /// The token that pads.
    pub pad: Option<String>,
    /// The token that stands for what the vocabulary lacks.
    pub unknown: Option<String>,
}

impl SpecialNames {
    /// Those beside this `tokenizer.json`, which `special_tokens_map.json` may name where the configuration does not; none without
    /// either.
    ///
    /// # Errors
    /// When one of these files cannot be read or is not JSON.
    pub fn beside(tokenizer: &Path) -> Result<Self, DataError> {
        let config = read(&tokenizer.with_file_name(TOKENIZER_CONFIG))?;
        let map = read(&tokenizer.with_file_name(SPECIAL_TOKENS_MAP))?;
        // A token is a string, or an object that holds it as its content.
        let name = |key: &str| {
            let text = |token: &Value| Some(token.as_str().or(token["content"].as_str())?.to_string());
            text(&config[key]).or_else(|| text(&map[key]))
        };
        Ok(Self {
            end: name("eos_token"),
            begin: name("bos_token"),
            pad: name("pad_token"),
            unknown: name("unk_token"),
        })
    }
}

/// A file of JSON; null if there is no such file.
fn read(path: &Path) -> Result<Value, DataError> {
    refuse_lfs_pointer(path)?;
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(cause) => return Err(DataError::io(path)(cause)),
    };
    serde_json::from_slice(&bytes).map_err(|error| DataError::BesideTokenizer {
        path: path.to_path_buf(),
        cause: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_strings_and_as_objects() {
        let place = tempfile::tempdir().unwrap();
        let tokenizer = place.path().join("tokenizer.json");
        assert_eq!(SpecialNames::beside(&tokenizer).unwrap(), SpecialNames::default());
        let path = place.path().join(TOKENIZER_CONFIG);
        fs::write(
            &path,
            r#"{"eos_token": {"content": "</s>", "lstrip": false}, "bos_token": "<s>", "pad_token": null}"#,
        )
        .unwrap();
        let names = SpecialNames::beside(&tokenizer).unwrap();
        assert_eq!(
            (names.end.as_deref(), names.begin.as_deref(), names.pad, names.unknown),
            (Some("</s>"), Some("<s>"), None, None)
        );
        fs::write(
            place.path().join(SPECIAL_TOKENS_MAP),
            r#"{"eos_token": "other", "pad_token": {"content": "<pad>"}}"#,
        )
        .unwrap();
        let names = SpecialNames::beside(&tokenizer).unwrap();
        assert_eq!(
            (names.end.as_deref(), names.pad.as_deref()),
            (Some("</s>"), Some("<pad>")),
            "the configuration goes first"
        );
        fs::write(&path, "{").unwrap();
        let error = SpecialNames::beside(&tokenizer).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json: EOF"), "{error}");
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_named() {
        let special = SpecialTokens {
            end_of_document: Some(9),
            ends: vec![1, 9],
            begin: Some(8),
            pad: Some(7),
            unknown: Some(0),
        };
        let (kept, lacking) = special.within(8);
        assert_eq!(lacking, [("begin", 8), ("end", 9)]);
        assert_eq!((kept.ends, kept.begin, kept.pad), (vec![1], None, Some(7)));
        assert_eq!((kept.end_of_document, kept.unknown), (None, Some(0)));
    }

    #[test]
    fn an_end_of_other_documents_is_added_once() {
        let special = SpecialTokens {
            end_of_document: Some(1),
            ends: vec![1],
            ..SpecialTokens::default()
        };
        let trained = special.trained_on_documents_with(2).trained_on_documents_with(2);
        assert_eq!((trained.end_of_document, trained.ends), (Some(2), vec![1, 2]));
    }
}
