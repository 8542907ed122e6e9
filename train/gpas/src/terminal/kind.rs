//! Whether a kind of terminal has a cursor that can be moved: what the system's terminfo database says of it.
//!
//! The `terminfo` crate (version 0.9) does not stand here because it panics on a damaged file of that database, which anybody may have in
//! their home directory. One capability is little to read.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

/// Kinds without a cursor, where no database tells.
const WITHOUT: [&str; 2] = ["dumb", "unknown"];

/// Where the database lies, after the places that the environment names.
const PLACES: [&str; 5] = [
    "/etc/terminfo",
    "/lib/terminfo",
    "/usr/share/terminfo",
    "/usr/lib/terminfo",
    "/usr/local/share/terminfo",
];

/// Number of the capability `cursor_address` among the strings of a description.
const CURSOR_ADDRESS: usize = 10;

/// Whether a terminal of this kind can move its cursor. One that no database knows can, as all in use do.
pub(super) fn moves_cursor(kind: &OsStr) -> bool {
    let described = description(kind).and_then(|bytes| has_string(&bytes, CURSOR_ADDRESS));
    described.unwrap_or_else(|| WITHOUT.iter().all(|without| *without != kind))
}

/// The bytes of a description, from the first place that has one.
fn description(kind: &OsStr) -> Option<Vec<u8>> {
    let first = *kind.as_encoded_bytes().first()?;
    if kind.as_encoded_bytes().contains(&b'/') {
        return None;
    }
    let named = env::var_os("TERMINFO").map(PathBuf::from);
    let own = env::var_os("HOME").map(|home| PathBuf::from(home).join(".terminfo"));
    let listed = env::var_os("TERMINFO_DIRS").unwrap_or_default();
    let listed: Vec<PathBuf> = env::split_paths(&listed).collect();
    let places = named
        .into_iter()
        .chain(own)
        .chain(listed)
        .chain(PLACES.map(PathBuf::from));
    let folders = [char::from(first).to_string(), format!("{first:x}")];
    places
        .flat_map(|place| folders.clone().map(|folder| place.join(folder).join(kind)))
        .find_map(|path| fs::read(path).ok())
}

/// Whether a compiled description, as term(5) has it, holds the string capability of a number; none if it is no description.
fn has_string(bytes: &[u8], number: usize) -> Option<bool> {
    let short = |at: usize| {
        let bytes = bytes.get(at..at + 2)?;
        Some(i16::from_le_bytes(bytes.try_into().ok()?))
    };
    let count = |at: usize| usize::try_from(short(at)?).ok();
    let number_width = match short(0)? {
        0o432 => 2,
        0o1036 => 4,
        _ => return None,
    };
    let [names, flags, numbers, strings] = [count(2)?, count(4)?, count(6)?, count(8)?];
    // Numbers begin at an even place.
    let numbers_at = (12 + names + flags).next_multiple_of(2);
    if number >= strings {
        return Some(false);
    }
    // An absent string has a negative place.
    Some(short(numbers_at + numbers * number_width + 2 * number)? >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description with one flag, one number and these places of strings.
    fn compiled(magic: i16, places: &[i16]) -> Vec<u8> {
        let width = if magic == 0o432 { 2 } else { 4 };
        let header = [magic, 4, 1, 1, places.len() as i16, 3].map(i16::to_le_bytes).concat();
        let places: Vec<u8> = places.iter().flat_map(|place| place.to_le_bytes()).collect();
        [&header[..], b"a|b\0", &[1], &[0], &vec![0; width], &places, b"x\0"].concat()
    }

    #[test]
    fn a_string_is_there_or_absent_in_both_layouts() {
        for magic in [0o432, 0o1036] {
            let with = compiled(magic, &[0; 11]);
            let without = compiled(magic, &[&[0; 10][..], &[-1]].concat());
            assert_eq!(has_string(&with, CURSOR_ADDRESS), Some(true));
            assert_eq!(has_string(&without, CURSOR_ADDRESS), Some(false));
            assert_eq!(has_string(&compiled(magic, &[0; 4]), CURSOR_ADDRESS), Some(false));
            for end in 0..with.len() - 2 {
                assert_eq!(has_string(&with[..end], CURSOR_ADDRESS), None, "{end}");
            }
        }
        assert_eq!(has_string(&compiled(0, &[0; 11]), CURSOR_ADDRESS), None);
        assert_eq!(
            has_string(&[0x1a, 1, 255, 255, 255, 255, 255, 255], CURSOR_ADDRESS),
            None
        );
    }

    #[test]
    fn a_name_leads_into_no_other_directory() {
        assert_eq!(description(OsStr::new("../../../etc/passwd")), None);
        assert_eq!(description(OsStr::new("")), None);
    }
}
