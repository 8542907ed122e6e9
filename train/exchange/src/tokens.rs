//! Special tokens as Hugging Face's files have them: ids in `config.json` and `generation_config.json`, spellings in
//! `tokenizer_config.json`.
//!
//! Where the files of one model differ, the file decides that decides in `transformers`: `generation_config.json` where texts begin and end,
//! `config.json` what pads, `tokenizer_config.json` what ends a document. What none of them says is the tokenizer's.

use std::fs;
use std::io;
use std::path::Path;

use gpas_data::special::SpecialNames;
use gpas_data::{SpecialTokens, Tokenizer, refuse_lfs_pointer};
use serde_json::{Map, Value};

use crate::ExchangeError;

/// The special tokens of a model from elsewhere.
#[derive(Debug)]
pub(super) struct FoundTokens {
    pub(super) special: SpecialTokens,
    /// What the files name and the model or its tokenizer does not have, for people.
    pub(super) notes: Vec<String>,
}

/// The ids that one configuration names, of those that the model has.
#[derive(Debug, Default)]
struct Ids {
    ends: Vec<u32>,
    begin: Option<u32>,
    pad: Option<u32>,
    /// The others, for people.
    notes: Vec<String>,
}

/// Reads the special tokens of the model of `vocab` ids in a directory. An id that the model lacks is left out: `transformers` would fail at
/// a padding token of that kind, and no text would ever end at such an end.
///
/// # Errors
/// If a configuration cannot be read, or has something in the place of an id.
pub(super) fn read(
    directory: &Path,
    vocab: usize,
    tokenizer: &Tokenizer,
    names: &SpecialNames,
) -> Result<FoundTokens, ExchangeError> {
    let generation = Ids::read(&directory.join("generation_config.json"), vocab)?;
    let config = Ids::read(&directory.join("config.json"), vocab)?;
    let mut notes = [generation.notes, config.notes].concat();
    let mut named = |key: &str, name: &Option<String>| {
        let name = name.as_deref()?;
        let id = tokenizer.token_to_id(name).filter(|id| (*id as usize) < vocab);
        if id.is_none() {
            notes.push(format!(
                "tokenizer_config.json: `{key}` {name} is none of the model's {vocab} tokens; it is left out"
            ));
        }
        id
    };
    let (end, begin) = (named("eos_token", &names.end), named("bos_token", &names.begin));
    let (pad, unknown) = (named("pad_token", &names.pad), named("unk_token", &names.unknown));

    let (own, _) = tokenizer.special_tokens().clone().within(vocab);
    let ends = [generation.ends, config.ends, own.ends]
        .into_iter()
        .find(|ends| !ends.is_empty())
        .unwrap_or_default();
    let own_end = own.end_of_document.filter(|end| ends.contains(end));
    let end_of_document = end.or(own_end).or(ends.first().copied());
    // A model without a padding token is written with its first end in that place.
    let other_than = |end: Option<u32>| move |pad: &u32| end != Some(*pad);
    let pad = config
        .pad
        .or(generation.pad.filter(other_than(ends.first().copied())))
        .or(pad.filter(other_than(end_of_document)));
    Ok(FoundTokens {
        special: SpecialTokens {
            end_of_document,
            ends,
            begin: generation.begin.or(config.begin).or(begin).or(own.begin),
            pad,
            unknown,
        },
        notes,
    })
}

impl Ids {
    /// Those of a file; none if there is no such file.
    fn read(path: &Path, vocab: usize) -> Result<Self, ExchangeError> {
        let Some(config) = read_json(path)? else {
            return Ok(Self::default());
        };
        let mut ids = Self::default();
        let mut of_the_model = |key: &'static str| {
            let found = whole_numbers(&config[key]).ok_or_else(|| ExchangeError::TokenId {
                path: path.to_path_buf(),
                key,
                found: config[key].to_string(),
            })?;
            let (kept, lacking) = found
                .into_iter()
                .partition::<Vec<i64>, _>(|id| (0..vocab as i64).contains(id));
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            ids.notes.extend(
                lacking
                    .iter()
                    .map(|id| format!("{file}: `{key}` {id} is none of the model's {vocab} tokens; it is left out")),
            );
            Ok::<Vec<u32>, ExchangeError>(kept.into_iter().map(|id| id as u32).collect())
        };
        let (ends, begin, pad) = (
            of_the_model("eos_token_id")?,
            of_the_model("bos_token_id")?,
            of_the_model("pad_token_id")?,
        );
        Ok(Self {
            ends,
            begin: begin.first().copied(),
            pad: pad.first().copied(),
            ..ids
        })
    }
}

