//! Fields of a request that other servers know and this one does not. One without which the answer would be another thing than was asked for
//! is refused by its name, unless its value asks for nothing; every other is ignored, and the answer says so under `warnings`.

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// Fields without which an answer would be another thing than was asked for, each with the values, as JSON, that ask for nothing. So does
/// null.
const REFUSED: [(&str, &[&str]); 11] = [
    // The end of the text that is to be filled in, which takes a model trained for it.
    ("suffix", &["\"\""]),
    // A conversation is a text by the model's chat template, which the server does not apply.
    ("messages", &[]),
    ("num_return_sequences", &["1"]),
    // The text must have a form.
    ("response_format", &["{\"type\":\"text\"}"]),
    ("json_schema", &["{}"]),
    ("grammar", &["\"\""]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("structured_outputs", &["{}"]),
];

/// Fields that shade how tokens are drawn or what is shown, each with the values that ask for nothing, of which nothing is said.
const SHADING: [(&str, &[&str]); 16] = [
    ("presence_penalty", &["0"]),
    ("frequency_penalty", &["0"]),
    ("logit_bias", &["{}", "[]"]),
    ("ignore_eos", &["false"]),
    ("min_tokens", &["0"]),
    ("stop_token_ids", &["[]"]),
    ("bad_words", &["[]"]),
    ("skip_special_tokens", &["true"]),
    ("do_sample", &["true"]),
    ("use_beam_search", &["false"]),
    ("num_beams", &["1"]),
    ("typical_p", &["1"]),
    ("mirostat", &["0"]),
    ("tfs_z", &["1"]),
    ("truncate_prompt_tokens", &[]),
    ("prompt_logprobs", &[]),
];

/// Fields that are named one by one when they are ignored.
const MOST_NAMED: usize = 8;
/// Characters of such a name.
const LONGEST_NAME: usize = 64;

/// What of these fields is ignored, in words.
///
/// # Errors
/// If an answer without one of them would be another thing than was asked for.
pub(super) fn check(fields: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    let mut ignored = Vec::new();
    for (name, value) in fields {
        if value.is_null() {
            continue;
        }
        let known = REFUSED.iter().chain(&SHADING).find(|(known, _)| known == name);
        if known.is_some_and(|(_, neutral)| neutral.iter().any(|text| is_value(value, text))) {
            continue;
        }
        if let Some((refused, _)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            return Err(Refusal::about(refused, format!("`{refused}` is not supported")));
        }
        ignored.push(name);
    }
    let said = |name: &&String| {
        let name: String = name.chars().take(LONGEST_NAME).collect();
        format!("`{name}` is not known here and was ignored")
    };
    let mut warnings: Vec<String> = ignored.iter().take(MOST_NAMED).map(said).collect();
    if let Some(more) = ignored.len().checked_sub(MOST_NAMED).filter(|more| *more > 0) {
        warnings.push(format!("{more} more fields are not known here and were ignored"));
    }
    Ok(warnings)
}

/// Whether a value is the one of a text; a number is the same with and without a fraction of zero.
fn is_value(value: &Value, text: &str) -> bool {
    match (value.as_f64(), text.parse::<f64>()) {
        (Some(value), Ok(expected)) => value == expected,
        _ => serde_json::from_str::<Value>(text).is_ok_and(|expected| *value == expected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(fields: Value) -> Result<Vec<String>, Refusal> {
        check(fields.as_object().unwrap())
    }

    #[test]
    fn what_asks_for_nothing_is_taken_and_the_rest_is_refused_or_ignored_with_a_word() {
        for (name, neutral) in REFUSED {
            let error = checked(json!({ name: "something" })).unwrap_err();
            assert_eq!(
                (error.param, error.message),
                (Some(name), format!("`{name}` is not supported"))
            );
            for text in neutral {
                let value: Value = serde_json::from_str(text).unwrap();
                assert_eq!(checked(json!({ name: value })).unwrap(), [""; 0], "{name}: {text}");
            }
            assert_eq!(checked(json!({ name: null })).unwrap(), [""; 0]);
        }
        for (name, neutral) in SHADING {
            let warnings = checked(json!({ name: "something" })).unwrap();
            assert_eq!(warnings, [format!("`{name}` is not known here and was ignored")]);
            for text in neutral {
                let value: Value = serde_json::from_str(text).unwrap();
                assert_eq!(checked(json!({ name: value })).unwrap(), [""; 0], "{name}: {text}");
            }
        }
        assert_eq!(
            checked(json!({"presence_penalty": 0.0, "typical_p": 1.0})).unwrap(),
            [""; 0]
        );
        assert_eq!(checked(json!({"presence_penalty": 0.1})).unwrap().len(), 1);
    }

    #[test]
    fn the_readme_names_every_field() {
        let readme = include_str!("../../README.md");
        for (name, _) in REFUSED.iter().chain(&SHADING) {
            assert!(readme.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn however_much_is_sent_little_is_said() {
        let many: Map<String, Value> = (0..1000).map(|n| (format!("{n:0>100}"), json!(n))).collect();
        let warnings = check(&many).unwrap();
        assert_eq!(warnings.len(), MOST_NAMED + 1);
        assert!(warnings.iter().all(|warning| warning.len() < 2 * LONGEST_NAME));
        assert_eq!(
            warnings[MOST_NAMED],
            "992 more fields are not known here and were ignored"
        );
    }
}
