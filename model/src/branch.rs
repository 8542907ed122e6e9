//! The trained scale of a branch as it is added to the residual: ReZero's number, LayerScale's number per channel.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use crate::fast;
use crate::scheme::BranchScaling;

/// `y = λ ⊙ x` over the last dimension, or `y = a · x`.
#[derive(Module, Debug)]
pub struct BranchScale<B: Backend> {
    /// λ, shape `[hidden]`; or a, shape `[1]`.
    pub weight: Param<Tensor<B, 1>>,
}

impl<B: Backend> BranchScale<B> {
    /// The trained scale of a wiring with its initial value; none where nothing is trained.
    pub fn new(scaling: BranchScaling, hidden: usize, device: &B::Device) -> Option<Self> {
        let (size, start) = scaling.trained(hidden)?;
        let weight = Tensor::full([size], start, device).require_grad();
        Some(Self {
            weight: Param::initialized(Default::default(), weight),
        })
    }

    /// The branch, scaled.
    ///
    /// # Shapes
    /// - input and output: `[batch, seq, hidden]`
    pub fn forward(&self, branch: Tensor<B, 3>) -> Tensor<B, 3> {
        fast::scale(&branch, &self.weight.val()).unwrap_or_else(|| self.in_tensor_operations(branch))
    }

    fn in_tensor_operations(&self, branch: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, seq, _] = branch.dims();
        let weight = self.weight.val();
        let size = weight.dims()[0];
        // Once for every position, so that the gradient of a single number is added up row by row, and the rows in f64 where there is one:
        // its terms nearly cancel, as those of a gate.
        let weight = if size == 1 && B::supports_dtype(&branch.device(), DType::F64) {
            weight.cast(DType::F64)
        } else {
            weight
        };
        let weight = weight.reshape([1, 1, size]).expand([batch, seq, size]);
        let format = branch.dtype();
        branch * weight.cast(format)
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use gpas_host::check::{FORMATS, Tracked, assert_close_in, gradients_in, random};

    /// Over rows enough for two tasks and a length that is no whole number of vectors.
    #[test]
    fn fused_and_plain_agree() {
        for (size, format) in [1, 37]
            .into_iter()
            .flat_map(|size| FORMATS.map(|format| (size, format)))
        {
            let scale = BranchScale::<Tracked> {
                weight: Param::from_tensor(random([size])),
            };
            let branch = random([3, 30, 37]);
            // A cast of its own for each graph: a backward pass consumes it.
            let given = || branch.clone().cast(format);
            let plain = scale.in_tensor_operations(given().cast(DType::F32));
            let [fused, plain] = gradients_in(format, scale.forward(given()), plain);
            assert_close_in(
                format,
                branch.grad(&fused).unwrap(),
                branch.grad(&plain).unwrap(),
                "branch",
            );
            let weight = scale.weight.val();
            assert_close_in(
                format,
                weight.grad(&fused).unwrap(),
                weight.grad(&plain).unwrap(),
                "scale",
            );
        }
    }
}
