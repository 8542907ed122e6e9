//! From sources to a recipe.
//!
//! Later sources replace what earlier ones say: the defaults, a file (or a [shipped](super::SHIPPED) one by its name),
//! `--preset`, `--scheme` and `--data`, then each `--set key=value`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::given::{Given, parse, parse_assignment};
use super::table::{CheckpointRecipe, DataRecipe, EvalRecipe, ModelRecipe, TrainRecipe};
use super::{CompareTable, Recipe, RecipeError, Shipped};

/// What a caller wants changed in a recipe; the options of the command line are these.
#[derive(Clone, Debug, Default)]
pub struct RecipeOptions {
    /// Model size: `nano`, `9m`, `20m`, …
    pub preset: Option<String>,
    /// Normalisation scheme: `pre`, `pre_gpas`, `sandwich_gpas`, …
    pub scheme: Option<String>,
    /// Directory of prepared data; the built-in corpus if absent.
    pub data: Option<PathBuf>,
    /// Any recipe keys, each as `key=value`, such as `train.lr=5e-4`.
    pub set: Vec<String>,
}

/// The recipe of a command line: the defaults, over them `file` (a path, or the name of a shipped recipe), over it the options.
///
/// # Errors
/// The first thing that is wrong, with the key and the source it comes from.
pub fn resolve(file: Option<&Path>, args: &RecipeOptions) -> Result<Recipe, RecipeError> {
    let file = file.map(RecipeFile::read).transpose()?;
    resolve_with(file.as_ref(), args, Table::new(), "")
}

/// As [`resolve`], of a file that has been read, and with keys that replace even those of the options; `origin` says where they come from.
///
/// # Errors
/// The first thing that is wrong, with the key and the source it comes from.
pub fn resolve_with(
    file: Option<&RecipeFile>,
    args: &RecipeOptions,
    over: Table,
    origin: &str,
) -> Result<Recipe, RecipeError> {
    let mut given = Given::new(Recipe::keys());
    if let Some(file) = file {
        file.add_to(&mut given)?;
    }
    add_options(&mut given, args)?;
    given.add(over, origin)?;
    Recipe::from_given(&given)
}

/// A recipe file that has been read and not yet been resolved.
#[derive(Clone, Debug)]
pub struct RecipeFile {
    /// Which runs a comparison makes of it.
    pub compare: CompareTable,
    table: Table,
    origin: String,
}

impl RecipeFile {
    /// Reads a file, or the shipped recipe of that name.
    ///
    /// # Errors
    /// If there is none, or it is not TOML.
    pub fn read(file: &Path) -> Result<Self, RecipeError> {
        let origin = file.display().to_string();
        Self::parse(&read(file, &origin)?, origin)
    }

    fn parse(text: &str, origin: String) -> Result<Self, RecipeError> {
        let mut table = parse(text, &origin)?;
        let compare = CompareTable::take(&mut table, &origin)?;
        Ok(Self { compare, table, origin })
    }

    /// Adds what the file says to what is given.
    pub(super) fn add_to(&self, given: &mut Given) -> Result<(), RecipeError> {
        given.add(self.table.clone(), &self.origin)
    }
}

pub(super) fn add_options(given: &mut Given, args: &RecipeOptions) -> Result<(), RecipeError> {
    let not_text = |path: &PathBuf| RecipeError::NotText(path.clone());
    let data = args
        .data
        .as_ref()
        .map(|path| path.to_str().ok_or_else(|| not_text(path)));
    for (option, section, key, value) in [
        ("--preset", "model", "preset", args.preset.as_deref()),
        ("--scheme", "model", "scheme", args.scheme.as_deref()),
        ("--data", "data", "path", data.transpose()?),
    ] {
        if let Some(value) = value {
            let inner = Table::from_iter([(key.to_string(), Value::String(value.into()))]);
            let table = Table::from_iter([(section.to_string(), Value::Table(inner))]);
            given.add(table, option)?;
        }
    }
    let assignments = args.set.iter().map(|text| parse_assignment(text));
    given.add(assignments.collect::<Result<Table, _>>()?, "--set")
}

