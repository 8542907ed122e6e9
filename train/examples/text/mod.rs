//! A little text, prepared for training.

use std::error::Error;
use std::fs;
use std::path::Path;

use gpas_data::bpe::train_bpe;
use gpas_data::prepare::{PrepareOptions, ValidationSplit, prepare};
use gpas_data::source::{Documents, ReadOptions};
use gpas_data::{PreparedData, SpelledOut};

/// Writes sentences into `place`, makes a tokenizer of them, and prepares them with it, an eighth of them for validation.
pub fn prepared(place: &Path) -> Result<PreparedData, Box<dyn Error>> {
    let (who, what) = (
        ["a cat", "the dog", "our fox", "one owl"],
        ["runs", "sleeps", "eats", "sings"],
    );
    let text: String = (0..512)
        .map(|line| {
            format!(
                "{{\"text\": \"{} {} {} times\"}}\n",
                who[line % 4],
                what[line / 4 % 4],
                line / 16
            )
        })
        .collect();
    let source = place.join("sentences.jsonl");
    fs::write(&source, text)?;
    let tokenizer = place.join("tokenizer.json");
    let documents = Documents::open(std::slice::from_ref(&source), ReadOptions::default())?;
    train_bpe(documents, 300, true)?.save(&tokenizer)?;
    let out = place.join("prepared");
    prepare(&PrepareOptions {
        sources: vec![source],
        tokenizer,
        validation: ValidationSplit::Fraction(0.125),
        out: out.clone(),
        read: ReadOptions::default(),
        end_of_document: None,
        special_tokens: SpelledOut::AsText,
        quiet: true,
    })?;
    Ok(PreparedData::open(&out)?)
}
