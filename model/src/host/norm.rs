//! RMSNorm: `y = w·f·x·r` with `r = 1/√(mean(x²) + ε)` of each row.
//!
//! With `g = ∂L/∂y · w·f`: `∂L/∂x = r·(g − x·r²·mean(g·x))` and `∂L/∂w = f·Σ_rows ∂L/∂y · x·r`.

use std::sync::Arc;

use rayon::prelude::*;

use super::memory::{Blank, written};
use super::vector::{dot, dot3, vectorised};
use super::{Gradient, Operation, Output, View};

/// Rows of one task. The gradient of the weight is summed within a task, then over the tasks in their order.
const ROWS: usize = 64;

/// RMSNorm over the last dimension.
#[derive(Debug)]
pub(crate) struct Norm {
    /// ε.
    pub(crate) epsilon: f32,
    /// f, the fixed factor on the output.
    pub(crate) factor: f32,
}

impl Operation<2> for Norm {
    /// r of each row.
    type Kept = Arc<Vec<f32>>;

    fn forward(&self, [x, weight]: [View<'_>; 2]) -> Output<Self::Kept> {
        let width = weight.width();
        let weight: Vec<f32> = weight.values.iter().map(|weight| weight * self.factor).collect();
        let mut scales = vec![0.0; x.values.len() / width];
        let write = |y: &mut Blank| {
            let tasks = x.values.par_chunks(ROWS * width).zip(y.par_chunks_mut(ROWS * width));
            tasks
                .zip(scales.par_chunks_mut(ROWS))
                .for_each(|((x, y), scales)| normalise(x, &weight, self.epsilon, y, scales));
        };
        // SAFETY: the tasks are all the rows.
        let y = unsafe { written(x.values.len(), write) };
        Output {
            values: y,
            shape: x.shape,
            kept: Arc::new(scales),
        }
    }

    fn backward(
        &self,
        [x, weight]: [View<'_>; 2],
        scales: &Self::Kept,
        upstream: &[f32],
        _wanted: [bool; 2],
    ) -> [Gradient; 2] {
        let width = weight.width();
        let weight: Vec<f32> = weight.values.iter().map(|weight| weight * self.factor).collect();
        let mut parts = vec![0.0; scales.len().div_ceil(ROWS) * width];
        let write = |of_x: &mut Blank| {
            let tasks = x.values.par_chunks(ROWS * width).zip(upstream.par_chunks(ROWS * width));
            let tasks = tasks
                .zip(scales.par_chunks(ROWS))
                .zip(of_x.par_chunks_mut(ROWS * width));
            tasks
                .zip(parts.par_chunks_mut(width))
                .for_each(|((((x, upstream), scales), of_x), part)| {
                    pull_back(x, &weight, upstream, scales, of_x, part)
                });
        };
        // SAFETY: the tasks are all the rows.
        let of_x = unsafe { written(x.values.len(), write) };
        let mut sums = vec![0.0; width];
        for part in parts.chunks_exact(width) {
            for (sum, part) in sums.iter_mut().zip(part) {
                *sum += f64::from(*part);
            }
        }
        let of_weight = sums.into_iter().map(|sum| sum as f32 * self.factor).collect();
        [Gradient::Values(of_x), Gradient::Values(of_weight)]
    }
}

vectorised! {
    fn normalise(x: &'a [f32], weight: &'a [f32], epsilon: f32, y: &'a mut Blank, scales: &'a mut [f32]) -> () {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
        for ((x, y), scale) in rows.zip(scales) {
            *scale = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
            for i in 0..width {
                y[i].write(x[i] * *scale * weight[i]);
            }
        }
    }

    fn pull_back(
        x: &'a [f32],
        weight: &'a [f32],
        upstream: &'a [f32],
        scales: &'a [f32],
        of_x: &'a mut Blank,
        of_weight: &'a mut [f32],
    ) -> () {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(upstream.chunks_exact(width));
        for (((x, upstream), of_x), scale) in rows.zip(of_x.chunks_exact_mut(width)).zip(scales) {
            for i in 0..width {
                of_weight[i] += upstream[i] * x[i] * *scale;
            }
            let mean = dot3(upstream, weight, x) / width as f32 * *scale * *scale;
            for i in 0..width {
                of_x[i].write((upstream[i] * weight[i] - x[i] * mean) * *scale);
            }
        }
    }
}
