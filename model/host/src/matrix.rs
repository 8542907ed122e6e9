//! Matrices over slices: one to be read, and one to be written, a block of which can go to each thread.

use std::marker::PhantomData;
use std::ops::Range;

use crate::memory::{Blank, assume_written};
use crate::vector::vectorised;

/// A matrix whose numbers lie any distance apart.
#[derive(Clone, Copy, Debug)]
pub struct Strided<V> {
    pub(crate) values: V,
    rows: usize,
    columns: usize,
    pub(crate) row_stride: isize,
    pub(crate) column_stride: isize,
}

impl<V> Strided<V> {
    fn by_rows(values: V, rows: usize, columns: usize) -> Self {
        Self {
            values,
            rows,
            columns,
            row_stride: columns as isize,
            column_stride: 1,
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Whether the numbers of a row lie side by side.
    pub(crate) fn is_by_rows(&self) -> bool {
        self.column_stride == 1
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// A matrix to be read.
pub type Matrix<'a> = Strided<&'a [f32]>;

impl<'a, E> Strided<&'a [E]> {
    /// Row by row.
    ///
    /// # Panics
    /// Unless there are `rows · columns` numbers.
    pub fn new(values: &'a [E], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns);
        Self::by_rows(values, rows, columns)
    }

    /// A matrix of `shape` (rows, columns) whose first entry is the first number of `values` and whose rows and columns lie `strides`
    /// numbers apart; none if it has no entry, a stride is negative, or an entry would lie outside of the slice.
    pub fn with_strides(values: &'a [E], shape: [usize; 2], strides: [isize; 2]) -> Option<Self> {
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

    /// One row, whose numbers must lie side by side.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> &'a [E] {
        assert!(index < self.rows && self.column_stride == 1);
        &self.values[index * self.row_stride as usize..][..self.columns]
    }

    /// Some of the rows.
    pub(crate) fn row_range(self, range: Range<usize>) -> Self {
        assert!(range.start < range.end && range.end <= self.rows);
        Self {
            values: &self.values[range.start * self.row_stride as usize..],
            rows: range.len(),
            ..self
        }
    }

    /// Some of the columns.
    pub(crate) fn column_range(self, range: Range<usize>) -> Self {
        self.transposed().row_range(range).transposed()
    }
}

impl<'a> Matrix<'a> {
    /// Numbers that the transpose takes in [`transpose_into`](Self::transpose_into). Its rows are an odd number of cache lines apart: a power
    /// of two would put them all into the same places of a cache.
    pub(crate) fn room_of_transpose(rows: usize, columns: usize) -> usize {
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
    pub(crate) fn transpose_into(self, out: &mut Blank) -> Matrix<'_> {
        assert!(self.is_by_rows());
        let stride = Self::stride_of_transpose(self.rows);
        let out = &mut out[..stride * self.columns];
        // SAFETY: `transpose` puts every entry of its block and reads none.
        let blocks = unsafe { MatrixMut::blank(out, self.columns, stride) }.column_blocks(STRIP);
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
}

/// A matrix to be written: a block of a larger one, which other blocks share without overlapping.
pub(crate) type MatrixMut<'a, E = f32> = Strided<Entries<'a, E>>;

/// Where the first entry of a matrix to be written lies, all of whose entries it borrows exclusively.
#[derive(Debug)]
pub(crate) struct Entries<'a, E = f32> {
    pub(crate) first: *mut E,
    lifetime: PhantomData<&'a mut [E]>,
}

// SAFETY: it is an exclusive borrow of its entries, as `&mut [E]` is.
unsafe impl<E: Send> Send for Entries<'_, E> {}

impl<E> Entries<'_, E> {
    fn at(first: *mut E) -> Self {
        Self {
            first,
            lifetime: PhantomData,
        }
    }
}

impl<'a, E: Copy> MatrixMut<'a, E> {
    /// Row by row.
    pub(crate) fn new(values: &'a mut [E], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns);
        Self::by_rows(Entries::at(values.as_mut_ptr()), rows, columns)
    }

    /// Row by row, the numbers yet to be written.
    ///
    /// # Safety
    /// Each entry is written by a product that [overwrites](Store::Overwrite) or by [`put`](Self::put) before anything reads it: [`row`](Self::row), or a product that [adds](Store::Add).
    pub(crate) unsafe fn blank(values: &'a mut Blank<E>, rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns);
        Self::by_rows(Entries::at(values.as_mut_ptr().cast()), rows, columns)
    }

    /// Blocks of `width` columns, the last one with what is left.
    pub(crate) fn column_blocks(self, width: usize) -> Vec<Self> {
        let columns = self.columns;
        self.split_columns((0..columns).step_by(width).map(|start| width.min(columns - start)))
    }

    /// Blocks of `height` rows, the last one with what is left.
    pub(crate) fn row_blocks(self, height: usize) -> Vec<Self> {
        let turned = self.transposed().column_blocks(height);
        turned.into_iter().map(Self::transposed).collect()
    }

    /// Blocks of so many columns, from the first on.
    pub(crate) fn split_columns(self, widths: impl Iterator<Item = usize>) -> Vec<Self> {
        let mut start = 0;
        widths
            .map(|columns| {
                let first = start;
                start += columns;
                assert!(start <= self.columns);
                Self {
                    // SAFETY: the first entry of column `first`, which is one of the matrix's; no two blocks have a column in common.
                    values: Entries::at(unsafe { self.values.first.offset(first as isize * self.column_stride) }),
                    columns,
                    ..self
                }
            })
            .collect()
    }

    /// Some of the columns.
    pub(crate) fn column_range(&mut self, range: Range<usize>) -> MatrixMut<'_, E> {
        self.block(0..self.rows, range)
    }

    /// Some of the rows.
    pub(crate) fn row_range(&mut self, range: Range<usize>) -> MatrixMut<'_, E> {
        self.block(range, 0..self.columns)
    }

    /// Some of the rows and columns.
    pub(crate) fn block(&mut self, rows: Range<usize>, columns: Range<usize>) -> MatrixMut<'_, E> {
        assert!(rows.start < rows.end && rows.end <= self.rows);
        assert!(columns.start < columns.end && columns.end <= self.columns);
        let first = rows.start as isize * self.row_stride + columns.start as isize * self.column_stride;
        MatrixMut {
            // SAFETY: the first entry of the block, which is one of the matrix's.
            values: Entries::at(unsafe { self.values.first.offset(first) }),
            rows: rows.len(),
            columns: columns.len(),
            ..*self
        }
    }

