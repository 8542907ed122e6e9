//! A tokenizer's chat template: how a conversation is written as one text. Nothing here renders it; it travels beside the tokenizer from
//! where that came from to what is exported.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::DataError;
use crate::lfs::refuse_lfs_pointer;

/// The file that carries a template beside a `tokenizer.json` of our own.
pub const CHAT_TEMPLATE: &str = "chat_template.json";

/// The template of `transformers` in a file of its own.
const JINJA: &str = "chat_template.jinja";
/// Further templates beside [`JINJA`], each in a file with its name.
const FURTHER: &str = "additional_chat_templates";
/// The files of JSON that may hold a template under the key [`KEY`].
const JSON: [&str; 2] = [CHAT_TEMPLATE, "tokenizer_config.json"];
const KEY: &str = "chat_template";

/// A chat template, or several with names, as `tokenizer_config.json` holds them: a string, or a list of `{"name", "template"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate(Value);

impl ChatTemplate {
    /// The template that lies in the directory of a `tokenizer.json`, where `transformers` would find it: in `chat_template.jinja` with
    /// those of `additional_chat_templates/`, else in `tokenizer_config.json`.
    ///
    /// # Errors
    /// When one of these files cannot be read or does not hold what it should.
    pub fn beside(tokenizer: &Path) -> Result<Option<Self>, DataError> {
        let directory = tokenizer.parent().unwrap_or(Path::new(""));
        if let Some(template) = read(&directory.join(JINJA))? {
            return Ok(Some(with_further(template, &directory.join(FURTHER))?));
        }
        for name in JSON {
            let path = directory.join(name);
            let Some(text) = read(&path)? else { continue };
            let refused = |cause: String| DataError::BesideTokenizer {
                path: path.clone(),
                cause,
            };
            let mut fields: Map<String, Value> =
                serde_json::from_str(&text).map_err(|error| refused(error.to_string()))?;
            match fields.remove(KEY) {
                None | Some(Value::Null) => {}
                Some(value) if is_template(&value) => return Ok(Some(Self(value))),
                Some(_) => {
                    return Err(refused(format!(
                        "its `{KEY}` is neither a text nor a list of named texts"
                    )));
                }
            }
        }
        Ok(None)
    }

    /// The template as `tokenizer_config.json` holds it under `chat_template`.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// The bytes of the file [`CHAT_TEMPLATE`].
    pub fn file(&self) -> Vec<u8> {
        format!("{:#}\n", json!({ KEY: self.0 })).into_bytes()
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

/// A template of its own file together with those of a directory, in the order of their names.
fn with_further(template: String, directory: &Path) -> Result<ChatTemplate, DataError> {
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
        return Ok(ChatTemplate(template.into()));
    }
    let all = std::iter::once(("default".to_string(), template)).chain(further);
    let named = all.map(|(name, template)| json!({"name": name, "template": template}));
    Ok(ChatTemplate(named.collect()))
}

fn is_template(value: &Value) -> bool {
    let is_named = |entry: &Value| entry["name"].is_string() && entry["template"].is_string();
    value.is_string() || value.as_array().is_some_and(|named| named.iter().all(is_named))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Result<Option<ChatTemplate>, DataError> {
        let place = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = place.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        ChatTemplate::beside(&place.path().join("tokenizer.json"))
    }

    #[test]
    fn a_template_is_found_where_transformers_puts_it() {
        let value = |files: &[(&str, &str)]| found(files).unwrap().map(|template| template.0);
        let config = (
            "tokenizer_config.json",
            r#"{"eos_token": "</s>", "chat_template": "{{ old }}"}"#,
        );
        let jinja = ("chat_template.jinja", "{{ é }}\n");
        assert_eq!(value(&[]), None);
        assert_eq!(value(&[("tokenizer_config.json", r#"{"chat_template": null}"#)]), None);
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
        assert_eq!(value(&[("tokenizer_config.json", &listed)]), Some(named));
    }

    #[test]
    fn what_carries_it_reads_back() {
        for value in [json!("{{ 漢字 }}\n"), json!([{"name": "default", "template": "a"}])] {
            let template = ChatTemplate(value);
            let file = String::from_utf8(template.file()).unwrap();
            assert_eq!(found(&[(CHAT_TEMPLATE, &file)]).unwrap(), Some(template));
        }
    }

    #[test]
    fn a_file_that_holds_no_template_is_named() {
        for (text, cause) in [
            ("{", "EOF"),
            ("[]", "invalid type"),
            (r#"{"chat_template": 5}"#, "neither a text nor a list"),
            (r#"{"chat_template": [{"name": "a"}]}"#, "neither a text nor a list"),
        ] {
            let error = found(&[("tokenizer_config.json", text)]).unwrap_err();
            let said = error.to_string();
            assert!(
                said.contains("tokenizer_config.json: ") && said.contains(cause),
                "{said}"
            );
            assert!(error.hint().unwrap().contains("take it away"));
        }
    }
}
