//! Sources: the files that a command line names, read as a stream of documents with the file and line of each.

mod contents;
mod documents;
mod file;
mod find;
mod gzip;
mod json;
mod left_out;
mod lines;
mod options;
mod parquet;
mod record;
mod records;
mod separated;
mod separator;
mod tally;
mod text;

#[cfg(test)]
mod tests;

pub use self::contents::{Encoding, Foreign, Unreadable};
pub use self::documents::{Document, Documents};
pub use self::find::Source;
pub use self::left_out::{LeftOut, LeftOutReason};
pub use self::options::ReadOptions;
pub use self::record::RecordFault;
pub use self::separator::Separator;
pub use self::tally::{Skipped, SourceRecord};
pub use self::text::PIECE_BYTES;
