//! Gradient-Preserving Activation Scaling: `GPAS(x) = x − act(α) · detach(x)` (arXiv 2506.22049, equation 3).
//!
//! The forward pass scales its input by `1 − act(α)`; the backward pass sees the identity, so the gradient that reaches the layers below
//! is as large as without the scaling. The gate `α` starts at 0, where GPAS is exactly the identity, and learns from
//! `∂L/∂α = −act'(α) · Σ (∂L/∂y · x)`.

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::tensor::activation::{relu, sigmoid, silu, tanh};
use burn::tensor::{DType, ElementConversion, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};
use strum::VariantNames;

use crate::fast;

/// Activation of the gate; the paper's ablation (its table 6) compares them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum GateActivation {
    /// `α · sigmoid(α)`, the paper's choice.
    #[default]
    Silu,
    /// `α`.
    Identity,
    /// `max(α, 0)`.
    Relu,
    /// `tanh(α)`.
    Tanh,
    /// `α` above 0, `0.01 · α` below.
    LeakyRelu,
    /// `α · sigmoid(8α)`.
    ScaleSilu,
}

impl GateActivation {
    /// All of them.
    pub const ALL: [GateActivation; 6] = [
        GateActivation::Silu,
        GateActivation::Identity,
        GateActivation::Relu,
        GateActivation::Tanh,
        GateActivation::LeakyRelu,
        GateActivation::ScaleSilu,
    ];

    /// The activation of a gate `[1]`, differentiable.
    pub fn forward<B: Backend>(self, gate: Tensor<B, 1>) -> Tensor<B, 1> {
        match self {
            GateActivation::Silu => silu(gate),
            GateActivation::Identity => gate,
            GateActivation::Relu => relu(gate),
            GateActivation::Tanh => tanh(gate),
            // As a sum, whose slope at 0, where a gate starts, is PyTorch's 0.01; that of Burn's `leaky_relu` is 1.
            GateActivation::LeakyRelu => gate.clone().mul_scalar(0.01) + relu(gate).mul_scalar(0.99),
            GateActivation::ScaleSilu => sigmoid(gate.clone().mul_scalar(8.0)) * gate,
        }
    }

    /// The activation of one number.
    pub fn value(self, gate: f64) -> f64 {
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        match self {
            GateActivation::Silu => gate * sigmoid(gate),
            GateActivation::Identity => gate,
            GateActivation::Relu => gate.max(0.0),
            GateActivation::Tanh => gate.tanh(),
            GateActivation::LeakyRelu if gate < 0.0 => 0.01 * gate,
            GateActivation::LeakyRelu => gate,
            GateActivation::ScaleSilu => gate * sigmoid(8.0 * gate),
        }
    }

    /// The slope of the activation at one number; at a kink that of the left side, as in PyTorch.
    pub fn derivative(self, gate: f64) -> f64 {
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        match self {
            GateActivation::Silu => sigmoid(gate) * (1.0 + gate * (1.0 - sigmoid(gate))),
            GateActivation::Identity => 1.0,
            GateActivation::Relu if gate > 0.0 => 1.0,
            GateActivation::Relu => 0.0,
            GateActivation::Tanh => 1.0 - gate.tanh().powi(2),
            GateActivation::LeakyRelu if gate > 0.0 => 1.0,
            GateActivation::LeakyRelu => 0.01,
            GateActivation::ScaleSilu => sigmoid(8.0 * gate) * (1.0 + 8.0 * gate * (1.0 - sigmoid(8.0 * gate))),
        }
    }
}

impl GateActivation {
    /// [`value`](Self::value) and [`derivative`](Self::derivative) of a gate, in the form that the fast operations take.
    fn value_and_derivative(self) -> impl Fn(f64) -> [f64; 2] + Copy + Send + 'static {
        move |gate| [self.value(gate), self.derivative(gate)]
    }
}

/// One gate.
#[derive(Config, Debug, Copy, PartialEq)]
pub struct GpasConfig {
    /// Activation of the gate.
    #[config(default = "GateActivation::Silu")]
    pub act: GateActivation,
    /// Whether the gate is trained.
    #[config(default = true)]
    pub learnable: bool,
    /// Value of the gate at the start; 0 is the identity.
    #[config(default = 0.0)]
    pub init: f64,
    /// Whether the scaling is hidden from the gradient. Off, GPAS is a plain trainable scale.
    #[config(default = true)]
    pub stop_gradient: bool,
}

impl Default for GpasConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl GpasConfig {
    /// The gate with its initial value.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Gpas<B> {
        let gate = Tensor::full([1], self.init, device).set_require_grad(self.learnable);
        Gpas {
            gate: Param::initialized(Default::default(), gate),
            act: self.act,
            stop_gradient: self.stop_gradient,
        }
    }
}