fn read(file: &Path, origin: &str) -> Result<String, RecipeError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Shipped::named(origin)
            .map(|shipped| shipped.text.to_string())
            .ok_or_else(|| RecipeError::Missing(origin.into())),
        Err(cause) => Err(RecipeError::Read {
            path: origin.into(),
            cause,
        }),
    }
}

impl Recipe {
    /// Fills in the defaults of what is not given, and checks that all of it fits together.
    pub(super) fn from_given(given: &Given) -> Result<Recipe, RecipeError> {
        let recipe = Recipe {
            model: ModelRecipe::from_given(given)?,
            data: DataRecipe::from_given(given)?,
            train: TrainRecipe::from_given(given)?,
            eval: EvalRecipe::from_given(given)?,
            checkpoint: CheckpointRecipe::from_given(given)?,
        };
        let (warmup, schedule_from, steps) = (recipe.train.warmup, recipe.train.schedule_from, recipe.train.steps);
        if schedule_from >= steps {
            return Err(RecipeError::ScheduleAfterEnd { schedule_from, steps });
        }
        if warmup > steps - schedule_from {
            return Err(RecipeError::Warmup {
                warmup,
                schedule_from,
                steps,
            });
        }
        given.refuse_unknown()?;
        recipe.llama(recipe.expected_vocab())?;
        Ok(recipe)
    }
}

impl TryFrom<Table> for Recipe {
    type Error = RecipeError;

