//! A matrix in either number format, to be multiplied.

use std::marker::PhantomData;
use std::ops::Range;

use burn::tensor::{DType, bf16};

use crate::matrix::{Matrix, Strided};
use crate::numbers::{Number, Numbers};
use crate::vector::vectorised;

/// A matrix in either number format, to be multiplied.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operand<'a> {
    F32(Matrix<'a>),
    Bf16(Strided<&'a [bf16]>),
}

/// The same of a matrix in either format.
macro_rules! of_either {
    ($operand:expr, $matrix:ident => $what:expr) => {
        match $operand {
            Operand::F32($matrix) => $what,
            Operand::Bf16($matrix) => $what,
        }
    };
    ($operand:expr, $matrix:ident -> $what:expr) => {
        match $operand {
            Operand::F32($matrix) => Operand::F32($what),
            Operand::Bf16($matrix) => Operand::Bf16($what),
        }
    };
}

impl<'a> Operand<'a> {
    /// Numbers row by row.
    pub(crate) fn new(numbers: Numbers<'a>, rows: usize, columns: usize) -> Self {
        match numbers {
            Numbers::F32(values) => Operand::F32(Strided::<&[_]>::new(values, rows, columns)),
            Numbers::Bf16(values) => Operand::Bf16(Strided::<&[_]>::new(values, rows, columns)),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        of_either!(self, matrix => matrix.rows())
    }

    pub(crate) fn columns(&self) -> usize {
        of_either!(self, matrix => matrix.columns())
    }

    pub(crate) fn format(&self) -> DType {
        match self {
            Operand::F32(_) => DType::F32,
            Operand::Bf16(_) => DType::BF16,
        }
    }

    /// Whether the numbers of a row lie side by side.
    pub(crate) fn is_by_rows(&self) -> bool {
        of_either!(self, matrix => matrix.is_by_rows())
    }

    pub(crate) fn transposed(self) -> Self {
        of_either!(self, matrix -> matrix.transposed())
    }

    /// Some of the rows.
    pub(crate) fn row_range(self, range: Range<usize>) -> Self {
        of_either!(self, matrix -> matrix.row_range(range))
    }

    /// Some of the columns.
    pub(crate) fn column_range(self, range: Range<usize>) -> Self {
        of_either!(self, matrix -> matrix.column_range(range))
    }

    pub(crate) fn as_f32(&self) -> Option<Matrix<'a>> {
        match self {
            Operand::F32(matrix) => Some(*matrix),
            Operand::Bf16(_) => None,
        }
    }

    /// Calls `with` with the matrix as f32, copied only where it is not.
    pub(crate) fn widened<T>(self, with: impl FnOnce(Matrix<'_>) -> T) -> T {
        match self {
            Operand::F32(matrix) => with(matrix),
            Operand::Bf16(matrix) => with_copy::<bf16, bf16, T>(matrix, with),
        }
    }

    /// Calls `with` with the numbers of the matrix rounded to bf16, as f32.
    pub(crate) fn rounded<T>(self, with: impl FnOnce(Matrix<'_>) -> T) -> T {
        match self {
            Operand::F32(matrix) => with_copy::<f32, bf16, T>(matrix, with),
            Operand::Bf16(matrix) => with_copy::<bf16, bf16, T>(matrix, with),
        }
    }
}

/// Calls `with` with a copy of a matrix as f32, its numbers rounded to those of `R`. Rows or columns stay side by side.
fn with_copy<E: Number, R: Number, T>(matrix: Strided<&[E]>, with: impl FnOnce(Matrix<'_>) -> T) -> T {
    let is_by_rows = matrix.is_by_rows();
    let matrix = if is_by_rows { matrix } else { matrix.transposed() };
    let mut values = vec![0.0; matrix.rows() * matrix.columns()];
    copy_rows::<E, R>(matrix, PhantomData, &mut values);
    let copy = Matrix::new(&values, matrix.rows(), matrix.columns());
    with(if is_by_rows { copy } else { copy.transposed() })
}

vectorised! {
    fn copy_rows[E: Number, R: Number](matrix: Strided<&'a [E]>, _format: PhantomData<R>, out: &'a mut [f32]) -> () {
        if out.is_empty() {
            return;
        }
        for (index, out) in out.chunks_exact_mut(matrix.columns()).enumerate() {
            let from = &matrix.values[index * matrix.row_stride as usize..];
            if matrix.is_by_rows() {
                for (out, value) in out.iter_mut().zip(from) {
                    *out = R::nearest(value.wide()).wide();
                }
            } else {
                for (column, out) in out.iter_mut().enumerate() {
                    *out = R::nearest(from[column * matrix.column_stride as usize].wide()).wide();
                }
            }
        }
    }
}
