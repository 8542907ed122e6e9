//! Sources: the files that a command line names, read as a stream of documents with the file and line of each.

mod documents;
mod file;
mod find;
mod lines;
mod parquet;
mod record;
mod tally;
mod text;

#[cfg(test)]
mod tests;

pub use self::documents::{Document, Documents, ReadOptions};
pub use self::find::Source;
pub use self::tally::{Skipped, SourceRecord};
pub use self::text::PIECE_BYTES;
