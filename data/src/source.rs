//! Sources: the files that a command line names, read as a stream of documents with the file and line of each.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;
use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::ByteArrayType;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::DataError;

/// The extensions that are read.
pub const FORMATS: [&str; 5] = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt"];

/// A document longer than this many bytes arrives as several pieces, each but the last cut after a line break.
pub const PIECE_BYTES: usize = 1 << 20;

/// A record longer than this many bytes is a bad record: no real document is, and memory stays bounded.
const RECORD_BYTES: usize = 64 << 20;

/// Rows read from a parquet column at once.
const PARQUET_ROWS: usize = 64;

/// Bad records that are remembered word for word.
const REMEMBERED: usize = 5;

/// How records are turned into documents.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// The field (json) or column (parquet) that holds the text.
    pub field: String,
    /// Whether the first bad record is an error.
    pub strict: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            field: "text".into(),
            strict: false,
        }
    }
}

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

/// Records that were not used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// How many were malformed.
    pub bad: u64,
    /// The first few, as `file:line: cause`.
    pub first: Vec<String>,
}

/// What a source turned out to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// The source as it was given.
    pub path: String,
    /// Files in it.
    pub files: u64,
    /// Bytes of those files, compressed as they are.
    pub bytes: u64,
    /// Documents read from it.
    pub documents: u64,
    /// The SHA-256 of the file; of several files, that of the lines `HASH  NAME` which `sha256sum` prints for them.
    pub sha256: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    JsonLines,
    JsonLinesGzip,
    JsonLinesZstd,
    Parquet,
    Text,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let formats = [
            Self::JsonLines,
            Self::JsonLinesGzip,
            Self::JsonLinesZstd,
            Self::Parquet,
            Self::Text,
        ];
        FORMATS
            .iter()
            .zip(formats)
            .find(|(extension, _)| name.ends_with(*extension))
            .map(|(_, format)| format)
    }
}

#[derive(Debug, Clone)]
struct SourceFile {
    path: PathBuf,
    name: Arc<str>,
    format: Format,
}

/// The files behind one source of the command line.
#[derive(Debug, Clone)]
pub struct Source {
    given: String,
    files: Vec<SourceFile>,
}

impl Source {
    /// Finds the files of a source: a file, a directory (searched recursively, in sorted order) or a glob.
    ///
    /// # Errors
    /// When nothing is there, or nothing of a format that is read.
    pub fn find(given: &str) -> Result<Self, DataError> {
        let path = Path::new(given);
        let mut files = Vec::new();
        let empty = |cause: &str| DataError::SourceEmpty {
            given: given.into(),
            cause: cause.into(),
        };
        if path.is_dir() {
            walk(path, &mut files)?;
            if files.is_empty() {
                return Err(empty("holds no file of a format that is read"));
            }
        } else if path.exists() {
            files.push(source_file(path).ok_or_else(|| DataError::UnknownFormat { path: path.into() })?);
        } else if given.contains(['*', '?', '[']) {
            let matches = glob::glob(given).map_err(|error| empty(&format!("is not a glob: {error}")))?;
            for found in matches {
                let found = found.map_err(|error| DataError::Io {
                    path: error.path().to_path_buf(),
                    cause: error.into(),
                })?;
                if found.is_dir() {
                    walk(&found, &mut files)?;
                } else {
                    files.extend(source_file(&found));
                }
            }
            if files.is_empty() {
                return Err(empty("matches no file of a format that is read"));
            }
        } else {
            return Err(DataError::SourceMissing { given: given.into() });
        }
        Ok(Self {
            given: given.into(),
            files,
        })
    }

    /// A source made of text files of any extension, each one document, under names of their own.
    pub(crate) fn of_texts(given: String, files: Vec<(String, PathBuf)>) -> Self {
        let files = files
            .into_iter()
            .map(|(name, path)| SourceFile {
                path,
                name: name.into(),
                format: Format::Text,
            })
            .collect();
        Self { given, files }
    }

