//! One file of a source, opened by its format and hashed while it is read.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use flate2::bufread::MultiGzDecoder;

use super::find::SourceFile;
use super::lines::Lines;
use super::parquet::Parquet;
use super::record::Record;
use super::tally::{Counted, Tally};
use super::text::{Text, first_bad_byte};
use crate::error::DataError;
use crate::format::Format;

/// A file that is being read.
pub(super) struct OpenFile {
    pub(super) name: Arc<str>,
    pub(super) records: Records,
    pub(super) tally: Tally,
}

impl OpenFile {
    pub(super) fn open(file: SourceFile, field: &str, bytes_read: &Arc<AtomicU64>) -> Result<Self, DataError> {
        let tally = Tally::new(bytes_read);
        let name = file.name;
        let open = || File::open(&file.path).map_err(DataError::io(&file.path));
        let lines = |input: Box<dyn BufRead + Send>| Records::Lines(Lines::new(input, field, name.clone()));
        let counted = |input: File| {
            BufReader::with_capacity(
                1 << 17,
                Counted {
                    input,
                    tally: tally.clone(),
                },
            )
        };
        let records = match file.format {
            Format::JsonLines => lines(Box::new(counted(open()?))),
            Format::JsonLinesGzip => lines(Box::new(BufReader::with_capacity(
                1 << 17,
                MultiGzDecoder::new(counted(open()?)),
            ))),
            Format::JsonLinesZstd => {
                let decoder =
                    zstd::stream::read::Decoder::with_buffer(counted(open()?)).map_err(DataError::io(&file.path))?;
                lines(Box::new(BufReader::with_capacity(1 << 17, decoder)))
            }
            Format::Text => {
                // Read twice: a document with a bad byte must be refused before its first piece is used.
                let bad = first_bad_byte(&mut counted(open()?)).map_err(DataError::io(&file.path))?;
                match bad {
                    Some(bad) => Records::Once(Some(bad)),
                    None => Records::Text(Text::new(open()?, name.clone())),
                }
            }
            Format::Parquet => {
                io::copy(&mut counted(open()?), &mut io::sink()).map_err(DataError::io(&file.path))?;
                match Parquet::open(open()?, field, name.clone())? {
                    Ok(parquet) => Records::Parquet(Box::new(parquet)),
                    Err(content) => Records::Once(Some(Record { line: 1, content })),
                }
            }
        };
        Ok(Self { name, records, tally })
    }
}

/// The records of a file, by its format; `Once` is a file that is one bad record.
pub(super) enum Records {
    Lines(Lines),
    Text(Text),
    Parquet(Box<Parquet>),
    Once(Option<Record>),
}

impl Records {
    pub(super) fn next(&mut self) -> Result<Option<Record>, DataError> {
        match self {
            Self::Lines(lines) => lines.next(),
            Self::Text(text) => text.next(),
            Self::Parquet(parquet) => parquet.next(),
            Self::Once(record) => Ok(record.take()),
        }
    }
}
