//! Preparing: documents become fixed-width token shards, streamed and in parallel, with the same bytes whatever the threads.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::aside::AsideDirectory;
use crate::error::DataError;
use crate::progress::progress_bar;
use crate::source::{Document, Documents, ReadOptions, Separator, Skipped, Source, SourceRecord};
use crate::store::{FORMAT, MANIFEST, Manifest, SplitWriter, TOKENIZER, TokenizerRecord, VERSION, cut_in_two};
use crate::tokenizer::{SpelledOut, SpelledTokens, Tokenizer};
use crate::tokenizer_config::{TOKENIZER_CONFIG, TokenizerConfig};

/// Text that is tokenized at once.
const BATCH_BYTES: usize = 4 << 20;

/// A shard is closed at the first end of a document after this many bytes.
const SHARD_BYTES: u64 = 256 << 20;

/// Where validation documents come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ValidationSplit {
    /// This fraction of the documents, chosen by a hash of each document's text: whatever the order of the
    /// documents and whatever is added to them, a document stays on its side. Where there is only one document, this
    /// fraction of its tokens, at its end.
    Fraction(f64),
    /// A source of their own. Its files are not trained on, even where a training source holds them too.
    Source(PathBuf),
}

impl ValidationSplit {
    /// What a text means: a fraction, if it is a number, or else a source.
    ///
    /// # Errors
    /// When the number is not between 0 and 1.
    pub fn of(given: &OsStr) -> Result<Self, DataError> {
        match given.to_str().map(str::parse::<f64>) {
            Some(Ok(fraction)) if fraction > 0.0 && fraction < 1.0 => Ok(Self::Fraction(fraction)),
            Some(Ok(_)) => Err(DataError::ValidationFraction {
                given: given.to_string_lossy().into_owned(),
            }),
            Some(Err(_)) | None => Ok(Self::Source(given.into())),
        }
    }
}

impl FromStr for ValidationSplit {
    type Err = DataError;

    fn from_str(given: &str) -> Result<Self, DataError> {
        Self::of(OsStr::new(given))
    }
}

/// What to prepare, and where to.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Files, directories and globs of training text.
    pub sources: Vec<PathBuf>,
    /// The `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Where validation documents come from.
    pub validation: ValidationSplit,
    /// The directory to make.
    pub out: PathBuf,
    /// How records are read.
    pub read: ReadOptions,
    /// The token that ends a document, where the tokenizer's own is not wanted.
    pub end_of_document: Option<String>,
    /// What special tokens are that the texts spell out.
    pub special_tokens: SpelledOut,
    /// Whether to leave out the progress bar.
    pub quiet: bool,
}

impl PrepareOptions {
    /// Preparing `sources` into the new directory `out`, with text in the field `text`, the tokenizer's own end of a document and
    /// without a progress bar.
    pub fn new(
        sources: impl IntoIterator<Item = impl Into<PathBuf>>,
        tokenizer: impl Into<PathBuf>,
        validation: ValidationSplit,
        out: impl Into<PathBuf>,
    ) -> Self {
        Self {
            sources: sources.into_iter().map(Into::into).collect(),
            tokenizer: tokenizer.into(),
            validation,
            out: out.into(),
            read: ReadOptions::default(),
            end_of_document: None,
            special_tokens: SpelledOut::default(),
            quiet: true,
        }
    }
}

/// What was prepared.
#[derive(Debug, Clone)]
pub struct PrepareReport {
    /// The directory's manifest.
    pub manifest: Manifest,
    /// The records that were not used, of all sources together.
    pub skipped: Skipped,
    /// The special tokens that the texts spell out, where they were taken as text.
    pub spelled: SpelledTokens,
}

/// Tokenizes sources into a directory that [`crate::store::PreparedData`] opens.
///
/// # Errors
/// On a source, a tokenizer or an output directory that cannot be used; then nothing is left behind.
pub fn prepare(options: &PrepareOptions) -> Result<PrepareReport, DataError> {
    // The cheapest mistakes first: nothing is tokenized for an output that cannot be written.
    if options.out.symlink_metadata().is_ok() {
        return Err(DataError::OutputExists {
            path: options.out.clone(),
        });
    }
    let mut tokenizer = Tokenizer::from_file(&options.tokenizer)?;
    if let Some(token) = &options.end_of_document {
        tokenizer = tokenizer.with_end_of_document(token)?;
    }
    let mut read = options.read.clone();
    read.separator = read.separator.or_token(tokenizer.end_of_document_spelling());
    let mut sources = Source::find(&options.sources, &read)?;
    let validation = match &options.validation {
        ValidationSplit::Fraction(fraction) => ValidationDocuments::Fraction(*fraction),
        ValidationSplit::Source(given) => {
            let held_out = Source::find(std::slice::from_ref(given), &read)?;
            for source in &mut sources {
                source.leave_out(&held_out)?;
            }
            ValidationDocuments::Sources(held_out)
        }
    };
    prepare_sources(
        sources,
        validation,
        &tokenizer,
        &options.out,
        &read,
        options.special_tokens,
        options.quiet,
    )
}

