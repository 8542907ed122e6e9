//! A record of a source's file, whatever the format: a document, a piece of one, or a cause why it cannot be used.

/// A record longer than this many bytes is a bad record: no real document is, and memory stays bounded.
pub(super) const RECORD_BYTES: usize = 64 << 20;

/// What stands at a line or row of a file.
pub(super) struct Record {
    pub(super) line: u64,
    pub(super) content: Content,
}

pub(super) enum Content {
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
    pub(super) fn bad(cause: impl Into<String>) -> Self {
        Self::Bad {
            cause: cause.into(),
            fields: Vec::new(),
            count: 1,
        }
    }

    pub(super) fn of_bytes(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::bad(format!("invalid UTF-8 at byte {}", error.utf8_error().valid_up_to())),
        }
    }
}
