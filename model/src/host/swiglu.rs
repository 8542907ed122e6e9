//! `silu(a) ⊙ b`: with the gradient `g` of the output and `s = 1/(1 + e⁻ᵃ)`, `∂L/∂a = g·b·s·(1 + a·(1 − s))` and `∂L/∂b = g·a·s`.

use rayon::prelude::*;

use super::vector::{CHUNK, sigmoid, vectorised};
use super::{Gradient, Operation, Output, View};

/// `silu(a) ⊙ b` of two tensors of one shape.
#[derive(Debug)]
pub(crate) struct SwiGlu;

impl Operation<2> for SwiGlu {
    type Kept = ();

    fn forward(&self, [a, b]: [View<'_>; 2]) -> Output<()> {
        let mut y = vec![0.0; a.values.len()];
        let tasks = a.values.par_chunks(CHUNK).zip(b.values.par_chunks(CHUNK));
        tasks
            .zip(y.par_chunks_mut(CHUNK))
            .for_each(|((a, b), y)| gated(a, b, y));
        Output {
            values: y,
            shape: a.shape,
            kept: (),
        }
    }

    fn backward(&self, [a, b]: [View<'_>; 2], (): &(), upstream: &[f32], _wanted: [bool; 2]) -> [Gradient; 2] {
        let (mut of_a, mut of_b) = (vec![0.0; a.values.len()], vec![0.0; b.values.len()]);
        let tasks = a.values.par_chunks(CHUNK).zip(b.values.par_chunks(CHUNK));
        let tasks = tasks.zip(upstream.par_chunks(CHUNK)).zip(of_a.par_chunks_mut(CHUNK));
        tasks
            .zip(of_b.par_chunks_mut(CHUNK))
            .for_each(|((((a, b), upstream), of_a), of_b)| pull_back(a, b, upstream, of_a, of_b));
        [Gradient::Values(of_a), Gradient::Values(of_b)]
    }
}

vectorised! {
    fn gated(a: &'a [f32], b: &'a [f32], y: &'a mut [f32]) -> () {
        for ((a, b), y) in a.iter().zip(b).zip(y) {
            *y = *a * sigmoid(*a) * *b;
        }
    }

    fn pull_back(a: &'a [f32], b: &'a [f32], upstream: &'a [f32], of_a: &'a mut [f32], of_b: &'a mut [f32]) -> () {
        for ((((a, b), upstream), of_a), of_b) in a.iter().zip(b).zip(upstream).zip(of_a).zip(of_b) {
            let s = sigmoid(*a);
            *of_a = *upstream * *b * s * (1.0 + *a * (1.0 - s));
            *of_b = *upstream * *a * s;
        }
    }
}
