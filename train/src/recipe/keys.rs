//! The raw form of a recipe: dotted keys and where each value comes from, read once into the resolved form.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::RecipeError;

/// No upper limit but what TOML can write.
pub(super) const ANY: u64 = i64::MAX as u64;

/// Pairs of keys that say the same thing in two ways.
const ALTERNATIVES: [(&str, &str); 2] = [("train.steps", "train.tokens"), ("model.act", "model.gate.act")];

/// What a preset stands for: naming one discards those that an earlier source gave.
const SIZES: [&str; 6] = [
    "model.hidden",
    "model.intermediate",
    "model.heads",
    "model.kv_heads",
    "model.layers",
    "model.post_num",
];

/// Values by dotted key; what has been read is gone, so what is left at the end is unknown.
#[derive(Default)]
pub(super) struct Keys {
    entries: BTreeMap<String, Entry>,
    known: Vec<&'static str>,
}

struct Entry {
    value: Value,
    origin: String,
}

impl Keys {
    /// Adds a source whose values replace those of the sources before it.
    pub fn add(&mut self, table: Table, origin: &str) -> Result<(), RecipeError> {
        let values = flatten(table);
        let has = |key: &str| values.contains_key(key);
        for (first, second) in ALTERNATIVES {
            if has(first) && has(second) {
                return Err(RecipeError::Both(first, second, origin.into()));
            }
            if has(first) {
                self.entries.remove(second);
            }
            if has(second) {
                self.entries.remove(first);
            }
        }
        if has("model.preset") {
            for size in SIZES {
                self.entries.remove(size);
            }
        }
        for (key, value) in values {
            let origin = origin.into();
            self.entries.insert(key, Entry { value, origin });
        }
        Ok(())
    }

    /// A whole number within a range. `1e6` is one too.
    pub fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, RecipeError> {
        let allowed = match *range.end() {
            ANY => format!("a whole number of at least {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        self.read(key, &allowed, |value| {
            whole(value).filter(|number| range.contains(number))
        })
    }

    /// A number of things that are held in memory.
    pub fn size(&mut self, key: &'static str, range: RangeInclusive<usize>) -> Result<Option<usize>, RecipeError> {
        let range = *range.start() as u64..=*range.end() as u64;
        let size = self.integer(key, range)?;
        Ok(size.map(|size| size as usize))
    }

    /// A finite number that passes a test, described by `allowed`.
    pub fn real(
        &mut self,
        key: &'static str,
        allowed: &str,
        test: fn(f64) -> bool,
    ) -> Result<Option<f64>, RecipeError> {
        self.read(key, allowed, |value| number(value).filter(|number| test(*number)))
    }

    /// As many finite numbers as asked for, each of which passes a test.
    pub fn reals<const N: usize>(
        &mut self,
        key: &'static str,
        allowed: &str,
        test: fn(f64) -> bool,
    ) -> Result<Option<[f64; N]>, RecipeError> {
        self.read(key, allowed, |value| {
            let numbers = value.as_array()?.iter().map(|value| number(value).filter(|n| test(*n)));
            numbers.collect::<Option<Vec<f64>>>()?.try_into().ok()
        })
    }

    /// Yes or no.
    pub fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, RecipeError> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// Any text.
    pub fn text(&mut self, key: &'static str, allowed: &str) -> Result<Option<String>, RecipeError> {
        self.read(key, allowed, |value| value.as_str().map(str::to_string))
    }

    /// A number of steps, or a fraction below 1 of all `steps`.
    pub fn steps(&mut self, key: &'static str, steps: u64) -> Result<Option<u64>, RecipeError> {
        let allowed = "a whole number of steps or a fraction from 0 to below 1";
        self.read(key, allowed, |value| match value {
            Value::Float(fraction) if (0.0..1.0).contains(fraction) => Some((fraction * steps as f64).round() as u64),
            Value::Integer(_) => whole(value),
            _ => None,
        })
    }