/// `GPAS(x) = x − act(α) · detach(x)`, for any residual stream.
///
/// ```
/// use burn::tensor::{Tensor, TensorData};
/// use burn_flex::{Flex, FlexDevice};
/// use gpas_model::GpasConfig;
///
/// let gpas = GpasConfig::new().with_init(0.6).init::<Flex>(&FlexDevice);
/// let x = Tensor::<Flex, 1>::from_floats([1.0, -2.0], &FlexDevice);
/// // SiLU(0.6) = 0.38739, so the stream is scaled by 0.61261.
/// gpas.forward(x).into_data().assert_approx_eq::<f32>(
///     &TensorData::from([0.61261, -1.22522]),
///     burn::tensor::Tolerance::absolute(1e-5),
/// );
/// assert!((gpas.scale() - 0.61261).abs() < 1e-5);
/// ```
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct Gpas<B: Backend> {
    /// α, shape `[1]`.
    pub gate: Param<Tensor<B, 1>>,
    /// Activation of the gate.
    #[module(skip)]
    pub act: GateActivation,
    /// Whether the scaling is hidden from the gradient.
    #[module(skip)]
    pub stop_gradient: bool,
}

impl<B: Backend> Gpas<B> {
    /// Scales the stream by `1 − act(α)`; with the stop-gradient, what flows back to `x` is what came in.
    ///
    /// # Shapes
    /// - input and output: any
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        fast::gate(
            &x,
            &self.gate.val(),
            self.act.value_and_derivative(),
            self.stop_gradient,
        )
        .unwrap_or_else(|| self.in_tensor_operations(x))
    }

    /// The factor of the forward pass, `1 − act(α)`. Reads the gate from its device, which waits for it.
    ///
    /// ```
    /// use burn_flex::{Flex, FlexDevice};
    /// use gpas_model::GpasConfig;
    ///
    /// assert_eq!(GpasConfig::new().init::<Flex>(&FlexDevice).scale(), 1.0);
    /// ```
    pub fn scale(&self) -> f64 {
        let gate: f64 = self.gate.val().into_scalar().elem();
        1.0 - self.act.value(gate)
    }

    /// GPAS of a sum, for which one walk over memory is enough where both are there. The number format is that of x.
    ///
    /// # Shapes
    /// - inputs and output: any, the same
    pub(crate) fn forward_sum<const D: usize>(&self, x: Tensor<B, D>, branch: Tensor<B, D>) -> Tensor<B, D> {
        let fused = if self.stop_gradient {
            let gate = self.gate.val();
            let amount = || self.act.forward(gate.clone());
            fast::gated_sum(&x, &branch, &gate, self.act.value_and_derivative(), amount)
        } else {
            None
        };
        fused.unwrap_or_else(|| {
            let format = x.dtype();
            self.forward(x + branch.cast(format))
        })
    }

    fn in_tensor_operations<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let amount = self.amount_per_row(x.dims(), &x.device()).cast(x.dtype());
        let scaled = if self.stop_gradient {
            x.clone().detach()
        } else {
            x.clone()
        };
        x - scaled * amount
    }

    /// `act(α)` once for every row of a tensor of shape `dims`.
    ///
    /// The gate's gradient is the sum of all entries of `∂L/∂y · x`, which nearly cancel. Through these rows the backward pass adds them up
    /// row by row, and the rows in f64 where there is one, so that the sum neither loses its digits nor depends on how a batch is cut.
    fn amount_per_row<const D: usize>(&self, mut dims: [usize; D], device: &B::Device) -> Tensor<B, D> {
        let amount = self.act.forward(self.gate.val());
        let amount = if B::supports_dtype(device, DType::F64) {
            amount.cast(DType::F64)
        } else {
            amount
        };
        dims[D - 1] = 1;
        amount.reshape([1; D]).expand(dims)
    }
}

