//! Recipes: everything that determines a run, resolved and validated before anything is allocated.
//!
//! [`resolve`] puts a recipe together from the sources of a command line, [`RecipeBuilder`] from those of a program; the result, [`Recipe`],
//! has every key. A run keeps it as `recipe.toml`, which reads back equal. The keys themselves are declared in `recipe/table.rs`.

mod allowed;
mod builder;
mod compare;
mod error;
mod given;
mod key;
mod reference;
mod resolve;
mod shipped;
mod table;

use std::collections::BTreeMap;

use gpas_model::{ConfigError, LlamaConfig, Preset};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::optimizer::OptimizerConfig;
use crate::schedule::Schedule;

pub use builder::RecipeBuilder;
pub use compare::CompareTable;
pub use error::{RecipeError, suggestion};
pub use given::{flatten, parse_values};
pub use key::Key;
pub use reference::{KeyDefault, KeyReference};
pub use resolve::{RecipeFile, RecipeOptions, resolve, resolve_with};
pub use shipped::{COMPARISONS, SHIPPED, Shipped};
pub use table::{CheckpointRecipe, DataRecipe, EvalRecipe, ModelRecipe, TrainRecipe};

/// Vocabulary of a size that is no preset's, where no data has decided it yet.
const CUSTOM_VOCAB: usize = 32_000;

/// A complete, valid recipe.
///
/// Reading one, from whatever format, goes through the same validation as [`resolve`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Table")]
pub struct Recipe {
    /// The model.
    pub model: ModelRecipe,
    /// What it is trained on.
    pub data: DataRecipe,
    /// How it is trained.
    pub train: TrainRecipe,
    /// How it is evaluated during training.
    pub eval: EvalRecipe,
    /// What is kept.
    pub checkpoint: CheckpointRecipe,
}

