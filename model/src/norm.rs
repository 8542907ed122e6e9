//! RMSNorm with statistics in f32: `y = weight · factor · x / √(mean(x²) + ε)` (arXiv 1910.07467).

use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use crate::fast;
use crate::scheme::NormStart;

/// Configuration of an [`RmsNorm`].
#[derive(Config, Debug)]
pub struct RmsNormConfig {
    /// Size of the last dimension.
    pub hidden: usize,
    /// ε, added to the mean square.
    #[config(default = 1e-6)]
    pub epsilon: f64,
}

impl RmsNormConfig {
    /// A norm whose weight starts as `start` says.
    pub fn init<B: Backend>(&self, start: NormStart, device: &B::Device) -> RmsNorm<B> {
        let weight = Tensor::full([self.hidden], start.weight, device).require_grad();
        RmsNorm {
            weight: Param::initialized(Default::default(), weight),
            factor: start.factor,
            epsilon: self.epsilon,
        }
    }
}

/// `y = weight · factor · x / √(mean(x²) + ε)` over the last dimension.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct RmsNorm<B: Backend> {
    /// Trainable scale, shape `[hidden]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Fixed factor on the output; 1 but for `lns_fixed`.
    pub factor: f64,
    /// ε, added to the mean square.
    pub epsilon: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// Normalises the last dimension.
    ///
    /// # Shapes
    /// - input and output: `[…, hidden]`
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let format = x.dtype();
        self.forward_in(x, format)
    }

    /// [`forward`](Self::forward) with the output in a number format.
    pub(crate) fn forward_in<const D: usize>(&self, x: Tensor<B, D>, format: DType) -> Tensor<B, D> {
        fast::norm(&x, &self.weight.val(), self.epsilon, self.factor, format)
            .unwrap_or_else(|| self.in_tensor_operations(x, format))
    }

    fn in_tensor_operations<const D: usize>(&self, x: Tensor<B, D>, format: DType) -> Tensor<B, D> {
        let wide = x.cast(DType::F32);
        let mean_square = wide.clone().square().mean_dim(D - 1);
        let normed = wide * mean_square.add_scalar(self.epsilon).sqrt().recip();
        let weight = self.weight.val().cast(DType::F32);
        let weight = if self.factor == 1.0 {
            weight
        } else {
            weight * self.factor
        };
        (normed * weight.unsqueeze()).cast(format)
    }
}

impl<B: Backend> ModuleDisplay for RmsNorm<B> {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let content = content.add("hidden", &self.weight.shape()[0]);
        if self.factor == 1.0 {
            content.optional()
        } else {
            content.add("factor", &self.factor).optional()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{TensorData, Tolerance};
    use burn_flex::{Flex, FlexDevice};

    #[test]
    fn divides_by_the_root_mean_square() {
        let start = NormStart {
            weight: 2.0,
            factor: 0.5,
        };
        let norm = RmsNormConfig::new(2).init::<Flex>(start, &FlexDevice);
        let x = Tensor::<Flex, 2>::from_floats([[3.0, 4.0], [0.0, 0.0]], &FlexDevice);
        // √((9 + 16) / 2) = 3.5355; weight · factor = 1.
        norm.forward(x).into_data().assert_approx_eq::<f32>(
            &TensorData::from([[0.848528, 1.131371], [0.0, 0.0]]),
            Tolerance::absolute(1e-5),
        );
    }

    #[test]
    fn statistics_do_not_overflow_in_half_precision() {
        let norm = RmsNormConfig::new(2).init::<Flex>(NormStart::PLAIN, &FlexDevice);
        let x = Tensor::<Flex, 2>::from_floats([[300.0, -300.0]], &FlexDevice).cast(DType::F16);
        let y = norm.forward(x).cast(DType::F32).into_data();
        y.assert_approx_eq::<f32>(&TensorData::from([[1.0, -1.0]]), Tolerance::absolute(1e-3));
    }
}

#[cfg(all(test, feature = "host"))]
mod fused {
    use super::*;
    use burn_flex::FlexDevice;
    use gpas_host::check::{FORMATS, Tracked, assert_close_in, gradients_in, random};

    /// Over rows enough for two tasks and a length that is no whole number of vectors.
    #[test]
    fn fused_and_plain_agree() {
        FORMATS.into_iter().for_each(fused_and_plain_agree_in);
    }

    fn fused_and_plain_agree_in(format: DType) {
        let start = NormStart {
            weight: 1.0,
            factor: 0.5,
        };
        let mut norm = RmsNormConfig::new(70).init::<Tracked>(start, &FlexDevice);
        norm.weight = Param::from_tensor(random([70]));
        let x = random([3, 30, 70]);
        // A cast of its own for each graph: a backward pass consumes it.
        let given = || x.clone().cast(format);
        let plain = norm.in_tensor_operations(given(), DType::F32);
        let [fused, plain] = gradients_in(format, norm.forward(given()), plain);
        assert_close_in(
            format,
            x.grad(&fused).expect("a gradient"),
            x.grad(&plain).expect("a gradient"),
            "x",
        );
        let weight = norm.weight.val();
        assert_close_in(
            format,
            weight.grad(&fused).expect("a gradient"),
            weight.grad(&plain).expect("a gradient"),
            "weight",
        );
    }
}
