//! RMSNorm: `y = w·f·x·r` with `r = 1/√(mean(x²) + ε)` of each row.
//!
//! With `g = ∂L/∂y · w·f`: `∂L/∂x = r·(g − x·r²·mean(g·x))` and `∂L/∂w = f·Σ_rows ∂L/∂y · x·r`.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rayon::prelude::*;

use crate::matrix::Store;
use crate::memory::{Blank, assume_written, written};
use crate::numbers::Numbers;
use crate::operation::{Gradient, Kept, Operation, Output, View, Wanted};
use crate::table::{apply, input};
use crate::vector::{dot, dot3, vectorised};

/// Rows of one task, at most. The gradient of the weight is summed within a task, then over a sequence's tasks, then over the sequences.
const ROWS: usize = 64;

/// RMSNorm over the last dimension, with ε and the fixed factor f on the output.
///
/// # Shapes
/// - x and output: `[…, hidden]`
/// - weight: `[hidden]`
pub fn norm<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    weight: &Tensor<B, 1>,
    epsilon: f64,
    factor: f64,
) -> Option<Tensor<B, D>> {
    let (epsilon, factor) = (epsilon as f32, factor as f32);
    apply(Norm { epsilon, factor }, [input(x)?, input(weight)?])
}

#[derive(Debug)]
struct Norm {
    epsilon: f32,
    factor: f32,
}

impl Operation<2> for Norm {
    /// The stream's gradient is summed too: it adds to the part that has come back along the residual.
    fn first_summed(&self) -> usize {
        0
    }

    /// Keeps r of each row.
    fn forward(&self, inputs: [View<'_>; 2]) -> Output {
        let [x, weight] = inputs.map(View::widened);
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
            values: y.into(),
            shape: x.shape,
            kept: Kept::new(scales),
        }
    }

    fn backward(
        &self,
        inputs: [View<'_>; 2],
        scales: &[f32],
        upstream: Numbers<'_>,
        [of_x, of_weight]: [Wanted<'_>; 2],
    ) -> [Gradient; 2] {
        let ([x, weight], upstream) = (inputs.map(View::widened), upstream.widened());
        let width = weight.width();
        let weight: Vec<f32> = weight.values.iter().map(|weight| weight * self.factor).collect();
        let sequence = x.sequence();
        let tasks = sequence.div_ceil(ROWS * width);
        let mut parts = vec![0.0; x.values.len() / sequence * tasks * width];
        let write = |of_x: &mut Blank, store: Store| {
            let sequences = x.values.par_chunks(sequence).zip(upstream.par_chunks(sequence));
            let sequences = sequences.zip(scales.par_chunks((sequence / width).max(1)));
            let results = of_x.par_chunks_mut(sequence).zip(parts.par_chunks_mut(tasks * width));
            sequences
                .zip(results)
                .for_each(|(((x, upstream), scales), (of_x, parts))| {
                    let tasks = x.par_chunks(ROWS * width).zip(upstream.par_chunks(ROWS * width));
                    let tasks = tasks.zip(scales.par_chunks(ROWS));
                    let results = of_x.par_chunks_mut(ROWS * width).zip(parts.par_chunks_mut(width));
                    tasks.zip(results).for_each(|(((x, upstream), scales), (of_x, part))| {
                        pull_back(x, &weight, upstream, scales, of_x, store, part)
                    });
                });
        };
        // SAFETY: the tasks are all the rows.
        let of_x = unsafe { of_x.write(x.values.len(), write) };
        let sums = parts.chunks_exact(tasks * width).map(|parts| {
            let mut sums = vec![0.0; width];
            for part in parts.chunks_exact(width) {
                for (sum, part) in sums.iter_mut().zip(part) {
                    *sum += f64::from(*part) * f64::from(self.factor);
                }
            }
            sums
        });
        [of_x, of_weight.add_up(width, sums)]
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
        store: Store,
        of_weight: &'a mut [f32],
    ) -> () {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(upstream.chunks_exact(width));
        for (((x, upstream), of_x), scale) in rows.zip(of_x.chunks_exact_mut(width)).zip(scales) {
            for i in 0..width {
                of_weight[i] += upstream[i] * x[i] * *scale;
            }
            let mean = dot3(upstream, weight, x) / width as f32 * *scale * *scale;
            match store {
                Store::Overwrite => {
                    for i in 0..width {
                        of_x[i].write((upstream[i] * weight[i] - x[i] * mean) * *scale);
                    }
                }
                Store::Add => {
                    // SAFETY: what is added to has been written.
                    let of_x = unsafe { assume_written(of_x) };
                    for i in 0..width {
                        of_x[i] += (upstream[i] * weight[i] - x[i] * mean) * *scale;
                    }
                }
            }
        }
    }
}