    /// Leaves out the files that `other` has too, whatever path they were found by.
    pub(crate) fn leave_out(&mut self, other: &Self) -> Result<(), DataError> {
        let identity = |file: &SourceFile| file.path.canonicalize().ok();
        let others: HashSet<PathBuf> = other.files.iter().filter_map(identity).collect();
        self.files
            .retain(|file| identity(file).is_none_or(|path| !others.contains(&path)));
        if self.files.is_empty() {
            return Err(DataError::OnlyValidation {
                given: self.given.clone(),
            });
        }
        Ok(())
    }

    /// Bytes on disk, for a progress bar.
    fn bytes(&self) -> u64 {
        self.files
            .iter()
            .filter_map(|file| file.path.metadata().ok())
            .map(|data| data.len())
            .sum()
    }
}

fn source_file(path: &Path) -> Option<SourceFile> {
    let format = Format::of(path)?;
    Some(SourceFile {
        path: path.into(),
        name: path.display().to_string().into(),
        format,
    })
}

fn walk(directory: &Path, files: &mut Vec<SourceFile>) -> Result<(), DataError> {
    let entries = directory.read_dir().map_err(DataError::io(directory))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(DataError::io(directory))?;
        paths.push((entry.path(), entry.file_type().map_err(DataError::io(&entry.path()))?));
    }
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, kind) in paths {
        // A link to a directory is not followed: it could lead back here.
        if kind.is_dir() {
            walk(&path, files)?;
        } else if path.is_file() {
            files.extend(source_file(&path));
        }
    }
    Ok(())
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

struct CurrentSource {
    given: String,
    files: VecDeque<SourceFile>,
    file: Option<CurrentFile>,
    hashes: Vec<(String, Arc<str>)>,
    bytes: u64,
    documents: u64,
    bad: u64,
    first_bad: Option<String>,
    fields: Vec<String>,
}

struct CurrentFile {
    name: Arc<str>,
    records: Records,
    tally: Tally,
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
    pub fn open(given: &[String], options: ReadOptions) -> Result<Self, DataError> {
        let sources = given
            .iter()
            .map(|given| Source::find(given))
            .collect::<Result<_, _>>()?;
        Ok(Self::new(sources, options))
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
                self.current = Some(CurrentSource {
                    given: source.given,
                    files: source.files.into(),
                    file: None,
                    hashes: Vec::new(),
                    bytes: 0,
                    documents: 0,
                    bad: 0,
                    first_bad: None,
                    fields: Vec::new(),
                });
                continue;
            };
            let Some(file) = &mut source.file else {
                if let Some(file) = source.files.pop_front() {
                    source.file = Some(CurrentFile::open(file, &self.options.field, &self.bytes_read)?);
                } else if let Some(source) = self.current.take() {
                    self.finished.push(source.finish()?);
                }
                continue;
            };
            match file.records.next()? {
                Some(Record {
                    line,
                    content: Content::Text(text),
                }) => {
                    source.documents += 1;
                    let name = &file.name;
                    self.ready.extend(pieces(text).map(|(text, opens, closes)| Document {
                        text,
                        opens,
                        closes,
                        file: name.clone(),
                        line,
                    }));
                }
                Some(Record {
                    line,
                    content: Content::Piece { text, opens, closes },
                }) => {
                    source.documents += u64::from(opens);
                    return Ok(Some(Document {
                        text,
                        opens,
                        closes,
                        file: file.name.clone(),
                        line,
                    }));
                }
                Some(Record {
                    line,
                    content: Content::Bad { cause, fields, count },
                }) => {
                    if self.options.strict {
                        return Err(DataError::BadRecord {
                            file: file.name.to_string(),
                            line,
                            cause,
                        });
                    }
                    let bad = format!("{}:{line}: {cause}", file.name);
                    if source.fields.is_empty() {
                        source.fields = fields;
                    }
                    source.bad += count;
                    self.skipped.bad += count;
                    if self.skipped.first.len() < REMEMBERED {
                        self.skipped.first.push(bad.clone());
                    }
                    source.first_bad.get_or_insert(bad);
                }
                None => {
                    let (sha256, bytes) = file.tally.finish();
                    source.hashes.push((sha256, file.name.clone()));
                    source.bytes += bytes;
                    source.file = None;
                }
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
    fn finish(self) -> Result<SourceRecord, DataError> {
        if self.documents == 0 {
            return Err(match self.first_bad {
                Some(first) => DataError::EveryRecordBad {
                    given: self.given,
                    count: self.bad,
                    first,
                    fields: self.fields,
                },
                None => DataError::SourceEmpty {
                    given: self.given,
                    cause: "holds no document".into(),
                },
            });
        }
        let sha256 = match self.hashes.as_slice() {
            [(sha256, _)] => sha256.clone(),
            several => {
                let listing: String = several
                    .iter()
                    .map(|(sha256, name)| format!("{sha256}  {name}\n"))
                    .collect();
                hex(&Sha256::digest(listing))
            }
        };
        Ok(SourceRecord {
            path: self.given,
            files: self.hashes.len() as u64,
            bytes: self.bytes,
            documents: self.documents,
            sha256,
        })
    }
}

impl CurrentFile {
    fn open(file: SourceFile, field: &str, bytes_read: &Arc<AtomicU64>) -> Result<Self, DataError> {
        let tally = Tally::new(bytes_read);
        let name = file.name;
        let open = || File::open(&file.path).map_err(DataError::io(&file.path));
        let lines = |input: Box<dyn BufRead + Send>| {
            Records::Lines(Lines {
                input,
                line: 0,
                field: field.into(),
                file: name.clone(),
            })
        };
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
                Parquet::open(open()?, field, name.clone())?
            }
        };
        Ok(Self { name, records, tally })
    }
}

