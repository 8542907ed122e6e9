//! Every way in which text, tokens or a prepared directory can be wrong: one cause in one line, and a hint where one helps.

use std::io;
use std::path::{Path, PathBuf};

use gpas_batch::BatchError;

use crate::format;
use crate::source::{RecordFault, Unreadable};

/// Documents that are too few for a fraction of them to be told.
const FEW: u64 = 10;

/// What went wrong, as one line that names the file, and the line or the id where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refused to read or write a file.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A source is neither a file, a directory nor a glob.
    #[error("source `{given}` does not exist")]
    SourceMissing {
        /// The source as it was given.
        given: String,
    },
    /// A source is there and gives no document.
    #[error("source `{given}` {cause}")]
    SourceEmpty {
        /// The source as it was given.
        given: String,
        /// Why it gives nothing.
        cause: String,
        /// Whether hidden files were left out.
        hidden: bool,
    },
    /// The files of a source are there and hold no document.
    #[error("source `{given}` holds no document")]
    NoDocument {
        /// The source as it was given.
        given: String,
    },
    /// Every file of a training source is a validation file.
    #[error("source `{given}` holds only validation files")]
    OnlyValidation {
        /// The source as it was given.
        given: String,
    },
    /// A file was named whose format is not one of those that are read.
    #[error("{}: not a format that is read", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read on: its compression or its container is damaged.
    #[error("{file}: damaged after record {line}: {cause}")]
    DamagedSource {
        /// The file.
        file: String,
        /// The last good line or row, from 1.
        line: u64,
        /// What the decoder said.
        cause: String,
    },
    /// A record is malformed and reading was asked to be strict.
    #[error("{file}:{line}: {cause}")]
    BadRecord {
        /// The file.
        file: String,
        /// Its line or row, from 1.
        line: u64,
        /// What is wrong with the record.
        cause: String,
    },
    /// No record of a source can be used.
    #[error("source `{given}` holds no good record; of {count} bad the first is {first}")]
    EveryRecordBad {
        /// The source as it was given.
        given: String,
        /// How many records were read.
        count: u64,
        /// The first, as `file:line: cause`.
        first: String,
        /// What is wrong with the first.
        fault: RecordFault,
    },
    /// A file is whole, and what it holds is not read.
    #[error("{file}: {cause}")]
    UnreadableSource {
        /// The file.
        file: String,
        /// What it holds.
        cause: Unreadable,
    },
    /// A separator of documents is not written as one.
    #[error("separator `{given}` has an escape that is not known")]
    Separator {
        /// The text as it was given.
        given: String,
    },
    /// A tokenizer file cannot be used.
    #[error("tokenizer {}: {cause}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// A file beside a tokenizer that should hold its chat template or the names of its special tokens does not.
    #[error("{}: {cause}", path.display())]
    BesideTokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// A tokenizer file stands for one that was not fetched.
    #[error("tokenizer {}: {}", path.display(), Unreadable::LfsPointer)]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A tokenizer names no token that ends a document.
    #[error("tokenizer {}: no end-of-document token is known", path.display())]
    EndOfDocumentUnknown {
        /// The file.
        path: PathBuf,
    },
    /// The token that was asked to end a document is not in the vocabulary.
    #[error("end-of-document token `{token}` is not in the tokenizer's vocabulary")]
    TokenUnknown {
        /// The token.
        token: String,
    },
    /// A byte-level vocabulary needs its bytes and the end-of-document token.
    #[error("a byte-level vocabulary of {asked} is too small: 256 bytes and the end-of-document token need 257")]
    VocabularyTooSmall {
        /// The size asked for.
        asked: usize,
    },
    /// Something is already where the result would go.
    #[error("{} already exists", path.display())]
    OutputExists {
        /// The file or directory.
        path: PathBuf,
    },
    /// A fraction of the documents that is not between 0 and 1.
    #[error("validation fraction {given} is not between 0 and 1")]
    ValidationFraction {
        /// The text as it was given.
        given: String,
    },
    /// A split would hold no document.
    #[error("no document is left for the {split} split")]
    EmptySplit {
        /// `train` or `validation`.
        split: &'static str,
        /// Documents of both splits.
        documents: u64,
    },
    /// A directory is not prepared data.
    #[error("{}: not prepared data: {cause}", path.display())]
    Manifest {
        /// The manifest, or the directory where it should be.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Prepared data of another format version.
    #[error("{}: format version {found}, this program reads {expected}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it states.
        found: u64,
        /// The version that is read.
        expected: u64,
    },
    /// A file that the manifest lists is not there.
    #[error("{}: listed in the manifest, but missing", path.display())]
    FileMissing {
        /// The file.
        path: PathBuf,
    },
    /// A shard, or a file beside it, is not what the manifest says.
    #[error("{}: {cause}", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// How it differs.
        cause: String,
    },
    /// The tokenizer is not the one that the data was prepared with.
    #[error("{}: not the tokenizer that the data was prepared with (sha256 {found:.12}…, the manifest says {expected:.12}…)", path.display())]
    TokenizerMismatch {
        /// The tokenizer's file.
        path: PathBuf,
        /// The hash in the manifest.
        expected: String,
        /// The hash of the file.
        found: String,
    },
    /// The corpus is shorter than one batch.
    #[error("the data is shorter than one batch: {windows} windows of {seq_len} tokens, a batch needs {batch}")]
    ShorterThanBatch {
        /// Windows that the data gives.
        windows: usize,
        /// Windows that a batch needs.
        batch: usize,
        /// Tokens in a window.
        seq_len: usize,
    },
    /// The validation data is shorter than one window.
    #[error("the data gives no window of {seq_len} tokens to evaluate on")]
    NoWindow {
        /// Tokens in a window.
        seq_len: usize,
    },
    /// Windows that are not a batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A position or a size that no data can have.
    #[error("{0}")]
    Range(String),
    /// The built-in corpus cannot be gathered on this machine.
    #[error("the built-in corpus cannot be made: {0}")]
    Corpus(String),
}