impl Recipe {
    /// The recipe as TOML; [`resolve`] reads it back equal.
    ///
    /// # Errors
    /// If the path of the data is not UTF-8.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        Ok(toml::to_string(self)?)
    }

    /// The model, whose vocabulary is the recipe's or else that of the data.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn llama(&self, data_vocab: usize) -> Result<LlamaConfig, ConfigError> {
        let model = &self.model;
        let vocab = model.vocab.unwrap_or(data_vocab);
        let sizes = LlamaConfig::new(vocab, model.hidden, model.intermediate, model.heads, model.layers);
        // A longer sequence makes more positions, unless a scaling gives them.
        let positions = match model.rope_scaling.positions(model.max_positions) {
            enough if enough >= self.data.seq_len => model.max_positions,
            _ => self.data.seq_len,
        };
        let config = sizes
            .with_kv_heads(Some(model.kv_heads))
            .with_scheme(model.scheme)
            .with_post_num(Some(model.post_num))
            .with_residual_warmup(model.residual_warmup)
            .with_tied_head(model.tied_head)
            .with_gate(model.gate)
            .with_initialisation(model.init)
            .with_norm_epsilon(model.norm_eps)
            .with_rope_base(model.rope_base)
            .with_rope_scaling(model.rope_scaling)
            .with_max_positions(positions)
            .with_precision(self.train.precision)
            .with_recompute(self.train.recompute);
        config.validate()?;
        Ok(config)
    }

    /// The vocabulary as far as it is known without the data: the recipe's, or else the published one of the size.
    pub fn expected_vocab(&self) -> usize {
        let published = || Preset::named(&self.model.preset).map(|preset| preset.vocab);
        self.model.vocab.or_else(published).unwrap_or(CUSTOM_VOCAB)
    }

    /// The recipe of a run whose data is known: a vocabulary that was left to the data is written down.
    pub fn with_vocab(mut self, data_vocab: usize) -> Recipe {
        self.model.vocab.get_or_insert(data_vocab);
        self
    }

    /// The learning rate of every step.
    pub fn schedule(&self) -> Schedule {
        let train = &self.train;
        Schedule {
            kind: train.schedule,
            peak: train.lr,
            warmup: train.warmup,
            total: train.steps,
            min_lr_ratio: train.min_lr_ratio,
            cycles: train.cycles,
            decay_fraction: train.decay_fraction,
        }
    }

    /// The optimizer's settings.
    pub fn optimizer(&self) -> OptimizerConfig {
        let train = &self.train;
        OptimizerConfig {
            kind: train.optimizer,
            betas: (train.betas[0], train.betas[1]),
            eps: train.eps,
            weight_decay: train.weight_decay,
            clip: train.clip,
            clip_gate: train.clip_gate,
        }
    }

    /// The keys in which another recipe differs from this one, with the value here and the value there; `""` where there is none.
    pub fn changes(&self, other: &Recipe) -> BTreeMap<String, [Value; 2]> {
        // A recipe without a TOML form has no keys, and so differs in all of them.
        let leaves = |recipe| flatten(Table::try_from(recipe).unwrap_or_default());
        let (ours, theirs) = (leaves(self), leaves(other));
        let value = |leaves: &BTreeMap<String, Value>, key| leaves.get(key).cloned().unwrap_or_else(|| "".into());
        ours.keys()
            .chain(theirs.keys())
            .map(|key| (key.clone(), [value(&ours, key), value(&theirs, key)]))
            .filter(|(_, [here, there])| here != there)
            .collect()
    }

    /// Every key that a recipe may have, in the order in which it is written, [other forms](Key::instead_of) of keys after those of their
    /// section.
    pub fn keys() -> impl Iterator<Item = &'static Key> {
        table::SECTIONS.into_iter().flatten()
    }

    /// Whether a run may change a key and still be the same run: those that say when to look, what to keep, how to cut the work, and where
    /// the data lies, whose contents are compared by their hash.
    pub fn may_change(name: &str) -> bool {
        Recipe::keys().any(|key| key.name == name && key.may_change)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn with(file: &str, set: &[&str]) -> Recipe {
        let args = RecipeOptions {
            set: set.iter().map(ToString::to_string).collect(),
            ..RecipeOptions::default()
        };
        resolve(Some(Path::new(file)), &args).unwrap()
    }

    #[test]
    fn a_recipe_reads_back_equal() {
        let odd = [
            "model.gate={act='tanh', site='before', init=-0.5}",
            "model.tied_head=true",
            "model.heads=16",
            "model.kv_heads=4",
            "train.eps=1e-12",
            "train.lr=0.00037",
            "train.betas=[0.8, 0.95]",
            "train.optimizer=adamw",
            "train.schedule=cosine_restarts",
            "train.warmup=0",
            "data.path=somewhere/c4",
            "train.seed=9223372036854775807",
        ];
        for recipe in [with("nano", &[]), with("350m", &odd)] {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("recipe.toml");
            std::fs::write(&file, recipe.to_toml().unwrap()).unwrap();
            assert_eq!(resolve(Some(&file), &RecipeOptions::default()).unwrap(), recipe);
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
        }
    }

    #[test]
    fn reading_validates() {
        let text = with("nano", &[]).to_toml().unwrap().replace("heads = 2", "heads = 3");
        let error = toml::from_str::<Recipe>(&text).unwrap_err().to_string();
        assert!(
            error.contains("model.heads = 3 does not divide model.hidden = 64"),
            "{error}"
        );
    }

    #[test]
    fn the_vocabulary_is_the_recipes_or_else_the_datas() {
        let open = with("nano", &[]);
        assert_eq!((open.model.vocab, open.expected_vocab()), (None, 4096));
        assert_eq!(open.llama(777).unwrap().vocab, 777);
        let decided = open.with_vocab(777);
        assert_eq!(decided.model.vocab, Some(777));
        assert_eq!(decided.clone().with_vocab(5), decided);
        assert_eq!(with("71m", &[]).llama(777).unwrap().vocab, 32_000);
    }

    #[test]
    fn long_sequences_have_positions() {
        let recipe = with("nano", &["data.seq_len=4096"]);
        assert_eq!(recipe.llama(100).unwrap().max_positions, 4096);
        let few = Recipe::preset("nano")
            .with("model.max_positions", 100)
            .resolve()
            .unwrap();
        assert_eq!((few.data.seq_len, few.llama(100).unwrap().max_positions), (100, 100));
    }

    #[test]
    fn a_rope_scaling_is_kept_whole_and_gives_positions() {
        let set = [
            "model.rope_scaling={rope_type='yarn', factor=4, beta_fast=16, truncate=false}",
            "model.max_positions=64",
        ];
        let recipe = with("nano", &set);
        let text = recipe.to_toml().unwrap();
        assert_eq!(toml::from_str::<Recipe>(&text).unwrap(), recipe);
        let table = "[model.rope_scaling]\nrope_type = \"yarn\"\nfactor = 4.0\noriginal_max_position_embeddings = 64\nbeta_fast = 16.0\ntruncate = false\n";
        assert!(text.contains(table), "{text}");
        let config = recipe.llama(100).unwrap();
        assert_eq!((config.max_positions, config.positions()), (64, 256));
        let longer = with("nano", &[&set[..], &["data.seq_len=300"]].concat())
            .llama(100)
            .unwrap();
        assert_eq!((longer.max_positions, longer.positions()), (300, 300));
        assert!(!with("nano", &[]).to_toml().unwrap().contains("rope_scaling"));
    }

    #[test]
    fn the_schedule_is_the_recipes() {
        let schedule = with("71m", &[]).schedule();
        assert_eq!(schedule.rate(0), 0.0);
        assert_eq!(schedule.rate(1000), 1e-3);
        assert!((schedule.rate(10_000) - 1e-4).abs() < 1e-12);
    }

    #[test]
    fn changes_are_named_and_those_of_the_mathematics_are_told_apart() {
        let recipe = with("71m", &[]);
        let changed = |set: &[&str]| recipe.changes(&with("71m", set));
        let harmless = [
            "eval.every=7",
            "eval.tokens=5",
            "checkpoint.every=9",
            "checkpoint.keep=1",
            "train.micro_batch=3",
            "train.inspect_every=2",
            "train.recompute=true",
            "train.max_bad_steps=3",
            "data.path=elsewhere",
        ];
        let changes = changed(&harmless);
        assert_eq!(changes.len(), harmless.len());
        assert!(changes.keys().all(|key| Recipe::may_change(key)), "{changes:?}");
        assert_eq!(changes["train.micro_batch"], [Value::Integer(64), Value::Integer(3)]);

        let changes = changed(&[
            "train.lr=2e-3",
            "train.seed=1",
            "model.gate.act=relu",
            "train.precision=bf16",
        ]);
        let names: Vec<_> = changes.keys().collect();
        assert_eq!(names, ["model.gate.act", "train.lr", "train.precision", "train.seed"]);
        assert!(!changes.keys().any(|key| Recipe::may_change(key)));
    }
}