/// The hash and length of a file while something else reads it.
#[derive(Clone)]
struct Tally {
    hash: Arc<Mutex<(Sha256, u64)>>,
    bytes_read: Arc<AtomicU64>,
}

impl Tally {
    fn new(bytes_read: &Arc<AtomicU64>) -> Self {
        Self {
            hash: Arc::default(),
            bytes_read: bytes_read.clone(),
        }
    }

    fn add(&self, bytes: &[u8]) {
        let mut hash = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        hash.0.update(bytes);
        hash.1 += bytes.len() as u64;
        self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    fn finish(&self) -> (String, u64) {
        let hash = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        (hex(&hash.0.clone().finalize()), hash.1)
    }
}

struct Counted {
    input: File,
    tally: Tally,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.tally.add(&buffer[..count]);
        Ok(count)
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Record {
    line: u64,
    content: Content,
}

enum Content {
    /// A whole document.
    Text(String),
    /// A piece of a document that is too long to hold.
    Piece { text: String, opens: bool, closes: bool },
    /// `count` records from here on cannot be used.
    Bad {
        cause: String,
        fields: Vec<String>,
        count: u64,
    },
}

impl Content {
    fn bad(cause: impl Into<String>) -> Self {
        Self::Bad {
            cause: cause.into(),
            fields: Vec::new(),
            count: 1,
        }
    }

    fn of_bytes(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::bad(format!("invalid UTF-8 at byte {}", error.utf8_error().valid_up_to())),
        }
    }
}

enum Records {
    Lines(Lines),
    Text(Text),
    Parquet(Box<Parquet>),
    Once(Option<Record>),
}

impl Records {
    fn next(&mut self) -> Result<Option<Record>, DataError> {
        match self {
            Self::Lines(lines) => lines.next(),
            Self::Text(text) => text.next(),
            Self::Parquet(parquet) => parquet.next(),
            Self::Once(record) => Ok(record.take()),
        }
    }
}

/// Records that are lines of json.
struct Lines {
    input: Box<dyn BufRead + Send>,
    line: u64,
    field: String,
    file: Arc<str>,
}

impl Lines {
    fn next(&mut self) -> Result<Option<Record>, DataError> {
        loop {
            let (bytes, whole) = match self.read_line() {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(None),
                Err(cause) => {
                    let (file, line) = (self.file.to_string(), self.line);
                    return Err(DataError::DamagedSource {
                        file,
                        line,
                        cause: cause.to_string(),
                    });
                }
            };
            self.line += 1;
            let text = bytes
                .strip_prefix(b"\xef\xbb\xbf")
                .filter(|_| self.line == 1)
                .unwrap_or(&bytes);
            let content = if !whole {
                Content::bad(format!("longer than {} MiB", RECORD_BYTES >> 20))
            } else if text.trim_ascii().is_empty() {
                continue;
            } else {
                self.parse(text.trim_ascii_end())
            };
            return Ok(Some(Record {
                line: self.line,
                content,
            }));
        }
    }

