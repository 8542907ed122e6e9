//! A text file that holds several documents with a separator between them.

use std::io::Read;
use std::sync::Arc;

use super::contents::MARK;
use super::record::{Content, Record};
use super::records::Records;
use super::text::{PIECE_BYTES, count_line_breaks, cut};
use crate::error::DataError;

/// The documents of a text file, cut at a separator, long ones in pieces.
///
/// A line break before and one after a separator belong to it, and nothing between two separators is no document.
pub(super) struct Separated {
    input: Box<dyn Read + Send>,
    name: Arc<str>,
    separator: String,
    /// Text that was read, of which the first `used` bytes were given out.
    held: String,
    used: usize,
    /// The beginning of a character whose end was not read yet.
    character: Vec<u8>,
    began: bool,
    ended: bool,
    opens: bool,
    after_separator: bool,
    line: u64,
    cuts: u64,
}

impl Separated {
    pub(super) fn new(input: Box<dyn Read + Send>, name: Arc<str>, separator: String) -> Self {
        Self {
            input,
            name,
            separator,
            held: String::new(),
            used: 0,
            character: Vec::new(),
            began: false,
            ended: false,
            opens: true,
            after_separator: false,
            line: 1,
            cuts: 0,
        }
    }
}

impl Records for Separated {
    fn next(&mut self) -> Result<Option<Record>, DataError> {
        // More than a piece by what a separator and its line break take.
        let full = PIECE_BYTES + self.margin();
        loop {
            if std::mem::take(&mut self.after_separator) {
                self.hold(2)?;
                self.take_line_break();
            }
            let mut found = self.find();
            if found.is_none() && !self.ended {
                self.hold(full)?;
                found = self.find();
            }
            let text = &self.held[self.used..];
            if let Some(at) = found {
                let body = text[..at].strip_suffix('\n').unwrap_or(&text[..at]);
                let body = if body.len() < at {
                    body.strip_suffix('\r').unwrap_or(body)
                } else {
                    body
                };
                let body = body.len();
                let record = self.piece(body, true);
                self.take(at - body + self.separator.len());
                (self.cuts, self.after_separator) = (self.cuts + 1, true);
                if record.is_some() {
                    return Ok(record);
                }
            } else if self.ended {
                let rest = text.len();
                return Ok(self.piece(rest, true));
            } else {
                // A separator and the line break before it may begin at the end of what is held.
                let safe = text.floor_char_boundary(text.len().saturating_sub(self.margin()));
                let end = cut(&text[..safe]);
                return Ok(self.piece(end, false));
            }
        }
    }

    fn cuts(&self) -> u64 {
        self.cuts
    }
}

impl Separated {
    fn margin(&self) -> usize {
        self.separator.len() + "\r\n".len()
    }

    /// Where the next separator begins in the text that is held.
    fn find(&self) -> Option<usize> {
        self.held[self.used..].find(&self.separator)
    }

    /// Gives out the next `length` bytes; nothing for a document without any text.
    fn piece(&mut self, length: usize, closes: bool) -> Option<Record> {
        let line = self.line;
        let text = self.take(length);
        let opens = std::mem::replace(&mut self.opens, closes);
        let content = Content::Piece { text, opens, closes };
        (length > 0 || !opens).then_some(Record { line, content })
    }

    fn take(&mut self, length: usize) -> String {
        let text = self.held[self.used..self.used + length].to_owned();
        self.used += length;
        self.line += count_line_breaks(text.as_bytes());
        text
    }

    fn take_line_break(&mut self) {
        let text = &self.held[self.used..];
        let length = ["\r\n", "\n"]
            .into_iter()
            .find(|it| text.starts_with(it))
            .map_or(0, str::len);
        self.take(length);
    }

    /// Reads until `wanted` bytes of text are held, or the file ends.
    fn hold(&mut self, wanted: usize) -> Result<(), DataError> {
        if self.ended || self.held.len() - self.used >= wanted {
            return Ok(());
        }
        let file = self.name.to_string();
        let damaged = |cause: String| DataError::DamagedSource { file, line: 0, cause };
        self.held.drain(..self.used);
        self.used = 0;
        let room = (PIECE_BYTES + self.margin()).saturating_sub(self.held.len());
        let mut bytes = std::mem::take(&mut self.character);
        match (&mut self.input).take(room as u64).read_to_end(&mut bytes) {
            Ok(read) => self.ended = read < room,
            Err(error) => return Err(damaged(error.to_string())),
        }
        let marked = !std::mem::replace(&mut self.began, true) && bytes.starts_with(MARK);
        let bytes = &bytes[if marked { MARK.len() } else { 0 }..];
        match std::str::from_utf8(bytes) {
            Ok(text) => self.held.push_str(text),
            Err(error) if error.error_len().is_none() && !self.ended => {
                let (text, character) = bytes.split_at(error.valid_up_to());
                self.held.push_str(std::str::from_utf8(text).unwrap_or_default());
                self.character = character.to_vec();
            }
            Err(_) => return Err(damaged("changed while it was read".into())),
        }
        Ok(())
    }
}
