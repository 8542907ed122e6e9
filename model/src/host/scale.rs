//! The scale of a branch: `y = λ ⊙ x` over the last dimension, or `y = a · x`.
//!
//! `∂L/∂x = λ ⊙ ∂L/∂y` and `∂L/∂λ = Σ_rows ∂L/∂y ⊙ x`, whose entries sum up to `∂L/∂a`.

use burn::tensor::Shape;
use rayon::prelude::*;

use super::memory::{Blank, written};
use super::vector::vectorised;
use super::{Gradient, Operation, Output, View};

/// Rows of one task. The gradient of the scale is summed within a task, then over the tasks in their order.
const ROWS: usize = 64;

/// A branch and its scale, `[hidden]` or `[1]`.
#[derive(Debug)]
pub(crate) struct Scale;

impl Scale {
    /// λ; a for every channel.
    fn channels(scale: &View<'_>, width: usize) -> Vec<f32> {
        match scale.values {
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
    type Kept = ();

    fn forward(&self, [x, scale]: [View<'_>; 2]) -> Output<()> {
        Output {
            values: Self::scaled(x.values, &Self::channels(&scale, x.width())),
            shape: Shape::clone(&x.shape),
            kept: (),
        }
    }

    fn backward(&self, [x, scale]: [View<'_>; 2], (): &(), upstream: &[f32], wanted: [bool; 2]) -> [Gradient; 2] {
        let width = x.width();
        let of_x = if wanted[0] {
            Gradient::Values(Self::scaled(upstream, &Self::channels(&scale, width)))
        } else {
            Gradient::None
        };
        if !wanted[1] {
            return [of_x, Gradient::None];
        }
        let tasks = x.values.par_chunks(ROWS * width).zip(upstream.par_chunks(ROWS * width));
        let parts: Vec<Vec<f64>> = tasks
            .map(|(x, upstream)| {
                let mut sums = vec![0.0; width];
                add_products(x, upstream, &mut sums);
                sums
            })
            .collect();
        let mut sums = vec![0.0; width];
        for part in parts {
            for (sum, part) in sums.iter_mut().zip(part) {
                *sum += part;
            }
        }
        let of_scale = if scale.values.len() == 1 {
            vec![sums.into_iter().sum::<f64>() as f32]
        } else {
            sums.into_iter().map(|sum| sum as f32).collect()
        };
        [of_x, Gradient::Values(of_scale)]
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
