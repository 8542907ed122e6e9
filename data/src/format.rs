//! The file formats that are read, told apart by the ends of the files' names.

use std::path::Path;

/// A format of a source's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    JsonLines,
    JsonLinesGzip,
    JsonLinesZstd,
    Parquet,
    Text,
}

/// How the names of each format's files end.
const ENDINGS: [(&str, Format); 5] = [
    (".jsonl", Format::JsonLines),
    (".jsonl.gz", Format::JsonLinesGzip),
    (".jsonl.zst", Format::JsonLinesZstd),
    (".parquet", Format::Parquet),
    (".txt", Format::Text),
];

impl Format {
    /// The format of a file by its name; none if it is not one that is read.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let found = ENDINGS.iter().find(|(ending, _)| name.ends_with(ending));
        found.map(|&(_, format)| format)
    }
}

/// The formats as a user reads them.
pub(crate) fn listed() -> String {
    ENDINGS.map(|(ending, _)| ending).join(", ")
}
