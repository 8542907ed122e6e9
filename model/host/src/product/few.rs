//! Products of few rows, as generation makes them: `x·W` where the weight is read once, from end to end, in the order in which it lies,
//! and nothing of it is copied.
//!
//! An entry is summed over the inputs in their order, whatever the number of rows: a row's result does not depend on the other rows, not
//! even in its last bit.

use rayon::prelude::*;

use crate::matrix::{Matrix, MatrixMut};
use crate::vector::{LANES, add, add_four, dot, vectorised};

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
pub(crate) fn multiply_few(x: Matrix<'_>, weights: &[Matrix<'_>]) -> Vec<f32> {
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