    fn try_from(table: Table) -> Result<Self, Self::Error> {
        let mut given = Given::new(Recipe::keys());
        given.add(table, "the recipe")?;
        Recipe::from_given(&given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::OptimizerKind;
    use crate::schedule::ScheduleKind;
    use gpas_data::WindowMode;
    use gpas_model::{GateActivation, GateConfig, Scheme};

    fn args(set: &[&str]) -> RecipeOptions {
        RecipeOptions {
            set: set.iter().map(ToString::to_string).collect(),
            ..RecipeOptions::default()
        }
    }

    fn with(set: &[&str]) -> Recipe {
        resolve(None, &args(set)).unwrap()
    }

    fn refused(result: Result<Recipe, RecipeError>) -> (String, String) {
        let error = result.unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
        (error.to_string(), error.hint().unwrap_or_default())
    }

    fn bad(set: &str) -> (String, String) {
        refused(resolve(None, &args(&[set])))
    }

    /// What a file with that text resolves to, the name of the file being `recipe.toml`.
    fn file(text: &str, args: &RecipeOptions) -> Result<Recipe, RecipeError> {
        let file = RecipeFile::parse(text, "recipe.toml".into())?;
        resolve_with(Some(&file), args, Table::new(), "")
    }

    #[test]
    fn a_table_for_compare_is_checked_and_is_no_part_of_the_recipe() {
        let text = "[compare]\nschemes = ['pre', 'lns']\nseeds = [1, 2]\nvary = { 'train.lr' = [1e-3, 2e-3] }\n";
        let compare = RecipeFile::parse(text, "recipe.toml".into()).unwrap().compare;
        assert_eq!((compare.schemes.len(), compare.seeds), (2, vec![1, 2]));
        assert_eq!(compare.vary["train.lr"], [Value::Float(1e-3), Value::Float(2e-3)]);
        assert_eq!(file(text, &args(&[])).unwrap(), with(&[]));
        let (message, hint) = refused(file("[compare]\nscheme = ['pre']\n", &args(&[])));
        assert_eq!(
            message,
            "[compare] in recipe.toml: unknown field `scheme`, expected one of `schemes`, `seeds`, `vary`, `baseline`"
        );
        assert!(hint.contains("seeds = [1, 2, 3]"), "{hint}");
    }

    #[test]
    fn keys_of_a_comparison_come_last_and_are_named_as_its() {
        let over = |value: f64| Table::from_iter([("train.lr".to_string(), Value::Float(value))]);
        let options = args(&["train.lr=1e-3"]);
        let recipe = resolve_with(None, &options, over(2e-3), "--vary").unwrap();
        assert_eq!(recipe.train.lr, 2e-3);
        let (message, _) = refused(resolve_with(None, &options, over(-1.0), "--vary"));
        assert_eq!(message, "`train.lr` in --vary must be a number above 0, not -1.0");
    }

    #[test]
    fn defaults() {
        let recipe = with(&[]);
        let model = &recipe.model;
        assert_eq!((model.preset.as_str(), model.scheme), ("nano", Scheme::default()));
        assert_eq!(
            (model.hidden, model.layers, model.kv_heads, model.post_num),
            (64, 4, 2, 1)
        );
        assert_eq!((model.residual_warmup, model.gate), (15, GateConfig::new()));
        let train = &recipe.train;
        assert_eq!(
            (train.steps, train.warmup, train.batch, train.micro_batch),
            (1500, 150, 8, 8)
        );
        assert_eq!((train.lr, train.min_lr_ratio, train.eps), (1e-3, 0.1, 1e-8));
        assert_eq!((train.clip, train.clip_gate, train.weight_decay), (1.0, 0.0, 0.0));
        assert_eq!(
            (train.schedule, train.optimizer),
            (ScheduleKind::Cosine, OptimizerKind::Adam)
        );
        assert_eq!((train.seed, train.max_bad_steps, train.inspect_every), (42, 8, 150));
        assert_eq!((recipe.data.mode, recipe.data.seq_len), (WindowMode::Packed, 128));
        assert_eq!((recipe.eval.every, recipe.eval.tokens), (150, 65_536));
        assert_eq!((recipe.checkpoint.every, recipe.checkpoint.keep), (150, 3));
        assert_eq!(with(&["model.preset=71m"]).data.seq_len, 256);
        assert_eq!(with(&["train.steps=4"]).eval.every, 1);
        assert_eq!(with(&["train.optimizer=adamw"]).train.weight_decay, 0.01);
    }

    #[test]
    fn the_shipped_nano_recipe_is_the_default_run() {
        assert_eq!(resolve(Some(Path::new("nano")), &args(&[])).unwrap(), with(&[]));
    }

    #[test]
    fn later_sources_win() {
        let text = "[model]\nhidden = 48\nheads = 2\nvocab = 99\n[train]\nlr = 5e-3\nsteps = 10\n";
        let recipe = file(text, &args(&["train.lr=5e-4", "train.lr=7e-4"])).unwrap();
        assert_eq!((recipe.model.preset.as_str(), recipe.model.hidden), ("custom", 48));
        assert_eq!((recipe.train.lr, recipe.train.steps), (7e-4, 10));

        // A preset stands for all sizes: those that the file gave are gone, those set after it are not.
        let preset = RecipeOptions {
            preset: Some("20m".into()),
            scheme: Some("lns".into()),
            ..args(&["model.layers=6"])
        };
        let model = file(text, &preset).unwrap().model;
        assert_eq!((model.hidden, model.heads, model.layers), (256, 4, 6));
        assert_eq!((model.preset.as_str(), model.vocab), ("custom", Some(99)));
        assert_eq!(model.scheme.to_string(), "lns");

        let smaller = resolve(Some(Path::new("71m")), &args(&["train.batch=8"])).unwrap();
        assert_eq!((smaller.train.batch, smaller.train.micro_batch), (8, 8));

        let tokens = file(text, &args(&["train.tokens=1e6"])).unwrap();
        assert_eq!(tokens.train.steps, 977);
    }

    #[test]
    fn sizes_of_their_own_need_no_preset() {
        let four = [
            "model.hidden=64",
            "model.intermediate=96",
            "model.heads=4",
            "model.layers=3",
        ];
        let recipe = with(&four);
        assert_eq!((recipe.model.preset.as_str(), recipe.data.seq_len), ("custom", 256));
        let three = with(&four[..3]);
        assert_eq!((three.model.layers, three.data.seq_len), (4, 128));
        assert_eq!(
            bad("model.preset=custom"),
            (
                "`model.preset = \"custom\"` needs `model.hidden`".into(),
                "give `hidden` in [model], or name a preset (`gpas config presets` lists them)".into()
            )
        );
    }

    #[test]
    fn values_have_several_forms() {
        let recipe = with(&[
            "train.steps=2000",
            "train.warmup=0.05",
            "train.schedule='wsd'",
            "train.optimizer=adamw",
            "train.betas=[0.9, 0.95]",
            "train.clip=0",
            "model.act=relu",
            "eval.tokens=1e6",
            "data.mode=padded",
        ]);
        assert_eq!((recipe.train.warmup, recipe.train.clip), (100, 0.0));
        assert_eq!(
            (recipe.train.schedule, recipe.train.betas),
            (ScheduleKind::Wsd, [0.9, 0.95])
        );
        assert_eq!(recipe.model.gate.act, GateActivation::Relu);
        assert_eq!((recipe.eval.tokens, recipe.data.mode), (1_000_000, WindowMode::Padded));
        assert_eq!(with(&["train.warmup=7"]).train.warmup, 7);
        assert_eq!(recipe.model.residual_warmup, 20);
        assert_eq!(with(&["model.residual_warmup=0.02"]).model.residual_warmup, 30);
        assert_eq!(with(&["model.residual_warmup=9"]).model.residual_warmup, 9);
        assert_eq!(with(&["train.steps=4"]).model.residual_warmup, 1);
        assert!(with(&["data.path=c4"]).data.path.is_some_and(|path| path.is_absolute()));
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        assert_eq!(
            refused(file("[train]\nlearning_rate = 1e-3\n", &args(&[]))),
            (
                "unknown key `train.learning_rate` in recipe.toml".into(),
                "did you mean `train.lr`?".into()
            )
        );
        for (key, nearest) in [
            ("train.batch_size", "train.batch"),
            ("train.warmup_steps", "train.warmup"),
            ("train.stepz", "train.steps"),
            ("train.seq_len", "data.seq_len"),
            ("train.grad_clip", "train.clip"),
            ("model.num_layers", "model.layers"),
            ("model.scheem", "model.scheme"),
            ("hidden_size", "model.hidden"),
            ("trian.lr", "train.lr"),
            ("lr", "train.lr"),
        ] {
            let expected = (
                format!("unknown key `{key}` in --set"),
                format!("did you mean `{nearest}`?"),
            );
            assert_eq!(bad(&format!("{key}=1")), expected);
        }
        assert_eq!(
            bad("checkpoint=5"),
            (
                "unknown key `checkpoint` in --set".into(),
                "`checkpoint` is a section; its keys are every, keep".into()
            )
        );
        assert_eq!(
            refused(file("[trian]\n", &args(&[]))).0,
            "unknown key `trian` in recipe.toml"
        );
        assert!(file("[train]\n[model.gate]\n", &args(&[])).is_ok());
    }

    #[test]
    fn wrong_types_and_ranges_name_the_key_and_what_is_allowed() {
        for (set, message) in [
            (
                "train.lr=fast",
                "`train.lr` in --set must be a number above 0, not \"fast\"",
            ),
            ("train.lr=0", "`train.lr` in --set must be a number above 0, not 0"),
            ("train.lr=nan", "`train.lr` in --set must be a number above 0, not nan"),
            (
                "train.steps=1.5",
                "`train.steps` in --set must be a whole number of at least 1, not 1.5",
            ),
            (
                "train.steps=-3",
                "`train.steps` in --set must be a whole number of at least 1, not -3",
            ),
            (
                "train.batch=0",
                "`train.batch` in --set must be a whole number from 1 to 1048576, not 0",
            ),
            (
                "data.seq_len=1",
                "`data.seq_len` in --set must be a whole number from 2 to 1048576, not 1",
            ),
            (
                "model.hidden=0",
                "`model.hidden` in --set must be a whole number from 1 to 262144, not 0",
            ),
            (
                "model.tied_head=1",
                "`model.tied_head` in --set must be true or false, not 1",
            ),
            (
                "train.min_lr_ratio=1.5",
                "`train.min_lr_ratio` in --set must be a number from 0 to 1, not 1.5",
            ),
            (
                "train.betas=[0.9]",
                "`train.betas` in --set must be two numbers from 0 to below 1, such as [0.9, 0.999], not [0.9]",
            ),
            (
                "train.warmup=1.0",
                "`train.warmup` in --set must be a whole number of steps or a fraction from 0 to below 1, not 1.0",
            ),
            (
                "model.scheme=3",
                "`model.scheme` in --set must be text in quotes, not 3",
            ),
            (
                "train.clip=-1",
                "`train.clip` in --set must be a number of at least 0; 0 is no limit, not -1",
            ),
        ] {
            assert_eq!(bad(set).0, message);
        }
        let expected = "`train.steps` in recipe.toml must be a whole number of at least 1, not \"many\"";
        assert_eq!(refused(file("train.steps = 'many'", &args(&[]))).0, expected);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        assert_eq!(
            bad("model.heads=3"),
            (
                "model.heads = 3 does not divide model.hidden = 64".into(),
                "heads that fit 64: 1, 2, 4, 8, 16, 32".into()
            )
        );
        assert_eq!(
            bad("model.post_num=5"),
            (
                "model.post_num = 5 is more than model.layers = 4".into(),
                "leave it out to take a quarter of the layers, 1".into()
            )
        );
        assert_eq!(
            bad("model.kv_heads=3").0,
            "model.kv_heads = 3 does not divide model.heads = 2"
        );
        assert_eq!(
            bad("train.warmup=2000").0,
            "`train.warmup` = 2000 is more than `train.steps` = 1500"
        );
    }

    #[test]
    fn unknown_names_name_the_nearest() {
        let (message, hint) = bad("model.scheme=pre_gpass");
        assert_eq!(message, "unknown scheme `pre_gpass`");
        assert!(
            hint.starts_with("did you mean `pre_gpas`? One of: pre, post, deeppost, "),
            "{hint}"
        );
        let (message, hint) = bad("model.preset=72m");
        assert_eq!(message, "unknown preset `72m`");
        assert!(hint.ends_with("ne of: nano, 9m, 20m, 35m, 40m, 60m, 71m, 100m, 130m, 250m, 350m, 1b, 3b, 7b, custom"));
        let (message, hint) = bad("train.schedule=cosin");
        assert_eq!(message, "unknown train.schedule `cosin`");
        assert_eq!(
            hint,
            "did you mean `cosine`? One of: cosine, linear, cosine_restarts, wsd, constant"
        );
        let (message, hint) = bad("train.optimizer=sgd");
        assert_eq!(
            (message.as_str(), hint.as_str()),
            ("unknown train.optimizer `sgd`", "one of: adam, adamw")
        );
    }

    #[test]
    fn two_ways_to_say_one_thing_exclude_each_other() {
        let both = refused(resolve(None, &args(&["train.steps=5", "train.tokens=500"])));
        assert_eq!(
            both,
            (
                "`train.steps` and `train.tokens` in --set exclude each other".into(),
                "keep `train.steps` or `train.tokens`".into()
            )
        );
    }

    #[test]
    fn broken_sources_are_named() {
        assert_eq!(
            refused(file("[train]\nlr = 1e-3\nsteps 5\n", &args(&[]))).0,
            "recipe.toml, line 3: key with no value, expected `=`"
        );
        assert_eq!(bad("train.lr").0, "`--set train.lr` is not of the form key=value");
        assert_eq!(
            refused(resolve(Some(Path::new("72m.toml")), &args(&[]))).0,
            "no recipe `72m.toml`: neither a file nor the name of a shipped recipe"
        );
        let directory = tempfile::tempdir().unwrap();
        let (message, hint) = refused(resolve(Some(directory.path()), &args(&[])));
        assert!(message.starts_with("cannot read "), "{message}");
        assert!(hint.ends_with("--resume` goes on with a run"), "{hint}");
    }
}
