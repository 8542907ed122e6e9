//! Adam's update, and the sums of squares that clipping needs, each in one walk over memory.

use burn::tensor::{Tensor, backend::Backend};
use rayon::prelude::*;

use crate::numbers::{Number, Numbers};
use crate::table::{float, memory, primitive};
use crate::vector::{CHUNK, LANES, sum_lanes, vectorised};

/// One update, in f32 whatever the format of the tensors: `g ← factor·g + decay·w`, `m ← β₁·m + (1 − β₁)·g`, `v ← β₂·v + (1 − β₂)·g²`,
/// `w ← keep·w − step_size·m / (√v + ε)`.
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
    /// The tensors as they were, where they are not of one format, f32 or bf16, row by row in the memory of this process.
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
        let is_done = match memory.numbers(&gradient) {
            Some(Numbers::F32(gradient)) => self.update_all(places.each_mut().map(memory.floats_mut), gradient),
            Some(Numbers::Bf16(gradient)) => self.update_all(places.each_mut().map(memory.bf16s_mut), gradient),
            None => None,
        };
        let places = places.map(float);
        match is_done {
            Some(()) => Ok(places),
            None => Err(places),
        }
    }

    /// [`apply`](Self::apply); none where not all of the numbers are there.
    fn update_all<E: Number>(&self, places: [Option<&mut [E]>; 3], gradient: &[E]) -> Option<()> {
        let [Some(weight), Some(first), Some(second)] = places else {
            return None;
        };
        let tasks = weight.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        let tasks = tasks.zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)));
        tasks.for_each(|((weight, gradient), (first, second))| update(*self, weight, gradient, first, second));
        Some(())
    }
}

/// The sum of all squares; none where the tensor is neither f32 nor bf16, row by row in the memory of this process.
pub fn sum_of_squares<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Option<f64> {
    let memory = memory::<B>()?;
    let tensor = primitive(tensor.clone());
    let parts: Vec<f64> = match memory.numbers(&tensor)? {
        Numbers::F32(values) => values.par_chunks(CHUNK).map(squares).collect(),
        Numbers::Bf16(values) => values.par_chunks(CHUNK).map(squares).collect(),
    };
    Some(parts.into_iter().sum())
}

vectorised! {
    fn update[E: Number](step: AdamStep, weight: &'a mut [E], gradient: &'a [E], first: &'a mut [E], second: &'a mut [E]) -> () {
        let [beta1, beta2] = step.betas;
        let [rest1, rest2] = step.rest;
        for (((weight, gradient), first), second) in weight.iter_mut().zip(gradient).zip(first).zip(second) {
            let gradient = gradient.wide() * step.factor + weight.wide() * step.decay;
            let next_first = first.wide() * beta1 + gradient * rest1;
            let next_second = second.wide() * beta2 + gradient * gradient * rest2;
            let next = weight.wide() * step.keep - next_first * step.step_size / (next_second.sqrt() + step.epsilon);
            (*weight, *first, *second) = (E::nearest(next), E::nearest(next_first), E::nearest(next_second));
        }
    }

    fn squares[E: Number](values: &'a [E]) -> f64 {
        let mut sum = 0.0;
        for piece in values.chunks(64 * LANES) {
            let mut lanes = [0.0; LANES];
            let (blocks, rest) = piece.as_chunks::<LANES>();
            for block in blocks {
                for i in 0..LANES {
                    lanes[i] += block[i].wide() * block[i].wide();
                }
            }
            for (lane, value) in lanes.iter_mut().zip(rest) {
                *lane += value.wide() * value.wide();
            }
            sum += sum_lanes(lanes) as f64;
        }
        sum
    }
}
