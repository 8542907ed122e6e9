//! One input times several weights, `[x·W₁ | x·W₂ | …]`: with the gradients `gᵢ` of the outputs, `∂L/∂x = Σ gᵢ·Wᵢᵀ` and
//! `∂L/∂Wᵢ = xᵀ·gᵢ`.
//!
//! Adam divides a gradient by its own size, so that even the rounding of one that is nearly 0 reaches a weight. Hence `xᵀ·gᵢ` is summed
//! sequence by sequence: however a batch is cut into micro-batches, it is the same sum.
//!
//! The outputs stand side by side in the rows of one tensor, so that what follows finds all it needs of a token in one place.

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::autodiff::tensor;
use crate::matrix::{Matrix, MatrixMut, Store};
use crate::memory::{Blank, written};
use crate::operation::{Gradient, Operation, Output, View, Wanted};
use crate::product::{multiply, multiply_few, multiply_in_pieces, threads_for};
use crate::table::{apply, float, input, memory, primitive};

/// `[x · W₁ | x · W₂ | …]` of one to three weights; `x` holds `seq` rows of each sequence. If that is one, as in generation, a row's result
/// does not depend on the other rows.
///
/// # Shapes
/// - x: `[tokens, inputs]`
/// - weights: `[inputs, outputsᵢ]`
/// - output: `[tokens, outputs₁ + outputs₂ + …]`
pub fn linear<B: Backend, const N: usize>(
    x: &Tensor<B, 2>,
    weights: &[Tensor<B, 2>; N],
    seq: usize,
) -> Option<Tensor<B, 2>> {
    let (x, linear) = (input(x)?, Linear { seq });
    // The number of inputs is part of an operation's type.
    match weights.as_slice() {
        [a] => apply(linear, [x, input(a)?]),
        [a, b] => apply(linear, [x, input(a)?, input(b)?]),
        [a, b, c] => apply(linear, [x, input(a)?, input(b)?, input(c)?]),
        _ => None,
    }
}

/// `a·b`, as a step multiplies matrices.
///
/// # Shapes
/// - a: `[rows, inner]`
/// - b: `[inner, columns]`
pub fn product<B: Backend>(a: &Tensor<B, 2>, b: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    let seq = a.dims()[0];
    apply(Linear { seq }, [input(a)?, input(b)?])
}

/// `x·W` of few rows, each of which is summed by itself, from a weight that lies in either order; none under autodiff.
///
/// # Shapes
/// - x: `[tokens, inputs]`
/// - weight: `[inputs, outputs]`
pub fn few_rows<B: Backend>(x: &Tensor<B, 2>, weight: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    let memory = memory::<B>()?;
    let device = x.device();
    let (x, weight) = (primitive(x.clone()), primitive(weight.clone()));
    let (x, weight) = ((memory.matrix)(&x)?, (memory.matrix)(&weight)?);
    if !x.is_by_rows() {
        return None;
    }
    let (shape, values) = ([x.rows(), weight.columns()], multiply_few(x, &[weight]));
    Some(float(tensor::<B>(values, shape.into(), &device)))
}

/// `[tokens, inputs]` times each of the weights `[inputs, outputsᵢ]`.
#[derive(Debug)]
struct Linear {
    /// Tokens of a sequence. One new token of each, as in generation, makes a product of few rows, whose results do not depend on each
    /// other.
    seq: usize,
}

fn matrix<'a>(view: &View<'a>) -> Matrix<'a> {
    Matrix::new(view.values, view.shape[0], view.shape[1])
}

impl<const N: usize> Operation<N> for Linear {
    fn first_summed(&self) -> usize {
        1
    }

    fn forward(&self, inputs: [View<'_>; N]) -> Output {
        let (x, weights) = (matrix(&inputs[0]), &inputs[1..]);
        let outputs: usize = weights.iter().map(View::width).sum();
        let values = if self.seq == 1 {
            let weights: Vec<_> = weights.iter().map(matrix).collect();
            multiply_few(x, &weights)
        } else {
            let parts: Vec<_> = weights.iter().map(|weight| (x, matrix(weight))).collect();
            side_by_side(x.rows(), outputs, &parts)
        };
        Output::new(values, Shape::from([x.rows(), outputs]))
    }

    fn backward(
        &self,
        inputs: [View<'_>; N],
        _kept: &[f32],
        upstream: &[f32],
        wanted: [Wanted<'_>; N],
    ) -> [Gradient; N] {
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

/// Rows of a thread. A strip has a single row only where there are no more: `gemm` multiplies a single row in another way, which may round
/// differently.
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
        // SAFETY: products that overwrite write all of its columns.
        let mut out = unsafe { MatrixMut::blank(out, range.len(), columns) };
        let mut start = 0;
        for (a, b) in parts {
            let mut out = out.column_range(start..start + b.columns());
            start += b.columns();
            multiply(&mut out, Store::Overwrite, a.row_range(range.clone()), *b);
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
    let write = |out: &mut Blank, store| {
        // SAFETY: products write all of its blocks; they add to what is there only where it is a sum.
        let out = unsafe { MatrixMut::blank(out, rows, columns) };
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
            multiply_in_pieces(&mut out, store, a, b, seq);
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
        // SAFETY: the first product overwrites all of it.
        let mut out = unsafe { MatrixMut::blank(out, range.len(), columns) };
        for (part, (upstream, weight)) in upstream.iter().zip(weights).enumerate() {
            let store = if part == 0 { Store::Overwrite } else { Store::Add };
            multiply(
                &mut out,
                store,
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
    use burn::tensor::Distribution;
    use burn_flex::{Flex, FlexDevice};

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

    #[test]
    fn few_rows_are_a_product() {
        let normal = Distribution::Normal(0.0, 1.0);
        for (rows, inputs, outputs) in [(1, 1, 1), (1, 7, 33), (3, 130, 2100), (40, 64, 1300), (2, 30, 9000)] {
            let x = Tensor::<Flex, 2>::random([rows, inputs], normal, &FlexDevice);
            let weight = Tensor::<Flex, 2>::random([inputs, outputs], normal, &FlexDevice);
            let turned = Tensor::from_data(weight.clone().transpose().into_data(), &FlexDevice).transpose();
            let expected = x.clone().matmul(weight.clone()).into_data().into_vec::<f32>().unwrap();
            for weight in [weight, turned] {
                let found = few_rows(&x, &weight).unwrap().into_data().into_vec::<f32>().unwrap();
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(&expected) {
                    let is_close = (found - expected).abs() < 1e-4;
                    assert!(is_close, "{rows} × {inputs} × {outputs}: {found} for {expected}");
                }
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
                    let gradients = Operation::<2>::backward(&linear, inputs(), &[], &upstream, wanted);
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