    /// The next line, and whether all of it was kept.
    fn read_line(&mut self) -> io::Result<Option<(Vec<u8>, bool)>> {
        let mut line = Vec::new();
        let mut length = 0;
        loop {
            let available = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                available => available?,
            };
            if available.is_empty() {
                return Ok((length > 0).then_some((line, length <= RECORD_BYTES)));
            }
            let end = available.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(available.len(), |end| end + 1);
            length += used;
            if length <= RECORD_BYTES {
                line.extend_from_slice(&available[..used]);
            }
            self.input.consume(used);
            if end.is_some() {
                return Ok(Some((line, length <= RECORD_BYTES)));
            }
        }
    }

    fn parse(&self, line: &[u8]) -> Content {
        let line = match std::str::from_utf8(line) {
            Ok(line) => line,
            Err(error) => return Content::bad(format!("invalid UTF-8 at byte {}", error.valid_up_to())),
        };
        let mut json = serde_json::Deserializer::from_str(line);
        let found = FieldSeed { name: &self.field }
            .deserialize(&mut json)
            .and_then(|found| json.end().map(|()| found));
        match found {
            Ok(Found {
                text: Some(Value::Text(text)),
                ..
            }) => Content::Text(text),
            Ok(Found {
                text: Some(Value::Other),
                ..
            }) => Content::bad(format!("field `{}` is not a string", self.field)),
            Ok(Found { text: None, fields }) => Content::Bad {
                cause: format!("field `{}` is missing", self.field),
                fields,
                count: 1,
            },
            // serde_json counts lines within the record; the record's own line is named already.
            Err(error) => {
                let cause = error.to_string();
                let cause = cause
                    .rsplit_once(" at line ")
                    .map_or(cause.as_str(), |(cause, _)| cause);
                Content::bad(format!("malformed json at column {}: {cause}", error.column()))
            }
        }
    }
}

/// What a json object says under one name.
struct Found {
    text: Option<Value>,
    fields: Vec<String>,
}

/// A json value, of which only text matters.
enum Value {
    Text(String),
    Other,
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Self::Text(text),
            _ => Self::Other,
        })
    }
}

struct FieldSeed<'a> {
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = Found;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a json object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Found {
            text: None,
            fields: Vec::new(),
        };
        while let Some(key) = map.next_key::<String>()? {
            if key == self.name {
                found.text = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
                if found.text.is_none() && found.fields.len() < 12 {
                    found.fields.push(key);
                }
            }
        }
        Ok(found)
    }
}

/// One document from a text file, in pieces.
struct Text {
    input: File,
    name: Arc<str>,
    held: Vec<u8>,
    opens: bool,
    done: bool,
}

impl Text {
    fn new(input: File, name: Arc<str>) -> Self {
        Self {
            input,
            name,
            held: Vec::new(),
            opens: true,
            done: false,
        }
    }

    fn next(&mut self) -> Result<Option<Record>, DataError> {
        if self.done {
            return Ok(None);
        }
        let name = self.name.to_string();
        let damaged = |cause: String| DataError::DamagedSource {
            file: name,
            line: 0,
            cause,
        };
        let wanted = (PIECE_BYTES + 1).saturating_sub(self.held.len()) as u64;
        if let Err(error) = (&mut self.input).take(wanted).read_to_end(&mut self.held) {
            return Err(damaged(error.to_string()));
        }
        if self.opens && self.held.starts_with(b"\xef\xbb\xbf") {
            self.held.drain(..3);
        }
        self.done = self.held.len() <= PIECE_BYTES - 3;
        // A character may be cut by the end of the buffer; it then belongs to the next piece.
        let whole = match std::str::from_utf8(&self.held) {
            Ok(text) => text,
            Err(error) if error.error_len().is_none() && !self.done => {
                std::str::from_utf8(&self.held[..error.valid_up_to()]).unwrap_or_default()
            }
            Err(_) => return Err(damaged("changed while it was read".into())),
        };
        let end = if self.done { whole.len() } else { cut(whole) };
        let text = whole[..end].to_owned();
        self.held.drain(..end);
        let opens = std::mem::take(&mut self.opens);
        Ok(Some(Record {
            line: 1,
            content: Content::Piece {
                text,
                opens,
                closes: self.done,
            },
        }))
    }
}

