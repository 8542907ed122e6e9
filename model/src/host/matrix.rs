//! Matrices over slices, and their products.
//!
//! A product runs on one thread, in the `gemm` crate; whoever calls it cuts the work among threads, so that the cut, and with it every
//! sum, is the same on any machine with the same vector instructions.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// A matrix to be read, its numbers any distance apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
}

impl<'a> Matrix<'a> {
    /// Row by row.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns);
        Self {
            values,
            rows,
            columns,
            row_stride: columns as isize,
            column_stride: 1,
        }
    }

    /// With strides in numbers; none if an entry would lie outside of the slice.
    pub(super) fn with_strides(values: &'a [f32], shape: [usize; 2], strides: [isize; 2]) -> Option<Self> {
        let last = shape.iter().zip(strides).try_fold(0usize, |last, (size, stride)| {
            let stride = usize::try_from(stride).ok()?;
            last.checked_add(size.checked_sub(1)?.checked_mul(stride)?)
        })?;
        (last < values.len()).then_some(Self {
            values,
            rows: shape[0],
            columns: shape[1],
            row_stride: strides[0],
            column_stride: strides[1],
        })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Whether the numbers of a row lie side by side.
    pub(super) fn is_by_rows(&self) -> bool {
        self.column_stride == 1
    }

    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The transpose, row by row. A product that sums over the rows of a matrix is faster where they lie side by side.
    pub(super) fn to_transposed(self) -> Vec<f32> {
        /// Columns that a task turns into rows: a cache line of each row.
        const STRIP: usize = 16;
        let mut out = vec![0.0; self.rows * self.columns];
        if out.is_empty() {
            return out;
        }
        let (row_stride, column_stride) = (self.row_stride as usize, self.column_stride as usize);
        out.par_chunks_mut(self.rows * STRIP)
            .enumerate()
            .for_each(|(strip, out)| {
                for row in 0..self.rows {
                    let values = &self.values[row * row_stride..];
                    for (column, out) in (strip * STRIP..).zip(out.chunks_exact_mut(self.rows)) {
                        out[row] = values[column * column_stride];
                    }
                }
            });
        out
    }

    /// Some of the rows.
    pub(super) fn row_range(self, range: Range<usize>) -> Self {
        assert!(range.start < range.end && range.end <= self.rows);
        Self {
            values: &self.values[range.start * self.row_stride as usize..],
            rows: range.len(),
            ..self
        }
    }

    /// Some of the columns.
    pub(super) fn column_range(self, range: Range<usize>) -> Self {
        self.transposed().row_range(range).transposed()
    }
}

/// A matrix to be written: a block of a larger one, which other blocks share without overlapping.
#[derive(Debug)]
pub(super) struct MatrixMut<'a> {
    values: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is an exclusive borrow of its entries, as `&mut [f32]` is.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// Row by row.
    pub(super) fn new(values: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns);
        Self {
            values: values.as_mut_ptr(),
            rows,
            columns,
            row_stride: columns as isize,
            column_stride: 1,
            lifetime: PhantomData,
        }
    }

    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Blocks of `width` columns, the last one with what is left.
    pub(super) fn column_blocks(self, width: usize) -> Vec<Self> {
        let starts = (0..self.columns).step_by(width);
        starts
            .map(|start| Self {
                // SAFETY: the first entry of column `start`, which is one of the matrix's; no two blocks have a column in common.
                values: unsafe { self.values.offset(start as isize * self.column_stride) },
                columns: width.min(self.columns - start),
                ..self
            })
            .collect()
    }

    /// One row, whose numbers must lie side by side.
    pub(super) fn row(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.rows && self.column_stride == 1);
        // SAFETY: the row is within the matrix, whose entries this has to itself.
        unsafe { std::slice::from_raw_parts_mut(self.values.offset(index as isize * self.row_stride), self.columns) }
    }

    /// Some of the rows.
    pub(super) fn row_range(&mut self, range: Range<usize>) -> MatrixMut<'_> {
        assert!(range.start < range.end && range.end <= self.rows);
        MatrixMut {
            // SAFETY: the first entry of a row of the matrix.
            values: unsafe { self.values.offset(range.start as isize * self.row_stride) },
            rows: range.len(),
            lifetime: PhantomData,
            ..*self
        }
    }
}

/// What a product does with what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Into {
    /// Writes over it.
    Empty,
    /// Adds to it.
    Sum,
}