/// A whole number or a list of them; an absent key is an empty list.
fn whole_numbers(value: &Value) -> Option<Vec<i64>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(values) => values.iter().map(Value::as_i64).collect(),
        value => Some(vec![value.as_i64()?]),
    }
}

/// Ids as configurations write them: none, one, or a list.
pub(super) fn one_or_several(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => (*id).into(),
        ids => ids.into(),
    }
}

/// `generation_config.json`, with the other settings of the one that the model came with. What pads is never left open, because
/// `transformers` would warn at every text.
pub(super) fn generation_config(settings: &Map<String, Value>, special: &SpecialTokens) -> Value {
    let mut config = settings.clone();
    config.insert("bos_token_id".into(), special.begin.into());
    config.insert("eos_token_id".into(), one_or_several(&special.ends));
    config.insert(
        "pad_token_id".into(),
        special.pad.or(special.ends.first().copied()).into(),
    );
    config.into()
}

/// What the `generation_config.json` of a model says besides special tokens, and besides which program wrote it.
///
/// # Errors
/// If the file cannot be read or is not a JSON object.
pub(super) fn generation_settings(directory: &Path) -> Result<Map<String, Value>, ExchangeError> {
    let path = directory.join("generation_config.json");
    let Some(config) = read_json(&path)? else {
        return Ok(Map::new());
    };
    let Value::Object(mut settings) = config else {
        return Err(ExchangeError::damaged(
            &path,
            "it is no configuration: it is not an object",
        ));
    };
    let left = [
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
        "_from_model_config",
    ];
    settings.retain(|key, value| !left.contains(&key.as_str()) && !value.is_null());
    Ok(settings)
}

/// A file of JSON, if there is such a file.
fn read_json(path: &Path) -> Result<Option<Value>, ExchangeError> {
    refuse_lfs_pointer(path)?;
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(ExchangeError::io(path)(cause)),
    };
    let value = serde_json::from_slice(&bytes);
    value.map_err(|cause| ExchangeError::damaged(path, format!("it is no configuration: {cause}")))
}

