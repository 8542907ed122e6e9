//! Products of matrices.
//!
//! A product runs on one thread, of f32 in [`amx`] where the processor has such units and else in [`vectors`], of numbers rounded to bf16 in
//! [`rounded`]; whoever calls it cuts the work among threads. An entry is the same sum however the work is cut.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod few;
mod rounded;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod vectors;

use burn::tensor::bf16;
pub(crate) use few::multiply_few;
pub(crate) use rounded::multiply_rounded;
pub(crate) use vectors::multiply_in_vectors;

use crate::matrix::{Matrix, MatrixMut, Store};
use crate::numbers::Number;
use crate::operand::Operand;
use vectors::in_pieces;

/// To what the numbers of a product are rounded before they are multiplied: bf16 if the input of an operation is in that format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Products {
    F32,
    Bf16,
}

impl Products {
    /// Those of an operation whose input is `x`.
    pub(crate) fn of(x: Operand<'_>) -> Self {
        match x {
            Operand::F32(_) => Self::F32,
            Operand::Bf16(_) => Self::Bf16,
        }
    }

    /// `out = a·b`, or `out += a·b`.
    pub(crate) fn multiply(self, out: &mut MatrixMut<'_>, store: Store, a: Operand<'_>, b: Operand<'_>) {
        match self {
            Products::F32 => a.widened(|a| b.widened(|b| multiply(out, store, a, b))),
            Products::Bf16 => multiply_rounded(out, store, &[(a, b)]),
        }
    }

    /// [`multiply`](Self::multiply) whose sums are made of those of `piece` columns of `a` each, added in their order.
    ///
    /// Where a piece is a sequence, the gradient of a weight is the same sum however the sequences are cut into micro-batches.
    pub(crate) fn multiply_in_pieces(
        self,
        out: &mut MatrixMut<'_>,
        store: Store,
        a: Operand<'_>,
        b: Operand<'_>,
        piece: usize,
    ) {
        match self {
            Products::F32 => {
                a.widened(|a| b.widened(|b| in_pieces(store, a, b, piece, |store, a, b| multiply(out, store, a, b))))
            }
            Products::Bf16 => {
                let pieces = (0..a.columns()).step_by(piece).map(|start| {
                    let range = start..(start + piece).min(a.columns());
                    (a.column_range(range.clone()), b.row_range(range))
                });
                multiply_rounded(out, store, &pieces.collect::<Vec<_>>());
            }
        }
    }
}

/// A number format that a product can have.
pub(crate) trait Factor: Number {
    /// `out = Σ aᵢ·bᵢ`, with operands of the format, or rounded to it.
    fn multiply(out: &mut MatrixMut<'_, Self>, terms: &[(Operand<'_>, Operand<'_>)]);
}

impl Factor for f32 {
    fn multiply(out: &mut MatrixMut<'_, Self>, terms: &[(Operand<'_>, Operand<'_>)]) {
        multiply_terms(out, terms);
    }
}

impl Factor for bf16 {
    fn multiply(out: &mut MatrixMut<'_, Self>, terms: &[(Operand<'_>, Operand<'_>)]) {
        multiply_rounded(out, Store::Overwrite, terms);
    }
}

/// `out = Σ aᵢ·bᵢ` of f32.
fn multiply_terms(out: &mut MatrixMut<'_>, terms: &[(Operand<'_>, Operand<'_>)]) {
    for (index, (a, b)) in terms.iter().enumerate() {
        let store = if index == 0 { Store::Overwrite } else { Store::Add };
        Products::F32.multiply(out, store, *a, *b);
    }
}

/// `out = a·b`, or `out += a·b`, on this thread, by the fastest units that the processor has. An entry is the same sum whatever other entries
/// are computed with it, unless it stands in the only row or the only column of a product in the vector units.
pub(crate) fn multiply(out: &mut MatrixMut<'_>, store: Store, a: Matrix<'_>, b: Matrix<'_>) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if amx::multiplies(a, b) {
        assert!(out.rows() == a.rows() && out.columns() == b.columns() && a.columns() == b.rows());
        return amx::multiply(out, store, a, b);
    }
    multiply_in_vectors(out, store, a, b);
}

