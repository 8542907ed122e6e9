//! One Transformer layer: attention and MLP, each wired onto the residual stream as its scheme says.
//!
//! ```text
//!           ┌──────────────────────── [G?] ─── · α ─────────────────────────┐
//!   x ─[G?]─┤                                                              (+)── post_norm? ──[G?]── x
//!           └─ pre_norm? ─[G?]── F ── branch_norm? ── · branch_scale? ─[G?]───┘
//! ```

use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{DType, Tensor, backend::Backend};

use crate::attention::{Attention, AttentionConfig, CausalMask};
use crate::branch::BranchScale;
use crate::config::{ConfigError, LlamaConfig};
use crate::fast;
use crate::gpas::Gpas;
use crate::mlp::{Mlp, MlpConfig};
use crate::norm::{RmsNorm, RmsNormConfig};
use crate::precision::{Precision, cast};
use crate::progress::Progress;
use crate::rotary::Rotary;
use crate::scheme::{BranchScaling, GatePlace, NormStart, Wiring};

/// A gate should stand after the norm before a sub-layer that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the gate's place is after the norm before the sub-layer, and this wiring has no such norm")]
pub struct NoPlaceForGate;

/// The wiring of one sub-layer on the stream: the norms it has, the factors on its residual and on its branch, and the place of its gate.
#[derive(Module, Debug)]
pub struct Residual<B: Backend> {
    /// Norm of what the sub-layer sees.
    pub pre_norm: Option<RmsNorm<B>>,
    /// Norm of what the sub-layer returns.
    pub branch_norm: Option<RmsNorm<B>>,
    /// Trained factor on the branch.
    pub branch_scale: Option<BranchScale<B>>,
    /// Norm of the sum.
    pub post_norm: Option<RmsNorm<B>>,
    residual_scale: f64,
    /// Steps in which the branch grows to its full weight.
    #[module(skip)]
    branch_warmup: Option<u64>,
    #[module(skip)]
    gate_place: GatePlace,
    #[module(skip)]
    precision: Precision,
}

impl<B: Backend> Residual<B> {
    /// A sub-layer's wiring with its initial weights, and the place at which a gate that [`forward`](Self::forward) is given stands.
    ///
    /// # Errors
    /// If the place is the norm before the sub-layer and the wiring has none.
    pub fn new(
        wiring: Wiring,
        place: GatePlace,
        norm: &RmsNormConfig,
        precision: Precision,
        device: &B::Device,
    ) -> Result<Self, NoPlaceForGate> {
        if place == GatePlace::AfterNorm && wiring.pre_norm.is_none() {
            return Err(NoPlaceForGate);
        }
        let init = |start: Option<NormStart>| start.map(|start| norm.init(start, device));
        let scaling = wiring.branch_scale;
        Ok(Self {
            pre_norm: init(wiring.pre_norm),
            branch_norm: init(wiring.branch_norm),
            branch_scale: scaling.and_then(|scaling| BranchScale::new(scaling, norm.hidden, device)),
            branch_warmup: match scaling {
                Some(BranchScaling::Warmup { steps }) => Some(steps),
                _ => None,
            },
            post_norm: init(wiring.post_norm),
            residual_scale: wiring.residual_scale,
            gate_place: place,
            precision,
        })
    }

