//! Tab-separated values: a line of names, then a record on each line, whose text stands in one column.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use super::record::{Content, RECORD_BYTES, Record, RecordFault};
use super::records::Records;
use crate::error::DataError;

/// The records of a file of tab-separated values.
pub(super) struct TabSeparated {
    input: Box<dyn BufRead + Send>,
    field: String,
    /// The place of the field, once the names were read.
    column: Option<usize>,
    line: u64,
    file: Arc<str>,
}

impl TabSeparated {
    pub(super) fn new(input: Box<dyn BufRead + Send>, field: &str, file: Arc<str>) -> Self {
        Self {
            input,
            field: field.into(),
            column: None,
            line: 0,
            file,
        }
    }

    fn read(&mut self) -> io::Result<Option<Record>> {
        let Some(mut line) = self.read_line()? else {
            return Ok(None);
        };
        if self.column.is_none() {
            let names = String::from_utf8_lossy(&line).into_owned();
            self.column = names.split('\t').position(|name| name == self.field);
            if self.column.is_none() {
                // No record of the file has the field.
                io::copy(&mut self.input, &mut io::sink())?;
                let seen = names.split('\t').take(12).map(String::from).collect();
                let field = self.field.clone();
                return Ok(Some(
                    self.record(Content::bad(RecordFault::FieldMissing { field, seen })),
                ));
            }
            match self.read_line()? {
                Some(first) => line = first,
                None => return Ok(None),
            }
        }
        if line.len() > RECORD_BYTES {
            return Ok(Some(self.record(Content::bad(RecordFault::TooLong))));
        }
        let value = line.split(|byte| *byte == b'\t').nth(self.column.unwrap_or(0));
        let content = match value {
            Some(value) => Content::of_bytes(value.to_vec()),
            None => Content::bad(RecordFault::FieldMissing {
                field: self.field.clone(),
                seen: Vec::new(),
            }),
        };
        Ok(Some(self.record(content)))
    }

    fn record(&self, content: Content) -> Record {
        let line = self.line;
        Record { line, content }
    }

    /// A line without its end; of one that is too long, a byte more than is allowed.
    fn read_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let most = RECORD_BYTES as u64 + 2;
        if (&mut self.input).take(most).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        self.line += 1;
        if line.last() != Some(&b'\n') {
            self.input.skip_until(b'\n')?;
        }
        while line.last().is_some_and(|byte| b"\r\n".contains(byte)) {
            line.pop();
        }
        Ok(Some(line))
    }
}

impl Records for TabSeparated {
    fn next(&mut self) -> Result<Option<Record>, DataError> {
        self.read().map_err(|cause| DataError::DamagedSource {
            file: self.file.to_string(),
            line: self.line,
            cause: cause.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_column_of_the_field() {
        let read = |text: &'static str| {
            let mut records = TabSeparated::new(Box::new(text.as_bytes()), "text", "a.tsv".into());
            let mut found = Vec::new();
            while let Some(record) = records.next().unwrap() {
                found.push((
                    record.line,
                    match record.content {
                        Content::Text(text) => text,
                        Content::Bad { fault, .. } => fault.to_string(),
                        Content::Piece { .. } => unreachable!(),
                    },
                ));
            }
            found
        };
        let expected = [
            (2, "one".to_string()),
            (3, "two".to_string()),
            (4, "field `text` is missing".to_string()),
        ];
        assert_eq!(read("id\ttext\n1\tone\r\n2\ttwo\n3\n"), expected);
        assert_eq!(read("id\tbody\n1\tone\n"), [(1, "field `text` is missing".to_string())]);
    }
}
