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
mod tests {
    use super::*;
    use crate::fixture::letters;
    use crate::store::{PreparedData, verify};
    use std::collections::HashSet;

    fn write(path: &Path, text: &str) -> PathBuf {
        fs::write(path, text).unwrap();
        path.into()
    }

    fn lines(texts: impl IntoIterator<Item = String>) -> String {
        texts
            .into_iter()
            .map(|text| serde_json::json!({ "text": text }).to_string() + "\n")
            .collect()
    }

    /// Words of letters, each different.
    fn word(number: usize) -> String {
        let digit = |n: usize| char::from(b'a' + (n % 26) as u8);
        (0..number % 7)
            .map(digit)
            .chain([number, number / 26, number / 676].map(digit))
            .collect()
    }

    fn options(place: &Path, text: &str, validation: ValidationSplit) -> PrepareOptions {
        PrepareOptions {
            sources: vec![write(&place.join("train.jsonl"), text)],
            tokenizer: write(&place.join("letters.json"), &letters(true).to_string()),
            validation,
            out: place.join("out"),
            read: ReadOptions::default(),
            end_of_document: None,
            special_tokens: SpelledOut::default(),
            quiet: true,
        }
    }

    fn contents(directory: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = directory
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    fs::read(entry.path()).unwrap(),
                )
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn documents_become_tokens_with_their_ends() {
        let place = tempfile::tempdir().unwrap();
        let validation = write(&place.path().join("validation.jsonl"), &lines(["zz".into()]));
        let text = lines(["abc".into(), " \n".into(), "d".into()]) + "{\n" + &lines(["".into(), "ef".into()]);
        let options = options(place.path(), &text, ValidationSplit::Source(validation));
        let report = prepare(&options).unwrap();
        assert_eq!(
            (
                report.skipped.bad,
                report.manifest.bad_records,
                report.manifest.empty_documents
            ),
            (1, 1, 2)
        );
        let data = PreparedData::open(&options.out).unwrap();
        let mut ids = vec![0; data.train().tokens()];
        data.train().range(0, &mut ids).unwrap();
        assert_eq!(ids, [3, 4, 5, 1, 6, 1, 7, 8, 1]);
        assert_eq!(data.train().document(1).unwrap(), [6, 1]);
        assert_eq!(data.validation().document(0).unwrap(), [28, 28, 1]);
        let manifest = data.manifest();
        assert_eq!(
            (manifest.longest_document, manifest.largest_id, data.train().max_id()),
            (4, 28, 8)
        );
        assert_eq!(
            (
                manifest.train.documents,
                manifest.train.tokens,
                manifest.train.text_bytes
            ),
            (3, 9, 6)
        );
        assert_eq!((manifest.sources.len(), manifest.sources[0].documents), (1, 5));
        assert_eq!(verify(&options.out).unwrap().tokens, 12);
        let error = prepare(&options).unwrap_err();
        assert!(matches!(error, DataError::OutputExists { .. }), "{error}");
    }

    /// Also by data that was prepared before the manifest had all special tokens: it has the end of a document.
    #[test]
    fn a_named_end_is_the_datas_wherever_it_is_opened() {
        let place = tempfile::tempdir().unwrap();
        let text = lines((0..40).map(word));
        let mut options = options(place.path(), &text, ValidationSplit::Fraction(0.5));
        prepare(&options).unwrap();
        let manifest = |out: &Path| fs::read_to_string(out.join(MANIFEST)).unwrap();
        assert!(!manifest(&options.out).contains("special_tokens"));

        options.end_of_document = Some("z".into());
        options.out = place.path().join("named");
        prepare(&options).unwrap();
        let written = manifest(&options.out);
        let mut older: serde_json::Value = serde_json::from_str(&written).unwrap();
        older["tokenizer"]
            .as_object_mut()
            .unwrap()
            .remove("special_tokens")
            .unwrap();
        for manifest in [written, older.to_string()] {
            fs::write(options.out.join(MANIFEST), manifest).unwrap();
            let data = PreparedData::open(&options.out).unwrap();
            let special = data.tokenizer().special_tokens();
            assert_eq!(
                (special.end_of_document, special.ends.as_slice()),
                (Some(28), &[28][..])
            );
            assert_eq!((special.pad, data.tokenizer().closing()), (Some(0), &[28][..]));
            let document = data.train().document(0).unwrap();
            assert_eq!(document.last(), Some(&28));
            assert!(!document.contains(&1), "the tokenizer's own end is gone: {document:?}");
        }
        older["tokenizer"]["end_of_document"] = 29.into();
        fs::write(options.out.join(MANIFEST), older.to_string()).unwrap();
        let error = PreparedData::open(&options.out).unwrap_err().to_string();
        assert!(error.contains("an id is outside the tokenizer's vocabulary"), "{error}");
    }

