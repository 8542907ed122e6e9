//! A model from elsewhere as a run directory: what `gpas train RUN --resume`, `eval`, `generate`, `inspect` and `export` take.
//!
//! The directory gets a recipe whose `[model]` is the model's and whose other keys are the caller's, the tokenizer, and a checkpoint after
//! step 0 with the weights in f32 and no moments: training begins with a fresh optimizer at the first step of the schedule. Until it has,
//! every key outside `[model]` may still change, and so may the data.
//!
//! What decides the scheme: our own architecture's configuration; else the caller, if the tensors are those of the scheme that is named; else
//! the names of the tensors, as the GPAS authors' checkpoints have them. Where these are the names of several functions, such as `pre` and
//! `lns_fixed`, the plainest is taken, and what else it may be is [said](Import::other_schemes). A scheme with gates given for a model without
//! any adds gates that are exactly the identity.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gpas_data::PreparedData;
use gpas_data::Tokenizer;
use gpas_data::special::SpecialNames;
use gpas_model::scheme::{BranchScaling, NormStart, Wiring};
use gpas_model::weights::{HostTensor, NamedTensors, WeightsError};
use gpas_model::{GateConfig, LlamaConfig, NormScheme, Progress, RopeScaling, Scheme};
use toml::{Table, Value};

use crate::ExchangeError;
use crate::config::{self, Found, Own};
use crate::files::{Described, WeightFiles};
use crate::tokens::{self, FoundTokens, generation_settings};
use gpas_train::checkpoint::{Keep, RunState, Snapshot};
use gpas_train::recipe::{Recipe, RecipeError, RecipeOptions, flatten, resolve};
use gpas_train::run::{Imported, RunDirectory, RunError, RunInfo};

/// A model that has been found to be one of ours; its weights have not been read yet.
pub struct Import {
    directory: PathBuf,
    files: WeightFiles,
    found: Found,
    /// Names that hold no parameters.
    buffers: BTreeSet<String>,
    /// Whether the caller's scheme has gates and the tensors have none.
    adds_gates: bool,
    /// Other functions of the same tensors, where neither a configuration nor the caller has decided.
    other_schemes: Vec<Scheme>,
    recipe: Recipe,
    config: LlamaConfig,
}

/// The tokenizer of a model from elsewhere.
#[derive(Debug)]
pub struct ImportedTokenizer {
    /// It, with the special tokens of the model.
    pub tokenizer: Tokenizer,
    /// What the model's files say of special tokens that it does not have, for people.
    pub notes: Vec<String>,
}

/// What a caller asks of an import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// A recipe for the training to come; `[model]` is replaced.
    pub recipe: Option<PathBuf>,
    /// The scheme, the data and single keys.
    pub options: RecipeOptions,
}

/// The scheme that the caller names; an unknown one is refused with the nearest that is known.
fn asked_scheme(options: &RecipeOptions) -> Result<Option<Scheme>, ExchangeError> {
    if options.scheme.is_none() {
        return Ok(None);
    }
    let alone = RecipeOptions {
        scheme: options.scheme.clone(),
        ..RecipeOptions::default()
    };
    Ok(Some(resolve(None, &alone)?.model.scheme))
}

