//! A text file as one document, and how long documents are cut into pieces.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

use super::record::{Content, Record};
use crate::error::DataError;

/// A document longer than this many bytes arrives as several pieces, each but the last cut after a line break.
pub const PIECE_BYTES: usize = 1 << 20;

/// One document from a text file, in pieces.
pub(super) struct Text {
    input: File,
    name: Arc<str>,
    held: Vec<u8>,
    opens: bool,
    done: bool,
}

impl Text {
    pub(super) fn new(input: File, name: Arc<str>) -> Self {
        Self {
            input,
            name,
            held: Vec::new(),
            opens: true,
            done: false,
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Record>, DataError> {
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

/// Where a text file stops being UTF-8.
pub(super) fn first_bad_byte(input: &mut impl BufRead) -> io::Result<Option<Record>> {
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
