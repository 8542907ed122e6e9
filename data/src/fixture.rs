//! Small data for tests: a tokenizer of letters, and documents prepared with it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::prepare::{PrepareOptions, ValidationSplit, prepare};
use crate::source::ReadOptions;
use crate::store::{PreparedData, TokenStore};
use crate::tokenizer::SpelledOut;
use crate::windows::{WindowMode, Windows};

/// A tokenizer of single letters, with or without a post-processor that ends texts as T5's does.
pub(crate) fn letters(post_processor: bool) -> serde_json::Value {
    let mut vocabulary: Vec<(String, u32)> = vec![("<pad>".into(), 0), ("</s>".into(), 1), ("<unk>".into(), 2)];
    vocabulary.extend(('a'..='z').map(String::from).zip(3..));
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<pad>"), special(1, "</s>"), special(2, "<unk>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "post_processor": if post_processor { template } else { json!(null) },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary.into_iter().map(|(token, id)| (token, json!(id))).collect::<serde_json::Map<_, _>>(), "unk_token": "<unk>"}
    })
}

/// Prepared data of the documents given, one letter a token, with `validation` as its other split.
pub(crate) fn prepared(place: &Path, documents: &[&str], validation: &[&str]) -> PathBuf {
    let write = |name: &str, texts: &[&str]| {
        let lines: String = texts.iter().map(|text| format!("{{\"text\": \"{text}\"}}\n")).collect();
        fs::write(place.join(name), lines).unwrap();
        place.join(name)
    };
    let tokenizer = place.join("letters.json");
    fs::write(&tokenizer, letters(false).to_string()).unwrap();
    let out = place.join("prepared");
    prepare(&PrepareOptions {
        sources: vec![write("train.jsonl", documents)],
        tokenizer,
        validation: ValidationSplit::Source(write("validation.jsonl", validation)),
        out: out.clone(),
        read: ReadOptions::default(),
        end_of_document: None,
        special_tokens: SpelledOut::default(),
        quiet: true,
    })
    .unwrap();
    out
}

/// The training split of the documents given.
pub(crate) fn store(documents: &[&str]) -> TokenStore {
    let place = tempfile::tempdir().unwrap();
    PreparedData::open(&prepared(place.path(), documents, &["x"]))
        .unwrap()
        .train()
        .clone()
}

/// Windows of the documents given; the padding token is 0.
pub(crate) fn windows(documents: &[&str], mode: WindowMode, seq_len: usize) -> Windows {
    Windows::new(store(documents), mode, seq_len, 0).unwrap()
}