impl Import {
    /// Reads the configuration and what the files of weights say of themselves, decides the scheme, and compares everything with the model
    /// that this makes.
    ///
    /// # Errors
    /// The first thing that is damaged, not supported, or does not fit.
    pub fn open(directory: &Path, asked: &ImportOptions) -> Result<Self, ExchangeError> {
        if directory.is_file() {
            return Err(ExchangeError::AFile(directory.to_path_buf()));
        }
        let mut found = config::read(&directory.join("config.json"))?;
        let files = WeightFiles::open(directory)?;
        if found.config.layers > files.tensors().len() {
            let what = format!(
                "num_hidden_layers {} is more than the {} tensors that there are",
                found.config.layers,
                files.tensors().len()
            );
            return Err(ExchangeError::damaged(&directory.join("config.json"), what));
        }
        if let Some(own) = &found.own
            && (0..found.config.layers).any(|index| warms_up(found.config.wiring(index)))
        {
            return Err(ExchangeError::NotSupported {
                path: directory.to_path_buf(),
                what: format!(
                    "scheme `{}`, whose branches follow from steps that a new run has not made,",
                    own.scheme
                ),
            });
        }
        let names = Names::of(files.tensors(), found.config.layers);
        let asked_scheme = asked_scheme(&asked.options)?;
        let told = match &found.own {
            Some(own) => own.scheme,
            None => names.scheme(directory, asked_scheme)?,
        };
        if found.own.is_none() {
            let post_num = (told.norm == NormScheme::POST_PRE).then(|| names.post_layers());
            found.config = found.config.with_scheme(told).with_post_num(post_num);
        }
        // Every size is within bounds before anything is computed of it.
        recipe(directory, &model_keys(&found, told, &names)?, asked)?.llama(found.config.vocab)?;
        let buffers = rotary_buffers(directory, &files, &found.config)?;
        let tensors = files.tensors().iter().filter(|(name, _)| !buffers.contains(*name));
        let parameters = Parameters {
            directory,
            names: &names,
            tensors: tensors.collect(),
        };
        let (held, other_schemes) = match &found.own {
            Some(own) => (own.scheme, Vec::new()),
            None => parameters.scheme(&found.config, asked_scheme)?,
        };
        found.config = found.config.with_scheme(held);
        let scheme = asked_scheme.unwrap_or(held);
        if !computes_the_same(&found.config, held.norm, scheme.norm) || (held.gpas && !scheme.gpas) {
            return Err(ExchangeError::Scheme {
                path: directory.to_path_buf(),
                given: scheme,
                found: held,
            });
        }
        let adds_gates = scheme.gpas && !held.gpas;
        let recipe = recipe(directory, &model_keys(&found, scheme, &names)?, asked)?;
        if recipe.model.rope_scaling != found.config.rope_scaling {
            return Err(ExchangeError::Contradiction {
                path: directory.to_path_buf(),
                key: "model.rope_scaling".into(),
                given: recipe.model.rope_scaling.rope_type().to_string(),
                found: found.config.rope_scaling.rope_type().to_string(),
            });
        }
        let config = recipe.llama(found.config.vocab)?;
        if adds_gates && config.gate.act.value(config.gate.init) != 0.0 {
            return Err(ExchangeError::AddedGate(config.gate.init));
        }
        if let Some(own) = &found.own
            && !own.wires_as(&Own::of(&found.config, Progress::COMPLETE))
        {
            let path = directory.join("config.json");
            return Err(ExchangeError::damaged(
                &path,
                format!("its wiring is not that of scheme `{}`", own.scheme),
            ));
        }
        let held_config = config.clone().with_scheme(Scheme {
            gpas: held.gpas,
            ..config.scheme
        });
        parameters.check(&held_config)?;
        Ok(Self {
            directory: directory.to_path_buf(),
            files,
            found,
            buffers,
            adds_gates,
            other_schemes,
            recipe,
            config,
        })
    }

    /// The model that it makes.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The recipe of the run that it makes.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Where it comes from, for the facts of the run.
    pub fn source(&self) -> Imported {
        Imported {
            from: std::path::absolute(&self.directory).unwrap_or_else(|_| self.directory.clone()),
            architecture: self.found.architecture.clone(),
            added_gates: self.adds_gates,
        }
    }

    /// What its `generation_config.json` says besides special tokens.
    ///
    /// # Errors
    /// If the file cannot be read or is not a JSON object.
    pub fn generation_settings(&self) -> Result<serde_json::Map<String, serde_json::Value>, ExchangeError> {
        generation_settings(&self.directory)
    }

    /// What other trainers had added to the names of the tensors, and was taken off.
    pub fn taken_off(&self) -> &[String] {
        self.files.taken_off()
    }

    /// What the same tensors may be instead of the scheme that is assumed; nothing where a configuration or the caller has decided.
    pub fn other_schemes(&self) -> &[Scheme] {
        &self.other_schemes
    }

    /// What of the configuration is left out, for people.
    pub fn notes(&self) -> &[String] {
        &self.found.notes
    }

