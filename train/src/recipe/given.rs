//! The raw form of a recipe: what its sources give, by dotted key, before any default.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::allowed::Allowed;
use super::spelling::plain_number;
use super::{Key, RecipeError};

/// Values by dotted key, each with the source that it comes from.
pub(super) struct Given {
    keys: Vec<&'static Key>,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    value: Value,
    origin: String,
}

impl Given {
    /// Nothing yet, for a recipe that has those keys.
    pub fn new(keys: impl Iterator<Item = &'static Key>) -> Self {
        Self {
            keys: keys.collect(),
            entries: BTreeMap::new(),
        }
    }

    /// Adds a source whose values replace those of the sources before it.
    ///
    /// A key also replaces the other form of itself, and naming a preset replaces the sizes that the preset stands for.
    pub fn add(&mut self, table: Table, origin: &str) -> Result<(), RecipeError> {
        let values = flatten(table);
        let has = |key: &str| values.contains_key(key);
        for key in &self.keys {
            let Some(other) = key.instead_of else { continue };
            if has(key.name) && has(other) {
                let (first, second) = (key.name.min(other), key.name.max(other));
                return Err(RecipeError::Both(first, second, origin.into()));
            }
            if has(key.name) {
                self.entries.remove(other);
            }
            if has(other) {
                self.entries.remove(key.name);
            }
        }
        if has("model.preset") {
            for size in self.keys.iter().filter(|key| key.of_preset) {
                self.entries.remove(size.name);
            }
        }
        // A kind of scaling has fields of its own, so those of another go with it.
        if has("model.rope_scaling.rope_type") {
            self.entries.retain(|key, _| !key.starts_with("model.rope_scaling."));
        }
        for (key, value) in values {
            let origin = origin.into();
            self.entries.insert(key, Entry { value, origin });
        }
        Ok(())
    }

    /// The value of a key, if there is one and it is allowed.
    pub fn value<T>(&self, key: &'static str, allowed: &Allowed<T>) -> Result<Option<T>, RecipeError> {
        let Some(Entry { value, origin }) = self.entries.get(key) else {
            return Ok(None);
        };
        allowed.read(key, value, origin).map(Some)
    }

    /// Whether every one of some keys has a value.
    pub fn has_all(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| self.entries.contains_key(*key))
    }

    /// Refuses a key that no recipe has. An empty table is refused only if no section has its name.
    pub fn refuse_unknown(&self) -> Result<(), RecipeError> {
        let is_key = |name: &str| self.keys.iter().any(|key| key.name == name);
        let is_section = |name: &str| self.keys.iter().any(|key| key.is_in(name));
        let is_empty = |value: &Value| value.as_table().is_some_and(Table::is_empty);
        let mut entries = self.entries.iter();
        let unknown = entries.find(|(name, entry)| !(is_key(name) || is_empty(&entry.value) && is_section(name)));
        match unknown {
            None => Ok(()),
            Some((key, Entry { origin, .. })) => Err(RecipeError::UnknownKey {
                key: key.clone(),
                origin: origin.clone(),
                known: self.keys.iter().map(|key| key.name).collect(),
            }),
        }
    }
}

/// A table as its leaves by dotted key; an empty section is a leaf.
pub fn flatten(table: Table) -> BTreeMap<String, Value> {
    fn walk(prefix: &str, table: Table, leaves: &mut BTreeMap<String, Value>) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            match value {
                Value::Table(inner) if !inner.is_empty() => walk(&format!("{key}."), inner, leaves),
                leaf => {
                    leaves.insert(key, leaf);
                }
            }
        }
    }
    let mut leaves = BTreeMap::new();
    walk("", table, &mut leaves);
    leaves
}

/// The text of a recipe.
pub(super) fn parse(text: &str, origin: &str) -> Result<Table, RecipeError> {
    text.parse().map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start);
        RecipeError::Syntax {
            origin: origin.into(),
            line: text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1,
            message: error.message().lines().collect::<Vec<_>>().join(", "),
        }
    })
}

