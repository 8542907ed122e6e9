//! GPAS: one scaled copy forward, `y = (1 − act(α))·x`; back, the identity, and `∂L/∂α = −act'(α)·Σ ∂L/∂y·x`.

use std::fmt::Debug;

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::memory::{Blank, written};
use crate::numbers::Numbers;
use crate::operation::{Gradient, Operation, Output, View, Wanted, Wide};
use crate::table::{apply, input};
use crate::vector::{CHUNK, vectorised};

/// GPAS of a stream. `act` gives act(α) and act'(α); with `stop_gradient` the scaling is hidden from the gradient.
///
/// # Shapes
/// - x and output: any
/// - gate: `[1]`
pub fn gate<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    gate: &Tensor<B, 1>,
    act: impl Fn(f64) -> [f64; 2] + Send + 'static,
    stop_gradient: bool,
) -> Option<Tensor<B, D>> {
    let inputs = [input(x)?, input(gate)?];
    let act = Activation(Box::new(act));
    apply(Gate { act, stop_gradient }, inputs)
}

/// GPAS, whose scaling is hidden from the gradient, of the sum of a residual and a branch, in one walk over memory.
///
/// # Shapes
/// - x, branch and output: any, the same
/// - gate: `[1]`
pub fn gated_sum<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    branch: &Tensor<B, D>,
    gate: &Tensor<B, 1>,
    act: impl Fn(f64) -> [f64; 2] + Send + 'static,
) -> Option<Tensor<B, D>> {
    if x.dtype() != branch.dtype() {
        return None;
    }
    let inputs = [input(x)?, input(branch)?, input(gate)?];
    let act = Activation(Box::new(act));
    apply(GatedSum { act }, inputs)
}

/// The sum of a residual and a branch.
///
/// # Shapes
/// - inputs and output: any, the same
pub fn sum<B: Backend, const D: usize>(x: &Tensor<B, D>, branch: &Tensor<B, D>) -> Option<Tensor<B, D>> {
    if x.dtype() != branch.dtype() {
        return None;
    }
    apply(Sum, [input(x)?, input(branch)?])
}

/// act(α) and act'(α) of a gate α.
struct Activation(Box<dyn Fn(f64) -> [f64; 2] + Send>);

impl Activation {
    /// What the stream is scaled by, `1 − act(α)`.
    fn scale(&self, gate: &Wide<'_>) -> f32 {
        let [value, _] = self.0(f64::from(gate.values[0]));
        1.0 - value as f32
    }

    /// `act'(α)`.
    fn slope(&self, gate: &Wide<'_>) -> f64 {
        let [_, slope] = self.0(f64::from(gate.values[0]));
        slope
    }
}

impl Debug for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Activation")
    }
}

#[derive(Debug)]
struct Gate {
    act: Activation,
    stop_gradient: bool,
}

impl Gate {
    fn scaled(values: &[f32], scale: f32) -> Vec<f32> {
        let write = |y: &mut Blank| {
            let tasks = values.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK));
            tasks.for_each(|(x, y)| multiply(x, scale, y));
        };
        // SAFETY: the tasks are all of it.
        unsafe { written(values.len(), write) }
    }
}

impl Operation<2> for Gate {
    fn first_summed(&self) -> usize {
        1
    }

