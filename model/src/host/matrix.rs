//! Matrices over slices, and their products.
//!
//! A product runs on one thread, in [`amx`] where the processor has such units and else in the `gemm` crate; whoever calls it cuts the work
//! among threads. An entry is the same sum however the work is cut.

use std::marker::PhantomData;
use std::ops::Range;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::memory::{Blank, assume_written};
use super::vector::vectorised;

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

    /// One row, whose numbers must lie side by side.
    #[inline(always)]
    pub(super) fn row(&self, index: usize) -> &'a [f32] {
        assert!(index < self.rows && self.column_stride == 1);
        &self.values[index * self.row_stride as usize..][..self.columns]
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

    /// Numbers that the transpose takes in [`transpose_into`](Self::transpose_into). Its rows are an odd number of cache lines apart: a power
    /// of two would put them all into the same places of a cache.
    pub(super) fn room_of_transpose(rows: usize, columns: usize) -> usize {
        Self::stride_of_transpose(rows) * columns
    }

    fn stride_of_transpose(rows: usize) -> usize {
        rows.next_multiple_of(16) | 16
    }

    /// The transpose of a small matrix, with the numbers of its rows side by side, for several products: those of so few columns are faster
    /// then.
    ///
    /// # Panics
    /// Unless the numbers of a row lie side by side now.
    pub(super) fn transpose_into(self, out: &mut Blank) -> Matrix<'_> {
        assert!(self.is_by_rows());
        let stride = Self::stride_of_transpose(self.rows);
        let out = &mut out[..stride * self.columns];
        let blocks = MatrixMut::blank(out, self.columns, stride).column_blocks(STRIP);
        for (index, block) in blocks.into_iter().enumerate() {
            transpose(self, index * STRIP, block);
        }
        Matrix {
            // SAFETY: the strips are all rows, the last one to the end of the stride.
            values: unsafe { assume_written(out) },
            rows: self.columns,
            columns: self.rows,
            row_stride: stride as isize,
            column_stride: 1,
        }
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

    /// Row by row, the numbers yet to be written: by a product [`Into::Empty`], before anything reads them.
    pub(super) fn blank(values: &'a mut Blank, rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns);
        Self {
            values: values.as_mut_ptr().cast(),
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
        let columns = self.columns;
        self.split_columns((0..columns).step_by(width).map(|start| width.min(columns - start)))
    }

    /// Blocks of `height` rows, the last one with what is left.
    pub(super) fn row_blocks(self, height: usize) -> Vec<Self> {
        let turned = self.transposed().column_blocks(height);
        turned.into_iter().map(Self::transposed).collect()
    }

    /// Blocks of so many columns, from the first on.
    pub(super) fn split_columns(self, widths: impl Iterator<Item = usize>) -> Vec<Self> {
        let mut start = 0;
        widths
            .map(|columns| {
                let first = start;
                start += columns;
                assert!(start <= self.columns);
                Self {
                    // SAFETY: the first entry of column `first`, which is one of the matrix's; no two blocks have a column in common.
                    values: unsafe { self.values.offset(first as isize * self.column_stride) },
                    columns,
                    ..self
                }
            })
            .collect()
    }

    /// Some of the columns.
    pub(super) fn column_range(&mut self, range: Range<usize>) -> MatrixMut<'_> {
        self.block(0..self.rows, range)
    }

    /// Some of the rows.
    pub(super) fn row_range(&mut self, range: Range<usize>) -> MatrixMut<'_> {
        self.block(range, 0..self.columns)
    }

    /// Some of the rows and columns.
    pub(super) fn block(&mut self, rows: Range<usize>, columns: Range<usize>) -> MatrixMut<'_> {
        assert!(rows.start < rows.end && rows.end <= self.rows);
        assert!(columns.start < columns.end && columns.end <= self.columns);
        let first = rows.start as isize * self.row_stride + columns.start as isize * self.column_stride;
        MatrixMut {
            // SAFETY: the first entry of the block, which is one of the matrix's.
            values: unsafe { self.values.offset(first) },
            rows: rows.len(),
            columns: columns.len(),
            lifetime: PhantomData,
            ..*self
        }
    }

    /// Writes some numbers of a row, which must lie side by side.
    #[inline(always)]
    pub(super) fn put(&mut self, row: usize, column: usize, numbers: &[f32]) {
        assert!(row < self.rows && column + numbers.len() <= self.columns && self.column_stride == 1);
        // SAFETY: the numbers are within the matrix, whose entries this has to itself.
        unsafe {
            let to = self.values.offset(row as isize * self.row_stride).add(column);
            std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, numbers.len());
        }
    }

    /// Writes zeros; the numbers of a row must lie side by side.
    pub(super) fn zero(&mut self) {
        assert_eq!(self.column_stride, 1);
        for index in 0..self.rows {
            // SAFETY: the row is within the matrix, whose entries this has to itself, and a number of zero bits is 0.
            unsafe { std::ptr::write_bytes(self.values.offset(index as isize * self.row_stride), 0, self.columns) };
        }
    }

    /// One row, whose numbers must lie side by side.
    #[inline(always)]
    pub(super) fn row(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.rows && self.column_stride == 1);
        // SAFETY: the row is within the matrix, whose entries this has to itself.
        unsafe { std::slice::from_raw_parts_mut(self.values.offset(index as isize * self.row_stride), self.columns) }
    }
}

