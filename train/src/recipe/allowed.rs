//! What a key of a recipe may be: how its value is read, and the words for it in messages and in the list of keys.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use strum::VariantNames;
use toml::Value;

use super::RecipeError;
use super::spelling::same_name;

/// No upper limit but what TOML can write.
pub(super) const ANY: u64 = i64::MAX as u64;

/// Reads a value, if it is one that a key may have.
type Parse<T> = Box<dyn Fn(&Value) -> Option<T>>;

/// The values that a key may have.
pub(super) struct Allowed<T> {
    /// In words that complete "it must be".
    text: String,
    /// Every name, if the value is one of a few.
    names: Vec<String>,
    /// What the names are names of; the key itself if absent.
    what: Option<&'static str>,
    parse: Parse<T>,
}

/// A number of optimizer steps as a recipe may give it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Steps {
    /// So many.
    Count(u64),
    /// A part of the whole run, below 1.
    Fraction(f64),
}

impl Steps {
    /// The number of steps of a run of `total`.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Steps::Count(count) => count,
            Steps::Fraction(fraction) => (fraction * total as f64).round() as u64,
        }
    }
}

impl<T> Allowed<T> {
    fn new(text: impl Into<String>, parse: impl Fn(&Value) -> Option<T> + 'static) -> Self {
        Self {
            text: text.into(),
            names: Vec::new(),
            what: None,
            parse: Box::new(parse),
        }
    }

    /// The same values for a key that may be left out altogether.
    pub fn optional(self) -> Allowed<Option<T>>
    where
        T: 'static,
    {
        let Self {
            text,
            names,
            what,
            parse,
        } = self;
        Allowed {
            text,
            names,
            what,
            parse: Box::new(move |value| parse(value).map(Some)),
        }
    }

    /// What is allowed, for the list of keys.
    pub fn describe(&self) -> String {
        if self.names.is_empty() {
            self.text.clone()
        } else {
            format!("one of {}", self.names.join(", "))
        }
    }

    /// Reads the value that `origin` gives a key.
    ///
    /// # Errors
    /// If it is not allowed.
    pub fn read(&self, key: &'static str, value: &Value, origin: &str) -> Result<T, RecipeError> {
        (self.parse)(value).ok_or_else(|| match value.as_str() {
            Some(name) if !self.names.is_empty() => RecipeError::UnknownName {
                what: self.what.unwrap_or(key),
                name: name.into(),
                known: self.names.clone(),
            },
            _ => RecipeError::Value {
                key: key.into(),
                origin: origin.into(),
                allowed: self.text.clone(),
                // A text of several lines is written as such in TOML; a message is one line.
                found: value.to_string().lines().collect::<Vec<_>>().join(" "),
            },
        })
    }
}

/// A whole number within a range. `1e6` is one too.
pub(super) fn whole(range: RangeInclusive<u64>) -> Allowed<u64> {
    let text = match *range.end() {
        ANY => format!("a whole number of at least {}", range.start()),
        end => format!("a whole number from {} to {end}", range.start()),
    };
    Allowed::new(text, move |value| {
        whole_number(value).filter(|number| range.contains(number))
    })
}

/// A number of things that are held in memory.
pub(super) fn size(range: RangeInclusive<usize>) -> Allowed<usize> {
    let Allowed { text, parse, .. } = whole(*range.start() as u64..=*range.end() as u64);
    Allowed::new(text, move |value| parse(value).map(|size| size as usize))
}

/// A finite number that passes a test, described by `text`.
pub(super) fn number(text: &str, test: fn(f64) -> bool) -> Allowed<f64> {
    Allowed::new(text, move |value| finite(value).filter(|number| test(*number)))
}

/// A number above 0.
pub(super) fn above_zero() -> Allowed<f64> {
    number("a number above 0", |number| number > 0.0)
}

/// A number from 0 to 1.
pub(super) fn ratio() -> Allowed<f64> {
    number("a number from 0 to 1", |number| (0.0..=1.0).contains(&number))
}

/// The largest norm that is not clipped.
pub(super) fn limit() -> Allowed<f64> {
    number("a number of at least 0; 0 is no limit", |number| number >= 0.0)
}

/// As many finite numbers as asked for, each of which passes a test.
pub(super) fn numbers<const N: usize>(text: &str, test: fn(f64) -> bool) -> Allowed<[f64; N]> {
    Allowed::new(text, move |value| {
        let numbers = value.as_array()?.iter().map(|value| finite(value).filter(|n| test(*n)));
        numbers.collect::<Option<Vec<f64>>>()?.try_into().ok()
    })
}

/// Yes or no.
pub(super) fn boolean() -> Allowed<bool> {
    let named = |name: &str| {
        [("true", true), ("false", false)]
            .into_iter()
            .find(|(known, _)| same_name(name, known))
    };
    Allowed::new("true or false", move |value| {
        value.as_bool().or_else(|| Some(named(value.as_str()?)?.1))
    })
}

/// Any text.
pub(super) fn text(text: &str) -> Allowed<String> {
    Allowed::new(text, |value| value.as_str().map(str::to_string))
}

/// A number of steps, or a fraction below 1 of all of them.
pub(super) fn steps() -> Allowed<Steps> {
    let text = "a whole number of steps or a fraction from 0 to below 1";
    Allowed::new(text, |value| match value {
        Value::Float(fraction) if (0.0..1.0).contains(fraction) => Some(Steps::Fraction(*fraction)),
        Value::Integer(_) => whole_number(value).map(Steps::Count),
        _ => None,
    })
}

/// A variant of an enumeration, by its name.
pub(super) fn choice<T: DeserializeOwned + VariantNames>() -> Allowed<T> {
    let names = T::VARIANTS.iter().map(ToString::to_string).collect();
    named(None, names)
}

/// One of a few names. `what` they are names of is said when it is none of them.
pub(super) fn name_of<T: DeserializeOwned>(what: &'static str, names: Vec<String>) -> Allowed<T> {
    named(Some(what), names)
}

fn named<T: DeserializeOwned>(what: Option<&'static str>, names: Vec<String>) -> Allowed<T> {
    let known = names.clone();
    let parse = move |value: &Value| {
        let name = value.as_str()?;
        let known = known.iter().find(|known| same_name(name, known))?;
        Value::String(known.clone()).try_into().ok()
    };
    Allowed {
        names,
        what,
        ..Allowed::new("text in quotes", parse)
    }
}

fn finite(value: &Value) -> Option<f64> {
    let number = match *value {
        Value::Integer(integer) => integer as f64,
        Value::Float(float) => float,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

fn whole_number(value: &Value) -> Option<u64> {
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
    use gpas_data::WindowMode;
    use gpas_model::{GateActivation, GateSite, Initialisation, Precision};

    use super::*;
    use crate::optimizer::OptimizerKind;
    use crate::schedule::ScheduleKind;

    fn check<T: DeserializeOwned + serde::Serialize + VariantNames>() {
        assert!(!T::VARIANTS.is_empty());
        for name in T::VARIANTS {
            let value = Value::from(*name);
            let read = choice::<T>().read("key", &value, "a test").unwrap();
            assert_eq!(Value::try_from(read).unwrap(), value);
        }
    }

    #[test]
    fn the_names_that_are_listed_are_those_that_are_read_and_written() {
        check::<GateActivation>();
        check::<GateSite>();
        check::<Initialisation>();
        check::<Precision>();
        check::<WindowMode>();
        check::<OptimizerKind>();
        check::<ScheduleKind>();
        for precision in Precision::ALL {
            assert!(Precision::VARIANTS.contains(&precision.name()));
        }
    }
}