    fn forward(&self, inputs: [View<'_>; 2]) -> Output {
        let [x, gate] = inputs.map(View::widened);
        let values = Self::scaled(&x.values, self.act.scale(&gate));
        Output::new(values, Shape::clone(&x.shape))
    }

    fn backward(
        &self,
        inputs: [View<'_>; 2],
        _kept: &[f32],
        upstream: Numbers<'_>,
        wanted: [Wanted<'_>; 2],
    ) -> [Gradient; 2] {
        let ([x, gate], upstream) = (inputs.map(View::widened), upstream.widened());
        let of_x = if !self.stop_gradient {
            Gradient::Values(Self::scaled(&upstream, self.act.scale(&gate)).into())
        } else {
            Gradient::Upstream
        };
        let [_, wanted] = wanted;
        if !wanted.is_wanted() {
            return [of_x, Gradient::None];
        }
        let slope = self.act.slope(&gate);
        // The terms nearly cancel, hence f64.
        let parts = x.sums_of_sequences(CHUNK, |range| {
            vec![-slope * wide_dot(&x.values[range.clone()], &upstream[range])]
        });
        [of_x, wanted.add_up(1, parts)]
    }
}

#[derive(Debug)]
struct Sum;

impl Operation<2> for Sum {
    fn first_summed(&self) -> usize {
        2
    }

    fn forward(&self, inputs: [View<'_>; 2]) -> Output {
        let [x, branch] = inputs.map(View::widened);
        Output::new(scaled_sum(&x.values, &branch.values, 1.0), x.shape)
    }

    fn backward(
        &self,
        _inputs: [View<'_>; 2],
        _kept: &[f32],
        _upstream: Numbers<'_>,
        _wanted: [Wanted<'_>; 2],
    ) -> [Gradient; 2] {
        [Gradient::Upstream, Gradient::Upstream]
    }
}

#[derive(Debug)]
struct GatedSum {
    act: Activation,
}

impl Operation<3> for GatedSum {
    fn first_summed(&self) -> usize {
        2
    }

    fn forward(&self, inputs: [View<'_>; 3]) -> Output {
        let [x, branch, gate] = inputs.map(View::widened);
        let scale = self.act.scale(&gate);
        Output::new(scaled_sum(&x.values, &branch.values, scale), x.shape)
    }

    fn backward(
        &self,
        inputs: [View<'_>; 3],
        _kept: &[f32],
        upstream: Numbers<'_>,
        wanted: [Wanted<'_>; 3],
    ) -> [Gradient; 3] {
        let [_, _, wanted] = wanted;
        if !wanted.is_wanted() {
            return [Gradient::Upstream, Gradient::Upstream, Gradient::None];
        }
        let ([x, branch, gate], upstream) = (inputs.map(View::widened), upstream.widened());
        let slope = self.act.slope(&gate);
        let parts = x.sums_of_sequences(CHUNK, |range| {
            let (x, branch) = (&x.values[range.clone()], &branch.values[range.clone()]);
            vec![-slope * wide_dot_of_sum(x, branch, &upstream[range])]
        });
        [Gradient::Upstream, Gradient::Upstream, wanted.add_up(1, parts)]
    }
}

/// `(a + b) · scale`.
fn scaled_sum(a: &[f32], b: &[f32], scale: f32) -> Vec<f32> {
    let write = |y: &mut Blank| {
        let tasks = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
        tasks
            .zip(y.par_chunks_mut(CHUNK))
            .for_each(|((a, b), y)| add_and_multiply(a, b, scale, y));
    };
    // SAFETY: the tasks are all of it.
    unsafe { written(a.len(), write) }
}

vectorised! {
    fn add_and_multiply(a: &'a [f32], b: &'a [f32], scale: f32, y: &'a mut Blank) -> () {
        for ((a, b), y) in a.iter().zip(b).zip(y) {
            y.write((*a + *b) * scale);
        }
    }

    fn wide_dot_of_sum(x: &'a [f32], branch: &'a [f32], upstream: &'a [f32]) -> f64 {
        const WIDE: usize = 16;
        let mut lanes = [0.0f64; WIDE];
        let (x_blocks, x_rest) = x.as_chunks::<WIDE>();
        let (branch_blocks, branch_rest) = branch.as_chunks::<WIDE>();
        let (upstream_blocks, upstream_rest) = upstream.as_chunks::<WIDE>();
        for ((x, branch), upstream) in x_blocks.iter().zip(branch_blocks).zip(upstream_blocks) {
            for i in 0..WIDE {
                lanes[i] += (x[i] + branch[i]) as f64 * upstream[i] as f64;
            }
        }
        let mut sum = 0.0;
        for ((x, branch), upstream) in x_rest.iter().zip(branch_rest).zip(upstream_rest) {
            sum += (*x + *branch) as f64 * *upstream as f64;
        }
        for lane in lanes {
            sum += lane;
        }
        sum
    }

    fn multiply(x: &'a [f32], scale: f32, y: &'a mut Blank) -> () {
        for (x, y) in x.iter().zip(y) {
            y.write(*x * scale);
        }
    }

    fn wide_dot(a: &'a [f32], b: &'a [f32]) -> f64 {
        const WIDE: usize = 16;
        let mut lanes = [0.0f64; WIDE];
        let (a_blocks, a_rest) = a.as_chunks::<WIDE>();
        let (b_blocks, b_rest) = b.as_chunks::<WIDE>();
        for (a, b) in a_blocks.iter().zip(b_blocks) {
            for i in 0..WIDE {
                lanes[i] += a[i] as f64 * b[i] as f64;
            }
        }
        let mut sum = 0.0;
        for (a, b) in a_rest.iter().zip(b_rest) {
            sum += *a as f64 * *b as f64;
        }
        for lane in lanes {
            sum += lane;
        }
        sum
    }
}