    /// `post_norm?( α · [G?](x) + branch_scale? · branch_norm?( F( pre_norm?(x) ) ) )` with the gate at its place.
    ///
    /// # Shapes
    /// - input and output: `[batch, seq, hidden]`
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        progress: Progress,
        gate: Option<&Gpas<B>>,
        sub_layer: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let gated = |place: GatePlace, z: Tensor<B, 3>| match gate {
            Some(gate) if self.gate_place == place => gate.forward(z),
            _ => z,
        };
        let normed = |norm: &Option<RmsNorm<B>>, z: Tensor<B, 3>, format: DType| match norm {
            Some(norm) => norm.forward_in(z, format),
            None => cast(z, format),
        };
        let x = gated(GatePlace::Before, x);
        // The sub-layer computes in the format of its input; what it adds to the stream has the stream's.
        let (stream, products) = (x.dtype(), self.precision.products());
        let seen = match self.gate_place {
            GatePlace::AfterNorm => {
                let normed = normed(&self.pre_norm, x.clone(), stream);
                cast(gated(GatePlace::AfterNorm, normed), products)
            }
            _ => normed(&self.pre_norm, x.clone(), products),
        };
        let returned = sub_layer(seen);
        let branch = if gate.is_some() && self.is_summed_as_returned(progress) {
            returned
        } else {
            self.scaled(normed(&self.branch_norm, returned, stream), progress)
        };
        let branch = gated(GatePlace::AfterModule, branch);
        let residual = gated(GatePlace::Residual, x);
        let residual = if self.residual_scale == 1.0 {
            residual
        } else {
            residual.mul_scalar(self.residual_scale)
        };
        match (&self.post_norm, gate) {
            (None, Some(gate)) if self.gate_place == GatePlace::Stream => gate.forward_sum(residual, branch),
            (Some(norm), _) => gated(GatePlace::Stream, norm.forward(sum(residual, branch))),
            (None, _) => gated(GatePlace::Stream, sum(residual, branch)),
        }
    }

    /// The fixed factor on the branch: 1 but for a scheme that warms its branches up.
    pub fn branch_factor(&self, progress: Progress) -> f64 {
        self.branch_warmup.map_or(1.0, |steps| progress.warmup(steps))
    }

    /// Whether nothing but a gate on the sum comes after the sub-layer: the gate takes what that returns in the format that it has.
    fn is_summed_as_returned(&self, progress: Progress) -> bool {
        let has_none = self.branch_norm.is_none() && self.branch_scale.is_none() && self.post_norm.is_none();
        has_none && self.gate_place == GatePlace::Stream && self.branch_factor(progress) == 1.0
    }

    fn scaled(&self, branch: Tensor<B, 3>, progress: Progress) -> Tensor<B, 3> {
        let branch = match &self.branch_scale {
            Some(scale) => scale.forward(branch),
            None => branch,
        };
        match self.branch_factor(progress) {
            1.0 => branch,
            factor => branch.mul_scalar(factor),
        }
    }
}

/// `x + branch`.
fn sum<B: Backend>(x: Tensor<B, 3>, branch: Tensor<B, 3>) -> Tensor<B, 3> {
    fast::sum(&x, &branch).unwrap_or_else(|| x + branch)
}

/// One layer: attention, then MLP.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Block<B: Backend> {
    /// Causal self-attention.
    pub attention: Attention<B>,
    /// How attention is wired onto the stream.
    pub attention_residual: Residual<B>,
    /// Feed-forward layer.
    pub mlp: Mlp<B>,
    /// How the feed-forward layer is wired onto the stream.
    pub mlp_residual: Residual<B>,
    /// Empty without GPAS; one gate for both sub-layers; or one for attention and one for the MLP.
    pub gates: Vec<Gpas<B>>,
}

impl<B: Backend> Block<B> {
    /// Layer `index` (from 0) of the model that `config` describes, with Burn's default initialisation.
    ///
    /// # Errors
    /// If its gate has no place.
    pub fn new(config: &LlamaConfig, index: usize, device: &B::Device) -> Result<Self, ConfigError> {
        Self::from_wiring(config, config.wiring(index), device)
            .map_err(|NoPlaceForGate| ConfigError::AfterNorm(config.scheme))
    }

    /// A layer of the sizes and with the gates of `config` whose sub-layers are wired so, with Burn's default initialisation.
    ///
    /// # Errors
    /// If its gate has no place in this wiring.
    pub fn from_wiring(config: &LlamaConfig, wiring: Wiring, device: &B::Device) -> Result<Self, NoPlaceForGate> {
        let gates = config.gates_per_layer();
        let place = match gates {
            0 => wiring.default_gate_place(),
            _ => wiring.gate_place(config.gate.site).ok_or(NoPlaceForGate)?,
        };
        let norm = RmsNormConfig::new(config.hidden).with_epsilon(config.norm_epsilon);
        let residual = || Residual::new(wiring, place, &norm, config.precision, device);
        Ok(Self {
            attention: AttentionConfig::new(config.hidden, config.heads, config.kv_heads()).init(device),
            attention_residual: residual()?,
            mlp: MlpConfig::new(config.hidden, config.intermediate).init(device),
            mlp_residual: residual()?,
            gates: (0..gates).map(|_| config.gate.gpas().init(device)).collect(),
        })
    }

