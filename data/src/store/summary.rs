//! A look at prepared data, for reading or as json.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::manifest::Manifest;
use super::prepared::PreparedData;
use crate::error::DataError;

/// A look at prepared data, for reading or as json.
#[derive(Debug, Clone, Serialize)]
pub struct DataSummary {
    /// The manifest.
    pub manifest: Manifest,
    /// Documents of the training split by length: the entry `(n, c)` counts c documents of n to 2n − 1 tokens.
    pub lengths: Vec<(u64, u64)>,
    /// The first documents of the training split, decoded.
    pub samples: Vec<String>,
}

/// Tokens of a document that a sample shows.
const SAMPLE_TOKENS: usize = 64;

/// Counts the lengths of the documents and decodes the first `samples` of them.
///
/// # Errors
/// Those of opening and reading the directory.
pub fn summarise(directory: &Path, samples: usize) -> Result<DataSummary, DataError> {
    let data = PreparedData::open(directory)?;
    let mut buckets = [0_u64; 64];
    for index in 0..data.train().documents() {
        let (_, length) = data.train().document_span(index)?;
        buckets[length.max(1).ilog2() as usize] += 1;
    }
    let first = buckets.iter().position(|&count| count > 0).unwrap_or(0);
    let last = buckets.iter().rposition(|&count| count > 0).unwrap_or(0);
    let lengths = (first..=last).map(|bucket| (1 << bucket, buckets[bucket])).collect();
    let samples = (0..samples.min(data.train().documents()))
        .map(|index| {
            let (start, length) = data.train().document_span(index)?;
            let mut ids = vec![0; length.min(SAMPLE_TOKENS)];
            data.train().range(start, &mut ids)?;
            data.tokenizer().decode(&ids)
        })
        .collect::<Result<_, _>>()?;
    Ok(DataSummary {
        manifest: data.manifest().clone(),
        lengths,
        samples,
    })
}

impl fmt::Display for DataSummary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let manifest = &self.manifest;
        writeln!(
            formatter,
            "{:12} {:>14} {:>12} {:>8} {:>12}",
            "split", "tokens", "documents", "shards", "bytes/token"
        )?;
        for (name, split) in [("train", &manifest.train), ("validation", &manifest.validation)] {
            writeln!(
                formatter,
                "{name:12} {:>14} {:>12} {:>8} {:>12.3}",
                split.tokens,
                split.documents,
                split.shards.len(),
                split.text_bytes as f64 / split.tokens.max(1) as f64
            )?;
        }
        writeln!(
            formatter,
            "\ntokenizer    {} ids, end of document {}, padding {}, sha256 {:.12}…",
            manifest.tokenizer.vocab_size,
            manifest.tokenizer.end_of_document,
            manifest.tokenizer.pad,
            manifest.tokenizer.sha256
        )?;
        writeln!(
            formatter,
            "data         {} bytes a token, largest id {}, longest document {} tokens, {} bad records and {} empty documents left out",
            manifest.token_bytes,
            manifest.largest_id,
            manifest.longest_document,
            manifest.bad_records,
            manifest.empty_documents
        )?;
        for source in manifest.sources.iter().chain(&manifest.validation_sources) {
            writeln!(
                formatter,
                "source       {} ({} documents, {} bytes, sha256 {:.12}…)",
                source.path, source.documents, source.bytes, source.sha256
            )?;
            for left in &source.left_out {
                writeln!(formatter, "left out     {left}")?;
            }
        }
        if let Some(separator) = &manifest.separator {
            writeln!(formatter, "separator    {separator:?} between the documents of text files")?;
        }
        if let Some(cut) = manifest.cut_at {
            writeln!(formatter, "cut          the only document, after {cut} tokens: validation is its end")?;
        }
        writeln!(formatter, "\ntokens in a document (train)")?;
        let most = self.lengths.iter().map(|&(_, count)| count).max().unwrap_or(0).max(1);
        for &(length, count) in &self.lengths {
            let bar = "#".repeat((count * 40).div_ceil(most) as usize);
            writeln!(formatter, "{length:>10} … {:<10} {count:>10} {bar}", length * 2 - 1)?;
        }
        for (index, sample) in self.samples.iter().enumerate() {
            writeln!(formatter, "\nsample {}: {sample:?}", index + 1)?;
        }
        Ok(())
    }
}