    #[test]
    fn special_tokens_in_a_text_are_counted_or_taken() {
        let place = tempfile::tempdir().unwrap();
        let validation = write(&place.path().join("validation.jsonl"), &lines(["z".into()]));
        let text = lines(["ab</s>c".into(), "d</s>".into(), "<pad><pad>".into()]);
        let mut options = options(place.path(), &text, ValidationSplit::Source(validation));
        let report = prepare(&options).unwrap();
        assert_eq!(
            (report.spelled.count, report.spelled.first.as_deref()),
            (4, Some("</s>"))
        );
        assert!(!report.manifest.special_tokens);
        let manifest = fs::read_to_string(options.out.join(MANIFEST)).unwrap();
        assert!(!manifest.contains("special_tokens"), "{manifest}");

        options.out = place.path().join("taken");
        options.special_tokens = SpelledOut::AsTokens;
        let report = prepare(&options).unwrap();
        assert_eq!((report.spelled.count, report.manifest.special_tokens), (0, true));
        let data = PreparedData::open(&options.out).unwrap();
        let documents = [0, 1, 2].map(|index| data.train().document(index).unwrap());
        // The second brings its own end.
        assert_eq!(documents, [vec![3, 4, 1, 5, 1], vec![6, 1], vec![0, 0, 1]]);
    }

    #[test]
    fn the_configuration_of_a_tokenizer_travels_with_the_data() {
        let place = tempfile::tempdir().unwrap();
        let text = lines(["abc".into(), "d".into()]);
        let validation = write(&place.path().join("validation.jsonl"), &lines(["z".into()]));
        let options = options(place.path(), &text, ValidationSplit::Source(validation));
        write(&place.path().join("chat_template.jinja"), "{{ messages }}");
        prepare(&options).unwrap();
        let open = || PreparedData::open(&options.out);
        let config = open().unwrap().tokenizer().config().cloned().unwrap();
        assert_eq!(config.fields()["chat_template"], "{{ messages }}");
        assert_eq!(verify(&options.out).unwrap().files, 6);
        let path = options.out.join(TOKENIZER_CONFIG);
        fs::write(&path, "{}").unwrap();
        let damaged = open().unwrap_err();
        assert!(
            damaged.to_string().contains("tokenizer_config.json: its bytes are not"),
            "{damaged}"
        );
        fs::remove_file(&path).unwrap();
        assert!(matches!(open().unwrap_err(), DataError::FileMissing { .. }));
    }

    #[test]
    fn validation_files_are_not_trained_on() {
        let place = tempfile::tempdir().unwrap();
        let text = place.path().join("text");
        fs::create_dir(&text).unwrap();
        write(&text.join("a.txt"), "abc");
        let held_out = write(&text.join("b.txt"), "xyz");
        let mut options = options(place.path(), "", ValidationSplit::Source(held_out));
        options.sources = vec![text.clone()];
        let manifest = prepare(&options).unwrap().manifest;
        assert_eq!((manifest.train.tokens, manifest.validation.tokens), (4, 4));
        assert_eq!((manifest.train.largest_id, manifest.sources[0].files), (5, 1));
        options.out = place.path().join("again");
        options.sources = vec![text.join("b.txt")];
        assert!(
            prepare(&options)
                .unwrap_err()
                .to_string()
                .ends_with("holds only validation files")
        );
    }