/// `key=value` as a table. Numbers may be written as [`plain_number`] reads them. A value that is not TOML is taken as text, since most
/// shells remove the quotes that TOML asks for.
pub(super) fn parse_assignment(assignment: &str) -> Result<(String, Value), RecipeError> {
    let parts = assignment
        .split_once('=')
        .map(|(key, value)| (key.trim(), value.trim()));
    let Some((key, value)) = parts.filter(|(key, value)| !key.is_empty() && !value.is_empty()) else {
        return Err(RecipeError::Assignment(assignment.into()));
    };
    let value = in_toml(value).unwrap_or_else(|| Value::String(value.into()));
    Ok((key.into(), value))
}

/// A value as TOML writes it, but for its numbers, which may be written as [`plain_number`] reads them; none if it is none.
fn in_toml(value: &str) -> Option<Value> {
    let read = |value: &str| {
        let parsed = format!("value = {value}").parse::<Table>().ok();
        parsed.filter(|table| table.len() == 1)?.remove("value")
    };
    read(value).or_else(|| read(&with_plain_numbers(value)))
}

/// A text in which every number outside quotes is written as TOML has it.
fn with_plain_numbers(text: &str) -> String {
    let mut plain = String::new();
    let mut quote = None;
    for piece in text.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || "_.+-".contains(c))) {
        let end = piece
            .chars()
            .last()
            .filter(|c| !(c.is_ascii_alphanumeric() || "_.+-".contains(*c)));
        let word = &piece[..piece.len() - end.map_or(0, char::len_utf8)];
        match plain_number(word).filter(|_| quote.is_none()) {
            Some(number) => plain += &number,
            None => plain += word,
        }
        plain.extend(end);
        match (quote, end) {
            (None, Some('"' | '\'')) => quote = end,
            (Some(_), _) if quote == end => quote = None,
            _ => {}
        }
    }
    plain
}

/// `key=value,value,…` as the key and its values, each of which is read as the value of `key=value`.
pub fn parse_values(text: &str) -> Result<(String, Vec<Value>), RecipeError> {
    let (key, values) = parse_assignment(text)?;
    // TOML's parser tells the commas between values from those within one, as in a list of lists.
    let listed = format!("[{}]", text.split_once('=').map_or("", |(_, values)| values));
    let values = match (in_toml(&listed), values) {
        (Some(Value::Array(values)), _) => values,
        (_, Value::String(names)) => {
            let each = |name: &str| parse_assignment(&format!("{key}={name}")).map(|(_, value)| value);
            names.split(',').map(each).collect::<Result<_, _>>()?
        }
        (_, value) => vec![value],
    };
    Ok((key, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, number) in [
            (".001", 0.001),
            ("-.5", -0.5),
            ("5.", 5.0),
            ("+1", 1.0),
            ("1_000", 1e3),
            ("1E3", 1e3),
        ] {
            let (_, value) = parse_assignment(&format!("k={text}")).unwrap();
            let found = value.as_integer().map(|number| number as f64).or(value.as_float());
            assert_eq!(found, Some(number), "{text}: {value}");
        }
        let table = parse_assignment("k={act='1.', init=-.5, \"x.5\"=+.5}").unwrap().1;
        assert_eq!(table.to_string(), r#"{ act = "1.", init = -0.5, "x.5" = 0.5 }"#);
    }

    #[test]
    fn several_values_of_a_key() {
        let values = |text: &str| {
            let (key, values) = parse_values(text).unwrap();
            assert_eq!(key, "k");
            values.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(values("k=5e-4,1e-3"), ["0.0005", "0.001"]);
        assert_eq!(values("k = silu, relu"), ["\"silu\"", "\"relu\""]);
        assert_eq!(values("k=[0.9, 0.95],[0.9, 0.999]"), ["[0.9, 0.95]", "[0.9, 0.999]"]);
        assert_eq!(values("k=true,false"), ["true", "false"]);
        assert_eq!(values("k=0.5,silu"), ["0.5", "\"silu\""]);
        assert_eq!(values("k=1"), ["1"]);
        assert_eq!(values("k=.001,1_000,5."), ["0.001", "1000", "5"]);
        assert_eq!(values("k=[.9,.95],[+.5, 1E-1]"), ["[0.9, 0.95]", "[0.5, 0.1]"]);
        for wrong in ["k", "=1", "k=", "k=a,,b"] {
            assert!(parse_values(wrong).is_err(), "{wrong}");
        }
    }
}