/// `tokenizer_config.json`, with what lay beside the tokenizer where it came from.
pub(super) fn tokenizer_config(tokenizer: &Tokenizer, special: &SpecialTokens, positions: usize) -> Value {
    let spelled = |id: u32| tokenizer.id_to_token(id);
    let mut config = Map::from_iter([("clean_up_tokenization_spaces".into(), false.into())]);
    config.extend(
        tokenizer
            .config()
            .map_or_else(Map::new, |config| config.fields().clone()),
    );
    // A token that the tokenizer lacks would be added to it, and be none of the model's.
    let is_known = |token: &Value| {
        let text = token.as_str().or(token["content"].as_str());
        text.is_some_and(|text| tokenizer.token_to_id(text).is_some())
    };
    config.retain(|key, value| key != "bos_token" || is_known(value));
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    config.insert("model_max_length".into(), positions.into());
    for (key, id) in [
        ("bos_token", special.begin),
        ("eos_token", special.end_of_document),
        ("pad_token", special.pad.or(special.end_of_document)),
        ("unk_token", special.unknown),
    ] {
        if let Some(token) = id.and_then(spelled) {
            config.insert(key.into(), token.into());
        }
    }
    config.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Four words: `a`, `b`, `</s>` and `<pad>`.
    fn tokenizer() -> Tokenizer {
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "</s>": 2, "<pad>": 3}, "unk_token": "a"},
        });
        Tokenizer::from_bytes(json.to_string().into_bytes(), Path::new("words.json")).unwrap()
    }

    /// What is found beside a model of four ids that has these files.
    fn found(config: Value, generation: Option<Value>, names: SpecialNames) -> Result<FoundTokens, ExchangeError> {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("config.json"), config.to_string()).unwrap();
        if let Some(generation) = generation {
            fs::write(place.path().join("generation_config.json"), generation.to_string()).unwrap();
        }
        read(place.path(), 4, &tokenizer(), &names)
    }

    fn special(config: Value, generation: Option<Value>) -> SpecialTokens {
        let found = found(config, generation, SpecialNames::default()).unwrap();
        assert_eq!(found.notes, [""; 0]);
        found.special
    }

    #[test]
    fn ids_are_read_from_either_configuration_as_numbers_and_as_lists() {
        let config = json!({"eos_token_id": [1, 0], "bos_token_id": 0, "pad_token_id": 3});
        let expected = SpecialTokens {
            end_of_document: Some(1),
            ends: vec![1, 0],
            begin: Some(0),
            pad: Some(3),
            unknown: None,
        };
        assert_eq!(special(config.clone(), None), expected);
        assert_eq!(special(json!({}), Some(config.clone())), expected);
        // The text ends where the configuration of generation says.
        let generation = json!({"eos_token_id": 0, "bos_token_id": 1, "pad_token_id": 0});
        let both = special(config, Some(generation));
        assert_eq!((both.ends, both.begin, both.pad), (vec![0], Some(1), Some(3)));
    }

    #[test]
    fn what_no_file_says_is_the_tokenizers_but_no_padding_is_guessed() {
        let found = special(json!({"pad_token_id": null}), None);
        assert_eq!((found.end_of_document, found.ends.as_slice()), (Some(2), &[2][..]));
        assert_eq!((found.begin, found.pad), (None, None));
        // As a model without a padding token is written.
        let generation = generation_config(&Map::new(), &found);
        assert_eq!(generation["pad_token_id"], 2);
        assert_eq!(special(json!({}), Some(generation)), found);
    }

    #[test]
    fn the_configuration_of_the_tokenizer_names_the_end_of_a_document() {
        let names = SpecialNames {
            end: Some("a".into()),
            begin: Some("b".into()),
            pad: Some("<pad>".into()),
            unknown: Some("a".into()),
        };
        let found = found(json!({"eos_token_id": [1, 2]}), None, names).unwrap().special;
        assert_eq!((found.end_of_document, found.ends.as_slice()), (Some(0), &[1, 2][..]));
        assert_eq!((found.begin, found.pad, found.unknown), (Some(1), Some(3), Some(0)));
        let config = tokenizer_config(&tokenizer(), &found, 9);
        assert_eq!(
            config,
            json!({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 9, "clean_up_tokenization_spaces": false,
                "eos_token": "a", "bos_token": "b", "pad_token": "<pad>", "unk_token": "a"})
        );
    }

    #[test]
    fn ids_that_the_model_lacks_are_left_out_with_a_word() {
        let names = SpecialNames {
            pad: Some("<none>".into()),
            ..SpecialNames::default()
        };
        let config = json!({"eos_token_id": [2, 4], "bos_token_id": 7, "pad_token_id": -1});
        let found = found(config, None, names).unwrap();
        assert_eq!((found.special.ends, found.special.begin), (vec![2], None));
        assert_eq!(found.special.pad, None);
        assert_eq!(
            found.notes,
            [
                "config.json: `eos_token_id` 4 is none of the model's 4 tokens; it is left out",
                "config.json: `bos_token_id` 7 is none of the model's 4 tokens; it is left out",
                "config.json: `pad_token_id` -1 is none of the model's 4 tokens; it is left out",
                "tokenizer_config.json: `pad_token` <none> is none of the model's 4 tokens; it is left out",
            ]
        );
    }

    #[test]
    fn what_is_no_id_is_refused_by_name() {
        for (value, said) in [
            (json!("2"), "\"2\""),
            (json!([1, 2.5]), "[1,2.5]"),
            (json!(true), "true"),
        ] {
            let error = found(json!({"eos_token_id": value}), None, SpecialNames::default()).unwrap_err();
            let message = error.to_string();
            let expected = format!("config.json: `eos_token_id` is {said}, which is no token id");
            assert!(message.ends_with(&expected), "{message}");
            assert_eq!(
                error.hint().unwrap(),
                "write the number of the token, a list of numbers where several end a text, or null"
            );
        }
        let error = found(json!({}), Some(json!("x")), SpecialNames::default());
        assert!(error.is_ok(), "a configuration that names nothing names nothing");
    }

    #[test]
    fn several_ends_are_a_list_and_one_is_a_number() {
        assert_eq!(one_or_several(&[]), json!(null));
        assert_eq!(one_or_several(&[5]), json!(5));
        assert_eq!(one_or_several(&[5, 2]), json!([5, 2]));
    }
}
