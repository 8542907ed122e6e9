//! Adam's update, and the sums of squares that clipping needs, each in one walk over memory.

use burn::tensor::{Tensor, backend::Backend};
use rayon::prelude::*;

use crate::table::{float, memory, primitive};
use crate::vector::{CHUNK, LANES, sum_lanes, vectorised};

/// One update: `g ← factor·g + decay·w`, `m ← β₁·m + (1 − β₁)·g`, `v ← β₂·v + (1 − β₂)·g²`, `w ← keep·w − step_size·m / (√v + ε)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// The factor that clips the gradient.
    pub factor: f32,
    /// Weight decay as a part of the gradient; 0 for none.
    pub decay: f32,
    /// The factor of decoupled weight decay on a weight; 1 for none.
    pub keep: f32,
    /// β₁ and β₂.
    pub betas: [f32; 2],
    /// 1 − β₁ and 1 − β₂, taken before rounding to f32.
    pub rest: [f32; 2],
    /// Learning rate with both bias corrections.
    pub step_size: f32,
    /// ε with its bias correction.
    pub epsilon: f32,
}

impl AdamStep {
    /// The next weight, m and v, written in the place of those that are given.
    ///
    /// # Errors
    /// The tensors as they were, where one of them is not f32, row by row, in the memory of this process.
    #[allow(clippy::type_complexity, reason = "weight, m and v")]
    pub fn apply<B: Backend>(
        &self,
        tensors: [Tensor<B, 1>; 3],
        gradient: &Tensor<B, 1>,
    ) -> Result<[Tensor<B, 1>; 3], [Tensor<B, 1>; 3]> {
        let Some(memory) = memory::<B>() else {
            return Err(tensors);
        };
        let gradient = primitive(gradient.clone());
        let mut places = tensors.map(primitive);
        let slices = places.each_mut().map(memory.floats_mut);
        let (Some(gradient), [Some(weight), Some(first), Some(second)]) = ((memory.floats)(&gradient), slices) else {
            return Err(places.map(float));
        };
        let tasks = weight.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        let tasks = tasks.zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)));
        tasks.for_each(|((weight, gradient), (first, second))| update(*self, weight, gradient, first, second));
        Ok(places.map(float))
    }
}

/// The sum of all squares; none where the tensor is not f32, row by row, in the memory of this process.
pub fn sum_of_squares<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Option<f64> {
    let floats = memory::<B>()?.floats;
    let tensor = primitive(tensor.clone());
    let parts: Vec<f64> = floats(&tensor)?.par_chunks(CHUNK).map(squares).collect();
    Some(parts.into_iter().sum())
}

vectorised! {
    fn update(step: AdamStep, weight: &'a mut [f32], gradient: &'a [f32], first: &'a mut [f32], second: &'a mut [f32]) -> () {
        let [beta1, beta2] = step.betas;
        let [rest1, rest2] = step.rest;
        for (((weight, gradient), first), second) in weight.iter_mut().zip(gradient).zip(first).zip(second) {
            let gradient = *gradient * step.factor + *weight * step.decay;
            *first = *first * beta1 + gradient * rest1;
            *second = *second * beta2 + gradient * gradient * rest2;
            *weight = *weight * step.keep - *first * step.step_size / (second.sqrt() + step.epsilon);
        }
    }

    fn squares(values: &'a [f32]) -> f64 {
        let mut sum = 0.0;
        for piece in values.chunks(64 * LANES) {
            let mut lanes = [0.0; LANES];
            let (blocks, rest) = piece.as_chunks::<LANES>();
            for block in blocks {
                for i in 0..LANES {
                    lanes[i] += block[i] * block[i];
                }
            }
            for (lane, value) in lanes.iter_mut().zip(rest) {
                *lane += value * value;
            }
            sum += sum_lanes(lanes) as f64;
        }
        sum
    }
}