    /// The positions that the model had, if sequences of the recipe give it more.
    pub fn fewer_positions(&self) -> Option<usize> {
        Some(self.found.config.positions()).filter(|positions| *positions < self.config.positions())
    }

    /// The tokenizer: the one given, else the directory's, else that of the data. Its special tokens are those of the model's configurations,
    /// and a text may end as the data's documents do.
    ///
    /// # Errors
    /// If there is none, or it is no tokenizer, or a configuration is damaged.
    pub fn tokenizer(
        &self,
        given: Option<&Path>,
        data: Option<&PreparedData>,
    ) -> Result<ImportedTokenizer, ExchangeError> {
        let own = self.directory.join("tokenizer.json");
        let tokenizer = match (given, data) {
            (Some(path), _) => Tokenizer::from_file(path)?,
            (None, _) if own.exists() => Tokenizer::from_file(&own)?,
            (None, Some(data)) => data.tokenizer().clone(),
            (None, None) => return Err(ExchangeError::NoTokenizer(self.directory.clone())),
        };
        let file = given.map(Tokenizer::file_of).transpose()?.unwrap_or(own);
        let names = SpecialNames::beside(&file)?;
        let FoundTokens { mut special, notes } =
            tokens::read(&self.directory, self.found.config.vocab, &tokenizer, &names)?;
        if let Some(end) = data.and_then(|data| data.tokenizer().end_of_document()) {
            special = special.trained_on_documents_with(end);
        }
        let tokenizer = tokenizer.with_special_tokens(special);
        Ok(ImportedTokenizer { tokenizer, notes })
    }

    /// Every parameter of the model, in f32.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn weights(&self) -> Result<NamedTensors, ExchangeError> {
        let tied = |name: &str| self.config.tied_head && name == "lm_head.weight";
        let names = self.files.tensors().keys();
        let names = names.filter(|name| !self.buffers.contains(*name) && !tied(name));
        let mut tensors = names
            .map(|name| Ok((name.clone(), self.files.read(name)?)))
            .collect::<Result<NamedTensors, ExchangeError>>()?;
        let gates = self.config.parameter_shapes().filter(|(kind, _)| kind.is_gate());
        for name in gates.filter_map(|(kind, _)| self.config.released_name(kind)) {
            let value = match tensors.get(&name) {
                // Some released checkpoints keep gates as `[1]`.
                Some(tensor) => tensor.values.clone(),
                None => vec![self.config.gate.init as f32],
            };
            let shape = Vec::new();
            tensors.insert(name, HostTensor { shape, values: value });
        }
        Ok(tensors)
    }

    /// Makes the run directory with its first checkpoint.
    ///
    /// # Errors
    /// If a file cannot be read, or the directory exists or cannot be written.
    pub fn write(&self, out: &Path, info: &RunInfo, tokenizer: &Tokenizer) -> Result<RunDirectory, ExchangeError> {
        let weights = self.weights()?;
        let made = RunDirectory::create(out, &self.recipe, info, tokenizer);
        let (run, lock) = made.map_err(|error| match error {
            RunError::Exists(path) => ExchangeError::Exists(path),
            other => other.into(),
        })?;
        let state = RunState::new(self.recipe.clone());
        let keep = Keep::of(&self.recipe);
        let written = Snapshot::initial(weights, state).write(&run.checkpoints_path(), keep);
        drop(lock);
        if let Err(error) = written {
            // A run without its checkpoint is of no use. Removing it is safe: it has only just been made.
            let _ = std::fs::remove_dir_all(out);
            return Err(error.of_the_first(out).into());
        }
        Ok(run)
    }
}

