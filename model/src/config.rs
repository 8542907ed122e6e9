//! What a model is: its sizes, its scheme, its gates. One value of [`LlamaConfig`] determines every parameter's name and shape.

use burn::config::Config;
use serde::{Deserialize, Serialize};
use strum::VariantNames;

use crate::gpas::{GateActivation, GpasConfig};
use crate::precision::Precision;
use crate::rope_scaling::{RopeScaling, RopeScalingError};
use crate::scheme::{GatePlace, GateSite, Layer, Scheme, Wiring};

/// How weights start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Initialisation {
    /// Each scheme as its paper has it.
    #[default]
    Published,
    /// As the GPAS authors' released code: like `published`, but `deeppost_gpas` misses DeepNorm's initialisation there.
    Released,
}

/// The gates of a `_gpas` scheme: what each one is, as in [`GpasConfig`], how many a layer has, and where they stand.
#[derive(Config, Debug, Copy, PartialEq)]
pub struct GateConfig {
    /// Activation of the gates.
    #[config(default = "GpasConfig::new().act")]
    pub act: GateActivation,
    /// Whether the gates are trained.
    #[config(default = "GpasConfig::new().learnable")]
    pub learnable: bool,
    /// Value of the gates at the start; 0 is the identity.
    #[config(default = "GpasConfig::new().init")]
    pub init: f64,
    /// Whether attention and MLP have a gate each, rather than one for both.
    #[config(default = false)]
    pub per_sublayer: bool,
    /// Where the gates stand.
    #[config(default = "GateSite::Default")]
    pub site: GateSite,
    /// Whether the scaling is hidden from the gradient. Off, GPAS is a plain trainable scale.
    #[config(default = "GpasConfig::new().stop_gradient")]
    pub stop_gradient: bool,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl GateConfig {
    /// Each of the gates.
    pub fn gpas(&self) -> GpasConfig {
        GpasConfig {
            act: self.act,
            learnable: self.learnable,
            init: self.init,
            stop_gradient: self.stop_gradient,
        }
    }
}

/// A LLaMA-style decoder with any scheme of the [scheme table](crate::scheme).
#[derive(Config, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Number of token ids.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP between its projections.
    pub intermediate: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of key and value heads; as many as query heads unless given.
    pub kv_heads: Option<usize>,
    /// The normalisation scheme.
    #[config(default = "Scheme::default()")]
    pub scheme: Scheme,
    /// Number of Post-LN layers of the mixed schemes; a quarter of the layers unless given.
    pub post_num: Option<usize>,
    /// T of `prores`: optimizer steps in which the branches of the first layer grow to their full weight, those of layer l taking l times
    /// as many. The default is the paper's, whose runs have 100,000 steps.
    #[config(default = 1000)]
    pub residual_warmup: u64,
    /// Whether the head is the transposed embedding.
    #[config(default = false)]
    pub tied_head: bool,
    /// The gates of a `_gpas` scheme.
    #[config(default = "GateConfig::new()")]
    pub gate: GateConfig,
    /// How weights start.
    #[config(default = "Initialisation::Published")]
    pub initialisation: Initialisation,
    /// ε of every RMSNorm.
    #[config(default = 1e-6)]
    pub norm_epsilon: f64,
    /// Base of the rotary frequencies.
    #[config(default = 10000.0)]
    pub rope_base: f64,
    /// What changes the rotary frequencies.
    #[config(default = "RopeScaling::Default")]
    pub rope_scaling: RopeScaling,
    /// Longest sequence the model is built for, which a scaling may make [longer](LlamaConfig::positions).
    #[config(default = 2048)]
    pub max_positions: usize,
    /// Number format of the mathematics.
    #[config(default = "Precision::F32")]
    pub precision: Precision,
    /// Whether the backward pass computes each layer again from its input, which is then all that is kept of it.
    #[config(default = false)]
    pub recompute: bool,
}

/// A configuration that describes no model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ConfigError {
    #[error("model.{0} must be at least 1")]
    Zero(&'static str),
    #[error("model.heads = {heads} does not divide model.hidden = {hidden}")]
    Heads { heads: usize, hidden: usize },
    #[error("model.hidden / model.heads = {0} is odd; rotary positions need an even head size")]
    OddHead(usize),
    #[error("model.kv_heads = {kv_heads} does not divide model.heads = {heads}")]
    KvHeads { kv_heads: usize, heads: usize },
    #[error("model.post_num = {post_num} is more than model.layers = {layers}")]
    PostNum { post_num: usize, layers: usize },
    #[error("model.gate.site = after_norm needs a norm before every sub-layer, which scheme `{0}` does not have")]
    AfterNorm(Scheme),
    #[error("model.rope_scaling: {0}")]
    RopeScaling(RopeScalingError),
}

// Not as its source, which would be told twice: it is a part of the message.
impl From<RopeScalingError> for ConfigError {
    fn from(error: RopeScalingError) -> Self {
        Self::RopeScaling(error)
    }
}

impl LlamaConfig {
    /// Number of key and value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }

    /// Longest sequence that the model takes.
    pub fn positions(&self) -> usize {
        self.rope_scaling.positions(self.max_positions)
    }

    /// Number of Post-LN layers of the mixed schemes.
    pub fn post_num(&self) -> usize {
        self.post_num.unwrap_or(self.layers / 4)
    }

