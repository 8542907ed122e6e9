//! One input times several weights, `[x·W₁ | x·W₂ | …]`: with the gradients `gᵢ` of the outputs, `∂L/∂x = Σ gᵢ·Wᵢᵀ` and
//! `∂L/∂Wᵢ = xᵀ·gᵢ`.
//!
//! Adam divides a gradient by its own size, so that even the rounding of one that is nearly 0 reaches a weight. Hence `xᵀ·gᵢ` is summed
//! sequence by sequence: however a batch is cut into micro-batches, it is the same sum.
//!
//! The outputs stand side by side in the rows of one tensor, so that what follows finds all it needs of a token in one place.
//!
//! Where `x` is bf16, so are the outputs and what is multiplied: an f32 weight is rounded while it is put in order for a product, and its
//! gradient is f32.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Shape, Tensor, bf16};
use rayon::prelude::*;

use crate::autodiff::tensor;
use crate::matrix::MatrixMut;
use crate::memory::{Blank, written};
use crate::numbers::{Number, Numbers, Values};
use crate::operand::Operand;
use crate::operation::{Gradient, Operation, Output, View, Wanted};
use crate::product::{Factor, Products, multiply_few, threads_for};
use crate::table::{apply, float, input, memory, primitive};

/// `[x · W₁ | x · W₂ | …]` of one to three weights; `x` holds `seq` rows of each sequence. If that is one, as in generation, a row's result
/// does not depend on the other rows; in bf16 only where the processor has instructions for it.
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
    if x.dtype() == DType::F32 && weights.iter().any(|weight| weight.dtype() != DType::F32) {
        return None;
    }
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
    linear(a, std::array::from_ref(b), a.dims()[0])
}

/// `x·W` of few rows, each of which is summed by itself, from a weight that lies in either order; none under autodiff, and
/// of bf16.
///
/// # Shapes
/// - x: `[tokens, inputs]`
/// - weight: `[inputs, outputs]`
pub fn few_rows<B: Backend>(x: &Tensor<B, 2>, weight: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    let memory = memory::<B>()?;
    let device = x.device();
    let (x, weight) = (primitive(x.clone()), primitive(weight.clone()));
    let (Operand::F32(x), Operand::F32(weight)) = (memory.operand(&x)?, memory.operand(&weight)?) else {
        return None;
    };
    if !x.is_by_rows() {
        return None;
    }
    let (shape, values) = ([x.rows(), weight.columns()], multiply_few(x, &[weight]));
    Some(float(tensor::<B>(values.into(), shape.into(), &device)))
}

/// `[tokens, inputs]` times each of the weights `[inputs, outputsᵢ]`.
#[derive(Debug)]
struct Linear {
    /// Tokens of a sequence. One new token of each, as in generation, makes a product of few rows, whose results do not depend on each
    /// other.
    seq: usize,
}

impl Linear {
    /// `[x·W₁ | x·W₂ | …]`.
    fn products<E: Factor>(&self, x: Operand<'_>, weights: &[Operand<'_>]) -> Vec<E> {
        let parts: Vec<_> = weights.iter().map(|weight| (x, *weight)).collect();
        match self.seq {
            1 => columns_of_few(&parts),
            _ => side_by_side(&parts),
        }
    }
}

impl<const N: usize> Operation<N> for Linear {
    fn first_summed(&self) -> usize {
        1
    }

