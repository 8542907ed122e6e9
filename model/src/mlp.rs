//! The SwiGLU feed-forward layer: `down( silu(gate(x)) ⊙ up(x) )` (arXiv 2002.05202).

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Tensor, backend::Backend};

use crate::fast;
use crate::precision::{fused_projections, project};

/// Configuration of an [`Mlp`]; no projection has a bias.
#[derive(Config, Debug)]
pub struct MlpConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between the projections.
    pub intermediate: usize,
}

impl MlpConfig {
    /// A feed-forward layer with Burn's default initialisation.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Mlp<B> {
        let linear = |input, output| LinearConfig::new(input, output).with_bias(false).init(device);
        Mlp {
            gate: linear(self.hidden, self.intermediate),
            up: linear(self.hidden, self.intermediate),
            down: linear(self.intermediate, self.hidden),
        }
    }
}

/// `down( silu(gate(x)) ⊙ up(x) )`.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// Projection whose SiLU gates the other one.
    pub gate: Linear<B>,
    /// Projection that is gated.
    pub up: Linear<B>,
    /// Projection back onto the stream.
    pub down: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    /// # Shapes
    /// - input and output: `[batch, seq, hidden]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, seq, hidden] = x.dims();
        // On [tokens, hidden]: see `Attention::forward`.
        let x = x.reshape([batch * seq, hidden]);
        let gated = match fused_projections(&x, [&self.gate, &self.up], seq).and_then(|both| fast::swiglu(&both)) {
            Some(gated) => gated,
            None => silu(project(x.clone(), &self.gate, seq)) * project(x, &self.up, seq),
        };
        project(gated, &self.down, seq).reshape([batch, seq, hidden])
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use burn::tensor::DType;
    use burn_flex::FlexDevice;
    use gpas_host::check::{FORMATS, Tracked, assert_close_in, gradients_in, random};

    #[test]
    fn fused_and_plain_agree() {
        FORMATS.into_iter().for_each(fused_and_plain_agree_in);
    }

    fn fused_and_plain_agree_in(format: DType) {
        let mlp = MlpConfig::new(24, 37).init::<Tracked>(&FlexDevice);
        let x = random([2, 35, 24]);
        // A cast of its own for each graph: a backward pass consumes it.
        let given = || x.clone().cast(format);
        let flat = given().cast(DType::F32).reshape([70, 24]);
        let gated = silu(flat.clone().matmul(mlp.gate.weight.val())) * flat.matmul(mlp.up.weight.val());
        let plain = gated.matmul(mlp.down.weight.val()).reshape([2, 35, 24]);
        let [fused, plain] = gradients_in(format, mlp.forward(given()), plain);
        assert_close_in(
            format,
            x.grad(&fused).expect("a gradient"),
            x.grad(&plain).expect("a gradient"),
            "x",
        );
        for (name, linear) in [("gate", &mlp.gate), ("up", &mlp.up), ("down", &mlp.down)] {
            let weight = linear.weight.val();
            assert_close_in(
                format,
                weight.grad(&fused).expect("a gradient"),
                weight.grad(&plain).expect("a gradient"),
                name,
            );
        }
    }
}