    #[test]
    fn the_same_bytes_whatever_the_threads() {
        let place = tempfile::tempdir().unwrap();
        let text = lines((0..3000).map(|number| word(number).repeat(40)));
        let mut options = options(place.path(), &text, ValidationSplit::Fraction(0.1));
        let mut prepared = Vec::new();
        for threads in [1, 2, 5] {
            options.out = place.path().join(format!("out-{threads}"));
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| prepare(&options)).unwrap();
            prepared.push(contents(&options.out));
        }
        assert!(prepared.iter().all(|files| *files == prepared[0]));
    }

    #[test]
    fn a_fraction_follows_the_text_and_not_the_order() {
        let place = tempfile::tempdir().unwrap();
        let texts: Vec<String> = (0..4000).map(word).collect::<HashSet<_>>().into_iter().collect();
        let validation = |texts: Vec<String>| {
            let place = tempfile::tempdir_in(place.path()).unwrap();
            let options = options(place.path(), &lines(texts), ValidationSplit::Fraction(0.25));
            prepare(&options).unwrap();
            let data = PreparedData::open(&options.out).unwrap();
            let documents = 0..data.validation().documents();
            documents
                .map(|index| data.validation().document(index).unwrap())
                .collect::<HashSet<_>>()
        };
        let mut reversed = texts.clone();
        reversed.reverse();
        let (first, second) = (validation(texts.clone()), validation(reversed));
        assert_eq!(first, second);
        let fraction = first.len() as f64 / texts.len() as f64;
        assert!((0.22..0.28).contains(&fraction), "{fraction}");
    }

    #[test]
    fn a_long_document_is_one_document() {
        let place = tempfile::tempdir().unwrap();
        let long: String = (0..).map(|number| word(number) + "\n").take(200_000).collect();
        assert!(long.len() > crate::source::PIECE_BYTES);
        let validation = write(&place.path().join("validation.jsonl"), &lines(["z".into()]));
        let text = lines([long.clone(), "abc".into()]);
        let options = options(place.path(), &text, ValidationSplit::Source(validation));
        let manifest = prepare(&options).unwrap().manifest;
        assert_eq!((manifest.train.documents, manifest.sources[0].documents), (2, 2));
        // The pattern of this tokenizer's words leaves line breaks out of no token: each is an unknown letter.
        assert_eq!(manifest.longest_document, long.len() as u64 + 1);
    }

    #[test]
    fn an_error_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let good = lines((0..50).map(word));
        let prepare_with = |change: &dyn Fn(&mut PrepareOptions)| {
            let mut options = options(place.path(), &good, ValidationSplit::Fraction(0.2));
            change(&mut options);
            let error = prepare(&options).unwrap_err();
            let left: Vec<_> = contents_names(place.path());
            assert!(!left.iter().any(|name| name.contains("out")), "{error}: {left:?}");
            error
        };
        fn contents_names(directory: &Path) -> Vec<String> {
            directory
                .read_dir()
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        }
        let bad = write(&place.path().join("bad.jsonl"), &(good.clone() + "{\n"));
        let error = prepare_with(&|options| {
            options.sources = vec![bad.clone()];
            options.read.strict = true;
        });
        assert!(matches!(&error, DataError::BadRecord { line: 51, .. }), "{error}");
        let error = prepare_with(&|options| options.read.field = "body".into());
        assert!(matches!(error, DataError::EveryRecordBad { count: 50, .. }), "{error}");
        let error = prepare_with(&|options| options.validation = ValidationSplit::Fraction(1e-12));
        assert!(
            matches!(
                error,
                DataError::EmptySplit {
                    split: "validation",
                    documents: 50
                }
            ),
            "{error}"
        );
        let error = prepare_with(&|options| options.tokenizer = options.sources[0].clone());
        assert!(matches!(error, DataError::Tokenizer { .. }), "{error}");
        let error = prepare_with(&|options| options.end_of_document = Some("<eod>".into()));
        assert!(matches!(error, DataError::TokenUnknown { .. }), "{error}");
    }

    #[test]
    fn one_document_is_cut_by_tokens_where_validation_is_a_fraction() {
        for opens_with_validation in [false, true] {
            let place = tempfile::tempdir().unwrap();
            // The hash of a text decides which split it is written to first.
            let text = (0..)
                .map(|number| word(number).repeat(30))
                .find(|text| belongs_to_validation(text, 0.2) == opens_with_validation)
                .unwrap();
            let options = options(place.path(), &lines([text.clone()]), ValidationSplit::Fraction(0.2));
            let manifest = prepare(&options).unwrap().manifest;
            let tokens = text.len() as u64 + 1;
            let held_out = (tokens as f64 * 0.2).round() as u64;
            assert_eq!(manifest.cut_at, Some(tokens - held_out));
            assert_eq!(
                (manifest.train.tokens, manifest.validation.tokens),
                (tokens - held_out, held_out)
            );
            assert_eq!((manifest.train.documents, manifest.validation.documents), (1, 1));
            assert_eq!(
                manifest.train.text_bytes + manifest.validation.text_bytes,
                text.len() as u64
            );
            assert_eq!(verify(&options.out).unwrap().tokens, tokens);
            let data = PreparedData::open(&options.out).unwrap();
            let joined = [
                data.train().document(0).unwrap(),
                data.validation().document(0).unwrap(),
            ]
            .concat();
            let expected: Vec<u32> = text.bytes().map(|byte| u32::from(byte - b'a') + 3).chain([1]).collect();
            assert_eq!(joined, expected);
            assert!(
                contents(&options.out)
                    .iter()
                    .all(|(name, _)| !name.starts_with("whole"))
            );
            let shown = crate::store::summarise(&options.out, 0).unwrap().to_string();
            assert!(shown.contains("the only document, after "), "{shown}");
        }
    }

    #[test]
    fn a_split_without_a_document_is_refused_with_its_cause() {
        let place = tempfile::tempdir().unwrap();
        let refused = |text: &str, fraction: f64| {
            let options = options(place.path(), text, ValidationSplit::Fraction(fraction));
            let error = prepare(&options).unwrap_err();
            assert!(!options.out.exists());
            error.hint().unwrap()
        };
        assert_eq!(
            refused(&lines([" ".into()]), 0.5),
            "every document is empty or white space"
        );
        assert!(
            refused(&lines(["abc".into(), "def".into()]), 1e-9)
                .contains("there are 2: cut text files with --separator")
        );
    }

    #[test]
    fn text_files_are_cut_at_the_tokenizers_own_end_and_this_is_recorded() {
        let place = tempfile::tempdir().unwrap();
        let validation = write(&place.path().join("validation.jsonl"), &lines(["z".into()]));
        let mut options = options(place.path(), "", ValidationSplit::Source(validation));
        let stories = write(&place.path().join("stories.txt"), "abc\n</s>\nde\n</s>\n");
        let record = write(&place.path().join("record.jsonl"), &lines(["a</s>b".into()]));
        options.sources = vec![stories, record];
        let manifest = prepare(&options).unwrap().manifest;
        assert_eq!(manifest.separator.as_deref(), Some("</s>"));
        assert_eq!((manifest.sources[0].separators, manifest.sources[0].documents), (2, 2));
        // A record is a document whatever it holds.
        assert_eq!((manifest.sources[1].separators, manifest.sources[1].documents), (0, 1));
        let data = PreparedData::open(&options.out).unwrap();
        assert_eq!(data.train().document(0).unwrap(), [3, 4, 5, 1]);
        assert_eq!(data.train().document(1).unwrap(), [6, 7, 1]);
        assert_eq!(data.manifest(), &manifest);

        options.out = place.path().join("whole");
        options.read.separator = Separator::Nowhere;
        let manifest = prepare(&options).unwrap().manifest;
        assert_eq!((manifest.separator, manifest.train.documents), (None, 2));
        // A token of ordinary text does not cut, even where it ends documents.
        options.out = place.path().join("letter");
        options.read.separator = Separator::EndOfDocument;
        options.end_of_document = Some("b".into());
        assert_eq!(prepare(&options).unwrap().manifest.train.documents, 2);
    }

    #[test]
    fn what_is_left_out_stands_in_the_manifest_and_nothing_else_changes_it() {
        let place = tempfile::tempdir().unwrap();
        let text = place.path().join("text");
        fs::create_dir(&text).unwrap();
        write(&text.join("a.txt"), "abc");
        let held_out = write(&text.join("b.txt"), "xyz");
        let mut options = options(place.path(), "", ValidationSplit::Source(held_out));
        options.sources = vec![text.join("a.txt")];
        prepare(&options).unwrap();
        let plain = fs::read_to_string(options.out.join(MANIFEST)).unwrap();
        for key in ["left_out", "separator", "cut_at"] {
            assert!(!plain.contains(key), "{plain}");
        }
        write(&text.join(".hidden.txt"), "no");
        write(&text.join("notes.md"), "no");
        let source = text.clone();
        (options.out, options.sources) = (place.path().join("again"), vec![source.clone(), source]);
        let manifest = prepare(&options).unwrap().manifest;
        let reasons: Vec<_> = manifest.sources[0].left_out.iter().map(|left| left.reason).collect();
        use crate::source::LeftOutReason::{Hidden, Repeat, UnknownFormat, Validation};
        assert_eq!(reasons, [Hidden, UnknownFormat, Validation]);
        assert_eq!(manifest.sources[1].left_out.last().unwrap().reason, Repeat);
        assert_eq!((manifest.train.tokens, manifest.train.documents), (4, 1));
        let shards = |directory: &Path| fs::read(directory.join("train-00000.tokens")).unwrap();
        assert_eq!(shards(&options.out), shards(&place.path().join("out")));
        assert_eq!(PreparedData::open(&options.out).unwrap().manifest(), &manifest);
    }

    #[test]
    fn validation_is_a_fraction_or_a_source() {
        assert_eq!(
            "0.05".parse::<ValidationSplit>().unwrap(),
            ValidationSplit::Fraction(0.05)
        );
        assert_eq!(
            "held/*.txt".parse::<ValidationSplit>().unwrap(),
            ValidationSplit::Source("held/*.txt".into())
        );
        for wrong in ["0", "1", "1.5", "-0.1", "NaN", "inf"] {
            assert!(
                matches!(
                    wrong.parse::<ValidationSplit>(),
                    Err(DataError::ValidationFraction { .. })
                ),
                "{wrong}"
            );
        }
    }
}
