//! The published initialisations, drawn on the host.
//!
//! | parameter | distribution |
//! |---|---|
//! | embedding | N(0, √(2/5)) |
//! | projections, head | N(0, 0.02) |
//! | `o`, `down` projections of the scaled schemes' pre layers | N(0, 0.02 / √(2L)) |
//! | DeepNorm: `q`, `k` | Xavier normal, gain 1 |
//! | DeepNorm: `v`, `o` and the MLP | Xavier normal, gain (8L)^−¼ |
//! | norms, branch scales, gates | a constant, see [`crate::scheme`] and [`crate::gpas`] |
//!
//! Each parameter has a random stream of its own, keyed by (seed, name), so that two schemes that start alike start equal.
//! Weights are drawn in f32 and rounded where the parameters' number format is another.
//!
//! `deeppost_gpas` gets DeepNorm's initialisation too; [`Initialisation::Released`] reproduces the authors' code, which omits it there.

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::config::{Initialisation, LlamaConfig};
use crate::llama::Llama;
use crate::scheme::NormScheme;

/// Standard deviation of projections.
const PROJECTION_STD: f64 = 0.02;

impl LlamaConfig {
    /// The model with its scheme's initial weights, which are a function of (`seed`, parameter name) alone: equal across schemes that
    /// initialise alike, across backends and machines.
    ///
    /// # Panics
    /// If the configuration is not [valid](LlamaConfig::validate).
    pub fn init<B: Backend>(&self, seed: u64, device: &B::Device) -> Llama<B> {
        initialise(self.skeleton(device), self, seed)
    }
}

/// Draws every weight and gives every parameter an id that depends on its name alone, so that optimizer records fit later processes.
fn initialise<B: Backend>(model: Llama<B>, config: &LlamaConfig, seed: u64) -> Llama<B> {
    model.map(&mut Initialiser {
        config,
        seed,
        path: Vec::new(),
    })
}

struct Initialiser<'a> {
    config: &'a LlamaConfig,
    seed: u64,
    path: Vec<String>,
}

impl Initialiser<'_> {
    /// Standard deviation of the weight at the current path with `[inputs, outputs]`; none for norms, branch scales and gates.
    fn std(&self, shape: &[usize]) -> Option<f64> {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let layers = self.config.layers as f64;
        let (layer, projection) = match path.as_slice() {
            ["embedding", "weight"] => return Some(0.4f64.sqrt()),
            ["head", "weight"] => return Some(PROJECTION_STD),
            ["layers", layer, "attention" | "mlp", projection, "weight"] => (layer, *projection),
            _ => return None,
        };
        if self.is_deep() {
            let gain = match projection {
                "query" | "key" => 1.0,
                _ => (8.0 * layers).powf(-0.25),
            };
            return Some(gain * (2.0 / (shape[0] + shape[1]) as f64).sqrt());
        }
        let scaled = matches!(projection, "output" | "down")
            && layer.parse().is_ok_and(|index| self.config.wiring(index).scaled_output);
        Some(if scaled {
            PROJECTION_STD / (2.0 * layers).sqrt()
        } else {
            PROJECTION_STD
        })
    }

    fn is_deep(&self) -> bool {
        let released = self.config.initialisation == Initialisation::Released;
        self.config.scheme.norm == NormScheme::DeepPost && !(released && self.config.scheme.gpas)
    }
}

impl<B: Backend> ModuleMapper<B> for Initialiser<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let name = self.path.join(".");
        let id = ParamId::from(name_hash(&name));
        // The shape and the device of a parameter that Burn has not drawn yet; asking for its value would draw it.
        let shape = param.lazy_shape();
        let value = match self.std(shape.as_slice()) {
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
