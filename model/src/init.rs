//! The published initialisations, drawn on the host.
//!
//! | parameter | distribution |
//! |---|---|
//! | embedding | N(0, √(2/5)) |
//! | projections, head | N(0, 0.02) |
//! | `output`, `down` projections of the scaled schemes' pre layers | N(0, 0.02 / √(2L)) |
//! | DeepNorm: `query`, `key` | Xavier normal, gain 1 |
//! | DeepNorm: `value`, `output` and the MLP | Xavier normal, gain (8L)^−¼ |
//! | norms, branch scales, gates | a constant, see [`crate::scheme`] and [`crate::gpas`] |
//!
//! Each parameter has a random stream of its own, keyed by (seed, name), so that two schemes that start alike start equal.
//! Weights are drawn in f32 and rounded where the parameters' number format is another.
//!
//! `deeppost_gpas` gets DeepNorm's initialisation too; [`Initialisation::Released`] reproduces the authors' code, which omits it there.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::config::{ConfigError, Initialisation, LlamaConfig};
use crate::llama::Llama;
use crate::params::{ParameterKind, Projection};
use crate::scheme::ProjectionStart;

/// Standard deviation of projections.
const PROJECTION_STD: f64 = 0.02;

impl LlamaConfig {
    /// The model with its scheme's initial weights, which are a function of (`seed`, parameter name) alone: equal across schemes that
    /// initialise alike, across backends and machines.
    ///
    /// # Panics
    /// If the configuration is not [valid](LlamaConfig::validate); [`try_init`](Self::try_init) returns that instead.
    pub fn init<B: Backend>(&self, seed: u64, device: &B::Device) -> Llama<B> {
        match self.try_init(seed, device) {
            Ok(model) => model,
            Err(error) => panic!("{error}"),
        }
    }

    /// [`init`](Self::init) of a configuration that may be wrong.
    ///
    /// # Errors
    /// If the configuration is not [valid](LlamaConfig::validate).
    pub fn try_init<B: Backend>(&self, seed: u64, device: &B::Device) -> Result<Llama<B>, ConfigError> {
        let model = self.skeleton(device)?;
        let parameters = model.parameters().into_iter();
        let kinds = parameters.map(|parameter| (parameter.id(), parameter.kind)).collect();
        Ok(model.map(&mut Initialiser {
            config: self,
            seed,
            kinds,
        }))
    }
}

/// The id of a parameter of every model: it depends on the parameter's name alone, so that optimizer records fit later processes.
pub(crate) fn parameter_id(kind: ParameterKind) -> ParamId {
    ParamId::from(name_hash(&kind.to_string()))
}

/// Standard deviation of the weight of a kind and a shape; none where it starts as a constant.
fn std(config: &LlamaConfig, kind: ParameterKind, shape: &[usize]) -> Option<f64> {
    match kind {
        ParameterKind::Embedding => Some(0.4f64.sqrt()),
        ParameterKind::Head => Some(PROJECTION_STD),
        ParameterKind::Projection { layer, projection } => {
            Some(projection_std(config, layer, projection, shape.iter().sum()))
        }
        ParameterKind::ProjectionBias { .. } | ParameterKind::HeadBias => Some(0.0),
        ParameterKind::EmbeddingNorm
        | ParameterKind::Norm { .. }
        | ParameterKind::BranchScale { .. }
        | ParameterKind::Gate { .. }
        | ParameterKind::FinalNorm => None,
    }
}

/// Standard deviation of a projection with as many inputs and outputs together.
fn projection_std(config: &LlamaConfig, layer: usize, projection: Projection, fans: usize) -> f64 {
    let layers = config.layers as f64;
    // The authors' code draws the projections of a gated model as those of every other.
    let as_released = config.initialisation == Initialisation::Released && config.scheme.gpas;
    match config.scheme.norm.projections() {
        ProjectionStart::DeepNorm if !as_released => {
            let gain = match projection {
                Projection::Query | Projection::Key => 1.0,
                _ => (8.0 * layers).powf(-0.25),
            };
            gain * (2.0 / fans as f64).sqrt()
        }
        ProjectionStart::ScaledOutput
            if projection == projection.sub_layer().output() && config.wiring(layer).pre_norm.is_some() =>
        {
            PROJECTION_STD / (2.0 * layers).sqrt()
        }
        ProjectionStart::Normal | ProjectionStart::ScaledOutput | ProjectionStart::DeepNorm => PROJECTION_STD,
    }
}

/// Draws every weight.
struct Initialiser<'a> {
    config: &'a LlamaConfig,
    seed: u64,
    kinds: HashMap<ParamId, ParameterKind>,
}

