//! A text file as one document, what is looked at before its first piece is used, and how long documents are cut into pieces.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use super::contents::MARK;
use super::record::{Content, Record, RecordFault};
use super::records::Records;
use crate::error::DataError;

/// A document longer than this many bytes arrives as several pieces, each but the last cut after a line break.
pub const PIECE_BYTES: usize = 1 << 20;

/// One document from a text file, in pieces.
pub(super) struct Text {
    input: Box<dyn Read + Send>,
    name: Arc<str>,
    held: Vec<u8>,
    opens: bool,
    done: bool,
}

impl Text {
    pub(super) fn new(input: Box<dyn Read + Send>, name: Arc<str>) -> Self {
        Self {
            input,
            name,
            held: Vec::new(),
            opens: true,
            done: false,
        }
    }
}

impl Records for Text {
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
        if self.opens && self.held.starts_with(MARK) {
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
pub(super) fn cut(text: &str) -> usize {
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
pub(super) fn pieces(mut text: String) -> impl Iterator<Item = (String, bool, bool)> {
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

/// What a text file turned out to hold.
#[derive(Default)]
pub(super) struct Survey {
    /// Where it stops being UTF-8.
    pub(super) bad: Option<Record>,
    /// The first of the separators that it holds.
    pub(super) separator: Option<String>,
}

/// Reads a text file once through: a bad byte in it, or else the first of `separators` that it holds.
pub(super) fn survey(input: &mut impl BufRead, separators: &[String]) -> io::Result<Survey> {
    let (mut line, mut offset) = (1, 0);
    let mut carried: Vec<u8> = Vec::new();
    // The end of what was searched, in which a separator may begin.
    let mut searched = String::new();
    let overlap = separators.iter().map(String::len).max().unwrap_or(0);
    // Of the separators that are found, the first in the list.
    let mut found = separators.len();
    loop {
        let available = input.fill_buf()?;
        let read = available.len();
        carried.extend_from_slice(available);
        input.consume(read);
        let (text, wrong) = match std::str::from_utf8(&carried) {
            Ok(text) => (text, false),
            Err(error) => {
                let text = std::str::from_utf8(&carried[..error.valid_up_to()]).unwrap_or_default();
                (text, error.error_len().is_some() || read == 0)
            }
        };
        line += count_line_breaks(text.as_bytes());
        if wrong {
            let at = offset + text.len() as u64;
            let content = Content::bad(RecordFault::Utf8 { at });
            return Ok(Survey {
                bad: Some(Record { line, content }),
                separator: None,
            });
        }
        if found > 0 {
            searched.push_str(text);
            let first = separators[..found].iter().position(|it| searched.contains(it.as_str()));
            found = first.unwrap_or(found);
            let keep = searched.floor_char_boundary(searched.len().saturating_sub(overlap));
            searched.drain(..keep);
        }
        if read == 0 {
            return Ok(Survey {
                bad: None,
                separator: separators.get(found).cloned(),
            });
        }
        let valid = text.len();
        offset += valid as u64;
        carried.drain(..valid);
    }
}

pub(super) fn count_line_breaks(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}
