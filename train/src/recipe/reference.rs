//! The list of keys: each with its default, what it may be and what it means.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Table, Value};

use super::{Key, Recipe, RecipeError, RecipeOptions, flatten, resolve};

/// What there is to know of a key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeyReference {
    /// Its dotted name, such as `train.lr`.
    pub key: &'static str,
    /// What it means, in sentences.
    pub doc: &'static str,
    /// Which values it may have, in words that complete "it must be".
    pub allowed: String,
    /// Its value where no source gives one.
    pub default: KeyDefault,
    /// Whether a run may change it and still be the same run.
    pub may_change: bool,
}

/// The value of a key that is not given.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum KeyDefault {
    /// Always the same one.
    Value(Value),
    /// One that depends on other keys, or none, in words.
    Words(String),
}

impl Recipe {
    /// Every key, in the order of [`Recipe::keys`].
    ///
    /// # Errors
    /// If the default recipe cannot be written as TOML, which a test rules out.
    pub fn reference() -> Result<Vec<KeyReference>, RecipeError> {
        let default = resolve(None, &RecipeOptions::default())?;
        let values = flatten(Table::try_from(&default)?);
        Ok(Recipe::keys().map(|key| KeyReference::new(key, &values)).collect())
    }

    /// The default recipe as a file that explains itself: each key below what it means. Those whose default is not always the same are
    /// comments, so that they go on following from the others.
    ///
    /// # Errors
    /// As [`Recipe::reference`].
    pub fn annotated() -> Result<String, RecipeError> {
        let mut text = String::new();
        let mut section = "";
        for (key, reference) in Recipe::keys().zip(Recipe::reference()?) {
            let (table, name) = key.parts();
            if table != section {
                text += &format!("[{table}]\n");
                section = table;
            }
            text += &format!("# {}\n# It must be {}.", reference.doc, reference.allowed);
            text += if key.may_change {
                " A run may change it when it goes on.\n"
            } else {
                "\n"
            };
            text += &match reference.default {
                KeyDefault::Value(value) => format!("{name} = {value}\n\n"),
                KeyDefault::Words(words) => format!("# {name}: {words}\n\n"),
            };
        }
        text.truncate(text.trim_end().len());
        Ok(text + "\n")
    }
}

impl KeyReference {
    /// `values` are those of the default recipe.
    fn new(key: &Key, values: &BTreeMap<String, Value>) -> Self {
        let words = key.default.map(str::to_string);
        let words = words.or(key.instead_of.map(|other| format!("instead of `{other}`")));
        Self {
            key: key.name,
            doc: key.doc(),
            allowed: key.allowed(),
            default: match (words, values.get(key.name)) {
                (None, Some(value)) => KeyDefault::Value(value.clone()),
                (words, _) => KeyDefault::Words(words.unwrap_or_else(|| "none".into())),
            },
            may_change: key.may_change,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotated_recipe_is_the_default_one() {
        let text = Recipe::annotated().unwrap();
        let recipe: Recipe = toml::from_str(&text).unwrap();
        assert_eq!(recipe, resolve(None, &RecipeOptions::default()).unwrap());
        for line in [
            "# Highest learning rate.",
            "# It must be a number above 0.",
            "lr = 0.001",
            "# warmup: a tenth of `train.steps`",
            "# It must be one of cosine, linear, cosine_restarts, wsd, constant.",
            "# tokens: instead of `train.steps`",
            "# It must be a whole number of at least 1. A run may change it when it goes on.",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn every_key_of_a_recipe_is_declared_and_explained() {
        let default = resolve(None, &RecipeOptions::default()).unwrap().with_vocab(99);
        let written = flatten(Table::try_from(&default).unwrap());
        let reference = Recipe::reference().unwrap();
        for name in written.keys() {
            assert!(reference.iter().any(|known| known.key == name), "{name}");
        }
        for KeyReference {
            key,
            doc,
            allowed,
            default,
            ..
        } in &reference
        {
            assert!(
                doc.ends_with('.') && !doc.contains("](") && !allowed.is_empty(),
                "{key}: {doc}"
            );
            assert_ne!(*default, KeyDefault::Words("none".into()), "{key}");
        }
        let mut names: Vec<_> = reference.iter().map(|known| known.key).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), reference.len());
    }

    #[test]
    fn a_default_without_words_depends_on_no_other_key() {
        let set = [
            "train.optimizer=adamw",
            "train.batch=2",
            "train.steps=77",
            "model.scheme=post_gpas",
        ]
        .map(str::to_string);
        let options = RecipeOptions {
            preset: Some("71m".into()),
            set: set.into(),
            ..RecipeOptions::default()
        };
        let values = flatten(Table::try_from(resolve(None, &options).unwrap()).unwrap());
        for KeyReference { key, default, .. } in Recipe::reference().unwrap() {
            let is_set = options.set.iter().any(|set| set.starts_with(key));
            if let (KeyDefault::Value(value), false) = (default, is_set) {
                assert_eq!(values[key], value, "{key}");
            }
        }
    }
}