/// Where validation documents come from, found.
pub(crate) enum ValidationDocuments {
    Fraction(f64),
    Sources(Vec<Source>),
}

pub(crate) fn prepare_sources(
    sources: Vec<Source>,
    validation: ValidationDocuments,
    tokenizer: &Tokenizer,
    out: &Path,
    read: &ReadOptions,
    special: SpelledOut,
    quiet: bool,
) -> Result<PrepareReport, DataError> {
    let end = tokenizer
        .end_of_document()
        .ok_or_else(|| tokenizer.end_of_document_unknown())?;
    let aside = AsideDirectory::beside(out).map_err(DataError::output(out))?;
    let token_bytes = if tokenizer.vocab_size() <= 1 << 16 { 2 } else { 4 };
    let mut preparing = Preparing {
        tokenizer,
        train: SplitWriter::new(aside.path(), "train", token_bytes, SHARD_BYTES),
        validation: SplitWriter::new(aside.path(), "validation", token_bytes, SHARD_BYTES),
        empty: 0,
        special,
        spelled: SpelledTokens::default(),
        quiet,
    };
    let mut skipped = Skipped::default();
    let side = match &validation {
        ValidationDocuments::Fraction(fraction) => Side::Hashed(*fraction),
        ValidationDocuments::Sources(_) => Side::Train,
    };
    let sources = preparing.run(Documents::new(sources, read.clone()), side, &mut skipped)?;
    let mut cut_at = None;
    let validation_sources = match validation {
        ValidationDocuments::Fraction(fraction) => {
            cut_at = preparing.cut_only_document(aside.path(), token_bytes, fraction)?;
            Vec::new()
        }
        ValidationDocuments::Sources(sources) => {
            preparing.run(Documents::new(sources, read.clone()), Side::Validation, &mut skipped)?
        }
    };
    let (train, validation) = (preparing.train.finish()?, preparing.validation.finish()?);
    let documents = train.documents + validation.documents;
    for (split, record) in [("train", &train), ("validation", &validation)] {
        if record.documents == 0 {
            return Err(DataError::EmptySplit { split, documents });
        }
    }
    let tokenizer_path = aside.path().join(TOKENIZER);
    fs::write(&tokenizer_path, tokenizer.bytes()).map_err(DataError::io(&tokenizer_path))?;
    let config = tokenizer.config().map(TokenizerConfig::file);
    if let Some(bytes) = &config {
        let path = aside.path().join(TOKENIZER_CONFIG);
        fs::write(&path, bytes).map_err(DataError::io(&path))?;
    }
    let was_cut = sources
        .iter()
        .chain(&validation_sources)
        .any(|source| source.separators > 0);
    let separator = match &read.separator {
        Separator::Text(text) if was_cut => Some(text.clone()),
        Separator::Text(_) | Separator::EndOfDocument | Separator::Nowhere => None,
    };
    let manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        created_by: concat!("gpas-data ", env!("CARGO_PKG_VERSION")).into(),
        token_bytes,
        largest_id: train.largest_id.max(validation.largest_id),
        longest_document: train.longest_document.max(validation.longest_document),
        tokenizer: TokenizerRecord {
            sha256: tokenizer.sha256().into(),
            vocab_size: tokenizer.vocab_size(),
            end_of_document: end,
            pad: tokenizer.pad(),
            special_tokens: tokenizer.decided_special_tokens().cloned(),
            config_sha256: config.map(|bytes| format!("{:x}", Sha256::digest(bytes))),
        },
        train,
        validation,
        sources,
        validation_sources,
        bad_records: skipped.bad,
        empty_documents: preparing.empty,
        special_tokens: special == SpelledOut::AsTokens,
        separator,
        cut_at,
    };
    let manifest_path = aside.path().join(MANIFEST);
    let mut json = serde_json::to_vec_pretty(&manifest).map_err(|error| DataError::Manifest {
        path: manifest_path.clone(),
        cause: error.to_string(),
    })?;
    json.push(b'\n');
    fs::write(&manifest_path, json).map_err(DataError::io(&manifest_path))?;
    aside.publish().map_err(DataError::output(out))?;
    Ok(PrepareReport {
        manifest,
        skipped,
        spelled: preparing.spelled,
    })
}