/// `out = a·b`, or `out += a·b`, on this thread.
pub(super) fn multiply(out: &mut MatrixMut<'_>, into: Into, a: Matrix<'_>, b: Matrix<'_>) {
    assert!(out.rows == a.rows && out.columns == b.columns && a.columns == b.rows);
    // SAFETY: the shapes fit, and both kinds of matrices hold all their entries: `Matrix` borrows them, `MatrixMut` has them to itself.
    unsafe {
        gemm::gemm(
            out.rows,
            out.columns,
            a.columns,
            out.values,
            out.column_stride,
            out.row_stride,
            into == Into::Sum,
            a.values.as_ptr(),
            a.column_stride,
            a.row_stride,
            b.values.as_ptr(),
            b.column_stride,
            b.row_stride,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Multiplications that are worth a thread.
const WORTH_A_THREAD: usize = 1 << 20;

/// `a·b`, row by row, on all threads: each has some of the rows.
pub(super) fn product(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    let (rows, columns) = (a.rows, b.columns);
    let mut out = vec![0.0; rows * columns];
    if out.is_empty() {
        return out;
    }
    let threads = (rows * columns * a.columns / WORTH_A_THREAD).clamp(1, rayon::current_num_threads());
    let strip = rows.div_ceil(threads);
    let one = |(index, out): (usize, &mut [f32])| {
        let start = index * strip;
        let length = out.len() / columns;
        let mut out = MatrixMut::new(out, length, columns);
        multiply(&mut out, Into::Empty, a.row_range(start..start + length), b);
    };
    if threads == 1 {
        one((0, &mut out));
    } else {
        out.par_chunks_mut(strip * columns).enumerate().for_each(one);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn assert_close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} and {expected}");
        }
    }

    #[test]
    fn products_in_every_orientation() {
        for (rows, inner, columns) in [(1, 1, 1), (3, 5, 7), (70, 33, 41), (130, 128, 140)] {
            let (a, b) = (numbers(rows * inner), numbers(inner * columns));
            let expected = naive(&a, &b, rows, inner, columns);
            let a_turned = Matrix::new(&a, rows, inner).to_transposed();
            let b_turned = Matrix::new(&b, inner, columns).to_transposed();
            let by_rows = Matrix::new(&a, rows, inner);
            let by_columns = Matrix::new(&a_turned, inner, rows).transposed();
            for a in [by_rows, by_columns] {
                for b in [
                    Matrix::new(&b, inner, columns),
                    Matrix::new(&b_turned, columns, inner).transposed(),
                ] {
                    assert_close(&product(a, b), &expected);
                    // Into the columns of a larger matrix, twice.
                    let mut sum = vec![0.0; rows * columns];
                    for into in [Into::Empty, Into::Sum] {
                        let blocks = MatrixMut::new(&mut sum, rows, columns).column_blocks(3);
                        blocks.into_par_iter().enumerate().for_each(|(index, mut block)| {
                            let range = index * 3..index * 3 + block.columns;
                            multiply(&mut block, into, a, b.column_range(range));
                        });
                    }
                    let doubled: Vec<f64> = expected.iter().map(|value| 2.0 * value).collect();
                    assert_close(&sum, &doubled);
                }
            }
        }
    }

    /// However many threads there are, an entry is the same sum.
    #[test]
    fn a_product_does_not_depend_on_the_threads() {
        let (rows, inner, columns) = (203, 150, 170);
        let (a, b) = (numbers(rows * inner), numbers(inner * columns));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| product(Matrix::new(&a, rows, inner), Matrix::new(&b, inner, columns)))
        };
        let expected = on(1);
        for threads in [2, 3, 5] {
            assert!(on(threads) == expected, "{threads} threads");
        }
    }

    #[test]
    fn blocks_are_the_columns_they_say() {
        let mut values = vec![0.0; 12];
        for (index, mut block) in MatrixMut::new(&mut values, 3, 4)
            .column_blocks(3)
            .into_iter()
            .enumerate()
        {
            for row in 0..3 {
                block.row(row).fill((10 * index + row) as f32);
            }
        }
        assert_eq!(values, [0.0, 0.0, 0.0, 10.0, 1.0, 1.0, 1.0, 11.0, 2.0, 2.0, 2.0, 12.0]);
    }

    #[test]
    fn a_view_beyond_its_numbers_is_none() {
        let values = [0.0; 6];
        assert!(Matrix::with_strides(&values, [2, 3], [3, 1]).is_some());
        assert!(Matrix::with_strides(&values, [3, 2], [1, 3]).is_some());
        assert!(Matrix::with_strides(&values, [3, 3], [3, 1]).is_none());
        assert!(Matrix::with_strides(&values, [2, 3], [-3, 1]).is_none());
        assert!(Matrix::with_strides(&values, [usize::MAX, 3], [3, 1]).is_none());
    }
}