    /// # Shapes
    /// - input and output: `[batch, seq, hidden]`
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        progress: Progress,
        rotary: &Rotary<B>,
        mask: &CausalMask<B>,
    ) -> Tensor<B, 3> {
        self.forward_with(x, progress, |attention, z| attention.forward(z, rotary, mask))
    }

    /// [`forward`](Self::forward) with another way to attend, such as to the tokens that a cache has kept.
    pub(crate) fn forward_with(
        &self,
        x: Tensor<B, 3>,
        progress: Progress,
        attend: impl FnOnce(&Attention<B>, Tensor<B, 3>) -> Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let attention = |z| attend(&self.attention, z);
        let x = self
            .attention_residual
            .forward(x, progress, self.gates.first(), attention);
        self.mlp_residual
            .forward(x, progress, self.gates.last(), |z| self.mlp.forward(z))
    }
}

impl<B: Backend> ModuleDisplay for Block<B> {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(true).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("attention", &self.attention)
            .add("attention_residual", &self.attention_residual)
            .add("mlp", &self.mlp)
            .add("mlp_residual", &self.mlp_residual)
            .add("gates", &self.gates)
            .optional()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GateConfig;
    use crate::rotary::RotaryConfig;
    use crate::scheme::GateSite;
    use burn::module::Param;
    use burn::tensor::activation::silu;
    use burn_flex::FlexDevice;
    use gpas_host::check::{Tracked, assert_close, gradients, random};

    type Stream = Tensor<Tracked, 3>;

    const BATCH: usize = 2;
    const SEQ: usize = 9;
    const HIDDEN: usize = 24;
    const LAYERS: usize = 3;
    const WARMUP: u64 = 10;
    /// Steps done: a quarter of the 20 in which the branches of the middle layer grow.
    const PROGRESS: u64 = 5;

    /// The layer in the middle, its norms, scales and gate drawn at random.
    fn block(scheme: &str) -> Block<Tracked> {
        let config = LlamaConfig::new(10, HIDDEN, 40, 2, LAYERS)
            .with_scheme(scheme.parse().unwrap())
            .with_residual_warmup(WARMUP);
        let mut block = config.init::<Tracked>(7, &FlexDevice).layers.remove(1);
        for residual in [&mut block.attention_residual, &mut block.mlp_residual] {
            let Residual {
                pre_norm,
                branch_norm,
                branch_scale,
                post_norm,
                ..
            } = residual;
            for norm in [pre_norm, branch_norm, post_norm].into_iter().flatten() {
                norm.weight = Param::from_tensor(random([HIDDEN]));
            }
            if let Some(scale) = branch_scale {
                scale.weight = Param::from_tensor(random(scale.weight.val().dims()));
            }
        }
        for gate in &mut block.gates {
            gate.gate = Param::from_data([0.7], &FlexDevice);
        }
        block
    }

    fn plain_norm(norm: &Option<RmsNorm<Tracked>>, x: Stream) -> Stream {
        let weight = norm.as_ref().unwrap().weight.val().reshape([1, 1, HIDDEN]);
        x.clone() / (x.square().mean_dim(2) + 1e-6).sqrt() * weight
    }

    /// Once for every position, so that no sum over all entries at once loses the digits that are compared.
    fn for_every_position(weight: Tensor<Tracked, 1>) -> Stream {
        let size = weight.dims()[0];
        weight.reshape([1, 1, size]).expand([BATCH, SEQ, size])
    }

    fn plain_scale(scale: &Option<BranchScale<Tracked>>) -> Stream {
        for_every_position(scale.as_ref().unwrap().weight.val())
    }

    /// A sub-layer's line of the table, written out; `gpas` is what the scheme's gate does to a tensor.
    fn line(
        scheme: &str,
        wired: &Residual<Tracked>,
        x: Stream,
        gpas: impl Fn(Stream) -> Stream,
        sub_layer: impl Fn(Stream) -> Stream,
    ) -> Stream {
        let before = |x: Stream| plain_norm(&wired.pre_norm, x);
        match scheme {
            "peri" => gpas(x.clone() + plain_norm(&wired.branch_norm, sub_layer(before(x)))),
            "prores" => gpas(x.clone() + sub_layer(before(x)) * 0.25),
            "keel" => plain_norm(
                &wired.post_norm,
                gpas(x.clone()) * (2.0 * LAYERS as f64) + sub_layer(before(x)),
            ),
            "layerscale" => gpas(x.clone() + sub_layer(before(x)) * plain_scale(&wired.branch_scale)),
            "rezero" => gpas(x.clone() + sub_layer(x) * plain_scale(&wired.branch_scale)),
            _ => unreachable!(),
        }
    }

