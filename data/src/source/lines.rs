//! Records of json: one on each line, or the members of an array, or objects that run over several lines.
//!
//! Which of these a file holds is told by how it begins, so that a damaged line never changes how the rest is read.

use std::io::{self, BufRead};
use std::sync::Arc;

use super::contents::MARK;
use super::json;
use super::record::{Content, RECORD_BYTES, Record, RecordFault};
use super::records::Records;
use super::text::count_line_breaks;
use crate::error::DataError;

/// The records of a json file.
pub(super) struct Lines {
    input: Box<dyn BufRead + Send>,
    layout: Layout,
    /// Lines read, or records where they are not lines.
    line: u64,
    /// Line breaks passed over where records are not lines.
    line_breaks: u64,
    field: String,
    file: Arc<str>,
    names_said: bool,
}

/// How records lie in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Unknown,
    /// One on each line.
    Lines,
    /// The members of one array.
    Array,
    /// Objects over several lines, as `json.dumps(…, indent=2)` and `jq` write them.
    Objects,
}

/// The bytes of a record.
struct RecordBytes {
    bytes: Vec<u8>,
    length: usize,
}

impl RecordBytes {
    fn new() -> Self {
        let (bytes, length) = (Vec::new(), 0);
        Self { bytes, length }
    }

    /// Adds bytes; those of a record that is too long are only counted.
    fn extend(&mut self, more: &[u8]) {
        self.length += more.len();
        if self.length <= RECORD_BYTES {
            self.bytes.extend_from_slice(more);
        }
    }

    fn is_whole(&self) -> bool {
        self.length <= RECORD_BYTES
    }
}

impl Lines {
    pub(super) fn new(input: Box<dyn BufRead + Send>, field: &str, file: Arc<str>) -> Self {
        Self {
            input,
            layout: Layout::Unknown,
            line: 0,
            line_breaks: 0,
            field: field.into(),
            file,
            names_said: false,
        }
    }
}

impl Records for Lines {
    fn next(&mut self) -> Result<Option<Record>, DataError> {
        self.read().map_err(|cause| DataError::DamagedSource {
            file: self.file.to_string(),
            line: self.line,
            cause: cause.to_string(),
        })
    }
}

impl Lines {
    fn read(&mut self) -> io::Result<Option<Record>> {
        loop {
            let record = match self.layout {
                Layout::Unknown => {
                    self.layout = self.tell_layout()?;
                    continue;
                }
                Layout::Lines => self.read_line()?,
                Layout::Objects => match self.pass_over(|byte| byte.is_ascii_whitespace())? {
                    Some(_) => self.read_value()?,
                    None => None,
                },
                Layout::Array => match self.pass_over(|byte| byte.is_ascii_whitespace() || byte == b',')? {
                    Some(b']') => {
                        self.input.consume(1);
                        self.leave_array();
                        continue;
                    }
                    Some(_) => self.read_value()?,
                    None => {
                        let line = self.line + 1;
                        self.leave_array();
                        let content = Content::bad(RecordFault::ArrayCutOff);
                        return Ok(Some(Record { line, content }));
                    }
                },
            };
            let Some(record) = record else { return Ok(None) };
            self.line += 1;
            let content = if !record.is_whole() {
                Content::bad(RecordFault::TooLong)
            } else {
                // Files that were joined keep a mark at the beginning of each.
                let text = record.bytes.strip_prefix(MARK).unwrap_or(&record.bytes);
                if text.trim_ascii().is_empty() {
                    continue;
                }
                self.parse(text.trim_ascii_end())
            };
            let line = self.line;
            return Ok(Some(Record { line, content }));
        }
    }

    fn parse(&mut self, record: &[u8]) -> Content {
        let mut content = json::parse(record, &self.field);
        if let Content::Bad {
            fault: RecordFault::FieldMissing { seen, .. },
            ..
        } = &mut content
            && !std::mem::replace(&mut self.names_said, true)
        {
            *seen = json::field_names(record);
        }
        content
    }

    /// Looks at the beginning of the file without reading on.
    fn tell_layout(&mut self) -> io::Result<Layout> {
        let opening = self.input.fill_buf()?;
        let marked = opening.strip_prefix(MARK).unwrap_or(opening);
        let text = marked.trim_ascii_start();
        let Some((&first, rest)) = text.split_first() else {
            return Ok(Layout::Lines);
        };
        let following = rest.trim_ascii_start();
        let breaks = rest[..rest.len() - following.len()].contains(&b'\n');
        match (first, following.first()) {
            (b'[', Some(b'{') | None) => {
                let used = opening.len() - rest.len();
                self.input.consume(used);
                Ok(Layout::Array)
            }
            (b'{', Some(b'"')) if breaks => {
                let used = opening.len() - text.len();
                self.input.consume(used);
                Ok(Layout::Objects)
            }
            _ => Ok(Layout::Lines),
        }
    }

    fn fill(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The borrow checker wants the answer of a second call, which reads nothing.
                Ok(_) => return self.input.fill_buf(),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next line.
    fn read_line(&mut self) -> io::Result<Option<RecordBytes>> {
        let mut line = RecordBytes::new();
        loop {
            let available = self.fill()?;
            if available.is_empty() {
                return Ok((line.length > 0).then_some(line));
            }
            let end = available.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(available.len(), |end| end + 1);
            line.extend(&available[..used]);
            self.input.consume(used);
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }

    /// What follows an array is read as lines, the rest of its last line first.
    fn leave_array(&mut self) {
        (self.layout, self.line) = (Layout::Lines, self.line_breaks);
    }

    /// Passes over bytes between two values: the first other byte, if the file does not end.
    fn pass_over(&mut self, between: fn(u8) -> bool) -> io::Result<Option<u8>> {
        loop {
            let available = self.fill()?;
            let used = available.iter().take_while(|&&byte| between(byte)).count();
            let (found, ends) = (available.get(used).copied(), available.is_empty());
            let line_breaks = count_line_breaks(&available[..used]);
            self.input.consume(used);
            self.line_breaks += line_breaks;
            if found.is_some() || ends {
                return Ok(found);
            }
        }
    }

    /// The next value, up to the bracket that closes it; a value without brackets ends before a comma, a bracket or a
    /// line's end.
    fn read_value(&mut self) -> io::Result<Option<RecordBytes>> {
        let mut value = RecordBytes::new();
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        loop {
            let available = self.fill()?;
            if available.is_empty() {
                return Ok((value.length > 0).then_some(value));
            }
            let mut ends = None;
            for (at, &byte) in available.iter().enumerate() {
                if in_string {
                    (escaped, in_string) = (!escaped && byte == b'\\', escaped || byte != b'"');
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 0 => {
                        depth -= 1;
                        if depth == 0 {
                            ends = Some(at + 1);
                        }
                    }
                    // At least one byte is taken, so that reading ends.
                    b',' | b'\n' | b']' | b'}' if depth == 0 && (at > 0 || value.length > 0) => ends = Some(at),
                    _ => {}
                }
                if ends.is_some() {
                    break;
                }
            }
            let used = ends.unwrap_or(available.len());
            value.extend(&available[..used]);
            let line_breaks = count_line_breaks(&available[..used]);
            self.input.consume(used);
            self.line_breaks += line_breaks;
            if ends.is_some() {
                return Ok(Some(value));
            }
        }
    }
}