impl<B: Backend> ModuleDisplay for Gpas<B> {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        content
            .add("act", &format!("{:?}", self.act))
            .add("stop_gradient", &self.stop_gradient)
            .optional()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, TensorData, Tolerance};
    use burn_flex::{Flex, FlexDevice};

    type Autodiff = burn::backend::Autodiff<Flex>;

    #[test]
    fn starts_as_the_exact_identity() {
        let x = Tensor::<Flex, 3>::random([2, 3, 5], Distribution::Default, &FlexDevice);
        for act in GateActivation::ALL {
            let gpas = GpasConfig::new().with_act(act).init::<Flex>(&FlexDevice);
            assert_eq!(gpas.forward(x.clone()).into_data(), x.clone().into_data());
        }
    }

    #[test]
    fn tensor_and_scalar_activations_agree() {
        for act in GateActivation::ALL {
            for gate in [-1.7, -0.2, 0.0, 0.4, 1.3] {
                let tensor = act.forward(Tensor::<Flex, 1>::from_floats([gate], &FlexDevice));
                let value: f32 = tensor.into_scalar();
                assert!((f64::from(value) - act.value(gate)).abs() < 1e-6, "{act:?} {gate}");
            }
        }
    }

    /// With the stop-gradient, `∂y/∂x` is the identity whatever the gate; without it, it is the scale of the forward pass.
    #[test]
    fn the_jacobian_with_respect_to_x_is_the_identity() {
        let upstream = TensorData::from([[0.3f32, -1.0, 2.0], [0.5, 0.0, -0.7]]);
        for act in GateActivation::ALL {
            for (stop, scale) in [(true, 1.0), (false, 1.0 - act.value(0.7) as f32)] {
                let config = GpasConfig::new().with_act(act).with_init(0.7).with_stop_gradient(stop);
                let gpas = config.init::<Autodiff>(&FlexDevice);
                let x = Tensor::<Autodiff, 2>::random([2, 3], Distribution::Default, &FlexDevice).require_grad();
                let seed = Tensor::from_data(upstream.clone(), &FlexDevice);
                let gradients = (gpas.forward(x.clone()) * seed.clone()).sum().backward();
                let expected = (seed * scale).inner().into_data();
                x.grad(&gradients)
                    .unwrap()
                    .into_data()
                    .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
            }
        }
    }

    /// The gate's gradient against central differences of the forward pass.
    #[test]
    fn the_gate_gradient_matches_finite_differences() {
        let x = Tensor::<Autodiff, 2>::random([4, 8], Distribution::Normal(0.0, 1.0), &FlexDevice);
        let weights = Tensor::<Autodiff, 2>::random([4, 8], Distribution::Normal(0.0, 1.0), &FlexDevice);
        for act in GateActivation::ALL {
            let loss = |gate: f64| {
                let gpas = GpasConfig::new()
                    .with_act(act)
                    .with_init(gate)
                    .init::<Autodiff>(&FlexDevice);
                ((gpas.forward(x.clone()) * weights.clone()).sum(), gpas)
            };
            let (here, gpas) = loss(0.45);
            let gradient: f32 = gpas.gate.val().grad(&here.backward()).unwrap().into_scalar();
            let at = |gate| -> f64 { f64::from(loss(gate).0.into_scalar()) };
            let difference = (at(0.47) - at(0.43)) / 0.04;
            assert!(
                (f64::from(gradient) - difference).abs() < 2e-3 * difference.abs().max(1.0),
                "{act:?}: {gradient} against {difference}"
            );
        }
    }

    /// PyTorch's slopes at 0, where gates start.
    #[test]
    fn kinks_have_the_slope_of_their_left_side() {
        assert_eq!(GateActivation::Relu.derivative(0.0), 0.0);
        assert_eq!(GateActivation::LeakyRelu.derivative(0.0), 0.01);
    }

    #[test]
    fn a_fixed_gate_has_no_gradient() {
        let gpas = GpasConfig::new()
            .with_learnable(false)
            .with_init(0.5)
            .init::<Autodiff>(&FlexDevice);
        let x = Tensor::<Autodiff, 1>::from_floats([1.0, 2.0], &FlexDevice).require_grad();
        let gradients = gpas.forward(x).sum().backward();
        assert!(gpas.gate.val().grad(&gradients).is_none());
    }
}

#[cfg(all(test, feature = "host"))]
mod fused {
    use super::*;
    use burn_flex::FlexDevice;
    use gpas_host::check::{FORMATS, Tracked, assert_close_in, gradients_in, random};

    #[test]
    fn fused_and_plain_agree() {
        FORMATS.into_iter().for_each(fused_and_plain_agree_in);
    }

    fn fused_and_plain_agree_in(format: DType) {
        for act in GateActivation::ALL {
            for (stop, init) in [(true, 0.7), (false, -0.4), (true, 0.0)] {
                let config = GpasConfig::new().with_act(act).with_init(init).with_stop_gradient(stop);
                let gpas = config.init::<Tracked>(&FlexDevice);
                let x = random([3, 5, 7]);
                // A cast of its own for each graph: a backward pass consumes it.
                let given = || x.clone().cast(format);
                let plain = gpas.in_tensor_operations(given().cast(DType::F32));
                let [fused, plain] = gradients_in(format, gpas.forward(given()), plain);
                assert_close_in(
                    format,
                    x.grad(&fused).expect("a gradient"),
                    x.grad(&plain).expect("a gradient"),
                    "x",
                );
                let gate = gpas.gate.val();
                assert_close_in(
                    format,
                    gate.grad(&fused).expect("a gradient"),
                    gate.grad(&plain).expect("a gradient"),
                    "gate",
                );

                // Leaves of their own: what a backward pass has consumed is no part of another graph.
                let gpas = config.init::<Tracked>(&FlexDevice);
                let (x, branch, gate) = (random([3, 5, 7]), random([3, 5, 7]), gpas.gate.val());
                let given = || [&x, &branch].map(|tensor| tensor.clone().cast(format));
                let [wide_x, wide_branch] = given().map(|tensor| tensor.cast(DType::F32));
                let plain = gpas.in_tensor_operations(wide_x + wide_branch);
                let [given_x, given_branch] = given();
                let [fused, plain] = gradients_in(format, gpas.forward_sum(given_x, given_branch), plain);
                for (name, input) in [("x", &x), ("branch", &branch)] {
                    assert_close_in(
                        format,
                        input.grad(&fused).expect("a gradient"),
                        input.grad(&plain).expect("a gradient"),
                        name,
                    );
                }
                assert_close_in(
                    format,
                    gate.grad(&fused).expect("a gradient"),
                    gate.grad(&plain).expect("a gradient"),
                    "gate of the sum",
                );
            }
        }
    }
}