impl DataError {
    /// One line on what to do about it, where there is something to say.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::SourceMissing { .. } => {
                "a source is a file, a directory, or a quoted glob such as 'text/*.jsonl.gz'".into()
            }
            Self::SourceEmpty { hidden: true, .. } => "--hidden takes files whose names begin with a dot".into(),
            Self::SourceEmpty { .. } | Self::UnknownFormat { .. } => {
                format!("formats: {}", format::listed())
            }
            Self::NoDocument { .. } => "look whether the file was written or fetched whole, or leave it out".into(),
            Self::OnlyValidation { .. } => "name other text to train on, or give --validation a fraction".into(),
            Self::DamagedSource { .. } => "fetch the file again, or leave it out".into(),
            Self::BadRecord { .. } => "without --strict, bad records are counted, reported and skipped".into(),
            Self::EveryRecordBad { fault, .. } => fault.hint(),
            Self::UnreadableSource { cause, .. } => cause.hint().into(),
            Self::Separator { .. } => r"escapes are \n, \r, \t and \\; an empty text leaves text files whole".into(),
            Self::LfsPointer { .. } => Unreadable::LfsPointer.hint().into(),
            Self::Tokenizer { .. } => {
                "a tokenizer is a Hugging Face tokenizer.json; `gpas tokenizer train` makes one".into()
            }
            Self::BesideTokenizer { .. } => {
                "it is read for special tokens and the chat template because it lies beside the tokenizer: mend it, or take it away".into()
            }
            Self::EndOfDocumentUnknown { .. } => "name it with --eos TOKEN".into(),
            Self::TokenUnknown { .. } => "--eos takes a token as the tokenizer spells it, for example '</s>'".into(),
            Self::VocabularyTooSmall { .. } => "ask for --vocab 257 or more".into(),
            Self::OutputExists { .. } => "nothing is overwritten: name another path, or remove it first".into(),
            Self::ValidationFraction { .. } => "for example --validation 0.01, or name a source".into(),
            Self::EmptySplit { documents: 0, .. } => "every document is empty or white space".into(),
            Self::EmptySplit { documents, .. } if *documents <= FEW => format!(
                "each document goes to one split whole, and there are {documents}: cut text files with --separator, or name validation text"
            ),
            Self::EmptySplit { .. } => "give more text or another validation fraction".into(),
            Self::Manifest { .. } => "`gpas data prepare` makes a directory of prepared data".into(),
            Self::Version { .. } => "prepare the data again with this version".into(),
            Self::FileMissing { .. } | Self::Shard { .. } => {
                "copy the directory again, or prepare the data again; `gpas data verify DIR` checks all of it".into()
            }
            Self::TokenizerMismatch { .. } => "use the tokenizer.json that was written beside the data".into(),
            Self::NoWindow { .. } => "give more validation text, or a smaller seq_len".into(),
            Self::ShorterThanBatch { .. } => "give more text, a smaller batch, or a smaller seq_len".into(),
            Self::Corpus(_) => "give data of your own with --data DIR".into(),
            Self::Io { .. } | Self::Batch(_) | Self::Range(_) => return None,
        })
    }

    /// An error of writing the result `path` [aside](crate::aside).
    pub(crate) fn output(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |cause| match cause.kind() {
            io::ErrorKind::AlreadyExists => Self::OutputExists { path: path.into() },
            io::ErrorKind::InvalidInput => Self::Range(format!("{}: not a name for a result", path.display())),
            _ => Self::io(path)(cause),
        }
    }

    /// An operating-system error at `path`, a file that the manifest lists.
    pub(crate) fn io_of_listed(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |cause| match cause.kind() {
            io::ErrorKind::NotFound => Self::FileMissing { path: path.into() },
            _ => Self::io(path)(cause),
        }
    }

    /// An operating-system error at `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |cause| Self::Io {
            path: path.to_path_buf(),
            cause,
        }
    }
}