    /// The wiring of layer `index`, from 0.
    pub fn wiring(&self, index: usize) -> Wiring {
        self.scheme.norm.wiring(Layer {
            index,
            layers: self.layers,
            post_num: self.post_num(),
            warmup: self.residual_warmup,
        })
    }

    /// Number of gates of each layer.
    pub(crate) fn gates_per_layer(&self) -> usize {
        match (self.scheme.gpas, self.gate.per_sublayer) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        }
    }

    /// The place of the gate in layer `index`, from 0; none without gates.
    pub fn gate_place(&self, index: usize) -> Option<GatePlace> {
        if self.scheme.gpas {
            self.wiring(index).gate_place(self.gate.site)
        } else {
            None
        }
    }

    /// Checks that the sizes fit together; every other function of this crate relies on it.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab", self.vocab),
            ("hidden", self.hidden),
            ("intermediate", self.intermediate),
            ("heads", self.heads),
            ("layers", self.layers),
            ("kv_heads", self.kv_heads()),
            ("max_positions", self.max_positions),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(ConfigError::Zero(name));
        }
        let (heads, hidden, kv_heads) = (self.heads, self.hidden, self.kv_heads());
        if !hidden.is_multiple_of(heads) {
            return Err(ConfigError::Heads { heads, hidden });
        }
        if !(hidden / heads).is_multiple_of(2) {
            return Err(ConfigError::OddHead(hidden / heads));
        }
        self.rope_scaling.check_head(hidden / heads)?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(ConfigError::KvHeads { kv_heads, heads });
        }
        if self.post_num() > self.layers {
            return Err(ConfigError::PostNum {
                post_num: self.post_num(),
                layers: self.layers,
            });
        }
        let placed = |index| self.gate_place(index).is_some();
        if self.scheme.gpas && !(0..self.layers).all(placed) {
            return Err(ConfigError::AfterNorm(self.scheme));
        }
        Ok(())
    }
}

/// A named model size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// Its name on the command line and in recipes.
    pub name: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP between its projections.
    pub intermediate: usize,
    /// Number of heads.
    pub heads: usize,
    /// Number of layers.
    pub layers: usize,
    /// Vocabulary of the published model.
    pub vocab: usize,
}

const fn preset(name: &'static str, [hidden, intermediate, heads, layers]: [usize; 4], vocab: usize) -> Preset {
    Preset {
        name,
        hidden,
        intermediate,
        heads,
        layers,
        vocab,
    }
}

impl Preset {
    /// The published sizes, smallest first, after `nano`, the size of the default run.
    pub const ALL: [Preset; 14] = [
        preset("nano", [64, 176, 2, 4], 4096),
        preset("9m", [128, 352, 4, 4], 32000),
        preset("20m", [256, 688, 4, 4], 32000),
        preset("35m", [384, 1024, 8, 6], 32000),
        preset("40m", [416, 1024, 8, 8], 32000),
        preset("60m", [512, 1376, 8, 8], 32000),
        preset("71m", [512, 1368, 8, 12], 32000),
        preset("100m", [640, 1708, 10, 12], 32100),
        preset("130m", [768, 2048, 12, 12], 32000),
        preset("250m", [768, 2560, 16, 24], 32000),
        preset("350m", [1024, 2736, 16, 24], 32000),
        preset("1b", [2048, 5461, 32, 24], 32000),
        preset("3b", [2560, 6848, 32, 32], 32000),
        preset("7b", [4096, 11008, 32, 32], 32000),
    ];

    /// The size of that name.
    pub fn named(name: &str) -> Option<Preset> {
        Self::ALL.into_iter().find(|preset| preset.name == name)
    }

    /// The model of this size with the published vocabulary.
    pub fn config(self) -> LlamaConfig {
        LlamaConfig::new(self.vocab, self.hidden, self.intermediate, self.heads, self.layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> LlamaConfig {
        LlamaConfig::new(50, 16, 44, 2, 4)
    }

    #[test]
    fn sizes_that_do_not_fit_are_named() {
        let error = |config: LlamaConfig| config.validate().unwrap_err().to_string();
        assert_eq!(small().validate(), Ok(()));
        assert_eq!(
            error(LlamaConfig { heads: 3, ..small() }),
            "model.heads = 3 does not divide model.hidden = 16"
        );
        assert_eq!(
            error(LlamaConfig { heads: 16, ..small() }),
            "model.hidden / model.heads = 1 is odd; rotary positions need an even head size"
        );
        assert_eq!(
            error(small().with_kv_heads(Some(3))),
            "model.kv_heads = 3 does not divide model.heads = 2"
        );
        assert_eq!(
            error(small().with_post_num(Some(5))),
            "model.post_num = 5 is more than model.layers = 4"
        );
        assert_eq!(
            error(LlamaConfig { layers: 0, ..small() }),
            "model.layers must be at least 1"
        );
        let gate = GateConfig::new().with_site(GateSite::AfterNorm);
        let scheme = "post_pre_gpas".parse().unwrap();
        assert_eq!(
            error(small().with_scheme(scheme).with_gate(gate)),
            "model.gate.site = after_norm needs a norm before every sub-layer, which scheme `post_pre_gpas` does not have"
        );
    }

    #[test]
    fn every_preset_is_a_model() {
        for preset in Preset::ALL {
            assert_eq!(preset.config().validate(), Ok(()), "{}", preset.name);
            assert_eq!(Preset::named(preset.name), Some(preset));
        }
    }
}