impl<B: Backend> ModuleMapper<B> for Initialiser<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let kind = *self.kinds.get(&param.id).expect("the walk has every parameter");
        let name = kind.to_string();
        let id = parameter_id(kind);
        // The shape and the device of a parameter that Burn has not drawn yet; asking for its value would draw it.
        let shape = param.lazy_shape();
        let value = match std(self.config, kind, shape.as_slice()) {
            Some(std) => {
                let device = param.lazy_device();
                let values = draw(self.seed, &name, shape.num_elements(), std);
                Tensor::from_data(TensorData::new(values, shape), &device).require_grad()
            }
            None => param.val(),
        };
        let format = self.config.precision.parameters();
        if value.dtype() == format {
            return Param::initialized(id, value);
        }
        // A cast is no leaf of the graph, so it is taken out of it.
        let trained = value.is_require_grad();
        let value = value.set_require_grad(false).cast(format).set_require_grad(trained);
        Param::initialized(id, value)
    }
}

/// `count` numbers of N(0, std) from the stream of (`seed`, `name`).
fn draw(seed: u64, name: &str, count: usize, std: f64) -> Vec<f32> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&name_hash(name).to_le_bytes());
    let mut stream = ChaCha8Rng::from_seed(key);
    (0..count)
        .map(|_| {
            let unit: f64 = StandardNormal.sample(&mut stream);
            (unit * std) as f32
        })
        .collect()
}

/// FNV-1a, 64 bits: stable across platforms and releases, unlike the standard library's hasher.
fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::{Flex, FlexDevice};

    fn model(scheme: &str, seed: u64) -> Llama<Flex> {
        config(scheme).init(seed, &FlexDevice)
    }

    fn config(scheme: &str) -> LlamaConfig {
        LlamaConfig::new(200, 64, 128, 4, 4).with_scheme(scheme.parse().unwrap())
    }

    fn std(weight: &Param<Tensor<Flex, 2>>) -> f64 {
        f64::from(weight.val().square().mean().sqrt().into_scalar())
    }

    fn assert_std(weight: &Param<Tensor<Flex, 2>>, expected: f64) {
        let found = std(weight);
        // 64 · 64 draws: the spread of a standard deviation is 1.1 %.
        assert!((found / expected - 1.0).abs() < 0.05, "{found} against {expected}");
    }

    #[test]
    fn standard_deviations_are_the_published_ones() {
        let pre = model("pre_gpas", 1);
        assert_std(&pre.embedding.weight, 0.632_455);
        assert_std(&pre.layers[0].attention.query.weight, 0.02);
        assert_std(&pre.head.as_ref().unwrap().weight, 0.02);
        let scaled = model("scale_post_pre", 1);
        assert_std(&scaled.layers[0].mlp.down.weight, 0.02);
        assert_std(&scaled.layers[1].mlp.down.weight, 0.02 / 8f64.sqrt());
        assert_std(&scaled.layers[1].attention.output.weight, 0.02 / 8f64.sqrt());
        assert_std(&scaled.layers[1].mlp.up.weight, 0.02);
        let deep = model("deeppost_gpas", 1);
        assert_std(&deep.layers[3].attention.key.weight, (2.0f64 / 128.0).sqrt());
        let gain = 32f64.powf(-0.25);
        assert_std(&deep.layers[3].attention.value.weight, gain * (2.0f64 / 128.0).sqrt());
        assert_std(&deep.layers[3].mlp.gate.weight, gain * (2.0f64 / 192.0).sqrt());
        let released = config("deeppost_gpas").with_initialisation(Initialisation::Released);
        let released: Llama<Flex> = released.init(1, &FlexDevice);
        assert_std(&released.layers[3].mlp.gate.weight, 0.02);
    }

    #[test]
    fn weights_depend_on_seed_and_name_alone() {
        let weight = |model: &Llama<Flex>| model.layers[1].mlp.up.weight.val().into_data();
        let first = model("pre", 1);
        assert_eq!(weight(&first), weight(&model("sandwich_gpas", 1)));
        assert_ne!(weight(&first), weight(&model("pre", 2)));
        assert_ne!(
            first.layers[1].mlp.up.weight.val().into_data(),
            first.layers[0].mlp.up.weight.val().into_data()
        );
        let ids = |model: &Llama<Flex>| (model.norm.weight.id, model.layers[1].mlp.up.weight.id);
        assert_eq!(ids(&first), ids(&model("pre", 9)));
    }

    #[test]
    fn branch_scales_start_as_published() {
        let scale = |scheme: &str| {
            let block = &model(scheme, 1).layers[3];
            let scale = block.mlp_residual.branch_scale.as_ref().unwrap();
            scale.weight.val().into_data().into_vec::<f32>().unwrap()
        };
        assert_eq!(scale("layerscale"), [0.1; 64]);
        assert_eq!(scale("rezero_gpas"), [0.0]);
    }

    /// The very numbers, so that a change of generator does not pass for the same seed.
    #[test]
    fn the_stream_of_a_name_is_pinned() {
        let drawn = draw(42, "embedding.weight", 3, 1.0);
        assert_eq!(drawn, PINNED);
    }

    const PINNED: [f32; 3] = [0.10940911, 2.2706563, 1.1297787];
}
