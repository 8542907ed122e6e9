//! The text in one record of json: an object, of which one field is text and all others are passed over.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::record::{Content, RecordFault};

/// Names of fields that an error lists.
const NAMES: usize = 12;

/// The text in the field `field` of a record; `outer.inner` also names a field in a field.
pub(super) fn parse(record: &[u8], field: &str) -> Content {
    let record = match std::str::from_utf8(record) {
        Ok(record) => record,
        Err(error) => {
            return Content::bad(RecordFault::Utf8 {
                at: error.valid_up_to() as u64,
            });
        }
    };
    let found = read(record, field).or_else(|error| match with_finite_numbers(record) {
        Some(record) => read(&record, field),
        None => Err(error),
    });
    match found {
        Ok(Some(Value::Text(text))) => Content::Text(text),
        Ok(Some(Value::Null)) => Content::bad(RecordFault::Null),
        Ok(Some(Value::Other)) => Content::bad(RecordFault::NotAString { field: field.into() }),
        Ok(None) => Content::bad(RecordFault::FieldMissing {
            field: field.into(),
            seen: Vec::new(),
        }),
        // serde_json counts lines within the record; the record's own line is named already.
        Err(error) => {
            let said = error.to_string();
            let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
            Content::bad(RecordFault::Json {
                column: error.column(),
                said: said.into(),
            })
        }
    }
}

fn read(record: &str, field: &str) -> serde_json::Result<Option<Value>> {
    let mut json = serde_json::Deserializer::from_str(record);
    let found = Field { name: field }.deserialize(&mut json)?;
    json.end().map(|()| found)
}

/// The record with a zero for each `NaN`, `Infinity` and `-Infinity`, which Python writes and json does not know; none
/// without any. Nothing moves, so that an error's column is that of the record.
fn with_finite_numbers(record: &str) -> Option<String> {
    let bytes = record.as_bytes();
    let mut finite = bytes.to_vec();
    let (mut at, mut in_string, mut changed) = (0, false, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'N' | b'I' if !in_string => {
                let name = ["NaN", "Infinity"]
                    .into_iter()
                    .find(|name| bytes[at..].starts_with(name.as_bytes()));
                if let Some(name) = name {
                    finite[at..at + name.len()].fill(b' ');
                    finite[at] = b'0';
                    at += name.len() - 1;
                    changed = true;
                }
            }
            _ => {}
        }
        at += 1;
    }
    changed.then(|| String::from_utf8(finite).ok()).flatten()
}

/// The names of a record's fields, those in a field after its own name and a dot.
pub(super) fn field_names(record: &[u8]) -> Vec<String> {
    fn gather(prefix: &str, value: &serde_json::Value, names: &mut Vec<String>) {
        let serde_json::Value::Object(fields) = value else {
            return;
        };
        for (name, value) in fields {
            let name = format!("{prefix}{name}");
            if value.is_object() {
                gather(&format!("{name}."), value, names);
            } else if names.len() < NAMES {
                names.push(name);
            }
        }
    }
    let text = String::from_utf8_lossy(record);
    let text = with_finite_numbers(&text).unwrap_or_else(|| text.into_owned());
    let mut names = Vec::new();
    if let Ok(value) = serde_json::from_str(&text) {
        gather("", &value, &mut names);
    }
    names
}

/// A json value, of which only text matters.
enum Value {
    Text(String),
    Null,
    Other,
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Self::Text(text),
            serde_json::Value::Null => Self::Null,
            _ => Self::Other,
        })
    }
}

/// Looks for a field in an object.
struct Field<'a> {
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a json object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut whole, mut inside) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            let inner = self.name.strip_prefix(&key).and_then(|rest| rest.strip_prefix('.'));
            if key == self.name {
                whole = Some(map.next_value()?);
            } else if let Some(name) = inner {
                inside = map.next_value_seed(Inside(Field { name }))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        // A field whose own name has the dot goes before a field in a field, as it would in a table.
        Ok(whole.or(inside))
    }
}

/// Looks for a field in what may be an object.
struct Inside<'a>(Field<'a>);

impl<'de> DeserializeSeed<'de> for Inside<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Inside<'_> {
    type Value = Option<Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a json value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        self.0.visit_map(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(record: &str, field: &str) -> Result<String, String> {
        match parse(record.as_bytes(), field) {
            Content::Text(text) => Ok(text),
            Content::Bad { fault, .. } => Err(fault.to_string()),
            Content::Piece { .. } => unreachable!("a record is whole"),
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_passed_over_outside_the_text() {
        for number in ["NaN", "Infinity", "-Infinity", "[1, NaN, {\"a\": -Infinity}]", "-NaN"] {
            let record = format!("{{\"score\": {number}, \"text\": \"NaN, Infinity \\\" NaN\"}}");
            assert_eq!(text(&record, "text").unwrap(), "NaN, Infinity \" NaN", "{number}");
            let record = format!("{{\"text\": \"a\", \"score\": {number}}}");
            assert_eq!(text(&record, "text").unwrap(), "a", "{number}");
        }
        assert_eq!(
            text("{\"text\": NaN}", "text").unwrap_err(),
            "field `text` is not a string"
        );
        for wrong in [
            "{NaN: 1}",
            "{\"a\": NaN1}",
            "{\"a\": NaNNaN}",
            "{\"a\": +Infinity}",
            "{\"a\": nan}",
            "NaN",
        ] {
            assert!(
                text(wrong, "text").unwrap_err().starts_with("malformed json"),
                "{wrong}"
            );
        }
        assert_eq!(
            text("{\"a\": NaN, \"text\": }", "text").unwrap_err(),
            "malformed json at column 20: expected value"
        );
        assert_eq!(
            field_names(b"{\"a\": NaN, \"b\": {\"c\": 1, \"d\": []}}"),
            ["a", "b.c", "b.d"]
        );
    }

    #[test]
    fn a_field_in_a_field_is_named_with_a_dot() {
        let nested = "{\"id\": 1, \"meta\": {\"text\": \"no\", \"inner\": {\"body\": \"deep\"}}}";
        assert_eq!(text(nested, "meta.inner.body").unwrap(), "deep");
        assert_eq!(
            text(nested, "meta.inner").unwrap_err(),
            "field `meta.inner` is not a string"
        );
        assert_eq!(text(nested, "meta.body").unwrap_err(), "field `meta.body` is missing");
        for value in ["1", "-1", "0.5", "true", "null", "\"a\"", "[{\"b\": \"c\"}]"] {
            let record = format!("{{\"a\": {value}}}");
            assert_eq!(text(&record, "a.b").unwrap_err(), "field `a.b` is missing", "{value}");
        }
        // A name that has the dot itself goes first, whichever comes first.
        assert_eq!(
            text("{\"a.b\": \"whole\", \"a\": {\"b\": \"inside\"}}", "a.b").unwrap(),
            "whole"
        );
        assert_eq!(
            text("{\"a\": {\"b\": \"inside\"}, \"a.b\": \"whole\"}", "a.b").unwrap(),
            "whole"
        );
        assert_eq!(text("{\"text\": null}", "text").unwrap_err(), "the text is null");
    }
}
