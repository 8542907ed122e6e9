//! `x·W`: with the gradient `g` of the output, `∂L/∂x = g·Wᵀ` and `∂L/∂W = xᵀ·g`.

use burn::tensor::Shape;

use super::matrix::{Matrix, product};
use super::{Gradient, Operation, Output, View};

/// `[tokens, inputs]` times `[inputs, outputs]`.
#[derive(Debug)]
pub(crate) struct Linear;

impl Linear {
    fn matrix<'a>(view: &View<'a>) -> Matrix<'a> {
        Matrix::new(view.values, view.shape[0], view.shape[1])
    }
}

impl Operation<2> for Linear {
    type Kept = ();

    fn forward(&self, [x, weight]: [View<'_>; 2]) -> Output<()> {
        Output {
            values: product(Self::matrix(&x), Self::matrix(&weight)),
            shape: Shape::from([x.shape[0], weight.shape[1]]),
            kept: (),
        }
    }

    fn backward(&self, [x, weight]: [View<'_>; 2], (): &(), upstream: &[f32], wanted: [bool; 2]) -> [Gradient; 2] {
        let ([tokens, inputs], outputs) = ([x.shape[0], x.shape[1]], weight.shape[1]);
        let upstream = Matrix::new(upstream, tokens, outputs);
        let of_x = || product(upstream, Self::matrix(&weight).transposed());
        let of_weight = || product(Matrix::new(&Self::matrix(&x).to_transposed(), inputs, tokens), upstream);
        [
            if wanted[0] {
                Gradient::Values(of_x())
            } else {
                Gradient::None
            },
            if wanted[1] {
                Gradient::Values(of_weight())
            } else {
                Gradient::None
            },
        ]
    }
}
