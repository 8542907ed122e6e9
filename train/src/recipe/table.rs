//! Every key of a recipe, declared once: its name, its values, its default, what it means.
//!
//! To add a key, add its entry here.

use std::path::PathBuf;

use gpas_data::WindowMode;
use gpas_model::rope_scaling::RopeScalingFields;
use gpas_model::{
    ConfigError, GateActivation, GateConfig, GateSite, Initialisation, LlamaConfig, Precision, Preset, RopeScaling,
    RopeScalingError, RopeType, Scheme,
};
use serde::Serialize;

use super::allowed::{
    ANY, Steps, above_zero, boolean, choice, limit, name_of, number, numbers, ratio, size, steps, text, whole,
};
use super::given::Given;
use super::key::section;
use super::{Key, RecipeError};
use crate::optimizer::OptimizerKind;
use crate::schedule::ScheduleKind;

/// The size of a run that names none.
const DEFAULT_PRESET: &str = "nano";

/// Name of a size that is no preset's.
const CUSTOM: &str = "custom";

// Far above any model of this kind, and low enough that no product of sizes overflows.
const MAX_WIDTH: usize = 1 << 18;
const MAX_LAYERS: usize = 1 << 12;
const MAX_VOCAB: usize = 1 << 22;
const MAX_SEQUENCE: usize = 1 << 20;

section! {
    /// `[model]`
    #[derive(Clone, Debug, PartialEq, Serialize)]
    pub struct ModelRecipe in "model", read from given {
        /// Name of the size, `custom` if it is no preset's.
        preset: String {
            allowed: name_of::<String>("preset", preset_names()),
            default("`nano`; `custom` if all four sizes are given"): String::new(),
            resolve: |_name| {
                let sizes = |preset: &Preset| (preset.hidden, preset.intermediate, preset.heads, preset.layers);
                let here = (Self::hidden(given)?, Self::intermediate(given)?, Self::heads(given)?, Self::layers(given)?);
                let base = base(given)?.filter(|preset| sizes(preset) == here);
                base.map_or(CUSTOM, |preset| preset.name).to_string()
            },
        }
        /// Normalisation scheme.
        scheme: Scheme {
            allowed: name_of::<Scheme>("scheme", Scheme::all().map(|scheme| scheme.to_string()).collect()),
            default: Scheme::default(),
        }
        /// Width of the residual stream.
        hidden: usize [of_preset] {
            allowed: size(1..=MAX_WIDTH),
            default("the preset's"): size_of(base(given)?.map(|preset| preset.hidden), "model.hidden")?,
        }
        /// Width of the MLP between its projections.
        intermediate: usize [of_preset] {
            allowed: size(1..=MAX_WIDTH),
            default("the preset's"): size_of(base(given)?.map(|preset| preset.intermediate), "model.intermediate")?,
        }
        /// Number of query heads.
        heads: usize [of_preset] {
            allowed: size(1..=MAX_WIDTH),
            default("the preset's"): size_of(base(given)?.map(|preset| preset.heads), "model.heads")?,
        }
        /// Number of key and value heads.
        kv_heads: usize [of_preset] {
            allowed: size(1..=MAX_WIDTH),
            default("`model.heads`"): Self::heads(given)?,
        }
        /// Number of layers.
        layers: usize [of_preset] {
            allowed: size(1..=MAX_LAYERS),
            default("the preset's"): size_of(base(given)?.map(|preset| preset.layers), "model.layers")?,
        }
        /// Number of Post-LN layers of the mixed schemes.
        post_num: usize [of_preset] {
            allowed: size(0..=MAX_LAYERS),
            default("a quarter of `model.layers`"): Self::layers(given)? / 4,
        }
        /// T of `prores`: optimizer steps in which the branches of the first layer grow to their full weight.
        residual_warmup: u64 {
            allowed: steps(),
            // The paper's 1000 of 100,000 steps.
            default("a hundredth of `train.steps`, at least 1"): {
                Steps::Count(Steps::Fraction(0.01).of(TrainRecipe::steps(given)?).max(1))
            },
            resolve: |warmup| warmup.of(TrainRecipe::steps(given)?),
        }
        /// Number of token ids; if absent, the tokenizer of the data decides, and a run writes it here.
        #[serde(skip_serializing_if = "Option::is_none")]
        vocab: Option<usize> {
            allowed: size(1..=MAX_VOCAB).optional(),
            default("the tokenizer's"): None,
        }
        /// Whether the head is the transposed embedding.
        tied_head: bool {
            allowed: boolean(),
            default: llama().tied_head,
        }
        /// ε of every RMSNorm.
        norm_eps: f64 {
            allowed: above_zero(),
            default: llama().norm_epsilon,
        }
        /// Base of the rotary frequencies.
        rope_base: f64 {
            allowed: number("a number above 1", |base| base > 1.0),
            default: llama().rope_base,
        }
        /// Positions that the model has, at least; a longer `data.seq_len` makes more.
        max_positions: usize {
            allowed: size(1..=MAX_SEQUENCE),
            default: llama().max_positions,
        }
        /// How weights start.
        init: Initialisation {
            allowed: choice::<Initialisation>(),
            default: llama().initialisation,
        }
        tables {
            /// The gates of a `_gpas` scheme.
            gate: GateConfig = GateKeys,
            /// What changes the rotary frequencies, so that the model reads longer texts; written where there is something.
            #[serde(skip_serializing_if = "RopeScaling::is_default")]
            rope_scaling: RopeScaling = RopeScalingTable,
        }
        other_forms {
            /// The short form of `model.gate.act`.
            act: GateActivation, instead of "model.gate.act" {
                allowed: choice::<GateActivation>(),
            }
        }
    }
}

