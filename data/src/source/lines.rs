//! Records that are lines of json, of which one field is text.

use std::io::{self, BufRead};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::record::{Content, RECORD_BYTES, Record};
use crate::error::DataError;

/// Records that are lines of json.
pub(super) struct Lines {
    input: Box<dyn BufRead + Send>,
    line: u64,
    field: String,
    file: Arc<str>,
}

impl Lines {
    pub(super) fn new(input: Box<dyn BufRead + Send>, field: &str, file: Arc<str>) -> Self {
        Self {
            input,
            line: 0,
            field: field.into(),
            file,
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Record>, DataError> {
        loop {
            let (bytes, whole) = match self.read_line() {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(None),
                Err(cause) => {
                    let (file, line) = (self.file.to_string(), self.line);
                    return Err(DataError::DamagedSource {
                        file,
                        line,
                        cause: cause.to_string(),
                    });
                }
            };
            self.line += 1;
            let text = bytes
                .strip_prefix(b"\xef\xbb\xbf")
                .filter(|_| self.line == 1)
                .unwrap_or(&bytes);
            let content = if !whole {
                Content::bad(format!("longer than {} MiB", RECORD_BYTES >> 20))
            } else if text.trim_ascii().is_empty() {
                continue;
            } else {
                self.parse(text.trim_ascii_end())
            };
            return Ok(Some(Record {
                line: self.line,
                content,
            }));
        }
    }

    /// The next line, and whether all of it was kept.
    fn read_line(&mut self) -> io::Result<Option<(Vec<u8>, bool)>> {
        let mut line = Vec::new();
        let mut length = 0;
        loop {
            let available = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                available => available?,
            };
            if available.is_empty() {
                return Ok((length > 0).then_some((line, length <= RECORD_BYTES)));
            }
            let end = available.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(available.len(), |end| end + 1);
            length += used;
            if length <= RECORD_BYTES {
                line.extend_from_slice(&available[..used]);
            }
            self.input.consume(used);
            if end.is_some() {
                return Ok(Some((line, length <= RECORD_BYTES)));
            }
        }
    }

    fn parse(&self, line: &[u8]) -> Content {
        let line = match std::str::from_utf8(line) {
            Ok(line) => line,
            Err(error) => return Content::bad(format!("invalid UTF-8 at byte {}", error.valid_up_to())),
        };
        let mut json = serde_json::Deserializer::from_str(line);
        let found = FieldSeed { name: &self.field }
            .deserialize(&mut json)
            .and_then(|found| json.end().map(|()| found));
        match found {
            Ok(Found {
                text: Some(Value::Text(text)),
                ..
            }) => Content::Text(text),
            Ok(Found {
                text: Some(Value::Other),
                ..
            }) => Content::bad(format!("field `{}` is not a string", self.field)),
            Ok(Found { text: None, fields }) => Content::Bad {
                cause: format!("field `{}` is missing", self.field),
                fields,
                count: 1,
            },
            // serde_json counts lines within the record; the record's own line is named already.
            Err(error) => {
                let cause = error.to_string();
                let cause = cause
                    .rsplit_once(" at line ")
                    .map_or(cause.as_str(), |(cause, _)| cause);
                Content::bad(format!("malformed json at column {}: {cause}", error.column()))
            }
        }
    }
}

/// What a json object says under one name.
struct Found {
    text: Option<Value>,
    fields: Vec<String>,
}

/// A json value, of which only text matters.
enum Value {
    Text(String),
    Other,
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Self::Text(text),
            _ => Self::Other,
        })
    }
}

struct FieldSeed<'a> {
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldSeed<'_> {
    type Value = Found;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a json object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Found {
            text: None,
            fields: Vec::new(),
        };
        while let Some(key) = map.next_key::<String>()? {
            if key == self.name {
                found.text = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
                if found.text.is_none() && found.fields.len() < 12 {
                    found.fields.push(key);
                }
            }
        }
        Ok(found)
    }
}
