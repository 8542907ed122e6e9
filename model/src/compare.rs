//! How far apart numbers are that should agree. A difference that is not a number counts as larger than any, so that `difference <= bound`
//! fails for it. `f32::max` alone would pass over it without a word, because it returns the other number.

use std::ops::Sub;

/// The largest absolute difference between two lists, taken in their own number format; NaN if any difference is not a number, or if the lists
/// are not equally long.
///
/// ```
/// use gpas_model::compare::largest_difference;
///
/// assert_eq!(largest_difference(&[1.0_f32, 2.0], &[1.5, 2.25]), 0.5);
/// assert!(largest_difference(&[f32::NAN, 2.0], &[1.5, 2.25]).is_nan());
/// assert!(largest_difference(&[1.0], &[1.0, 2.0]).is_nan());
/// ```
pub fn largest_difference<T: Copy + Sub<Output = T> + Into<f64>>(found: &[T], expected: &[T]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    let pairs = found.iter().zip(expected);
    largest(pairs.map(|(found, expected)| (*found - *expected).into().abs()))
}

/// The largest absolute value of a list, 0 for an empty one; NaN if any is not a number.
pub fn largest_magnitude(values: &[f32]) -> f64 {
    largest(values.iter().map(|value| f64::from(value.abs())))
}

/// The largest of some numbers that are 0 or more, 0 for none; NaN if any is not a number.
pub fn largest(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let larger = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
    numbers.into_iter().fold(0.0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_is_seen_wherever_it_stands() {
        let expected = [1.0_f32, -2.0, 3.0];
        assert_eq!(largest_difference(&expected, &expected), 0.0);
        assert_eq!(largest_magnitude(&expected), 3.0);
        assert_eq!((largest([]), largest_magnitude(&[])), (0.0, 0.0));
        for place in 0..3 {
            for broken in [f32::NAN, f32::INFINITY] {
                let mut found = expected;
                found[place] = broken;
                let passes = |difference: f64| difference <= f64::MAX;
                assert!(!passes(largest_difference(&found, &expected)), "{place}");
                assert!(!passes(largest_difference(&expected, &found)), "{place}");
                assert!(!passes(largest_difference(&found, &found)), "{place}");
                assert!(!passes(largest_magnitude(&found)), "{place}");
            }
        }
        assert!(largest([1.0, f64::NAN, 2.0]).is_nan());
    }
}