section! {
    keys of GateConfig in "model.gate", read from given by GateKeys {
        /// Activation of the gate.
        act: GateActivation {
            allowed: choice::<GateActivation>(),
            default: ModelRecipe::act(given)?.unwrap_or(GateConfig::new().act),
        }
        /// Whether the gate is trained.
        learnable: bool {
            allowed: boolean(),
            default: GateConfig::new().learnable,
        }
        /// Value of the gate at the start; 0 is the identity.
        init: f64 {
            allowed: number("a number", |_| true),
            default: GateConfig::new().init,
        }
        /// Whether attention and MLP have a gate each, rather than one for both.
        per_sublayer: bool {
            allowed: boolean(),
            default: GateConfig::new().per_sublayer,
        }
        /// Where the gate stands; `default` is where the scheme has it.
        site: GateSite {
            allowed: choice::<GateSite>(),
            default: GateConfig::new().site,
        }
        /// Whether the scaling is hidden from the gradient. Off, GPAS is a plain trainable scale.
        stop_gradient: bool {
            allowed: boolean(),
            default: GateConfig::new().stop_gradient,
        }
    }
}

section! {
    keys of RopeScalingFields in "model.rope_scaling", read from given by RopeScalingKeys {
        /// What changes the rotary frequencies. Types and fields are those of `rope_scaling` in `transformers`.
        rope_type: RopeType {
            allowed: choice::<RopeType>(),
            default("`default`, which is nothing"): RopeType::Default,
        }
        /// How many times as many positions.
        factor: Option<f64> {
            allowed: number("a number of at least 1", |factor| factor >= 1.0).optional(),
            default("every type but `default` needs it"): None,
        }
        /// Positions before scaling, of `dynamic`, `llama3` and `yarn`.
        original_max_position_embeddings: Option<usize> {
            allowed: size(1..=MAX_SEQUENCE).optional(),
            default("`model.max_positions`"): None,
        }
        /// Turns in the original positions below which a pair of `llama3` is slowed down by the whole factor.
        low_freq_factor: Option<f64> {
            allowed: above_zero().optional(),
            default("`llama3` needs it"): None,
        }
        /// Turns in the original positions above which a pair of `llama3` stays as it is.
        high_freq_factor: Option<f64> {
            allowed: above_zero().optional(),
            default("`llama3` needs it"): None,
        }
        /// What `yarn` multiplies cosines and sines by.
        attention_factor: Option<f64> {
            allowed: above_zero().optional(),
            default("follows from the factor, and from `mscale` and `mscale_all_dim`"): None,
        }
        /// Turns in the original positions above which a pair of `yarn` stays as it is.
        beta_fast: Option<f64> {
            allowed: above_zero().optional(),
            default("32"): None,
        }
        /// Turns in the original positions below which a pair of `yarn` is slowed down by the whole factor.
        beta_slow: Option<f64> {
            allowed: above_zero().optional(),
            default("1"): None,
        }
        /// Weight of the factor's logarithm in the numerator of the attention factor of `yarn`.
        mscale: Option<f64> {
            allowed: number("a number of at least 0", |scale| scale >= 0.0).optional(),
            default("1 without a denominator"): None,
        }
        /// The same in its denominator.
        mscale_all_dim: Option<f64> {
            allowed: number("a number of at least 0", |scale| scale >= 0.0).optional(),
            default("no denominator"): None,
        }
        /// Whether `yarn` rounds the ends of its ramp to whole pairs.
        truncate: Option<bool> {
            allowed: boolean().optional(),
            default("true"): None,
        }
    }
}

/// The table `[model.rope_scaling]`: its keys, which belong together.
struct RopeScalingTable;

