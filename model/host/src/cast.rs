//! A tensor in another number format; what comes back is rounded to the format that it had.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::numbers::{Numbers, Values, converted};
use crate::operation::{Gradient, Operation, Output, View, Wanted};
use crate::table::{apply, input, takes};

/// The numbers of a tensor as f32, or each rounded to the nearest one of bf16; none for any other format.
///
/// # Shapes
/// - x and output: any
pub fn cast<B: Backend, const D: usize>(x: &Tensor<B, D>, format: DType) -> Option<Tensor<B, D>> {
    match (x.dtype(), format) {
        (from, to) if from == to => Some(x.clone()),
        (DType::F32, DType::BF16) | (DType::BF16, DType::F32) if takes::<B>(format) => {
            apply(Cast { format }, [input(x)?])
        }
        _ => None,
    }
}

#[derive(Debug)]
struct Cast {
    format: DType,
}

/// In the other format.
fn turned(numbers: Numbers<'_>) -> Values {
    match numbers {
        Numbers::F32(values) => Values::Bf16(converted(values)),
        Numbers::Bf16(values) => Values::F32(converted(values)),
    }
}

impl Operation<1> for Cast {
    fn first_summed(&self) -> usize {
        1
    }

    fn format(&self, _first: DType) -> DType {
        self.format
    }

    fn forward(&self, [x]: [View<'_>; 1]) -> Output {
        Output::new(turned(x.values), x.shape)
    }

    fn backward(
        &self,
        _inputs: [View<'_>; 1],
        _kept: &[f32],
        upstream: Numbers<'_>,
        _wanted: [Wanted<'_>; 1],
    ) -> [Gradient; 1] {
        [Gradient::Values(turned(upstream))]
    }
}
