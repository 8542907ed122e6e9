//! The scale of a branch: `y = λ ⊙ x` over the last dimension, or `y = a · x`.
//!
//! `∂L/∂x = λ ⊙ ∂L/∂y` and `∂L/∂λ = Σ_rows ∂L/∂y ⊙ x`, whose entries sum up to `∂L/∂a`.

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::memory::{Blank, written};
use crate::numbers::Numbers;
use crate::operation::{Gradient, Operation, Output, View, Wanted, Wide};
use crate::table::{apply, input};
use crate::vector::vectorised;

/// Rows of one task, at most.
const ROWS: usize = 64;

/// A branch times its scale.
///
/// # Shapes
/// - branch and output: `[…, hidden]`
/// - scale: `[hidden]` or `[1]`
pub fn scale<B: Backend, const D: usize>(branch: &Tensor<B, D>, scale: &Tensor<B, 1>) -> Option<Tensor<B, D>> {
    apply(Scale, [input(branch)?, input(scale)?])
}

#[derive(Debug)]
struct Scale;

impl Scale {
    /// λ; a for every channel.
    fn channels(scale: &Wide<'_>, width: usize) -> Vec<f32> {
        match &*scale.values {
            [a] => vec![*a; width],
            channels => channels.to_vec(),
        }
    }

    fn scaled(x: &[f32], channels: &[f32]) -> Vec<f32> {
        let rows = ROWS * channels.len();
        let write = |y: &mut Blank| {
            let tasks = x.par_chunks(rows).zip(y.par_chunks_mut(rows));
            tasks.for_each(|(x, y)| multiply_rows(x, channels, y));
        };
        // SAFETY: the tasks are all the rows.
        unsafe { written(x.len(), write) }
    }
}

impl Operation<2> for Scale {
    fn first_summed(&self) -> usize {
        1
    }

    fn forward(&self, inputs: [View<'_>; 2]) -> Output {
        let [x, scale] = inputs.map(View::widened);
        let values = Self::scaled(&x.values, &Self::channels(&scale, x.width()));
        Output::new(values, Shape::clone(&x.shape))
    }

    fn backward(
        &self,
        inputs: [View<'_>; 2],
        _kept: &[f32],
        upstream: Numbers<'_>,
        wanted: [Wanted<'_>; 2],
    ) -> [Gradient; 2] {
        let ([x, scale], upstream) = (inputs.map(View::widened), upstream.widened());
        let width = x.width();
        let [wanted_x, wanted_scale] = wanted;
        let of_x = if wanted_x.is_wanted() {
            Gradient::Values(Self::scaled(&upstream, &Self::channels(&scale, width)).into())
        } else {
            Gradient::None
        };
        if !wanted_scale.is_wanted() {
            return [of_x, Gradient::None];
        }
        let sums = x.sums_of_sequences(ROWS * width, |range| {
            let mut sums = vec![0.0; width];
            add_products(&x.values[range.clone()], &upstream[range], &mut sums);
            sums
        });
        let parts = sums.into_iter().map(|sums| match &*scale.values {
            [_] => vec![sums.into_iter().sum()],
            _ => sums,
        });
        [of_x, wanted_scale.add_up(scale.values.len(), parts)]
    }
}

vectorised! {
    fn multiply_rows(x: &'a [f32], channels: &'a [f32], y: &'a mut Blank) -> () {
        let width = channels.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            for i in 0..width {
                y[i].write(x[i] * channels[i]);
            }
        }
    }

    fn add_products(a: &'a [f32], b: &'a [f32], sums: &'a mut [f64]) -> () {
        let width = sums.len();
        for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
            for i in 0..width {
                sums[i] += a[i] as f64 * b[i] as f64;
            }
        }
    }
}
