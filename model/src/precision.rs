//! Number formats: which numbers are rounded to bfloat16, and which never are.
//!
//! | | parameters, optimizer | matrix products and what lies between them in a sub-layer | residual stream | norms, softmax, loss |
//! |---|---|---|---|---|
//! | `f32` | f32 | f32 | f32 | f32 |
//! | `bf16` | f32 | bf16 | f32 | f32 |
//! | `bf16_pure` | bf16 | bf16 | bf16 | f32 inside, rounded to bf16 |
//!
//! A gate has the number format of the stream that it scales. A sub-layer computes in the format of its input, so [`project`] casts the
//! weight to that of `x`; in f32 no cast does anything. On a processor the [fast](fast) operations compute in f32 whatever the format of
//! their tensors, and round what they read for a product and what they return.

use burn::nn::Linear;
use burn::tensor::{DType, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray, VariantNames};

use crate::fast;

/// Number format of the mathematics.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, VariantArray, VariantNames, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Precision {
    /// Single precision throughout.
    #[default]
    F32,
    /// Matrix products in bfloat16; parameters, optimizer, residual stream, norms, softmax, loss and gates in f32.
    Bf16,
    /// Everything in bfloat16, the optimizer's state included, as in the GPAS paper.
    Bf16Pure,
}

impl Precision {
    /// All of them.
    pub const ALL: &'static [Precision] = <Self as VariantArray>::VARIANTS;

    /// Name in a recipe.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Number format of the parameters, their gradients and the optimizer's state.
    pub fn parameters(self) -> DType {
        match self {
            Precision::F32 | Precision::Bf16 => DType::F32,
            Precision::Bf16Pure => DType::BF16,
        }
    }

    /// Number format of the matrix products.
    pub fn products(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 | Precision::Bf16Pure => DType::BF16,
        }
    }

    /// Whether a device computes with these numbers.
    pub fn is_supported<B: Backend>(self, device: &B::Device) -> bool {
        B::supports_dtype(device, self.parameters()) && B::supports_dtype(device, self.products())
    }
}

/// `x` in another number format.
///
/// # Shapes
/// - x and output: any
pub(crate) fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, format: DType) -> Tensor<B, D> {
    fast::cast(&x, format).unwrap_or_else(|| x.cast(format))
}

/// `x · W` in the number format of `x`, which holds `seq` tokens of each sequence. If that is one, as in generation, a row's result does
/// not depend on the other rows, where the [fast](fast) operations run.
///
/// # Shapes
/// - x: `[tokens, inputs]`
/// - output: `[tokens, outputs]`
pub(crate) fn project<B: Backend>(x: Tensor<B, 2>, linear: &Linear<B>, seq: usize) -> Tensor<B, 2> {
    if let Some(y) = fused_projections(&x, [linear], seq) {
        return y;
    }
    let weight = linear.weight.val().cast(x.dtype());
    x.matmul(weight)
}

/// `[x · W₁ | x · W₂ | …]`, the products of a token side by side; none where the [fast](fast) operations do not run.
///
/// # Shapes
/// - x: `[tokens, inputs]`
/// - output: `[tokens, outputs₁ + outputs₂ + …]`
pub(crate) fn fused_projections<B: Backend, const N: usize>(
    x: &Tensor<B, 2>,
    linears: [&Linear<B>; N],
    seq: usize,
) -> Option<Tensor<B, 2>> {
    let weights = linears.map(|linear| linear.weight.val());
    fast::linear(x, &weights, seq)
}
