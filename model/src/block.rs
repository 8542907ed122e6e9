//! One Transformer layer: attention and MLP, each wired onto the residual stream as its scheme says.
//!
//! ```text
//!           ┌──────────────── [G?] ─── · α ────────────────┐
//!   x ─[G?]─┤                                             (+)── post_norm? ──[G?]── x
//!           └─ pre_norm? ─[G?]── F ── branch_norm? ─[G?]───┘
//! ```

use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::tensor::{Tensor, backend::Backend};

use crate::attention::{Attention, AttentionConfig, CausalMask};
use crate::config::LlamaConfig;
use crate::gpas::Gpas;
use crate::host;
use crate::mlp::{Mlp, MlpConfig};
use crate::norm::{RmsNorm, RmsNormConfig};
use crate::precision::Precision;
use crate::rotary::Rotary;
use crate::scheme::{GatePlace, NormStart, Wiring};

/// The wiring of one sub-layer on the stream: the norms it has, the factor on its residual and the place of its gate.
#[derive(Module, Debug)]
pub struct Residual<B: Backend> {
    /// Norm of what the sub-layer sees.
    pub pre_norm: Option<RmsNorm<B>>,
    /// Norm of what the sub-layer returns.
    pub branch_norm: Option<RmsNorm<B>>,
    /// Norm of the sum.
    pub post_norm: Option<RmsNorm<B>>,
    residual_scale: f64,
    #[module(skip)]
    gate_place: GatePlace,
    #[module(skip)]
    precision: Precision,
}

impl<B: Backend> Residual<B> {
    fn new(wiring: Wiring, place: GatePlace, norm: &RmsNormConfig, precision: Precision, device: &B::Device) -> Self {
        let init = |start: Option<NormStart>| start.map(|start| norm.init(start, device));
        Self {
            pre_norm: init(wiring.pre_norm),
            branch_norm: init(wiring.branch_norm),
            post_norm: init(wiring.post_norm),
            residual_scale: wiring.residual_scale,
            gate_place: place,
            precision,
        }
    }

    /// `post_norm?( α · [G?](x) + branch_norm?( F( pre_norm?(x) ) ) )` with the gate at its place.
    ///
    /// # Shapes
    /// - input and output: `[batch, seq, hidden]`
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        gate: Option<&Gpas<B>>,
        sub_layer: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let gated = |place: GatePlace, z: Tensor<B, 3>| match gate {
            Some(gate) if self.gate_place == place => gate.forward(z),
            _ => z,
        };
        let normed = |norm: &Option<RmsNorm<B>>, z: Tensor<B, 3>| match norm {
            Some(norm) => norm.forward(z),
            None => z,
        };
        let x = gated(GatePlace::Before, x);
        let seen = gated(GatePlace::AfterNorm, normed(&self.pre_norm, x.clone()));
        // The sub-layer computes in the format of its input; what it adds to the stream has the stream's.
        let returned = sub_layer(seen.cast(self.precision.products())).cast(x.dtype());
        let branch = gated(GatePlace::AfterModule, normed(&self.branch_norm, returned));
        let residual = gated(GatePlace::Residual, x);
        let residual = if self.residual_scale == 1.0 {
            residual
        } else {
            residual.mul_scalar(self.residual_scale)
        };
        match (&self.post_norm, gate) {
            (None, Some(gate)) if self.gate_place == GatePlace::Stream => gate.forward_sum(residual, branch),
            (post_norm, _) => gated(GatePlace::Stream, normed(post_norm, sum(residual, branch))),
        }
    }
}

/// `x + branch`.
fn sum<B: Backend>(x: Tensor<B, 3>, branch: Tensor<B, 3>) -> Tensor<B, 3> {
    if host::runs(&x) && host::runs(&branch) {
        return host::apply(host::Sum, [host::primitive(x), host::primitive(branch)]);
    }
    x + branch
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
    pub fn new(config: &LlamaConfig, index: usize, device: &B::Device) -> Self {
        let wiring = config.wiring(index);
        let place = wiring
            .gate_place(config.gate.site)
            .unwrap_or_else(|| wiring.default_gate_place());
        let norm = RmsNormConfig::new(config.hidden).with_epsilon(config.norm_epsilon);
        let residual = || Residual::new(wiring, place, &norm, config.precision, device);
        let gates = match (config.scheme.gpas, config.gate.per_sublayer) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        };
        Self {
            attention: AttentionConfig::new(config.hidden, config.heads, config.kv_heads()).init(device),
            attention_residual: residual(),
            mlp: MlpConfig::new(config.hidden, config.intermediate).init(device),
            mlp_residual: residual(),
            gates: (0..gates).map(|_| config.gate.init(device)).collect(),
        }
    }

    /// # Shapes
    /// - input and output: `[batch, seq, hidden]`
    pub fn forward(&self, x: Tensor<B, 3>, rotary: &Rotary<B>, mask: &CausalMask<B>) -> Tensor<B, 3> {
        let x = self
            .attention_residual
            .forward(x, self.gates.first(), |z| self.attention.forward(z, rotary, mask));
        self.mlp_residual.forward(x, self.gates.last(), |z| self.mlp.forward(z))
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