/// What only [`amx`] asks of a matrix.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl MatrixMut<'_> {
    /// Whether the numbers of a row lie side by side.
    pub(super) fn is_by_rows(&self) -> bool {
        self.column_stride == 1
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

/// `out = a·b`, or `out += a·b`, on this thread, by the fastest units that the processor has. An entry is the same sum whatever other entries
/// are computed with it, unless it stands in the only row or the only column of a product in the vector units.
pub(super) fn multiply(out: &mut MatrixMut<'_>, into: Into, a: Matrix<'_>, b: Matrix<'_>) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if amx::multiplies(a, b) {
        assert!(out.rows == a.rows && out.columns == b.columns && a.columns == b.rows);
        return amx::multiply(out, into, a, b);
    }
    multiply_in_vectors(out, into, a, b);
}

/// [`multiply`] by the vector units, which have less to prepare: for products of a hundred rows or columns, and for processors without others.
pub(super) fn multiply_in_vectors(out: &mut MatrixMut<'_>, into: Into, a: Matrix<'_>, b: Matrix<'_>) {
    /// Most columns of `a` that `gemm` takes at once whatever the size of the result. More than those it cuts as that size suggests.
    const DEPTH: usize = 512;
    /// Most entries of a result that `gemm` sums in another order if the numbers of a row of `a` and those of a column of `b` lie side by
    /// side.
    const FEW: usize = 256;
    assert!(out.rows == a.rows && out.columns == b.columns && a.columns == b.rows);
    if a.columns > DEPTH {
        let piece = a.columns.div_ceil(a.columns.div_ceil(DEPTH));
        return in_pieces(into, a, b, piece, |into, a, b| multiply_in_vectors(out, into, a, b));
    }
    if out.rows * out.columns <= FEW && a.column_stride == 1 && b.row_stride == 1 && b.column_stride != 1 {
        let columns = b.transposed();
        let numbers = (0..b.rows).flat_map(|row| (0..b.columns).map(move |column| columns.row(column)[row]));
        let numbers: Vec<_> = numbers.collect();
        return multiply_in_vectors(out, into, a, Matrix::new(&numbers, b.rows, b.columns));
    }
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

/// [`multiply`] whose sums are made of those of `piece` columns of `a` each, added in their order.
///
/// Where a piece is a sequence, the gradient of a weight is the same sum however the sequences are cut into micro-batches.
pub(super) fn multiply_in_pieces(out: &mut MatrixMut<'_>, into: Into, a: Matrix<'_>, b: Matrix<'_>, piece: usize) {
    in_pieces(into, a, b, piece, |into, a, b| multiply(out, into, a, b));
}

/// Multiplies `piece` columns of `a` after the other.
fn in_pieces(
    into: Into,
    a: Matrix<'_>,
    b: Matrix<'_>,
    piece: usize,
    mut one: impl FnMut(Into, Matrix<'_>, Matrix<'_>),
) {
    if a.columns <= piece {
        return one(into, a, b);
    }
    for start in (0..a.columns).step_by(piece) {
        let range = start..(start + piece).min(a.columns);
        let into = if start == 0 { into } else { Into::Sum };
        one(into, a.column_range(range.clone()), b.row_range(range));
    }
}

/// The number of threads that so many multiplications are worth.
pub(super) fn threads_for(multiplications: usize) -> usize {
    (multiplications >> 20).clamp(1, rayon::current_num_threads())
}

/// Rows that are turned into columns together: whole cache lines of the result, from rows that are read once from end to end.
const STRIP: usize = 64;

vectorised! {
    /// The rows of a matrix from `first` on as the columns of `out`, as many as it has; those beyond the last row are 0.
    fn transpose(matrix: Matrix<'a>, first: usize, out: MatrixMut<'a>) -> () {
        /// Side of a tile.
        const SIDE: usize = 8;
        let mut out = out;
        let rows = out.columns.min(matrix.rows - matrix.rows.min(first));
        let (whole_rows, whole_columns) = (rows / SIDE * SIDE, matrix.columns / SIDE * SIDE);
        let stride = matrix.row_stride as usize;
        let values = &matrix.values[first.min(matrix.rows - 1) * stride..];
        for row in (0..whole_rows).step_by(SIDE) {
            for column in (0..whole_columns).step_by(SIDE) {
                let mut tile = [[0.0; SIDE]; SIDE];
                for i in 0..SIDE {
                    let from = (row + i) * stride + column;
                    tile[i].copy_from_slice(&values[from..from + SIDE]);
                }
                for i in 0..SIDE {
                    let mut turned = [0.0; SIDE];
                    for j in 0..SIDE {
                        turned[j] = tile[j][i];
                    }
                    out.put(column + i, row, &turned);
                }
            }
            for column in whole_columns..matrix.columns {
                for i in row..row + SIDE {
                    out.put(column, i, &[values[i * stride + column]]);
                }
            }
        }
        for column in 0..matrix.columns {
            for row in whole_rows..rows {
                out.put(column, row, &[values[row * stride + column]]);
            }
            for row in rows..out.columns {
                out.put(column, row, &[0.0]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::scratch;
    use super::*;
    use rayon::prelude::*;

    fn room(rows: usize, columns: usize) -> usize {
        Matrix::room_of_transpose(rows, columns)
    }

    impl Matrix<'_> {
        fn entry(&self, row: usize, column: usize) -> f32 {
            self.values[row * self.row_stride as usize + column * self.column_stride as usize]
        }
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

    type Multiply = fn(&mut MatrixMut<'_>, Into, Matrix<'_>, Matrix<'_>);

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
                        for (into, times) in [(Into::Empty, 1.0), (Into::Sum, 2.0)] {
                            let out = match is_by_rows {
                                true => MatrixMut::new(&mut sum, rows, columns),
                                false => MatrixMut::new(&mut sum, columns, rows).transposed(),
                            };
                            let blocks = out.column_blocks(3);
                            blocks.into_par_iter().enumerate().for_each(|(index, mut block)| {
                                let range = index * 3..index * 3 + block.columns;
                                multiply(&mut block, into, a, b.column_range(range));
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
                    multiply(&mut MatrixMut::new(&mut out, rows, columns), Into::Empty, a, b);
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

    #[test]
    fn a_transpose_has_rows_for_columns() {
        for (rows, columns) in [(1, 1), (3, 40), (8, 16), (9, 17), (40, 3), (100, 50)] {
            let values = numbers(rows * columns);
            // A part of a wider matrix.
            let width = columns.div_ceil(2);
            let matrix = Matrix::new(&values, rows, columns).column_range(columns - width..columns);
            let mut room = scratch(room(rows, width));
            let turned = matrix.transpose_into(&mut room);
            for row in 0..rows {
                for column in 0..width {
                    let expected = values[row * columns + columns - width + column];
                    assert_eq!(turned.entry(column, row), expected);
                }
            }
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