    fn forward(&self, inputs: [View<'_>; N]) -> Output {
        let operands = inputs.each_ref().map(View::matrix);
        let (x, weights) = (operands[0], &operands[1..]);
        let shape = [x.rows(), weights.iter().map(Operand::columns).sum()];
        let all_f32 = || -> Option<Vec<_>> { weights.iter().map(|weight| weight.as_f32()).collect() };
        let values = match (x, all_f32()) {
            (Operand::Bf16(_), _) => bf16::values(self.products(x, weights)),
            (Operand::F32(x), Some(weights)) if self.seq == 1 => multiply_few(x, &weights).into(),
            (Operand::F32(_), _) => f32::values(self.products(x, weights)),
        };
        Output::new(values, Shape::from(shape))
    }

    fn backward(
        &self,
        inputs: [View<'_>; N],
        _kept: &[f32],
        upstream: Numbers<'_>,
        wanted: [Wanted<'_>; N],
    ) -> [Gradient; N] {
        let operands = inputs.each_ref().map(View::matrix);
        let (x, weights) = (operands[0], &operands[1..]);
        let outputs: usize = weights.iter().map(Operand::columns).sum();
        let upstream = Operand::new(upstream, x.rows(), outputs);
        let mut start = 0;
        let parts: Vec<Operand<'_>> = weights
            .iter()
            .map(|weight| {
                start += weight.columns();
                upstream.column_range(start - weight.columns()..start)
            })
            .collect();
        let of_x = || -> Values {
            let terms: Vec<_> = parts
                .iter()
                .zip(weights)
                .map(|(part, weight)| (*part, weight.transposed()))
                .collect();
            match x {
                Operand::F32(_) => f32::values(sum_of_products(&terms)),
                Operand::Bf16(_) => bf16::values(sum_of_products(&terms)),
            }
        };
        let products = Products::of(x);
        let mut index = 0;
        wanted.map(|wanted| {
            index += 1;
            match index - 1 {
                _ if !wanted.is_wanted() => Gradient::None,
                0 => Gradient::Values(of_x()),
                index => sum_over_sequences(products, x.transposed(), parts[index - 1], self.seq, wanted),
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
fn side_by_side<E: Factor>(parts: &[(Operand<'_>, Operand<'_>)]) -> Vec<E> {
    let (rows, inner) = (parts[0].0.rows(), parts[0].0.columns());
    let columns: usize = parts.iter().map(|(_, b)| b.columns()).sum();
    if rows * columns == 0 {
        return Vec::new();
    }
    let strip = strip(rows, threads_for(rows * columns * inner));
    let one = |(index, out): (usize, &mut Blank<E>)| {
        let range = index * strip..(index * strip + out.len() / columns);
        // SAFETY: products that overwrite write all of its columns.
        let mut out = unsafe { MatrixMut::blank(out, range.len(), columns) };
        let mut start = 0;
        for (a, b) in parts {
            let mut out = out.column_range(start..start + b.columns());
            start += b.columns();
            E::multiply(&mut out, &[(a.row_range(range.clone()), *b)]);
        }
    };
    // SAFETY: the strips are all the rows, the parts all the columns, and a product writes all of its entries.
    unsafe {
        written(rows * columns, |out| {
            out.par_chunks_mut(strip * columns).enumerate().for_each(one);
        })
    }
}

/// [`side_by_side`] of few rows: each thread has some of the columns.
fn columns_of_few<E: Factor>(parts: &[(Operand<'_>, Operand<'_>)]) -> Vec<E> {
    /// Columns of a task.
    const WIDTH: usize = 256;
    let rows = parts[0].0.rows();
    let columns: usize = parts.iter().map(|(_, b)| b.columns()).sum();
    if rows * columns == 0 {
        return Vec::new();
    }
    let blocks: Vec<_> = parts
        .iter()
        .flat_map(|(a, b)| {
            let starts = (0..b.columns()).step_by(WIDTH);
            starts.map(|start| (*a, b.column_range(start..(start + WIDTH).min(b.columns()))))
        })
        .collect();
    let widths = blocks.iter().map(|(_, b)| b.columns());
    // SAFETY: products that overwrite write all of its columns.
    unsafe {
        written(rows * columns, |out| {
            let outs = MatrixMut::blank(out, rows, columns).split_columns(widths);
            let tasks = outs.into_par_iter().zip(&blocks);
            tasks.for_each(|(mut out, block)| E::multiply(&mut out, std::slice::from_ref(block)));
        })
    }
}

/// `a·b`, the sum of the products of `seq` columns of `a` each, row by row: each thread has a part of the longer side, so that what a
/// product puts in order first is used for as long as can be.
fn sum_over_sequences(products: Products, a: Operand<'_>, b: Operand<'_>, seq: usize, wanted: Wanted<'_>) -> Gradient {
    let (rows, columns) = (a.rows(), b.columns());
    if rows * columns == 0 {
        return Gradient::Values(Values::F32(Vec::new()));
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
            products.multiply_in_pieces(&mut out, store, a, b, seq);
        });
    };
    // SAFETY: the blocks are all of it, and a product writes all of its entries.
    unsafe { wanted.write(rows * columns, write) }
}

/// `Σ aᵢ·bᵢ`, row by row: each thread has some of the rows.
fn sum_of_products<E: Factor>(terms: &[(Operand<'_>, Operand<'_>)]) -> Vec<E> {
    let (rows, columns) = (terms[0].0.rows(), terms[0].1.columns());
    if rows * columns == 0 {
        return Vec::new();
    }
    let inner: usize = terms.iter().map(|(a, _)| a.columns()).sum();
    let strip = strip(rows, threads_for(rows * columns * inner));
    let one = |(index, out): (usize, &mut Blank<E>)| {
        let range = index * strip..(index * strip + out.len() / columns);
        let terms: Vec<_> = terms.iter().map(|(a, b)| (a.row_range(range.clone()), *b)).collect();
        // SAFETY: the product overwrites all of it.
        E::multiply(&mut unsafe { MatrixMut::blank(out, range.len(), columns) }, &terms);
    };
    // SAFETY: the strips are all the rows, and a product writes all of its entries.
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
                values: Numbers::F32(values),
                shape: shape.into(),
            };
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let inputs = || [view(&x, [tokens, inputs]), view(&weight, [inputs, outputs])];
                    let linear = Linear { seq };
                    let forward = Operation::<2>::forward(&linear, inputs()).values;
                    let wanted = [Wanted::Gradient, Wanted::Gradient];
                    let gradients = Operation::<2>::backward(&linear, inputs(), &[], Numbers::F32(&upstream), wanted);
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