/// The keys of `[model]` that a model from elsewhere decides, as they stand in a recipe. Those of the gates are the caller's where no
/// configuration of our own has them.
fn model_keys(found: &Found, scheme: Scheme, names: &Names) -> Result<BTreeMap<String, Value>, ExchangeError> {
    let config = &found.config;
    let sizes = [
        ("hidden", config.hidden),
        ("intermediate", config.intermediate),
        ("heads", config.heads),
        ("kv_heads", config.kv_heads()),
        ("layers", config.layers),
        ("post_num", config.post_num()),
        ("vocab", config.vocab),
        ("max_positions", config.max_positions),
    ];
    let mut keys = Table::from_iter(sizes.map(|(key, size)| (key.to_string(), Value::Integer(size as i64))));
    keys.insert("scheme".into(), scheme.to_string().into());
    keys.insert("tied_head".into(), config.tied_head.into());
    keys.insert("norm_eps".into(), config.norm_epsilon.into());
    keys.insert("rope_base".into(), config.rope_base.into());
    if !config.rope_scaling.is_default() {
        let table = Table::try_from(config.rope_scaling).map_err(RecipeError::from)?;
        keys.insert("rope_scaling".into(), table.into());
    }
    let mut gate = Table::try_from(GateConfig {
        per_sublayer: names.gates_per_sublayer(),
        ..config.gate
    })
    .map_err(RecipeError::from)?;
    match (&found.own, scheme.gpas) {
        // What a gate computes is the model's; how it is trained is not.
        (Some(_), true) => gate.retain(|key, _| !["init", "learnable", "stop_gradient"].contains(&key)),
        // Names tell whether each sub-layer has a gate.
        (None, true) if names.has_gates() => gate.retain(|key, _| key == "per_sublayer"),
        _ => gate.clear(),
    }
    if !gate.is_empty() {
        keys.insert("gate".into(), gate.into());
    }
    Ok(flatten(Table::from_iter([("model".to_string(), Value::Table(keys))])))
}

/// The recipe of the run: the caller's, with the model's own `[model]`.
fn recipe(directory: &Path, keys: &BTreeMap<String, Value>, asked: &ImportOptions) -> Result<Recipe, ExchangeError> {
    let of_the_model = keys.iter().map(|(key, value)| format!("{key}={value}"));
    let options = RecipeOptions {
        preset: None,
        scheme: None,
        data: asked.options.data.clone(),
        set: of_the_model.chain(asked.options.set.iter().cloned()).collect(),
    };
    let recipe = resolve(asked.recipe.as_deref(), &options)?;
    let resolved = Table::try_from(&recipe).map_err(RecipeError::from)?;
    let resolved = flatten(resolved);
    for (key, found) in keys {
        let given = resolved.get(key);
        if given != Some(found) {
            return Err(ExchangeError::Contradiction {
                path: directory.to_path_buf(),
                key: key.clone(),
                given: given.map(ToString::to_string).unwrap_or_default(),
                found: found.to_string(),
            });
        }
    }
    Ok(recipe)
}

/// Whether two schemes compute the same of the same weights, however these start.
fn computes_the_same(config: &LlamaConfig, one: NormScheme, other: NormScheme) -> bool {
    let function = |norm: NormScheme, index: usize| {
        let wiring = config.clone().with_scheme(Scheme { norm, gpas: false }).wiring(index);
        let start = |norm: Option<NormStart>| norm.map(|start| NormStart { weight: 1.0, ..start });
        Wiring {
            pre_norm: start(wiring.pre_norm),
            branch_norm: start(wiring.branch_norm),
            post_norm: start(wiring.post_norm),
            ..wiring
        }
    };
    one.embedding_norm() == other.embedding_norm()
        && (0..config.layers).all(|index| function(one, index) == function(other, index))
}

/// Whether a branch grows with the steps of a run.
fn warms_up(wiring: Wiring) -> bool {
    matches!(wiring.branch_scale, Some(BranchScaling::Warmup { .. }))
}

/// The tensors that hold parameters.
struct Parameters<'a> {
    directory: &'a Path,
    names: &'a Names,
    tensors: Vec<(&'a String, &'a Described)>,
}

