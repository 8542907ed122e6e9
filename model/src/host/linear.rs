//! One input times several weights, `[x·W₁ | x·W₂ | …]`: with the gradients `gᵢ` of the outputs, `∂L/∂x = Σ gᵢ·Wᵢᵀ` and
//! `∂L/∂Wᵢ = xᵀ·gᵢ`.
//!
//! Adam divides a gradient by its own size, so that even the rounding of one that is nearly 0 reaches a weight. Hence `xᵀ·gᵢ` is summed
//! sequence by sequence: however a batch is cut into micro-batches, it is the same sum.
//!
//! The outputs stand side by side in the rows of one tensor, so that what follows finds all it needs of a token in one place.

use burn::tensor::Shape;
use rayon::prelude::*;

use super::few::multiply_few;
use super::matrix::{Into, Matrix, MatrixMut, multiply, multiply_in_pieces, threads_for};
use super::memory::{Blank, written};
use super::{Gradient, Operation, Output, View, Wanted};

/// `[tokens, inputs]` times each of the weights `[inputs, outputsᵢ]`.
#[derive(Debug)]
pub(crate) struct Linear {
    /// Tokens of a sequence. One new token of each, as in generation, makes a product of few rows, whose results do not depend on each
    /// other.
    pub(crate) seq: usize,
}

fn matrix<'a>(view: &View<'a>) -> Matrix<'a> {
    Matrix::new(view.values, view.shape[0], view.shape[1])
}

impl<const N: usize> Operation<N> for Linear {
    type Kept = ();

    const FIRST_SUMMED: usize = 1;