/// The number of threads that so many multiplications are worth.
pub(crate) fn threads_for(multiplications: usize) -> usize {
    (multiplications >> 20).clamp(1, rayon::current_num_threads())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::scratch;
    use rayon::prelude::*;

    fn room(rows: usize, columns: usize) -> usize {
        Matrix::room_of_transpose(rows, columns)
    }

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
    }

    /// Entry by entry in f64.
    fn naive(a: &[f32], b: &[f32], rows: usize, inner: usize, columns: usize) -> Vec<f64> {
        let entry = |row: usize, column: usize| -> f64 {
            let terms = (0..inner).map(|k| f64::from(a[row * inner + k]) * f64::from(b[k * columns + column]));
            terms.sum()
        };
        (0..rows * columns)
            .map(|at| entry(at / columns, at % columns))
            .collect()
    }

    type Multiply = fn(&mut MatrixMut<'_>, Store, Matrix<'_>, Matrix<'_>);

    #[test]
    fn products_in_every_orientation() {
        in_every_orientation(multiply);
        in_every_orientation(multiply_in_vectors);
    }

    fn in_every_orientation(multiply: Multiply) {
        for (rows, inner, columns) in [(1, 1, 1), (3, 5, 7), (70, 33, 41), (130, 128, 140)] {
            let (a, b) = (numbers(rows * inner), numbers(inner * columns));
            let expected = naive(&a, &b, rows, inner, columns);
            let (mut a_room, mut b_room) = (scratch(room(rows, inner)), scratch(room(inner, columns)));
            let a_turned = Matrix::new(&a, rows, inner).transpose_into(&mut a_room);
            let b_turned = Matrix::new(&b, inner, columns).transpose_into(&mut b_room);
            let by_rows = Matrix::new(&a, rows, inner);
            let by_columns = a_turned.transposed();
            for a in [by_rows, by_columns] {
                for b in [Matrix::new(&b, inner, columns), b_turned.transposed()] {
                    // Block by block, twice, into rows and into columns.
                    for is_by_rows in [true, false] {
                        let mut sum = vec![0.0; rows * columns];
                        for (store, times) in [(Store::Overwrite, 1.0), (Store::Add, 2.0)] {
                            let out = match is_by_rows {
                                true => MatrixMut::new(&mut sum, rows, columns),
                                false => MatrixMut::new(&mut sum, columns, rows).transposed(),
                            };
                            let blocks = out.column_blocks(3);
                            blocks.into_par_iter().enumerate().for_each(|(index, mut block)| {
                                let range = index * 3..index * 3 + block.columns();
                                multiply(&mut block, store, a, b.column_range(range));
                            });
                            for (at, expected) in expected.iter().enumerate() {
                                let found = sum[match is_by_rows {
                                    true => at,
                                    false => at % columns * rows + at / columns,
                                }];
                                let difference = (f64::from(found) - times * expected).abs();
                                assert!(difference < 1e-4, "{rows} × {inner} × {columns}: {difference}");
                            }
                        }
                    }
                }
            }
        }
    }

    /// A sequence is the same numbers in a micro-batch of any size.
    #[test]
    fn a_row_of_a_product_does_not_depend_on_the_others() {
        does_not_depend_on_the_others(multiply);
        does_not_depend_on_the_others(multiply_in_vectors);
    }

    fn does_not_depend_on_the_others(multiply: Multiply) {
        for (inner, columns) in [(24, 16), (40, 24), (300, 200), (700, 40), (1500, 300)] {
            let rows = 300;
            let (a, b) = (numbers(rows * inner), numbers(inner * columns));
            let by_rows = Matrix::new(&b, inner, columns);
            let by_columns = Matrix::new(&b, columns, inner).transposed();
            for b in [by_rows, by_columns] {
                let product = |rows: usize| {
                    let mut out = vec![0.0; rows * columns];
                    let a = Matrix::new(&a[..rows * inner], rows, inner);
                    multiply(&mut MatrixMut::new(&mut out, rows, columns), Store::Overwrite, a, b);
                    out
                };
                let whole = product(rows);
                for rows in [2, 3, 5, 8, 10, 17, 64, 128, 200] {
                    let found = product(rows);
                    assert!(found == whole[..found.len()], "{rows} rows × {inner} × {columns}");
                }
            }
        }
    }
}