    /// Forward and backward, to the input and to every scale and gate.
    #[test]
    fn the_newer_schemes_compute_their_equations() {
        let rotary = RotaryConfig::new(16, HIDDEN / 2).init(&FlexDevice);
        let mask = CausalMask::new(SEQ, FlexDevice);
        for name in ["peri", "prores", "keel", "layerscale", "rezero"] {
            for gated in [false, true] {
                let block = block(&if gated { format!("{name}_gpas") } else { name.into() });
                assert_eq!(block.gates.len(), usize::from(gated));
                let gpas = |z: Stream| match block.gates.first() {
                    Some(gate) => z.clone() - z.detach() * for_every_position(silu(gate.gate.val())),
                    None => z,
                };
                let x = random([BATCH, SEQ, HIDDEN]);
                let attention = |z| block.attention.forward(z, &rotary, &mask);
                let plain = line(name, &block.attention_residual, x.clone(), gpas, attention);
                let plain = line(name, &block.mlp_residual, plain, gpas, |z| block.mlp.forward(z));

                let found = block.forward(x.clone(), Progress::after(PROGRESS), &rotary, &mask);
                let [found, plain] = gradients(found, plain);
                assert_close(x.grad(&found).unwrap(), x.grad(&plain).unwrap(), name);
                let residuals = [&block.attention_residual, &block.mlp_residual];
                let scales = residuals
                    .into_iter()
                    .filter_map(|residual| residual.branch_scale.as_ref());
                for weight in scales.map(|scale| scale.weight.val()) {
                    assert_close(weight.grad(&found).unwrap(), weight.grad(&plain).unwrap(), name);
                }
                // The terms of a gate's gradient nearly cancel, above all below a norm of the sum, which takes a scale off again: their sum
                // has fewer digits than they have.
                for gate in block.gates.iter().map(|gate| gate.gate.val()) {
                    let [found, plain] = [&found, &plain].map(|gradients| gate.grad(gradients).unwrap().into_scalar());
                    assert!((found / plain - 1.0).abs() < 1e-4, "{name}: {found} against {plain}");
                }
            }
        }
    }

    #[test]
    fn a_gate_without_its_place_is_refused() {
        let norm = RmsNormConfig::new(HIDDEN);
        let wired = |wiring, place| Residual::<Tracked>::new(wiring, place, &norm, Precision::F32, &FlexDevice);
        assert!(wired(Wiring::PRE, GatePlace::AfterNorm).is_ok());
        assert_eq!(wired(Wiring::POST, GatePlace::AfterNorm).unwrap_err(), NoPlaceForGate);
        let gate = GateConfig::new().with_site(GateSite::AfterNorm);
        let config = LlamaConfig::new(10, HIDDEN, 40, 2, LAYERS).with_gate(gate);
        let block = |config: &LlamaConfig, wiring| Block::<Tracked>::from_wiring(config, wiring, &FlexDevice);
        assert!(block(&config, Wiring::PRE).is_ok());
        assert_eq!(block(&config, Wiring::POST).unwrap_err(), NoPlaceForGate);
        // Without gates nothing needs the place.
        let ungated = config.clone().with_scheme("post".parse().unwrap());
        assert!(block(&ungated, Wiring::POST).is_ok());
        let post = config.with_scheme("post_gpas".parse().unwrap());
        assert_eq!(
            Block::<Tracked>::new(&post, 0, &FlexDevice).unwrap_err(),
            ConfigError::AfterNorm(post.scheme)
        );
        assert_eq!(
            post.try_init::<Tracked>(1, &FlexDevice).unwrap_err(),
            ConfigError::AfterNorm(post.scheme)
        );
    }

    #[test]
    fn a_branch_that_warms_up_ends_with_its_full_weight() {
        let wired = block("prores").attention_residual;
        let at = |steps| wired.branch_factor(Progress::after(steps));
        assert_eq!([at(0), at(5), at(20), at(21)], [0.0, 0.25, 1.0, 1.0]);
        assert_eq!(block("pre").attention_residual.branch_factor(Progress::after(0)), 1.0);
    }
}