/// Where to end a piece of `text`: after its last line break that text follows, else before its last space.
fn cut(text: &str) -> usize {
    let bytes = text.as_bytes();
    let line = (1..bytes.len())
        .rev()
        .find(|&at| bytes[at - 1] == b'\n' && !bytes[at].is_ascii_whitespace());
    let space = || {
        (1..bytes.len())
            .rev()
            .find(|&at| bytes[at] == b' ' && bytes[at - 1] != b' ')
    };
    line.or_else(space).unwrap_or(bytes.len())
}

/// Splits a document into pieces of at most [`PIECE_BYTES`].
fn pieces(mut text: String) -> impl Iterator<Item = (String, bool, bool)> {
    let mut opens = true;
    let mut done = false;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        done = text.len() <= PIECE_BYTES;
        let piece = if done {
            std::mem::take(&mut text)
        } else {
            let end = cut(&text[..text.floor_char_boundary(PIECE_BYTES)]);
            let rest = text.split_off(end);
            std::mem::replace(&mut text, rest)
        };
        Some((piece, std::mem::take(&mut opens), done))
    })
}

/// Where a text file stops being UTF-8.
fn first_bad_byte(input: &mut impl BufRead) -> io::Result<Option<Record>> {
    let mut line = 1;
    let mut offset = 0;
    let mut carried: Vec<u8> = Vec::new();
    let bad = |line, at: u64| Record {
        line,
        content: Content::bad(format!("invalid UTF-8 at byte {at}")),
    };
    loop {
        let available = input.fill_buf()?;
        let read = available.len();
        carried.extend_from_slice(available);
        input.consume(read);
        let valid = match std::str::from_utf8(&carried) {
            Ok(text) => text.len(),
            Err(error) => {
                let valid = error.valid_up_to();
                if error.error_len().is_some() || read == 0 {
                    line += newlines(&carried[..valid]);
                    return Ok(Some(bad(line, offset + valid as u64)));
                }
                valid
            }
        };
        if read == 0 {
            return Ok(None);
        }
        line += newlines(&carried[..valid]);
        offset += valid as u64;
        carried.drain(..valid);
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// The text column of a parquet file, read row group by row group.
struct Parquet {
    reader: SerializedFileReader<File>,
    file: Arc<str>,
    column: usize,
    nullable: bool,
    row_groups: std::ops::Range<usize>,
    rows: Option<ColumnReaderImpl<ByteArrayType>>,
    ready: VecDeque<Content>,
    line: u64,
}

impl Parquet {
    fn open(input: File, field: &str, file: Arc<str>) -> Result<Records, DataError> {
        let reader = SerializedFileReader::new(input).map_err(|error| DataError::DamagedSource {
            file: file.to_string(),
            line: 0,
            cause: error.to_string(),
        })?;
        let metadata = reader.metadata().file_metadata();
        let columns = metadata.schema_descr().columns();
        let count = metadata.num_rows().max(1).unsigned_abs();
        let unusable = |cause, fields| {
            Ok(Records::Once(Some(Record {
                line: 1,
                content: Content::Bad { cause, fields, count },
            })))
        };
        let Some(column) = columns.iter().position(|column| column.path().string() == field) else {
            let fields = columns.iter().map(|column| column.path().string()).take(12).collect();
            return unusable(format!("field `{field}` is missing"), fields);
        };
        let description = &columns[column];
        if description.physical_type() != PhysicalType::BYTE_ARRAY || description.max_rep_level() > 0 {
            return unusable(format!("field `{field}` is not a string"), Vec::new());
        }
        let nullable = description.max_def_level() > 0;
        let row_groups = 0..reader.num_row_groups();
        let (rows, ready) = (None, VecDeque::new());
        Ok(Records::Parquet(Box::new(Self {
            reader,
            file,
            column,
            nullable,
            row_groups,
            rows,
            ready,
            line: 0,
        })))
    }

    fn next(&mut self) -> Result<Option<Record>, DataError> {
        loop {
            if let Some(content) = self.ready.pop_front() {
                self.line += 1;
                return Ok(Some(Record {
                    line: self.line,
                    content,
                }));
            }
            let more = self.fill().map_err(|cause| DataError::DamagedSource {
                file: self.file.to_string(),
                line: self.line,
                cause: cause.to_string(),
            })?;
            if !more {
                return Ok(None);
            }
        }
    }

    fn fill(&mut self) -> parquet::errors::Result<bool> {
        let Some(rows) = &mut self.rows else {
            let Some(group) = self.row_groups.next() else {
                return Ok(false);
            };
            if let ColumnReader::ByteArrayColumnReader(rows) =
                self.reader.get_row_group(group)?.get_column_reader(self.column)?
            {
                self.rows = Some(rows);
            }
            return Ok(true);
        };
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let (records, _, _) = rows.read_records(PARQUET_ROWS, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            self.rows = None;
            return Ok(true);
        }
        // A value stands only where the level is the highest one; an absent value is a null.
        let highest = i16::from(self.nullable)
            * self
                .reader
                .metadata()
                .file_metadata()
                .schema_descr()
                .column(self.column)
                .max_def_level();
        let mut values = values.into_iter();
        for row in 0..records {
            let present = !self.nullable || levels.get(row) == Some(&highest);
            self.ready.push_back(match present.then(|| values.next()).flatten() {
                Some(value) if value.len() <= RECORD_BYTES => Content::of_bytes(value.data().to_vec()),
                Some(_) => Content::bad(format!("longer than {} MiB", RECORD_BYTES >> 20)),
                None => Content::bad("the text is null"),
            });
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::ByteArray;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::fs;
    use std::io::Write;

    fn read(given: &str, options: ReadOptions) -> (Result<Vec<Document>, DataError>, Documents) {
        let mut documents = Documents::open(&[given.to_owned()], options).unwrap();
        (documents.by_ref().collect(), documents)
    }

    fn texts(given: &Path) -> Vec<String> {
        let (documents, _) = read(given.to_str().unwrap(), ReadOptions::default());
        documents.unwrap().into_iter().map(|document| document.text).collect()
    }

    fn strict() -> ReadOptions {
        ReadOptions {
            strict: true,
            ..ReadOptions::default()
        }
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn write_parquet(path: &Path, column: &str, texts: &[Option<&[u8]>]) {
        let schema = format!("message documents {{ REQUIRED INT64 id; OPTIONAL BINARY {column} (UTF8); }}");
        let schema = Arc::new(parse_message_type(&schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
        for part in texts.chunks(100) {
            let mut group = writer.next_row_group().unwrap();
            let mut ids = group.next_column().unwrap().unwrap();
            let numbers: Vec<i64> = (0..part.len() as i64).collect();
            ids.typed::<parquet::data_type::Int64Type>()
                .write_batch(&numbers, None, None)
                .unwrap();
            ids.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> = part
                .iter()
                .flatten()
                .map(|text| ByteArray::from(text.to_vec()))
                .collect();
            let levels: Vec<i16> = part.iter().map(|text| i16::from(text.is_some())).collect();
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, Some(&levels), None)
                .unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    #[test]
    fn each_format_gives_its_documents() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let lines = "{\"text\": \"one\", \"url\": \"x\"}\n\n{\"id\": [1, {}], \"text\": \"zw\\u00f6lf\"}";
        fs::write(path("a.jsonl"), format!("\u{feff}{lines}")).unwrap();
        let mut members = gzip("{\"text\": \"one\"}\n");
        members.extend(gzip("{\"text\": \"zwölf\"}\n"));
        fs::write(path("b.jsonl.gz"), members).unwrap();
        fs::write(path("c.JSONL.ZST"), zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
        write_parquet(&path("d.parquet"), "text", &[Some(b"one"), Some("zwölf".as_bytes())]);
        for file in ["a.jsonl", "b.jsonl.gz", "c.JSONL.ZST", "d.parquet"] {
            assert_eq!(texts(&path(file)), ["one", "zwölf"], "{file}");
        }
        fs::write(path("e.txt"), "one\nzwölf").unwrap();
        fs::write(path("f.csv"), "not read").unwrap();
        assert_eq!(texts(&path("e.txt")), ["one\nzwölf"]);
        assert_eq!(texts(place.path()).len(), 9);
        assert_eq!(texts(&path("*.jsonl*")).len(), 4);
    }

    #[test]
    fn bad_records_are_counted_named_and_skipped_or_stop_a_strict_reader() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.jsonl");
        let mut text = b"{\"text\": \"good\"}\n{\"text\": \n{\"text\": 3}\n{\"body\": \"x\"}\n[1]\n".to_vec();
        text.extend(b"{\"text\": \"\xff\"}\n{\"text\": \"good too\"} trailing\n{\"text\": \"last\"}");
        fs::write(&path, &text).unwrap();
        let given = path.to_str().unwrap();
        let (documents, after) = read(given, ReadOptions::default());
        let documents = documents.unwrap();
        assert_eq!(
            documents.iter().map(|document| document.line).collect::<Vec<_>>(),
            [1, 8]
        );
        assert_eq!(after.skipped().bad, 6);
        let causes = [
            "malformed json",
            "field `text` is not a string",
            "field `text` is missing",
            "malformed json",
            "invalid UTF-8 at byte 10",
        ];
        assert_eq!(after.skipped().first.len(), causes.len());
        for (at, (said, cause)) in after.skipped().first.iter().zip(causes).enumerate() {
            assert!(said.starts_with(&format!("{given}:{}: {cause}", at + 2)), "{said}");
        }
        let record = &after.sources()[0];
        assert_eq!((record.documents, record.bytes), (2, text.len() as u64));
        assert_eq!(record.sha256, hex(&Sha256::digest(&text)));

        let (documents, mut after) = read(given, strict());
        match documents.unwrap_err() {
            DataError::BadRecord { line, file, .. } => assert_eq!((line, file.as_str()), (2, given)),
            other => panic!("{other}"),
        }
        assert!(after.next().is_none(), "nothing follows an error");
    }

    #[test]
    fn a_source_without_a_usable_record_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let refused = |path: &Path| read(path.to_str().unwrap(), ReadOptions::default()).0.unwrap_err();
        fs::write(
            path("a.jsonl"),
            "{\"content\": \"a\", \"url\": 1}\n{\"content\": \"b\"}\n",
        )
        .unwrap();
        let error = refused(&path("a.jsonl"));
        assert!(
            error
                .to_string()
                .contains("holds no good record; of 2 bad the first is"),
            "{error}"
        );
        assert!(
            error.to_string().ends_with("a.jsonl:1: field `text` is missing"),
            "{error}"
        );
        assert_eq!(
            error.hint().unwrap(),
            "name the text field with --field; seen: `content`, `url`"
        );
        write_parquet(&path("b.parquet"), "body", &[Some(b"x"), None]);
        let error = refused(&path("b.parquet"));
        assert!(error.hint().unwrap().ends_with("seen: `id`, `body`"), "{error}");
        fs::write(path("c.jsonl"), "\n\n").unwrap();
        assert!(matches!(refused(&path("c.jsonl")), DataError::SourceEmpty { .. }));
        fs::write(path("d.txt"), b"caf\xe9 au lait").unwrap();
        assert!(
            refused(&path("d.txt"))
                .to_string()
                .ends_with("d.txt:1: invalid UTF-8 at byte 3")
        );
        fs::create_dir(path("empty")).unwrap();
        for (given, kind) in [
            ("empty", "holds no file"),
            ("*.nothing", "matches no file"),
            ("none", "does not exist"),
        ] {
            let error = Source::find(path(given).to_str().unwrap()).unwrap_err();
            assert!(error.to_string().contains(kind), "{error}");
        }
        fs::write(path("e.csv"), "a,b").unwrap();
        assert!(matches!(
            Source::find(path("e.csv").to_str().unwrap()),
            Err(DataError::UnknownFormat { .. })
        ));
    }

    #[test]
    fn damaged_files_are_errors_and_never_panics() {
        let place = tempfile::tempdir().unwrap();
        let lines: String = (0..200)
            .map(|n| format!("{{\"text\": \"line {n} {}\"}}\n", n * 7919))
            .collect();
        let parquet = place.path().join("whole.parquet");
        let texts: Vec<String> = (0..300).map(|n| format!("row {n}")).collect();
        write_parquet(
            &parquet,
            "text",
            &texts.iter().map(|text| Some(text.as_bytes())).collect::<Vec<_>>(),
        );
        let whole = [
            ("a.jsonl.gz", gzip(&lines)),
            ("a.jsonl.zst", zstd::encode_all(lines.as_bytes(), 1).unwrap()),
            ("a.parquet", fs::read(&parquet).unwrap()),
        ];
        for (name, bytes) in whole {
            let path = place.path().join(name);
            for keep in [1, bytes.len() / 2, bytes.len() - 1] {
                fs::write(&path, &bytes[..keep]).unwrap();
                let error = read(path.to_str().unwrap(), ReadOptions::default()).0.unwrap_err();
                assert!(error.to_string().contains(name), "{error}");
                assert_eq!(error.to_string().lines().count(), 1, "{error}");
            }
            for at in (0..bytes.len()).step_by(bytes.len() / 300 + 1) {
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x55;
                fs::write(&path, flipped).unwrap();
                // Some changes are harmless or fall inside the text: what counts is that reading ends.
                drop(read(path.to_str().unwrap(), ReadOptions::default()));
            }
        }
    }

    #[test]
    fn nulls_and_bad_text_in_a_column_are_bad_rows() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.parquet");
        let mut rows: Vec<Option<&[u8]>> = vec![Some(b"text"); 250];
        rows[3] = None;
        rows[220] = Some(b"\xff");
        write_parquet(&path, "text", &rows);
        let (documents, after) = read(path.to_str().unwrap(), ReadOptions::default());
        assert_eq!(documents.unwrap().len(), 248);
        assert_eq!(after.skipped().bad, 2);
        assert!(after.skipped().first[0].ends_with("a.parquet:4: the text is null"));
        assert!(after.skipped().first[1].ends_with("a.parquet:221: invalid UTF-8 at byte 0"));
    }

    #[test]
    fn long_documents_come_in_pieces_that_join_to_the_document() {
        let place = tempfile::tempdir().unwrap();
        let text: String = (0..).map(|n| format!("Größe {n}\n")).take(300_000).collect();
        fs::write(place.path().join("a.txt"), &text).unwrap();
        fs::write(
            place.path().join("b.jsonl"),
            serde_json::json!({ "text": text }).to_string(),
        )
        .unwrap();
        for name in ["a.txt", "b.jsonl"] {
            let (documents, after) = read(place.path().join(name).to_str().unwrap(), ReadOptions::default());
            let documents = documents.unwrap();
            assert!(documents.len() > 3 && documents.iter().all(|piece| piece.text.len() <= PIECE_BYTES + 1));
            assert_eq!(
                documents.iter().map(|piece| piece.text.as_str()).collect::<String>(),
                text
            );
            assert_eq!(documents.iter().filter(|piece| piece.opens).count(), 1);
            assert!(documents[0].opens && documents.last().unwrap().closes);
            assert!(
                documents[..documents.len() - 1]
                    .iter()
                    .all(|piece| piece.text.ends_with('\n') && !piece.closes)
            );
            assert_eq!(after.sources()[0].documents, 1);
        }
        // Without a line break or a space there is no good place to cut, but still a character boundary.
        let text = "ß".repeat(PIECE_BYTES);
        assert_eq!(
            pieces(text.clone()).map(|(piece, _, _)| piece).collect::<String>(),
            text
        );
        fs::write(place.path().join("c.txt"), &text).unwrap();
        assert_eq!(texts(&place.path().join("c.txt")).concat(), text);
    }
}
