//! The records of a file: what a format has to tell how to read.

use super::record::Record;
use crate::error::DataError;

/// What reads the records of a file, by its format.
pub(super) trait Records: Send {
    /// The next record; none at the end.
    fn next(&mut self) -> Result<Option<Record>, DataError>;

    /// The separators between documents that were found so far.
    fn cuts(&self) -> u64 {
        0
    }
}

/// A file that is one bad record.
impl Records for Option<Record> {
    fn next(&mut self) -> Result<Option<Record>, DataError> {
        Ok(self.take())
    }
}