/// The split that documents of a stream belong to.
#[derive(Clone, Copy)]
enum Side {
    Train,
    Validation,
    Hashed(f64),
}

struct Preparing<'a> {
    tokenizer: &'a Tokenizer,
    train: SplitWriter,
    validation: SplitWriter,
    empty: u64,
    special: SpelledOut,
    spelled: SpelledTokens,
    quiet: bool,
}

impl Preparing<'_> {
    fn run(
        &mut self,
        mut documents: Documents,
        side: Side,
        skipped: &mut Skipped,
    ) -> Result<Vec<SourceRecord>, DataError> {
        let bar = progress_bar(documents.bytes_total(), "tokenizing", self.quiet);
        // A text whose special tokens are tokens may bring those that open and close it.
        let may_bring = self.special == SpelledOut::AsTokens;
        // The split and the tokens so far of the document whose pieces are being written.
        let (mut to_validation, mut length) = (false, 0);
        loop {
            let batch = documents.next_batch(BATCH_BYTES)?;
            if batch.is_empty() {
                break;
            }
            let encoded = batch
                .par_iter()
                .map(|document| {
                    let is_validation = match side {
                        Side::Train => false,
                        Side::Validation => true,
                        // Only the first piece of a document is asked.
                        Side::Hashed(fraction) => document.opens && belongs_to_validation(&document.text, fraction),
                    };
                    let (tokens, spelled) = self.encode(document)?;
                    Ok((tokens, spelled, is_validation))
                })
                .collect::<Result<Vec<_>, DataError>>()?;
            for (document, (tokens, spelled, is_validation)) in batch.iter().zip(encoded) {
                self.spelled.add(spelled);
                if document.opens {
                    (to_validation, length) = (is_validation, 0);
                }
                length += tokens.len();
                let split = if to_validation {
                    &mut self.validation
                } else {
                    &mut self.train
                };
                if length > 0 {
                    let opening = self.tokenizer.opening();
                    if length == tokens.len() && !(may_bring && tokens.starts_with(opening)) {
                        split.push(opening)?;
                    }
                    split.push(&tokens)?;
                    split.text_bytes(document.text.len() as u64);
                }
                if document.closes {
                    if length > 0 {
                        let closing = self.tokenizer.closing();
                        if !(may_bring && tokens.ends_with(closing)) {
                            split.push(closing)?;
                        }
                        split.end_document()?;
                    } else {
                        self.empty += 1;
                    }
                }
            }
            bar.set_position(documents.bytes_read());
        }
        bar.finish_and_clear();
        let more = documents.skipped();
        skipped.bad += more.bad;
        skipped.first.extend(more.first.iter().cloned());
        Ok(documents.sources().to_vec())
    }

    /// Where only one document was written, cuts it in two: the tokens of its first part, which is trained on.
    fn cut_only_document(
        &mut self,
        directory: &Path,
        token_bytes: u8,
        fraction: f64,
    ) -> Result<Option<u64>, DataError> {
        let whole = match (self.train.documents(), self.validation.documents()) {
            (1, 0) => self.train.finish()?,
            (0, 1) => self.validation.finish()?,
            _ => return Ok(None),
        };
        let splits = [&mut self.train, &mut self.validation];
        cut_in_two(directory, whole, token_bytes, fraction, splits).map(Some)
    }

    /// The tokens of one piece, none for a document of white space, which teaches nothing; and the special tokens that it spells out,
    /// where these are text.
    fn encode(&self, document: &Document) -> Result<(Vec<u32>, SpelledTokens), DataError> {
        if document.opens && document.closes && document.text.trim().is_empty() {
            return Ok(Default::default());
        }
        let tokens = self.tokenizer.encode_with(&document.text, self.special)?;
        let spelled = match self.special {
            SpelledOut::AsText => self.tokenizer.spelled_special_tokens(&document.text),
            SpelledOut::AsTokens => SpelledTokens::default(),
        };
        Ok((tokens, spelled))
    }
}

/// Whether a document belongs to a validation split of this size: the first 64 bits of a hash keyed by a name of
/// its own, read as a number between 0 and 1.
fn belongs_to_validation(text: &str, fraction: f64) -> bool {
    let digest = Sha256::new()
        .chain_update(b"gpas-data validation split")
        .chain_update(text)
        .finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    // 2^64 as a double: the quotient is exact enough for a fraction.
    (u64::from_be_bytes(first) as f64 / 18_446_744_073_709_551_616.0) < fraction
}

#[cfg(test)]
mod tests;
