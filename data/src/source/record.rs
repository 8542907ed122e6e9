//! A record of a source's file, whatever the format: a document, a piece of one, or the fault why it cannot be used.

use super::contents::{Encoding, Foreign};

/// A record longer than this many bytes is a bad record: no real document is, and memory stays bounded.
pub(super) const RECORD_BYTES: usize = 64 << 20;

/// What stands at a line or row of a file.
pub(super) struct Record {
    pub(super) line: u64,
    pub(super) content: Content,
}

pub(super) enum Content {
    /// A whole document.
    Text(String),
    /// A piece of a document that is too long to hold.
    Piece { text: String, opens: bool, closes: bool },
    /// `count` records from here on cannot be used.
    Bad { fault: RecordFault, count: u64 },
}

impl Content {
    pub(super) fn bad(fault: RecordFault) -> Self {
        Self::Bad { fault, count: 1 }
    }

    pub(super) fn of_bytes(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::bad(RecordFault::Utf8 {
                at: error.utf8_error().valid_up_to() as u64,
            }),
        }
    }
}

/// Why a record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordFault {
    /// The record lacks the field that holds the text.
    #[error("field `{field}` is missing")]
    FieldMissing {
        /// The field.
        field: String,
        /// Fields that the record has, in the first such record of a file.
        seen: Vec<String>,
    },
    /// The field holds something else than text.
    #[error("field `{field}` is not a string")]
    NotAString {
        /// The field.
        field: String,
    },
    /// The field holds null.
    #[error("the text is null")]
    Null,
    /// The record is not JSON.
    #[error("malformed json at column {column}: {said}")]
    Json {
        /// Where, in bytes from 1.
        column: usize,
        /// What the parser said.
        said: String,
    },
    /// A file that is one JSON array ends before the array does.
    #[error("the file ends inside its json array")]
    ArrayCutOff,
    /// The bytes are not UTF-8.
    #[error("invalid UTF-8 at byte {at}")]
    Utf8 {
        /// The first such byte, from 0.
        at: u64,
    },
    /// The record is too long to be a document.
    #[error("longer than {} MiB", RECORD_BYTES >> 20)]
    TooLong,
    /// The file is text in an encoding that is not read.
    #[error("the file is {}, not UTF-8", .0.name())]
    Encoding(Encoding),
    /// The file is not what its name says.
    #[error("the file is {}", .0.name())]
    Foreign(Foreign),
}

impl RecordFault {
    /// One line on what to do where every record has this fault.
    pub fn hint(&self) -> String {
        match self {
            Self::FieldMissing { seen, .. } if !seen.is_empty() => {
                let seen: Vec<String> = seen.iter().map(|name| format!("`{name}`")).collect();
                format!("name the text field with --field; seen: {}", seen.join(", "))
            }
            Self::FieldMissing { .. } | Self::NotAString { .. } | Self::Null => {
                "name the field that holds the text with --field; a field in a field is written `outer.inner`".into()
            }
            Self::ArrayCutOff => "fetch the file again, or leave it out".into(),
            Self::Json { .. } => {
                "a record is one JSON object with the text in a field, on a line of its own or in an array".into()
            }
            Self::Utf8 { .. } => "text is UTF-8; convert it first: iconv -f ENCODING -t UTF-8 FILE > NEW".into(),
            Self::TooLong => "cut the text into documents: a record of .jsonl or .parquet is one".into(),
            Self::Encoding(encoding) => {
                format!("convert it first: iconv -f {} -t UTF-8 FILE > NEW", encoding.label())
            }
            Self::Foreign(Foreign::Parquet) => "name it .parquet".into(),
            Self::Foreign(_) => "unpack it first; gzip and zstd are read as they are".into(),
        }
    }
}
