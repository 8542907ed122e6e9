//! A look at prepared data, for reading or as json.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::manifest::Manifest;
use super::prepared::PreparedData;
use crate::error::DataError;
use crate::tokenizer::Tokenizer;

/// A look at prepared data, for reading or as json.
#[derive(Debug, Clone, Serialize)]
pub struct DataSummary {
    /// The manifest.
    pub manifest: Manifest,
    /// Documents of the training split by length: the entry `(n, c)` counts c documents of n to 2n − 1 tokens.
    pub lengths: Vec<(u64, u64)>,
    /// The first documents of the training split, decoded.
    pub samples: Vec<String>,
    /// The ids of each sample whose text alone would mislead. A special token looks the same as a text that spells it out, and an
    /// incomplete character has no text of its own.
    pub sample_ids: Vec<Option<Vec<u32>>>,
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
    let mut summary = DataSummary {
        manifest: data.manifest().clone(),
        lengths,
        samples: Vec::new(),
        sample_ids: Vec::new(),
    };
    for index in 0..samples.min(data.train().documents()) {
        let (start, length) = data.train().document_span(index)?;
        let mut ids = vec![0; length.min(SAMPLE_TOKENS)];
        data.train().range(start, &mut ids)?;
        summary.samples.push(data.tokenizer().decode(&ids)?);
        let misleads = misleads(data.tokenizer(), &ids)?;
        summary.sample_ids.push(misleads.then_some(ids));
    }
    Ok(summary)
}

/// Whether the text of a document's first tokens hides which tokens they are.
fn misleads(tokenizer: &Tokenizer, ids: &[u32]) -> Result<bool, DataError> {
    let text = tokenizer.decode_plain(ids)?;
    let inside = ids.strip_prefix(tokenizer.opening()).unwrap_or(ids);
    let is_end = |id: u32| tokenizer.closing().contains(&id) || tokenizer.end_of_document() == Some(id);
    let inside = match inside.iter().position(|id| is_end(*id)) {
        Some(end) if inside[end..].iter().all(|id| is_end(*id)) => &inside[..end],
        _ => inside,
    };
    Ok(text.contains(char::REPLACEMENT_CHARACTER)
        || tokenizer.spelled_special_tokens(&text).count > 0
        || inside.iter().any(|id| !tokenizer.is_text(*id)))
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
        if manifest.special_tokens {
            writeln!(
                formatter,
                "             special tokens that the texts spell out are tokens"
            )?;
        }
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
            writeln!(
                formatter,
                "separator    {separator:?} between the documents of text files"
            )?;
        }
        if let Some(cut) = manifest.cut_at {
            writeln!(
                formatter,
                "cut          the only document, after {cut} tokens: validation is its end"
            )?;
        }
        writeln!(formatter, "\ntokens in a document (train)")?;
        let most = self.lengths.iter().map(|&(_, count)| count).max().unwrap_or(0).max(1);
        for &(length, count) in &self.lengths {
            let bar = "#".repeat((count * 40).div_ceil(most) as usize);
            writeln!(formatter, "{length:>10} … {:<10} {count:>10} {bar}", length * 2 - 1)?;
        }
        for (index, (sample, ids)) in self.samples.iter().zip(&self.sample_ids).enumerate() {
            writeln!(formatter, "\nsample {}: {sample:?}", index + 1)?;
            if let Some(ids) = ids {
                writeln!(formatter, "  its ids: {ids:?}")?;
            }
        }
        Ok(())
    }
}
