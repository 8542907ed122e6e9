//! What the `tokenizer_config.json` beside a tokenizer says besides its special tokens: the chat template (how a conversation is written as
//! one text), the side that is padded, and whatever else a runtime reads there. Nothing here acts on it; it travels beside the tokenizer from
//! where that came from to what is exported.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::DataError;
use crate::lfs::refuse_lfs_pointer;

/// The file.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Fields that do not travel: special tokens that are decided and kept as ids (what begins a text is one only where documents begin with it); the largest length, which
/// is the model's; what `tokenizer.json` says too; and what only holds where the file lay.
const LEFT: [&str; 10] = [
    "eos_token",
    "pad_token",
    "unk_token",
    "model_max_length",
    "added_tokens_decoder",
    "tokenizer_class",
    "auto_map",
    "name_or_path",
    "tokenizer_file",
    "special_tokens_map_file",
];

/// The chat template of `transformers` in a file of its own.
const JINJA: &str = "chat_template.jinja";
/// Further templates beside [`JINJA`], each in a file with its name.
const FURTHER: &str = "additional_chat_templates";
/// The template's key.
const TEMPLATE: &str = "chat_template";

/// The fields of a `tokenizer_config.json` that travel with a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerConfig(Map<String, Value>);

impl TokenizerConfig {
    /// What lies in the directory of a `tokenizer.json`. A chat template is found where `transformers` would find it: in
    /// `chat_template.jinja` with those of `additional_chat_templates/`, else in `tokenizer_config.json`.
    ///
    /// # Errors
    /// When one of these files cannot be read or does not hold what it should.
    pub fn beside(tokenizer: &Path) -> Result<Option<Self>, DataError> {
        let directory = tokenizer.parent().unwrap_or(Path::new(""));
        let path = directory.join(TOKENIZER_CONFIG);
        let refused = |cause: String| DataError::BesideTokenizer {
            path: path.clone(),
            cause,
        };
        let mut fields: Map<String, Value> = match read(&path)? {
            Some(text) => serde_json::from_str(&text).map_err(|error| refused(error.to_string()))?,
            None => Map::new(),
        };
        fields.retain(|key, value| !LEFT.contains(&key.as_str()) && !value.is_null());
        if let Some(template) = read(&directory.join(JINJA))? {
            fields.insert(TEMPLATE.into(), with_further(template, &directory.join(FURTHER))?);
        }
        match fields.get(TEMPLATE) {
            Some(template) if !is_template(template) => {
                let cause = format!("its `{TEMPLATE}` is neither a text nor a list of named texts");
                Err(refused(cause))
            }
            Some(_) | None => Ok((!fields.is_empty()).then_some(Self(fields))),
        }
    }

    /// The fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The bytes of the file [`TOKENIZER_CONFIG`] that carries them.
    pub fn file(&self) -> Vec<u8> {
        format!("{:#}\n", Value::from(self.0.clone())).into_bytes()
    }
}

/// A file's text, if there is such a file.
fn read(path: &Path) -> Result<Option<String>, DataError> {
    refuse_lfs_pointer(path)?;
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            io::ErrorKind::InvalidData => Err(DataError::BesideTokenizer {
                path: path.into(),
                cause: "it is not UTF-8".into(),
            }),
            _ => Err(DataError::io(path)(error)),
        },
    }
}

/// A template of its own file together with those of a directory, in the order of their names: a text, or a list of `{"name", "template"}`.
fn with_further(template: String, directory: &Path) -> Result<Value, DataError> {
    let mut further = BTreeMap::new();
    if directory.is_dir() {
        for entry in fs::read_dir(directory).map_err(DataError::io(directory))? {
            let path = entry.map_err(DataError::io(directory))?.path();
            let is_jinja = path.extension().is_some_and(|ending| ending == "jinja");
            if let (true, Some(name), Some(text)) = (is_jinja, path.file_stem(), read(&path)?) {
                further.insert(name.to_string_lossy().into_owned(), text);
            }
        }
    }
    if further.is_empty() {
        return Ok(template.into());
    }
    let all = std::iter::once(("default".to_string(), template)).chain(further);
    let named = all.map(|(name, template)| json!({"name": name, "template": template}));
    Ok(named.collect())
}

fn is_template(value: &Value) -> bool {
    let is_named = |entry: &Value| entry["name"].is_string() && entry["template"].is_string();
    value.is_string() || value.as_array().is_some_and(|named| named.iter().all(is_named))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Result<Option<TokenizerConfig>, DataError> {
        let place = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = place.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        TokenizerConfig::beside(&place.path().join("tokenizer.json"))
    }

    #[test]
    fn a_template_is_found_where_transformers_puts_it() {
        let value = |files: &[(&str, &str)]| found(files).unwrap().map(|config| config.0[TEMPLATE].clone());
        let config = (
            TOKENIZER_CONFIG,
            r#"{"eos_token": "</s>", "chat_template": "{{ old }}"}"#,
        );
        let jinja = ("chat_template.jinja", "{{ é }}\n");
        assert_eq!(value(&[]), None);
        assert_eq!(value(&[(TOKENIZER_CONFIG, r#"{"chat_template": null}"#)]), None);
        assert_eq!(value(&[config]), Some("{{ old }}".into()));
        assert_eq!(value(&[config, jinja]), Some("{{ é }}\n".into()));
        let named = json!([{"name": "default", "template": "{{ é }}\n"}, {"name": "rag", "template": "r"}, {"name": "tool", "template": "t"}]);
        let further = [
            jinja,
            ("additional_chat_templates/tool.jinja", "t"),
            ("additional_chat_templates/rag.jinja", "r"),
        ];
        assert_eq!(value(&further), Some(named.clone()));
        let listed = json!({ "chat_template": named }).to_string();
        assert_eq!(value(&[(TOKENIZER_CONFIG, &listed)]), Some(named));
    }

    #[test]
    fn what_carries_the_fields_reads_back_and_special_tokens_are_not_among_them() {
        for template in [json!("{{ 漢字 }}\n"), json!([{"name": "default", "template": "a"}])] {
            let given =
                json!({"chat_template": template, "padding_side": "left", "add_bos_token": true, "extra": {"a": [1]}});
            let mut whole = given.clone();
            for key in LEFT {
                whole[key] = json!("x");
            }
            let config = found(&[(TOKENIZER_CONFIG, &whole.to_string())]).unwrap().unwrap();
            assert_eq!(Value::from(config.fields().clone()), given);
            let file = String::from_utf8(config.file()).unwrap();
            assert_eq!(found(&[(TOKENIZER_CONFIG, &file)]).unwrap(), Some(config));
        }
    }

    #[test]
    fn a_file_that_does_not_hold_what_it_should_is_named() {
        for (text, cause) in [
            ("{", "EOF"),
            ("[]", "invalid type"),
            (r#"{"chat_template": 5}"#, "neither a text nor a list"),
            (r#"{"chat_template": [{"name": "a"}]}"#, "neither a text nor a list"),
        ] {
            let error = found(&[(TOKENIZER_CONFIG, text)]).unwrap_err();
            let said = error.to_string();
            assert!(
                said.contains("tokenizer_config.json: ") && said.contains(cause),
                "{said}"
            );
            assert!(error.hint().unwrap().contains("take it away"));
        }
    }
}