    /// Writes some numbers of a row, which must lie side by side.
    #[inline(always)]
    pub(crate) fn put(&mut self, row: usize, column: usize, numbers: &[E]) {
        assert!(row < self.rows && column + numbers.len() <= self.columns && self.column_stride == 1);
        // SAFETY: the numbers are within the matrix, whose entries this has to itself.
        unsafe {
            let to = self.values.first.offset(row as isize * self.row_stride).add(column);
            std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, numbers.len());
        }
    }

    /// One number, which has been written.
    pub(crate) fn entry(&self, row: usize, column: usize) -> E {
        // SAFETY: it is within the matrix, whose entries this has to itself.
        unsafe { *self.place(row, column) }
    }

    /// Writes one number.
    pub(crate) fn put_entry(&mut self, row: usize, column: usize, number: E) {
        // SAFETY: it is within the matrix, whose entries this has to itself.
        unsafe { *self.place(row, column) = number };
    }

    fn place(&self, row: usize, column: usize) -> *mut E {
        assert!(row < self.rows && column < self.columns);
        // SAFETY: the entry is within the matrix.
        unsafe {
            self.values
                .first
                .offset(row as isize * self.row_stride + column as isize * self.column_stride)
        }
    }

    /// One row, whose numbers must lie side by side.
    #[inline(always)]
    pub(crate) fn row(&mut self, index: usize) -> &mut [E] {
        assert!(index < self.rows && self.column_stride == 1);
        // SAFETY: the row is within the matrix, whose entries this has to itself.
        unsafe {
            std::slice::from_raw_parts_mut(self.values.first.offset(index as isize * self.row_stride), self.columns)
        }
    }
}

/// How a result is stored where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// It replaces the numbers that are there, which are never read.
    Overwrite,
    /// It is added to the numbers that are there.
    Add,
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
    use super::*;
    use crate::memory::scratch;

    impl Matrix<'_> {
        fn entry(&self, row: usize, column: usize) -> f32 {
            self.values[row * self.row_stride as usize + column * self.column_stride as usize]
        }
    }

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
    }

    #[test]
    fn a_transpose_has_rows_for_columns() {
        for (rows, columns) in [(1, 1), (3, 40), (8, 16), (9, 17), (40, 3), (100, 50)] {
            let values = numbers(rows * columns);
            // A part of a wider matrix.
            let width = columns.div_ceil(2);
            let matrix = Matrix::new(&values, rows, columns).column_range(columns - width..columns);
            let mut room = scratch(Matrix::room_of_transpose(rows, width));
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