impl RopeScalingTable {
    fn from_given(given: &Given) -> Result<RopeScaling, RecipeError> {
        let fields = RopeScalingKeys::from_given(given)?;
        let rope_type = fields.rope_type;
        let superfluous = fields
            .superfluous()
            .first()
            .map(|field| RopeScalingError::Superfluous { rope_type, field });
        let max_positions = ModelRecipe::max_positions(given)?;
        let scaling = superfluous.map_or_else(|| fields.complete(max_positions), Err);
        Ok(scaling.map_err(ConfigError::from)?)
    }
}

section! {
    /// `[data]`
    #[derive(Clone, Debug, PartialEq, Serialize)]
    pub struct DataRecipe in "data", read from given {
        /// Directory of prepared data, absolute; the built-in corpus if absent.
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<PathBuf> [may_change] {
            allowed: text("a path in quotes").optional(),
            default("the built-in corpus"): None,
            // A run is resumed from wherever its owner happens to be, so the path is kept absolute.
            resolve: |path| {
                let absolute = |path: String| std::path::absolute(&path).map_err(|cause| RecipeError::Read { path, cause });
                let path = path.map(absolute).transpose()?;
                // The recipe is written as text.
                if let Some(path) = path.as_ref().filter(|path| path.to_str().is_none()) {
                    return Err(RecipeError::NotText(path.clone()));
                }
                path
            },
        }
        /// How documents become sequences.
        mode: WindowMode {
            allowed: choice::<WindowMode>(),
            default: WindowMode::default(),
        }
        /// Tokens in a sequence.
        seq_len: usize {
            allowed: size(2..=MAX_SEQUENCE),
            // `nano` is for two cores and ten minutes.
            default("256; 128 if the sizes are those of `nano`, or start from them; never more than `model.max_positions`"): {
                let nano = base(given)?.is_some_and(|preset| preset.name == DEFAULT_PRESET);
                let usual = if nano { 128 } else { 256 };
                usual.min(ModelRecipe::max_positions(given)?.max(2))
            },
        }
    }
}

section! {
    /// `[train]`
    #[derive(Clone, Debug, PartialEq, Serialize)]
    pub struct TrainRecipe in "train", read from given {
        /// Optimizer steps.
        steps: u64 {
            allowed: whole(1..=ANY),
            default: match Self::tokens(given)? {
                Some(tokens) => tokens.div_ceil(Self::batch(given)? as u64 * DataRecipe::seq_len(given)? as u64),
                None => 1500,
            },
        }
        /// Sequences per optimizer step.
        batch: usize {
            allowed: size(1..=MAX_SEQUENCE),
            default: 8,
        }
        /// Sequences that are in memory at a time, at most; the update does not depend on it.
        micro_batch: usize [may_change] {
            allowed: size(1..=MAX_SEQUENCE),
            default("`train.batch`"): MAX_SEQUENCE,
            // An upper limit: a smaller batch, say one set over a shipped recipe, is one piece.
            resolve: |most| most.min(Self::batch(given)?),
        }
        /// Highest learning rate.
        lr: f64 {
            allowed: above_zero(),
            default: 1e-3,
        }
        /// Steps from rate 0 to the highest.
        warmup: u64 {
            allowed: steps(),
            default("a tenth of `train.steps`"): Steps::Fraction(0.1),
            resolve: |warmup| warmup.of(Self::steps(given)?.saturating_sub(Self::schedule_from(given)?)),
        }
        /// What the rate does after the warm-up.
        schedule: ScheduleKind {
            allowed: choice::<ScheduleKind>(),
            default: ScheduleKind::default(),
        }
        /// The step at which the schedule begins, its warm-up first, to end at `train.steps`. Only a run that begins with a checkpoint of
        /// another (`gpas train --from`) has one above 0: there it is the step of that checkpoint, or with `--keep-schedule` the other run's.
        /// A fraction that `train.warmup` is given as, or that `train.decay_fraction` is, is one of the steps after it.
        schedule_from: u64 {
            allowed: whole(0..=ANY),
            default: 0,
        }
        /// Floor of the rate as a fraction of the highest.
        min_lr_ratio: f64 {
            allowed: ratio(),
            default: 0.1,
        }
        /// Number of cosines of `cosine_restarts`.
        cycles: u64 {
            allowed: whole(1..=ANY),
            default: 4,
        }
        /// Fraction of all steps in which `wsd` decays.
        decay_fraction: f64 {
            allowed: ratio(),
            default: 0.2,
        }
        /// What turns gradients into updates.
        optimizer: OptimizerKind {
            allowed: choice::<OptimizerKind>(),
            default: OptimizerKind::default(),
        }
        /// Decay rates of Adam's two moments.
        betas: [f64; 2] {
            allowed: numbers::<2>("two numbers from 0 to below 1, such as [0.9, 0.999]", |beta| (0.0..1.0).contains(&beta)),
            default: [0.9, 0.999],
        }
        /// ε of Adam's denominator.
        eps: f64 {
            allowed: above_zero(),
            default: 1e-8,
        }
        /// Weight decay: added to the gradient by `adam`, taken off the matrices, not off norms and gates, by `adamw`.
        weight_decay: f64 {
            allowed: number("a number of at least 0", |decay| decay >= 0.0),
            // PyTorch's defaults.
            default("0 for `adam`, 0.01 for `adamw`"): match Self::optimizer(given)? {
                OptimizerKind::Adam => 0.0,
                OptimizerKind::AdamW => 0.01,
            },
        }
        /// Limit of the norm of all gradients; 0 is none.
        clip: f64 {
            allowed: limit(),
            default: 1.0,
        }
        /// Limit of the norm of all gates' gradients, after `clip`; 0 is none.
        clip_gate: f64 {
            allowed: limit(),
            default: 0.0,
        }
        /// Number format of the mathematics.
        precision: Precision {
            allowed: choice::<Precision>(),
            default: llama().precision,
        }
        /// Whether blocks are computed again in the backward pass rather than kept.
        recompute: bool [may_change] {
            allowed: boolean(),
            default: llama().recompute,
        }
        /// Determines the initial weights and the order of the data.
        seed: u64 {
            allowed: whole(0..=ANY),
            default: 42,
        }
        /// Whether an evaluation that is the best so far writes a checkpoint at once, so that the best of all evaluations is kept, besides
        /// the newest of the checkpoints that are due; without it, the best of the checkpoints that are due is.
        keep_best: bool [may_change] {
            allowed: boolean(),
            default: false,
        }
        /// Skipped updates in a row after which the run stops.
        max_bad_steps: u64 [may_change] {
            allowed: whole(1..=ANY),
            default: 8,
        }
        /// Steps between two looks at every layer.
        inspect_every: u64 [may_change] {
            allowed: whole(1..=ANY),
            default("`eval.every`"): EvalRecipe::every(given)?,
        }
        other_forms {
            /// Tokens of the whole run, from which the number of steps follows.
            tokens: u64, instead of "train.steps" {
                allowed: whole(1..=ANY),
            }
        }
    }
}

