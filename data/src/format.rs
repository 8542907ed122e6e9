//! The file formats that are read, told apart by the extensions of the files' names.

use std::path::Path;

/// A format of a source's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// JSON by its plain name: records as in [`Self::JsonLines`], or something's settings.
    Json,
    /// A record on each line.
    JsonLines,
    Parquet,
    Text,
}

/// A compression that is read around json and text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Zstandard,
}

/// The extension of each format.
const FORMATS: &[(&str, Format)] = &[
    ("jsonl", Format::JsonLines),
    ("ndjson", Format::JsonLines),
    ("json", Format::Json),
    ("txt", Format::Text),
    ("parquet", Format::Parquet),
];

impl Format {
    /// The format and the compression of a file by its name; none if it is not one that is read.
    pub(crate) fn of(path: &Path) -> Option<(Self, Option<Compression>)> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let (stem, mut extension) = name.rsplit_once('.')?;
        let compression = match extension {
            "gz" => Some(Compression::Gzip),
            "zst" => Some(Compression::Zstandard),
            _ => None,
        };
        if compression.is_some() {
            (_, extension) = stem.rsplit_once('.')?;
        }
        let &(_, format) = FORMATS.iter().find(|(known, _)| *known == extension)?;
        (format.may_be_compressed() || compression.is_none()).then_some((format, compression))
    }

    /// Whether a file may be compressed as a whole. Parquet compresses its own columns, and is read from its end.
    fn may_be_compressed(self) -> bool {
        self != Self::Parquet
    }
}

/// The formats as a user reads them.
pub(crate) fn listed() -> String {
    let (mut whole, mut own) = (Vec::new(), Vec::new());
    for (extension, format) in FORMATS {
        let list = if format.may_be_compressed() {
            &mut whole
        } else {
            &mut own
        };
        list.push(format!(".{extension}"));
    }
    let last = whole.pop().unwrap_or_default();
    let (whole, own) = (whole.join(", "), own.join(", "));
    format!("{whole} and {last}, each also as .gz or .zst, and {own}")
}

/// Whether a file holds Git LFS's address of its content in place of the content.
pub(crate) fn is_lfs_pointer(opening: &[u8]) -> bool {
    opening.starts_with(b"version https://git-lfs.github.com/spec/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_are_listed_as_the_table_has_them() {
        let expected = ".jsonl, .ndjson, .json and .txt, each also as .gz or .zst, and .parquet";
        assert_eq!(listed(), expected);
    }

    #[test]
    fn a_name_gives_the_format_and_the_compression() {
        let of = |name: &str| Format::of(Path::new(name));
        let gzip = Some(Compression::Gzip);
        assert_eq!(of("c4-train.00000-of-01024.json.gz"), Some((Format::Json, gzip)));
        assert_eq!(of("a/B.JSONL"), Some((Format::JsonLines, None)));
        assert_eq!(
            of("a.ndjson.zst"),
            Some((Format::JsonLines, Some(Compression::Zstandard)))
        );
        assert_eq!(of("a.txt.gz"), Some((Format::Text, gzip)));
        assert_eq!(of("a.b.parquet"), Some((Format::Parquet, None)));
        for name in [
            "a.parquet.gz",
            "a.gz",
            "jsonl",
            "a",
            "a.csv",
            "a.jsonl.xz",
            "a.jsonl~",
            "..",
        ] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
