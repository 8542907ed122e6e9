//! One file of a source, opened by its format and hashed while it is read.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::contents::{Encoding, Foreign, Unreadable, compression};
use super::find::SourceFile;
use super::gzip::Members;
use super::lines::Lines;
use super::options::ReadOptions;
use super::parquet::Parquet;
use super::record::{Content, Record, RecordFault};
use super::records::Records;
use super::separated::Separated;
use super::tally::{Counted, Tally};
use super::text::{Text, survey};
use crate::error::DataError;
use crate::format::{Compression, Format, is_lfs_pointer};

/// A file that is being read.
pub(super) struct OpenFile {
    pub(super) name: Arc<str>,
    pub(super) tally: Tally,
    /// What its record lacks if a file that was only found, and not named, is one JSON object of another kind: something's settings.
    pub(super) settings: Option<RecordFault>,
    records: Box<dyn Records>,
    ahead: VecDeque<Record>,
}

/// Bytes that are read from a file at once.
const BUFFER: usize = 1 << 17;

impl OpenFile {
    pub(super) fn open(
        file: SourceFile,
        options: &ReadOptions,
        bytes_read: &Arc<AtomicU64>,
    ) -> Result<Self, DataError> {
        let tally = Tally::new(bytes_read);
        let opener = Opener { file, tally: &tally };
        let records = match opener.file.format {
            Format::Json | Format::JsonLines => opener.json(&options.field)?,
            Format::Text => opener.text(&options.separator.spellings())?,
            Format::Parquet => opener.parquet(&options.field)?,
        };
        let SourceFile {
            name, format, named, ..
        } = opener.file;
        let mut this = Self {
            name,
            tally,
            settings: None,
            records,
            ahead: VecDeque::new(),
        };
        if format == Format::Json && !named {
            this.tell_settings()?;
        }
        Ok(this)
    }

    /// Looks whether the file is one record and that one of another kind.
    fn tell_settings(&mut self) -> Result<(), DataError> {
        while self.ahead.len() < 2 {
            let Some(record) = self.records.next()? else { break };
            self.ahead.push_back(record);
        }
        let [record] = self.ahead.make_contiguous() else {
            return Ok(());
        };
        if let Content::Bad { fault, .. } = &record.content
            && let RecordFault::FieldMissing { .. } | RecordFault::NotAString { .. } | RecordFault::Null = fault
        {
            self.settings = Some(fault.clone());
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Result<Option<Record>, DataError> {
        match self.ahead.pop_front() {
            Some(record) => Ok(Some(record)),
            None => self.records.next(),
        }
    }

    /// The separators between documents that were found so far.
    pub(super) fn cuts(&self) -> u64 {
        self.records.cuts()
    }
}

/// Opens a file by its format.
struct Opener<'a> {
    file: SourceFile,
    tally: &'a Tally,
}

impl Opener<'_> {
    fn open(&self) -> Result<File, DataError> {
        File::open(&self.file.path).map_err(DataError::io(&self.file.path))
    }

    fn counted(&self) -> Result<BufReader<Counted>, DataError> {
        let (input, tally) = (self.open()?, self.tally.clone());
        Ok(BufReader::with_capacity(BUFFER, Counted { input, tally }))
    }

    fn damaged(&self, cause: io::Error) -> DataError {
        DataError::DamagedSource {
            file: self.file.name.to_string(),
            line: 0,
            cause: cause.to_string(),
        }
    }

    fn unreadable(&self, cause: Unreadable) -> DataError {
        let file = self.file.name.to_string();
        DataError::UnreadableSource { file, cause }
    }

    /// The content of `input`, decompressed as its first bytes say; or what it holds that is not read.
    fn content(
        &self,
        mut input: impl BufRead + Send + 'static,
    ) -> Result<Result<Box<dyn BufRead + Send>, Record>, DataError> {
        let opening = input.fill_buf().map_err(DataError::io(&self.file.path))?;
        let found = compression(opening, self.file.compression).map_err(|cause| self.unreadable(cause))?;
        let mut content: Box<dyn BufRead + Send> = match found {
            None => Box::new(input),
            Some(Compression::Gzip) => Box::new(BufReader::with_capacity(BUFFER, Members::new(input))),
            Some(Compression::Zstandard) => {
                let decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(|cause| self.damaged(cause))?;
                Box::new(BufReader::with_capacity(BUFFER, decoder))
            }
        };
        let opening = content.fill_buf().map_err(|cause| self.damaged(cause))?;
        let fault = Foreign::of(opening).map(RecordFault::Foreign);
        let fault = fault.or_else(|| Encoding::of(opening).map(RecordFault::Encoding));
        Ok(match fault {
            None => Ok(content),
            Some(fault) => {
                // Read to its end all the same, for its hash.
                io::copy(&mut content, &mut io::sink()).map_err(|cause| self.damaged(cause))?;
                let content = Content::bad(fault);
                Err(Record { line: 1, content })
            }
        })
    }

    fn json(&self, field: &str) -> Result<Box<dyn Records>, DataError> {
        Ok(match self.content(self.counted()?)? {
            Ok(content) => Box::new(Lines::new(content, field, self.file.name.clone())),
            Err(bad) => Box::new(Some(bad)),
        })
    }

    fn text(&self, separators: &[String]) -> Result<Box<dyn Records>, DataError> {
        // Read twice: a document with a bad byte must be refused before its first piece is used.
        let mut content = match self.content(self.counted()?)? {
            Ok(content) => content,
            Err(bad) => return Ok(Box::new(Some(bad))),
        };
        let survey = survey(&mut content, separators).map_err(|cause| self.damaged(cause))?;
        if let Some(bad) = survey.bad {
            return Ok(Box::new(Some(bad)));
        }
        let content: Box<dyn Read + Send> = match self.content(BufReader::with_capacity(BUFFER, self.open()?))? {
            Ok(content) => Box::new(content),
            Err(bad) => return Ok(Box::new(Some(bad))),
        };
        let name = self.file.name.clone();
        Ok(match survey.separator {
            Some(separator) => Box::new(Separated::new(content, name, separator)),
            None => Box::new(Text::new(content, name)),
        })
    }

    fn parquet(&self, field: &str) -> Result<Box<dyn Records>, DataError> {
        let mut input = self.counted()?;
        let opening = input.fill_buf().map_err(DataError::io(&self.file.path))?;
        if is_lfs_pointer(opening) {
            return Err(self.unreadable(Unreadable::LfsPointer));
        }
        io::copy(&mut input, &mut io::sink()).map_err(DataError::io(&self.file.path))?;
        Ok(match Parquet::open(self.open()?, field, self.file.name.clone())? {
            Ok(parquet) => Box::new(parquet),
            Err(content) => Box::new(Some(Record { line: 1, content })),
        })
    }
}