section! {
    /// `[eval]`
    #[derive(Clone, Debug, PartialEq, Serialize)]
    pub struct EvalRecipe in "eval", read from given {
        /// Steps between two evaluations.
        every: u64 [may_change] {
            allowed: whole(1..=ANY),
            default("a tenth of `train.steps`, at least 1"): (TrainRecipe::steps(given)? / 10).max(1),
        }
        /// Tokens of an evaluation, at most.
        tokens: u64 [may_change] {
            allowed: whole(1..=ANY),
            default: 65_536,
        }
    }
}

section! {
    /// `[checkpoint]`
    #[derive(Clone, Debug, PartialEq, Serialize)]
    pub struct CheckpointRecipe in "checkpoint", read from given {
        /// Steps between two checkpoints.
        every: u64 [may_change] {
            allowed: whole(1..=ANY),
            default("`eval.every`"): EvalRecipe::every(given)?,
        }
        /// How many of the newest are kept, besides the best.
        keep: u64 [may_change] {
            allowed: whole(1..=ANY),
            default: 3,
        }
    }
}

/// The keys of every section, in the order of a recipe that is written.
pub(super) const SECTIONS: [&[Key]; 7] = [
    ModelRecipe::KEYS,
    GateKeys::KEYS,
    RopeScalingKeys::KEYS,
    DataRecipe::KEYS,
    TrainRecipe::KEYS,
    EvalRecipe::KEYS,
    CheckpointRecipe::KEYS,
];

/// The names that a size may have.
fn preset_names() -> Vec<String> {
    let presets = Preset::ALL.iter().map(|preset| preset.name);
    presets.chain([CUSTOM]).map(str::to_string).collect()
}

/// The preset that the sizes start from; none if they are all given, or the size is said to be no preset's.
fn base(given: &Given) -> Result<Option<Preset>, RecipeError> {
    let named = given.value("model.preset", &name_of::<String>("preset", preset_names()))?;
    let is_whole = given.has_all(&["model.hidden", "model.intermediate", "model.heads", "model.layers"]);
    Ok(match named {
        Some(name) => Preset::named(&name),
        None if is_whole => None,
        None => Preset::named(DEFAULT_PRESET),
    })
}

/// The preset's size, which a size that is no preset's has to give itself.
fn size_of(preset: Option<usize>, key: &'static str) -> Result<usize, RecipeError> {
    preset.ok_or(RecipeError::CustomSize(key))
}

/// A model whose settings are the defaults of the model crate.
fn llama() -> LlamaConfig {
    LlamaConfig::new(1, 1, 1, 1, 1)
}
