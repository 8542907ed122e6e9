//! The documents of several sources as one stream.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::file::OpenFile;
use super::find::{Source, SourceFile};
use super::left_out::{LeftOut, LeftOutReason};
use super::options::ReadOptions;
use super::record::{Content, Record, RecordFault};
use super::tally::{Skipped, SourceRecord};
use super::text::pieces;
use crate::error::DataError;

/// A document, or a piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its text.
    pub text: String,
    /// Whether the document begins with this piece.
    pub opens: bool,
    /// Whether the document ends with this piece.
    pub closes: bool,
    /// The file it was read from.
    pub file: Arc<str>,
    /// Its line or row in that file, from 1.
    pub line: u64,
}

/// The documents of several sources, one after the other, in a memory that does not grow with them.
pub struct Documents {
    options: ReadOptions,
    sources: VecDeque<Source>,
    current: Option<CurrentSource>,
    ready: VecDeque<Document>,
    finished: Vec<SourceRecord>,
    skipped: Skipped,
    failed: bool,
    bytes_total: u64,
    bytes_read: Arc<AtomicU64>,
}

/// The source that is being read.
struct CurrentSource {
    given: String,
    files: VecDeque<SourceFile>,
    file: Option<OpenFile>,
    hashes: Vec<(String, Arc<str>)>,
    bytes: u64,
    documents: u64,
    /// Documents before the file that is being read.
    documents_before: u64,
    bad: u64,
    first_bad: Option<(String, RecordFault)>,
    left_out: Vec<LeftOut>,
    /// Whether no file is left to read, since other sources have them all.
    only_repeats: bool,
    separators: u64,
}

impl Documents {
    /// The documents of `sources`.
    pub fn new(sources: Vec<Source>, options: ReadOptions) -> Self {
        Self {
            options,
            bytes_total: sources.iter().map(Source::bytes).sum(),
            sources: sources.into(),
            current: None,
            ready: VecDeque::new(),
            finished: Vec::new(),
            skipped: Skipped::default(),
            failed: false,
            bytes_read: Arc::default(),
        }
    }

    /// Finds the files behind several sources and reads them.
    ///
    /// # Errors
    /// Those of [`Source::find`].
    pub fn open(given: &[PathBuf], options: ReadOptions) -> Result<Self, DataError> {
        Ok(Self::new(Source::find(given, &options)?, options))
    }

    /// The sources that were read to their end.
    pub fn sources(&self) -> &[SourceRecord] {
        &self.finished
    }

    /// The bad records so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Bytes on disk of all sources.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// Bytes read from disk so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Collects documents until they hold `bytes` of text, for work that is done on many at once.
    ///
    /// The limits are counted in text alone, so that a batch never depends on the machine.
    ///
    /// # Errors
    /// The first error of the stream.
    pub fn next_batch(&mut self, bytes: usize) -> Result<Vec<Document>, DataError> {
        let mut batch = Vec::new();
        let mut held = 0;
        while held < bytes {
            let Some(document) = self.next().transpose()? else {
                break;
            };
            // Many short documents weigh more than their text.
            held += document.text.len() + 64;
            batch.push(document);
        }
        Ok(batch)
    }

    fn advance(&mut self) -> Result<Option<Document>, DataError> {
        loop {
            if let Some(document) = self.ready.pop_front() {
                return Ok(Some(document));
            }
            let Some(source) = &mut self.current else {
                let Some(source) = self.sources.pop_front() else {
                    return Ok(None);
                };
                self.current = Some(CurrentSource::new(source));
                continue;
            };
            let Some(file) = &mut source.file else {
                if let Some(file) = source.files.pop_front() {
                    source.open(OpenFile::open(file, &self.options, &self.bytes_read)?);
                } else if let Some(source) = self.current.take() {
                    self.finished.push(source.finish()?);
                }
                continue;
            };
            match file.next()? {
                Some(record) => {
                    let file = file.name.clone();
                    self.ready = source.documents(record, &file, self.options.strict, &mut self.skipped)?;
                }
                None => source.close(),
            }
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance();
        self.failed = next.is_err();
        next.transpose()
    }
}

impl CurrentSource {
    fn new(source: Source) -> Self {
        Self {
            given: source.given,
            only_repeats: source.files.is_empty(),
            files: source.files.into(),
            file: None,
            hashes: Vec::new(),
            bytes: 0,
            documents: 0,
            documents_before: 0,
            bad: 0,
            first_bad: None,
            left_out: source.left_out,
            separators: 0,
        }
    }

    /// Begins to read a file.
    fn open(&mut self, file: OpenFile) {
        if let Some(fault) = file.settings {
            LeftOut::add(&mut self.left_out, LeftOutReason::Settings, &file.name);
            // Where there is nothing else, it may be documents whose text has another name.
            self.bad += 1;
            self.first_bad
                .get_or_insert((format!("{}:1: {fault}", file.name), fault));
            return;
        }
        self.documents_before = self.documents;
        self.file = Some(file);
    }

    /// Takes the counts of the file that was read to its end.
    fn close(&mut self) {
        let Some(file) = self.file.take() else { return };
        let (sha256, bytes) = file.tally.finish();
        if self.documents == self.documents_before {
            LeftOut::add(&mut self.left_out, LeftOutReason::NoDocument, &file.name);
        }
        self.separators += file.cuts();
        self.hashes.push((sha256, file.name));
        self.bytes += bytes;
    }

    /// The documents of a record of `file`; none of a bad one, which is counted.
    fn documents(
        &mut self,
        record: Record,
        file: &Arc<str>,
        strict: bool,
        skipped: &mut Skipped,
    ) -> Result<VecDeque<Document>, DataError> {
        let line = record.line;
        let document = |(text, opens, closes)| Document {
            text,
            opens,
            closes,
            file: file.clone(),
            line,
        };
        match record.content {
            Content::Text(text) => {
                self.documents += 1;
                Ok(pieces(text).map(document).collect())
            }
            Content::Piece { text, opens, closes } => {
                self.documents += u64::from(opens);
                Ok([document((text, opens, closes))].into())
            }
            Content::Bad { fault, .. } if strict => Err(DataError::BadRecord {
                file: file.to_string(),
                line,
                cause: fault.to_string(),
            }),
            Content::Bad { fault, count } => {
                let said = format!("{file}:{line}: {fault}");
                skipped.add(count, &said);
                self.bad += count;
                self.first_bad.get_or_insert((said, fault));
                Ok(VecDeque::new())
            }
        }
    }

    fn finish(self) -> Result<SourceRecord, DataError> {
        if self.documents == 0 && !self.only_repeats {
            return Err(match self.first_bad {
                Some((first, fault)) => DataError::EveryRecordBad {
                    given: self.given,
                    count: self.bad,
                    first,
                    fault,
                },
                None => DataError::NoDocument { given: self.given },
            });
        }
        let sha256 = match self.hashes.as_slice() {
            [(sha256, _)] => sha256.clone(),
            several => {
                let listing: String = several
                    .iter()
                    .map(|(sha256, name)| format!("{sha256}  {name}\n"))
                    .collect();
                format!("{:x}", Sha256::digest(listing))
            }
        };
        Ok(SourceRecord {
            path: self.given,
            files: self.hashes.len() as u64,
            bytes: self.bytes,
            documents: self.documents,
            sha256,
            separators: self.separators,
            left_out: self.left_out,
        })
    }
}
