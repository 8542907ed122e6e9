//! A recipe from Rust, without a command line.

use std::path::Path;

use serde::Serialize;
use toml::{Table, Value};

use super::given::Given;
use super::{Recipe, RecipeError, RecipeFile};

/// A recipe that is being put together; [`resolve`](Self::resolve) completes and checks it.
///
/// Keys are those of a recipe file. What is not set has its default, which may follow from what is: `train.warmup` from `train.steps`, all
/// sizes from the preset.
///
/// ```
/// use gpas_model::Precision;
/// use gpas_train::recipe::Recipe;
///
/// let recipe = Recipe::preset("20m")
///     .with("model.scheme", "pre_gpas")
///     .with("train.steps", 2000)
///     .with("train.lr", 5e-4)
///     .with("train.precision", Precision::Bf16)
///     .resolve()?;
/// assert_eq!((recipe.model.hidden, recipe.train.warmup), (256, 200));
///
/// let published = Recipe::from_file("71m")?.with("train.seed", 1).resolve()?;
/// assert_eq!((published.train.batch, published.train.seed), (512, 1));
///
/// let error = Recipe::preset("nano").with("train.learning_rate", 1e-3).resolve().unwrap_err();
/// assert_eq!(error.to_string(), "unknown key `train.learning_rate` in the program");
/// assert_eq!(error.hint().unwrap(), "did you mean `train.lr`?");
/// # Ok::<(), gpas_train::recipe::RecipeError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct RecipeBuilder {
    file: Option<RecipeFile>,
    values: Vec<(String, Result<Value, toml::ser::Error>)>,
}

impl Recipe {
    /// The defaults of a size: `nano`, `9m`, `20m`, …
    pub fn preset(name: &str) -> RecipeBuilder {
        RecipeBuilder::default().with("model.preset", name)
    }

    /// What a recipe file says, or the [shipped](super::SHIPPED) recipe of that name.
    ///
    /// # Errors
    /// If there is none, or it is not TOML.
    pub fn from_file(file: impl AsRef<Path>) -> Result<RecipeBuilder, RecipeError> {
        Ok(RecipeBuilder {
            file: Some(RecipeFile::read(file.as_ref())?),
            values: Vec::new(),
        })
    }
}

impl RecipeBuilder {
    /// Sets a key such as `train.lr`, to a number, a text, or a value of the type that the recipe has it in. A later value replaces an
    /// earlier one.
    pub fn with(mut self, key: &str, value: impl Serialize) -> Self {
        self.values.push((key.into(), Value::try_from(value)));
        self
    }

    /// The complete recipe.
    ///
    /// # Errors
    /// The first thing that is wrong: an unknown key, a value that its key may not have, sizes that do not fit together.
    pub fn resolve(self) -> Result<Recipe, RecipeError> {
        let mut given = Given::new(Recipe::keys());
        if let Some(file) = self.file {
            file.add_to(&mut given)?;
        }
        for (key, value) in self.values {
            given.add(Table::from_iter([(key, value?)]), "the program")?;
        }
        Recipe::from_given(&given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::OptimizerKind;
    use crate::recipe::{RecipeOptions, resolve};

    #[test]
    fn a_program_and_a_command_line_come_to_the_same_recipe() {
        let options = RecipeOptions {
            preset: Some("71m".into()),
            set: [
                "train.optimizer=adamw",
                "train.betas=[0.9, 0.95]",
                "train.tokens=1000000",
            ]
            .map(str::to_string)
            .into(),
            ..RecipeOptions::default()
        };
        let built = Recipe::preset("71m")
            .with("train.optimizer", OptimizerKind::AdamW)
            .with("train.betas", [0.9, 0.95])
            .with("train.steps", 7)
            .with("train.tokens", 1_000_000_u64);
        assert_eq!(built.resolve().unwrap(), resolve(None, &options).unwrap());

        let of_file = Recipe::from_file("350m").unwrap().resolve().unwrap();
        assert_eq!(
            of_file,
            resolve(Some(Path::new("350m")), &RecipeOptions::default()).unwrap()
        );
    }

    #[test]
    fn values_that_no_key_has_are_refused() {
        let refused = |builder: RecipeBuilder| builder.resolve().unwrap_err().to_string();
        let nano = || Recipe::preset("nano");
        assert_eq!(
            refused(nano().with("train.steps", 0)),
            "`train.steps` in the program must be a whole number of at least 1, not 0"
        );
        assert_eq!(refused(Recipe::preset("nanp")), "unknown preset `nanp`");
        let nothing: Option<u64> = None;
        let message = refused(nano().with("train.seed", nothing));
        assert!(message.starts_with("the recipe cannot be written as TOML"), "{message}");
        assert!(matches!(Recipe::from_file("72m"), Err(RecipeError::Missing(_))));
    }
}