    fn forward(&self, inputs: [View<'_>; N]) -> Output<()> {
        let (x, weights) = (matrix(&inputs[0]), &inputs[1..]);
        let outputs: usize = weights.iter().map(View::width).sum();
        let values = if self.seq == 1 {
            let weights: Vec<_> = weights.iter().map(matrix).collect();
            multiply_few(x, &weights)
        } else {
            let parts: Vec<_> = weights.iter().map(|weight| (x, matrix(weight))).collect();
            side_by_side(x.rows(), outputs, &parts)
        };
        Output {
            values,
            shape: Shape::from([x.rows(), outputs]),
            kept: (),
        }
    }

    fn backward(&self, inputs: [View<'_>; N], (): &(), upstream: &[f32], wanted: [Wanted<'_>; N]) -> [Gradient; N] {
        let (x, weights) = (matrix(&inputs[0]), &inputs[1..]);
        let outputs: usize = weights.iter().map(View::width).sum();
        let upstream = Matrix::new(upstream, x.rows(), outputs);
        let mut start = 0;
        let parts: Vec<Matrix<'_>> = weights
            .iter()
            .map(|weight| {
                start += weight.width();
                upstream.column_range(start - weight.width()..start)
            })
            .collect();
        let mut index = 0;
        wanted.map(|wanted| {
            index += 1;
            match index - 1 {
                _ if !wanted.is_wanted() => Gradient::None,
                0 => Gradient::Values(sum_of_products(&parts, weights)),
                index => sum_over_sequences(x.transposed(), parts[index - 1], self.seq, wanted),
            }
        })
    }
}

/// Rows of a thread. No strip has one row, unless there are no more: the vector units have another way for that, which may round otherwise.
fn strip(rows: usize, threads: usize) -> usize {
    let mut strip = rows.div_ceil(threads);
    while strip < rows && (strip == 1 || rows % strip == 1) {
        strip += 1;
    }
    strip
}

/// `[a₁·b₁ | a₂·b₂ | …]`, row by row: each thread has some of the rows.
fn side_by_side(rows: usize, columns: usize, parts: &[(Matrix<'_>, Matrix<'_>)]) -> Vec<f32> {
    if rows * columns == 0 {
        return Vec::new();
    }
    let inner = parts[0].0.columns();
    let strip = strip(rows, threads_for(rows * columns * inner));
    let one = |(index, out): (usize, &mut Blank)| {
        let range = index * strip..(index * strip + out.len() / columns);
        let mut out = MatrixMut::blank(out, range.len(), columns);
        let mut start = 0;
        for (a, b) in parts {
            let mut out = out.column_range(start..start + b.columns());
            start += b.columns();
            multiply(&mut out, Into::Empty, a.row_range(range.clone()), *b);
        }
    };
    // SAFETY: the strips are all the rows, the parts all the columns, and a product writes all of its entries.
    unsafe {
        written(rows * columns, |out| {
            out.par_chunks_mut(strip * columns).enumerate().for_each(one);
        })
    }
}

/// `a·b`, the sum of the products of `seq` columns of `a` each, row by row: each thread has a part of the longer side, so that what a
/// product puts in order first is used for as long as can be.
fn sum_over_sequences(a: Matrix<'_>, b: Matrix<'_>, seq: usize, wanted: Wanted<'_>) -> Gradient {
    let (rows, columns) = (a.rows(), b.columns());
    if rows * columns == 0 {
        return Gradient::Values(Vec::new());
    }
    let is_tall = rows >= columns;
    let side = if is_tall { rows } else { columns };
    // Whole blocks of the units, and none of a single number, as in `strip`.
    let mut width = side
        .div_ceil(threads_for(rows * columns * a.columns()))
        .next_multiple_of(32);
    while width < side && side % width == 1 {
        width += 32;
    }
    let write = |out: &mut Blank, into| {
        let out = MatrixMut::blank(out, rows, columns);
        let blocks = if is_tall {
            out.row_blocks(width)
        } else {
            out.column_blocks(width)
        };
        blocks.into_par_iter().enumerate().for_each(|(index, mut out)| {
            let range = index * width..((index + 1) * width).min(side);
            let (a, b) = if is_tall {
                (a.row_range(range), b)
            } else {
                (a, b.column_range(range))
            };
            multiply_in_pieces(&mut out, into, a, b, seq);
        });
    };
    // SAFETY: the blocks are all of it, and a product writes all of its entries.
    unsafe { wanted.write(rows * columns, write) }
}

/// `Σ gᵢ·Wᵢᵀ`.
fn sum_of_products(upstream: &[Matrix<'_>], weights: &[View<'_>]) -> Vec<f32> {
    let (rows, columns) = (upstream[0].rows(), weights[0].shape[0]);
    if rows * columns == 0 {
        return Vec::new();
    }
    let outputs: usize = weights.iter().map(View::width).sum();
    let strip = strip(rows, threads_for(rows * columns * outputs));
    let one = |(index, out): (usize, &mut Blank)| {
        let range = index * strip..(index * strip + out.len() / columns);
        let mut out = MatrixMut::blank(out, range.len(), columns);
        for (part, (upstream, weight)) in upstream.iter().zip(weights).enumerate() {
            let into = if part == 0 { Into::Empty } else { Into::Sum };
            multiply(
                &mut out,
                into,
                upstream.row_range(range.clone()),
                matrix(weight).transposed(),
            );
        }
    };
    // SAFETY: the strips are all the rows, and the first product writes all of its entries.
    unsafe {
        written(rows * columns, |out| {
            out.par_chunks_mut(strip * columns).enumerate().for_each(one);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_strip_has_one_row() {
        for rows in 2..200 {
            for threads in 1..=rows + 1 {
                let strip = strip(rows, threads);
                assert!(
                    (2..=rows).contains(&strip) && rows % strip != 1,
                    "{rows} rows, {threads} threads"
                );
            }
        }
    }

    /// However many threads there are, every entry is the same sum: a run on other hardware of the same kind is the same run.
    #[test]
    fn products_do_not_depend_on_the_threads() {
        let numbers = |count: usize| -> Vec<f32> { (0..count).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect() };
        for (tokens, seq, inputs, outputs) in [(203, 29, 150, 170), (303, 150, 170, 150)] {
            let (x, weight, upstream) = (
                numbers(tokens * inputs),
                numbers(inputs * outputs),
                numbers(tokens * outputs),
            );
            let view = |values, shape: [usize; 2]| View {
                values,
                shape: shape.into(),
            };
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let inputs = || [view(&x, [tokens, inputs]), view(&weight, [inputs, outputs])];
                    let linear = Linear { seq };
                    let forward = linear.forward(inputs()).values;
                    let wanted = [Wanted::Gradient, Wanted::Gradient];
                    let gradients = Operation::<2>::backward(&linear, inputs(), &(), &upstream, wanted);
                    let [Gradient::Values(of_x), Gradient::Values(of_weight)] = gradients else {
                        panic!("both were wanted");
                    };
                    [forward, of_x, of_weight]
                })
            };
            let expected = on(1);
            for threads in [2, 3, 5] {
                assert!(on(threads) == expected, "{threads} threads");
            }
        }
    }
}
