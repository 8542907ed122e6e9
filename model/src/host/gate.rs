//! GPAS: one scaled copy forward, `y = (1 − act(α))·x`; back, the identity, and `∂L/∂α = −act'(α)·Σ ∂L/∂y·x`.

use burn::tensor::Shape;
use rayon::prelude::*;

use super::memory::{Blank, written};
use super::vector::{CHUNK, vectorised};
use super::{Gradient, Operation, Output, View, Wanted};
use crate::gpas::GateActivation;

/// GPAS of a stream and its gate `[1]`.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) act: GateActivation,
    /// Whether the scaling is hidden from the gradient.
    pub(crate) stop_gradient: bool,
}

impl Gate {
    fn scale(&self, gate: &View<'_>) -> f32 {
        1.0 - self.act.value(f64::from(gate.values[0])) as f32
    }

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
    type Kept = ();

    const FIRST_SUMMED: usize = 1;

    fn forward(&self, [x, gate]: [View<'_>; 2]) -> Output<()> {
        Output {
            values: Self::scaled(x.values, self.scale(&gate)),
            shape: Shape::clone(&x.shape),
            kept: (),
        }
    }

    fn backward(&self, [x, gate]: [View<'_>; 2], (): &(), upstream: &[f32], wanted: [Wanted<'_>; 2]) -> [Gradient; 2] {
        let of_x = if !self.stop_gradient {
            Gradient::Values(Self::scaled(upstream, self.scale(&gate)))
        } else {
            Gradient::Upstream
        };
        let [_, wanted] = wanted;
        if !wanted.is_wanted() {
            return [of_x, Gradient::None];
        }
        let slope = self.act.derivative(f64::from(gate.values[0]));
        // The terms nearly cancel, hence f64.
        let parts = x.sums_of_sequences(CHUNK, |range| {
            vec![-slope * wide_dot(&x.values[range.clone()], &upstream[range])]
        });
        [of_x, wanted.add_up(1, parts)]
    }
}

/// The sum of the residual and the branch of a sub-layer.
#[derive(Debug)]
pub(crate) struct Sum;

impl Operation<2> for Sum {
    type Kept = ();

    const FIRST_SUMMED: usize = 2;

    fn forward(&self, [x, branch]: [View<'_>; 2]) -> Output<()> {
        Output {
            values: scaled_sum(x.values, branch.values, 1.0),
            shape: x.shape,
            kept: (),
        }
    }

    fn backward(&self, _inputs: [View<'_>; 2], (): &(), _upstream: &[f32], _wanted: [Wanted<'_>; 2]) -> [Gradient; 2] {
        [Gradient::Upstream, Gradient::Upstream]
    }
}

/// GPAS of that sum, in one walk over memory: the residual, the branch and the gate `[1]`. The stop-gradient hides the scaling.
#[derive(Debug)]
pub(crate) struct GatedSum {
    pub(crate) act: GateActivation,
}

impl Operation<3> for GatedSum {
    type Kept = ();

    const FIRST_SUMMED: usize = 2;

    fn forward(&self, [x, branch, gate]: [View<'_>; 3]) -> Output<()> {
        let scale = 1.0 - self.act.value(f64::from(gate.values[0])) as f32;
        Output {
            values: scaled_sum(x.values, branch.values, scale),
            shape: x.shape,
            kept: (),
        }
    }

    fn backward(
        &self,
        [x, branch, gate]: [View<'_>; 3],
        (): &(),
        upstream: &[f32],
        wanted: [Wanted<'_>; 3],
    ) -> [Gradient; 3] {
        let [_, _, wanted] = wanted;
        if !wanted.is_wanted() {
            return [Gradient::Upstream, Gradient::Upstream, Gradient::None];
        }
        let slope = self.act.derivative(f64::from(gate.values[0]));
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