impl Parameters<'_> {
    /// Whether they are those of a model.
    fn check(&self, config: &LlamaConfig) -> Result<(), WeightsError> {
        let tensors = self.tensors.iter();
        config.check_released(tensors.map(|(name, tensor)| (name.as_str(), tensor.dtype, tensor.shape.as_slice())))
    }

    /// The model with another wiring, and with the gates that the names tell of.
    fn wired(&self, told: &LlamaConfig, norm: NormScheme) -> LlamaConfig {
        let gate = told.gate.with_per_sublayer(self.names.gates_per_sublayer());
        let gpas = self.names.has_gates();
        told.clone().with_gate(gate).with_scheme(Scheme { norm, gpas })
    }

    /// The scheme that is held, and the others that it may be if nobody says; `told` is the model whose scheme the names tell.
    fn scheme(&self, told: &LlamaConfig, asked: Option<Scheme>) -> Result<(Scheme, Vec<Scheme>), ExchangeError> {
        let is_another = |norm: NormScheme| !computes_the_same(told, told.scheme.norm, norm);
        let warms_up = |norm: NormScheme| (0..told.layers).any(|index| warms_up(self.wired(told, norm).wiring(index)));
        let Some(asked) = asked else {
            let others = Scheme::all().filter(|scheme| scheme.gpas == told.scheme.gpas);
            let fits = |Scheme { norm, .. }: &Scheme| {
                is_another(*norm) && !warms_up(*norm) && self.check(&self.wired(told, *norm)).is_ok()
            };
            return Ok((told.scheme, others.filter(fits).collect()));
        };
        if !is_another(asked.norm) {
            return Ok((told.scheme, Vec::new()));
        }
        let wired = self.wired(told, asked.norm);
        let because = match self.check(&wired) {
            Ok(()) if warms_up(asked.norm) => {
                return Err(ExchangeError::WarmsUp {
                    path: self.directory.to_path_buf(),
                    scheme: asked,
                });
            }
            Ok(()) => return Ok((wired.scheme, Vec::new())),
            Err(WeightsError::Mismatch { missing, unused, wrong }) => match (missing.first(), unused.first()) {
                (Some(name), _) => format!("has a tensor {name}, which is missing"),
                (None, Some(name)) => format!("has no tensor {name}, which is there"),
                (None, None) => format!("has another shape or type of {}", wrong.join(", ")),
            },
            Err(other) => return Err(other.into()),
        };
        Err(ExchangeError::OtherTensors {
            path: self.directory.to_path_buf(),
            scheme: asked,
            because,
            held: told.scheme,
        })
    }
}

/// What the names of the tensors say.
struct Names {
    /// The norms and gates of each layer, in order, without `model.layers.I.` and without their endings.
    layers: Vec<BTreeSet<String>>,
}

/// What kind of layer has these norms.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Pre,
    Post,
    Sandwich,
}

impl Names {
    fn of(tensors: &BTreeMap<String, Described>, layers: usize) -> Self {
        let mut found = vec![BTreeSet::new(); layers];
        for name in tensors.keys() {
            let Some((index, leaf)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
                continue;
            };
            let layer = index.parse().ok().and_then(|index: usize| found.get_mut(index));
            let leaf = leaf.strip_suffix(".weight").or_else(|| leaf.strip_suffix(".gate"));
            if let (Some(layer), Some(leaf)) = (layer, leaf) {
                layer.insert(leaf.to_string());
            }
        }
        Self { layers: found }
    }

    fn kind(layer: &BTreeSet<String>) -> Kind {
        if layer.contains("pre_feedforward_layernorm") {
            Kind::Sandwich
        } else if layer.contains("post_feedforward_layernorm") && !layer.contains("input_layernorm") {
            Kind::Post
        } else {
            // What is missing or left over will be listed.
            Kind::Pre
        }
    }

    /// Number of Post-LN layers before the first of another kind.
    fn post_layers(&self) -> usize {
        self.layers
            .iter()
            .take_while(|layer| Self::kind(layer) == Kind::Post)
            .count()
    }

    fn has_gates(&self) -> bool {
        self.layers
            .iter()
            .any(|layer| layer.iter().any(|leaf| leaf.starts_with("gpas_block")))
    }

    fn gates_per_sublayer(&self) -> bool {
        self.layers.iter().any(|layer| layer.contains("gpas_block_attn"))
    }