    /// One of a few names. `what` they are names of is said when it is none of them.
    pub fn choice<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        what: &'static str,
        names: &[&str],
    ) -> Result<Option<T>, RecipeError> {
        let Some(name) = self.text(key, "text in quotes")? else {
            return Ok(None);
        };
        let unknown = || RecipeError::UnknownName {
            what,
            name: name.clone(),
            known: names.iter().map(ToString::to_string).collect(),
        };
        if !names.contains(&name.as_str()) {
            return Err(unknown());
        }
        let value = Value::String(name.clone());
        value.try_into().map(Some).map_err(|_| unknown())
    }

    /// Refuses what nothing has asked for.
    pub fn finish(self) -> Result<(), RecipeError> {
        let known = |section: &str| {
            let keys = || self.known.iter().filter_map(|key| key.strip_prefix(section));
            keys().any(|rest| rest.starts_with('.'))
        };
        let mut unread = self.entries.into_iter();
        let is_empty = |value: &Value| value.as_table().is_some_and(Table::is_empty);
        match unread.find(|(key, entry)| !(is_empty(&entry.value) && known(key))) {
            None => Ok(()),
            Some((key, Entry { origin, .. })) => Err(RecipeError::UnknownKey {
                key,
                origin,
                known: self.known,
            }),
        }
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, RecipeError> {
        self.known.push(key);
        let Some(Entry { value, origin }) = self.entries.remove(key) else {
            return Ok(None);
        };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(RecipeError::Value {
                key: key.into(),
                origin,
                allowed: allowed.into(),
                // A text of several lines is written as such in TOML; a message is one line.
                found: value.to_string().lines().collect::<Vec<_>>().join(" "),
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

/// `key=value` as a table. A value that is no TOML is text: quotes are for the shell to keep, and most shells do not.
pub(super) fn parse_assignment(assignment: &str) -> Result<(String, Value), RecipeError> {
    let parts = assignment
        .split_once('=')
        .map(|(key, value)| (key.trim(), value.trim()));
    let Some((key, value)) = parts.filter(|(key, value)| !key.is_empty() && !value.is_empty()) else {
        return Err(RecipeError::Assignment(assignment.into()));
    };
    let parsed = format!("value = {value}").parse::<Table>().ok();
    let single = parsed.filter(|table| table.len() == 1);
    let value = single
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(value.into()));
    Ok((key.into(), value))
}

/// `key=value,value,…` as the key and its values, each read as [`parse_assignment`] reads one.
pub fn parse_values(text: &str) -> Result<(String, Vec<Value>), RecipeError> {
    let (key, values) = parse_assignment(text)?;
    // Commas within a value, as in a list of lists, are TOML's to find.
    let listed = format!("values = [{}]", text.split_once('=').map_or("", |(_, values)| values));
    let listed = listed.parse::<Table>().ok().filter(|table| table.len() == 1);
    let values = match (listed.and_then(|mut table| table.remove("values")), values) {
        (Some(Value::Array(values)), _) => values,
        (_, Value::String(names)) => {
            let each = |name: &str| parse_assignment(&format!("{key}={name}")).map(|(_, value)| value);
            names.split(',').map(each).collect::<Result<_, _>>()?
        }
        (_, value) => vec![value],
    };
    Ok((key, values))
}

fn number(value: &Value) -> Option<f64> {
    let number = match *value {
        Value::Integer(integer) => integer as f64,
        Value::Float(float) => float,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

fn whole(value: &Value) -> Option<u64> {
    /// Above this, not every whole number is a float.
    const EXACT: f64 = (1u64 << 53) as f64;
    match *value {
        Value::Integer(integer) => u64::try_from(integer).ok(),
        Value::Float(float) if (0.0..=EXACT).contains(&float) && float.fract() == 0.0 => Some(float as u64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for wrong in ["k", "=1", "k=", "k=a,,b"] {
            assert!(parse_values(wrong).is_err(), "{wrong}");
        }
    }
}
