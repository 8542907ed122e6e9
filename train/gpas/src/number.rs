//! Numbers of the command line, as people write them: `1_000`, `1e3`, `.5`, `5.`, `+1`.

use std::error::Error;
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::str::FromStr;

use gpas_train::recipe::plain_number;

/// Above this, not every whole number is a float.
const EXACT: f64 = (1_u64 << 53) as f64;

/// Reads a number.
///
/// # Errors
/// If it is none, or none of this type.
pub fn number<T: FromStr>(text: &str) -> Result<T, T::Err>
where
    T::Err: Error,
{
    let plain = plain_number(text).unwrap_or_else(|| text.into());
    plain.parse().or_else(|error| match whole_spelling(&plain) {
        Some(whole) => whole.parse(),
        None => Err(error),
    })
}

/// Reads whole numbers within a range.
pub fn whole(
    range: impl RangeBounds<u64> + Debug + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let value = number::<u64>(text).map_err(|error| error.to_string())?;
        match range.contains(&value) {
            true => Ok(value),
            false => Err(format!("{value} is not in {range:?}")),
        }
    }
}

/// A number with an exponent or a fraction, if it is whole, without them.
fn whole_spelling(plain: &str) -> Option<String> {
    let value = plain.parse::<f64>().ok()?;
    (value.fract() == 0.0 && value.abs() <= EXACT).then(|| format!("{value:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_every_usual_spelling() {
        for (text, value) in [
            ("1_000", 1000),
            ("1e3", 1000),
            ("5.", 5),
            ("+1", 1),
            ("1.5e1", 15),
            ("007", 7),
        ] {
            assert_eq!(number::<u64>(text), Ok(value), "{text}");
            assert_eq!(number::<f64>(text), Ok(value as f64), "{text}");
        }
        assert_eq!(number::<f64>(".001"), Ok(0.001));
        assert_eq!(number::<f64>("-1"), Ok(-1.0));
        for text in ["1k", ".5", "-1", "", "1e300", "nan", "inf"] {
            assert!(number::<u64>(text).is_err(), "{text}");
        }
        let few = whole(1..=4);
        assert_eq!(few("4"), Ok(4));
        assert_eq!(few("5"), Err("5 is not in 1..=4".into()));
        assert_eq!(few("five"), Err("invalid digit found in string".into()));
    }
}
