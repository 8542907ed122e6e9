//! The text column of a parquet file, read row group by row group.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::ByteArrayType;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::record::{Content, RECORD_BYTES, Record, RecordFault};
use super::records::Records;
use crate::error::DataError;

/// Rows read from a parquet column at once.
const ROWS: usize = 64;

/// The text column of a parquet file, read row group by row group.
pub(super) struct Parquet {
    reader: SerializedFileReader<File>,
    file: Arc<str>,
    column: usize,
    nullable: bool,
    row_groups: Range<usize>,
    rows: Option<ColumnReaderImpl<ByteArrayType>>,
    ready: VecDeque<Content>,
    line: u64,
}

impl Parquet {
    /// Opens a file; where its column `field` cannot be read, the bad content that stands for all rows.
    pub(super) fn open(input: File, field: &str, file: Arc<str>) -> Result<Result<Self, Content>, DataError> {
        let reader = SerializedFileReader::new(input).map_err(|error| DataError::DamagedSource {
            file: file.to_string(),
            line: 0,
            cause: error.to_string(),
        })?;
        let metadata = reader.metadata().file_metadata();
        let columns = metadata.schema_descr().columns();
        let count = metadata.num_rows().max(1).unsigned_abs();
        let unusable = |fault| Ok(Err(Content::Bad { fault, count }));
        let Some(column) = columns.iter().position(|column| column.path().string() == field) else {
            let seen = columns.iter().map(|column| column.path().string()).take(12).collect();
            let field = field.into();
            return unusable(RecordFault::FieldMissing { field, seen });
        };
        let description = &columns[column];
        if description.physical_type() != PhysicalType::BYTE_ARRAY || description.max_rep_level() > 0 {
            return unusable(RecordFault::NotAString { field: field.into() });
        }
        let nullable = description.max_def_level() > 0;
        let row_groups = 0..reader.num_row_groups();
        let (rows, ready) = (None, VecDeque::new());
        Ok(Ok(Self {
            reader,
            file,
            column,
            nullable,
            row_groups,
            rows,
            ready,
            line: 0,
        }))
    }
}

impl Records for Parquet {
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
}

impl Parquet {
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
        let (records, _, _) = rows.read_records(ROWS, Some(&mut levels), None, &mut values)?;
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
                Some(_) => Content::bad(RecordFault::TooLong),
                None => Content::bad(RecordFault::Null),
            });
        }
        Ok(true)
    }
}
