//! Products of few rows, as generation makes them: `x·W` where the weight is read once, from end to end, in the order in which it lies,
//! and nothing of it is copied.
//!
//! An entry is summed over the inputs in their order, whatever the number of rows: a row's result does not depend on the other rows, not
//! even in its last bit.

use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut};
use super::vector::{LANES, dot, vectorised};

/// Columns from which on a product is cut into as few tasks as [`TASKS`]: the rows of such a weight lie pages apart, and memory is read at its
/// speed only along a row (a head of 256 × 32000 at 7 GB/s by 128 columns, at 19 GB/s by 2048).
const WIDE: usize = 4096;
/// Tasks of a wide product: enough for the threads to share.
const TASKS: usize = 16;
/// Numbers of results that a task goes through again and again: what stays in a core's cache.
const RESULTS: usize = 1 << 15;
/// Numbers of weights that are worth a task.
const TASK: usize = 1 << 15;

/// `[x·W₁ | x·W₂ | …]`, row by row.
pub(super) fn multiply_few(x: Matrix<'_>, weights: &[Matrix<'_>]) -> Vec<f32> {
    let outputs: usize = weights.iter().map(Matrix::columns).sum();
    let inputs = x.columns();
    let mut values = vec![0.0; x.rows() * outputs];
    if values.is_empty() || inputs == 0 {
        return values;
    }
    let share = if outputs < WIDE { 0 } else { outputs / TASKS };
    let width = (TASK / inputs)
        .max(share)
        .min(RESULTS / x.rows())
        .next_multiple_of(LANES)
        .max(LANES);
    let blocks: Vec<Matrix<'_>> = weights
        .iter()
        .flat_map(|weight| {
            let starts = (0..weight.columns()).step_by(width);
            starts.map(|start| weight.column_range(start..(start + width).min(weight.columns())))
        })
        .collect();
    let widths = blocks.iter().map(Matrix::columns);
    let outs = MatrixMut::new(&mut values, x.rows(), outputs).split_columns(widths);
    let one = |(block, out): (&Matrix<'_>, MatrixMut<'_>)| {
        if block.is_by_rows() {
            by_rows(x, *block, out);
        } else {
            by_columns(x, block.transposed(), out);
        }
    };
    if inputs * outputs < 2 * TASK {
        blocks.iter().zip(outs).for_each(one);
    } else {
        blocks.par_iter().zip(outs).for_each(one);
    }
    values
}

vectorised! {
    /// `out += x·W`, four rows of the weight at a time.
    fn by_rows(x: Matrix<'a>, weight: Matrix<'a>, out: MatrixMut<'a>) -> () {
        let mut out = out;
        let inputs = weight.rows();
        let whole = inputs / 4 * 4;
        for input in (0..whole).step_by(4) {
            let rows = [weight.row(input), weight.row(input + 1), weight.row(input + 2), weight.row(input + 3)];
            for index in 0..x.rows() {
                let x = x.row(index);
                add_four(out.row(index), [x[input], x[input + 1], x[input + 2], x[input + 3]], rows);
            }
        }
        for input in whole..inputs {
            for index in 0..x.rows() {
                let factor = x.row(index)[input];
                add(out.row(index), factor, weight.row(input));
            }
        }
    }

    /// `out = x·Wᵀ`, from the transpose of the weight.
    fn by_columns(x: Matrix<'a>, turned: Matrix<'a>, out: MatrixMut<'a>) -> () {
        let mut out = out;
        for output in 0..turned.rows() {
            let weight = turned.row(output);
            for index in 0..x.rows() {
                out.row(index)[output] = dot(x.row(index), weight);
            }
        }
    }
}

/// `out += (f₀·r₀ + f₁·r₁) + (f₂·r₂ + f₃·r₃)`.
#[inline(always)]
pub(super) fn add_four(out: &mut [f32], factors: [f32; 4], rows: [&[f32]; 4]) {
    let [f0, f1, f2, f3] = factors;
    let (out_blocks, out_rest) = out.as_chunks_mut::<LANES>();
    let done = out_blocks.len() * LANES;
    let [(b0, _), (b1, _), (b2, _), (b3, _)] = rows.map(|row| row.as_chunks::<LANES>());
    for ((((out, r0), r1), r2), r3) in out_blocks.iter_mut().zip(b0).zip(b1).zip(b2).zip(b3) {
        for i in 0..LANES {
            out[i] += (f0 * r0[i] + f1 * r1[i]) + (f2 * r2[i] + f3 * r3[i]);
        }
    }
    for (i, out) in (done..).zip(out_rest) {
        *out += (f0 * rows[0][i] + f1 * rows[1][i]) + (f2 * rows[2][i] + f3 * rows[3][i]);
    }
}

/// `out += f·r`.
#[inline(always)]
pub(super) fn add(out: &mut [f32], factor: f32, row: &[f32]) {
    for (out, value) in out.iter_mut().zip(row) {
        *out += factor * value;
    }
}