    /// The scheme whose tensors have these names; `asked` decides where they are those of several functions.
    fn scheme(&self, directory: &Path, asked: Option<Scheme>) -> Result<Scheme, ExchangeError> {
        let post = self.post_layers();
        let norm = match self.layers.get(post).map(Self::kind) {
            None => match asked.map(|asked| asked.norm) {
                Some(norm) if norm == NormScheme::DEEP_POST => norm,
                Some(_) => NormScheme::POST,
                None => return Err(ExchangeError::Ambiguous(directory.to_path_buf())),
            },
            Some(Kind::Sandwich) => NormScheme::SANDWICH,
            Some(_) if post > 0 => NormScheme::POST_PRE,
            Some(_) => NormScheme::PRE,
        };
        Ok(Scheme {
            norm,
            gpas: self.has_gates(),
        })
    }
}

/// The rotary frequencies that old releases of transformers, and the GPAS authors', keep among the weights: no parameters, and only to be
/// left out if they are those of the configuration.
fn rotary_buffers(
    directory: &Path,
    files: &WeightFiles,
    config: &LlamaConfig,
) -> Result<BTreeSet<String>, ExchangeError> {
    let head = config.hidden / config.heads;
    let mut buffers = BTreeSet::new();
    for (name, tensor) in files.tensors() {
        if !name.ends_with(".rotary_emb.inv_freq") || tensor.shape != [head / 2] {
            continue;
        }
        let found = files.read(name)?.values;
        // Where positions were scaled, the frequencies were not. The tolerance allows for some that were rounded to bf16.
        let is_of = |scaling: RopeScaling| {
            let expected = scaling.frequencies(config.rope_base, head, 1);
            let same = |(found, expected): (&f32, f64)| (f64::from(*found) / expected - 1.0).abs() < 1e-2;
            found.iter().zip(expected).all(same)
        };
        if !is_of(config.rope_scaling) && !is_of(RopeScaling::Default) {
            return Err(ExchangeError::NotSupported {
                path: directory.to_path_buf(),
                what: format!("`{name}`, which is not what rope_theta gives,"),
            });
        }
        buffers.insert(name.clone());
    }
    Ok(buffers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_that_differ_in_how_they_start_compute_the_same() {
        let config = LlamaConfig::new(8, 8, 8, 2, 8);
        let norm = |name: &str| NormScheme::named(name).unwrap();
        let same = |one: &str, other: &str| computes_the_same(&config, norm(one), norm(other));
        assert!(same("pre", "lns") && same("scale_pre", "pre"));
        assert!(same("post_pre", "scale_post_pre"));
        assert!(!same("pre", "lns_fixed") && !same("post", "deeppost"));
        assert!(!same("sandwich", "peri") && !same("pre", "prores"));
        assert!(!same("pre", "post_pre") && !same("pre", "sandwich"));
    }

    /// The names of the weights of every scheme that others release too lead back to its function; the rest are architectures of our own,
    /// whose configuration has the scheme.
    #[test]
    fn names_tell_the_scheme() {
        let own = ["peri", "prores", "keel", "layerscale", "rezero"];
        for scheme in Scheme::all().filter(|scheme| !own.contains(&scheme.norm.name())) {
            for per_sublayer in [false, true] {
                let gate = GateConfig::new().with_per_sublayer(per_sublayer);
                let config = LlamaConfig::new(8, 8, 8, 2, 8)
                    .with_scheme(scheme)
                    .with_gate(gate)
                    .with_post_num(Some(3));
                let shapes = config.released_shapes();
                let tensors = shapes
                    .into_iter()
                    .map(|(name, shape)| (name, Described::float(shape)))
                    .collect();
                let names = Names::of(&tensors, 8);
                let found = names.scheme(Path::new("d"), Some(scheme)).unwrap();
                assert_eq!(found.gpas, scheme.gpas, "{scheme}");
                assert_eq!(names.gates_per_sublayer(), scheme.gpas && per_sublayer);
                if scheme.norm.name() != "lns_fixed" {
                    assert!(computes_the_same(&config, found.norm, scheme.norm), "{scheme}: {found}");
                }
                let unasked = names.scheme(Path::new("d"), None);
                let ambiguous = [NormScheme::POST, NormScheme::DEEP_POST].contains(&scheme.norm);
                assert_eq!(unasked.is_err(), ambiguous, "{scheme}");
            }
        }
    }
}
