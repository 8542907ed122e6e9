//! Numbers and names however people write them.

/// A decimal number as people write it (`.001`, `5.`, `+1`, `1_000`, `1E3`) as TOML and Rust write it; none if it is no number, or
/// begins with zeros, which may be a name or octal.
pub fn plain_number(text: &str) -> Option<String> {
    let (sign, rest) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (if text.starts_with('-') { "-" } else { "" }, rest),
        None => ("", text),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (rest, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let whole_digits = digits(whole)?;
    let fraction_digits = digits(fraction.unwrap_or_default())?;
    if whole_digits.is_empty() && fraction_digits.is_empty() {
        return None;
    }
    let mut plain = String::from(sign);
    if whole_digits.len() > 1 && whole_digits.starts_with('0') {
        return None;
    }
    plain += if whole_digits.is_empty() { "0" } else { &whole_digits };
    if !fraction_digits.is_empty() {
        plain += &format!(".{fraction_digits}");
    }
    if let Some(exponent) = exponent {
        let (minus, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ("-", exponent),
            None => ("", exponent.strip_prefix('+').unwrap_or(exponent)),
        };
        let exponent = digits(exponent).filter(|digits| !digits.is_empty())?;
        plain += &format!("e{minus}{exponent}");
    }
    Some(plain)
}

/// Digits without the underscores that may stand between two of them; none if there is anything else.
fn digits(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some(String::new());
    }
    let groups: Vec<&str> = text.split('_').collect();
    let is_number = |group: &&str| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit());
    groups.iter().all(is_number).then(|| groups.concat())
}

/// Whether a name is this one, however it is written: case does not count, nor does whether words are joined by `-` or `_`.
pub fn same_name(name: &str, known: &str) -> bool {
    let plain = |name: &str| name.to_ascii_lowercase().replace('-', "_");
    plain(name) == plain(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, plain) in [
            (".001", "0.001"),
            ("-.5", "-0.5"),
            ("5.", "5"),
            ("+1", "1"),
            ("1_000", "1000"),
            ("1_000.5_0", "1000.50"),
            ("1E3", "1e3"),
            (".5e-3", "0.5e-3"),
            ("1e+06", "1e06"),
            ("0", "0"),
        ] {
            assert_eq!(plain_number(text).as_deref(), Some(plain), "{text}");
        }
        for text in [
            "", ".", "-", "+.", "e5", "1e", "1k", "_1", "1_", "1__0", "1.2.3", "0x1f", "1,5", "--1", "٣", "nan", "007",
            "00.1",
        ] {
            assert_eq!(plain_number(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_the_same_in_any_case() {
        for name in ["pre_gpas", "Pre_GPAS", "pre-gpas", "PRE-GPAS"] {
            assert!(same_name(name, "pre_gpas"), "{name}");
        }
        assert!(!same_name("pregpas", "pre_gpas") && !same_name("pre", "pre_gpas"));
    }
}
