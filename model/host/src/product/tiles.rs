//! Tiles: how the vector and matrix instructions of x86 processors that multiply bf16 take their operands.
//!
//! A step of a product is 32 terms of 32 rows and 32 columns of the result. In a row of the tiles of a block's rows stand the 32 terms of one
//! row's sums, in a row of the tiles of its columns two terms of 16 columns' sums, pair by pair.

use std::arch::x86_64::*;
use std::mem::{MaybeUninit, transmute};

use burn::tensor::bf16;

use crate::matrix::{Matrix, Store, Strided};
use crate::operand::Operand;

/// Rows of a tile, and f32 in one of them.
pub(super) const SIDE: usize = 16;
/// Rows and columns of a result that are computed at once: two by two tiles.
pub(super) const BLOCK: usize = 2 * SIDE;
/// Terms of a sum that a tile holds for each row or column of the result.
pub(super) const STEP: usize = 32;

/// A row of a tile: 16 f32, or 32 bf16.
pub(super) type Row = __m512i;
/// Tiles to be written.
pub(super) type Tiles = [MaybeUninit<Row>];
/// 16 rows of 16 numbers.
pub(super) type Square = [__m512; SIDE];

/// The numbers of a block, row by row.
#[repr(align(64))]
pub(super) struct Sums(pub(super) [MaybeUninit<f32>; BLOCK * BLOCK]);

/// Tiles of the 32 rows of a matrix from `first` on, rounded to bf16; 0 beyond its ends.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn put_rows(a: Operand<'_>, first: usize, tiles: &mut Tiles) {
    for (step, tiles) in tiles.chunks_exact_mut(BLOCK).enumerate() {
        for (half, tile) in tiles.chunks_exact_mut(SIDE).enumerate() {
            let (row, term) = (first + half * SIDE, step * STEP);
            if a.is_by_rows() {
                put_lines(a, row, term, tile);
            } else {
                put_turned(&pairs(a.transposed(), term, row), tile);
            }
        }
    }
}

/// Tiles of the 32 columns of a matrix from `first` on, rounded to bf16; 0 beyond its ends.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn put_columns(b: Operand<'_>, first: usize, tiles: &mut Tiles) {
    for (step, tiles) in tiles.chunks_exact_mut(BLOCK).enumerate() {
        for (half, tile) in tiles.chunks_exact_mut(SIDE).enumerate() {
            let (column, term) = (first + half * SIDE, step * STEP);
            if b.is_by_rows() {
                for (place, row) in tile.iter_mut().zip(pairs(b, term, column)) {
                    place.write(row);
                }
            } else {
                put_turned(&lines(b.transposed(), column, term), tile);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn put_lines(matrix: Operand<'_>, row: usize, column: usize, tile: &mut Tiles) {
    for (place, line) in tile.iter_mut().zip(lines(matrix, row, column)) {
        place.write(line);
    }
}

/// Pairs of numbers, each as one number of 32 bits, with rows for columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn put_turned(rows: &[Row; SIDE], tile: &mut Tiles) {
    // SAFETY: both are sixteen times 64 bytes, of which every pattern of bits is one.
    let turned = transpose(unsafe { transmute::<[Row; SIDE], Square>(*rows) });
    for (place, row) in tile.iter_mut().zip(turned) {
        place.write(_mm512_castps_si512(row));
    }
}

/// 32 numbers of each of 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn lines(matrix: Operand<'_>, row: usize, column: usize) -> [Row; SIDE] {
    let mut found = [_mm512_setzero_si512(); SIDE];
    match matrix {
        Operand::F32(matrix) => {
            if let Some((from, stride)) = whole_block(matrix, row, column, SIDE, STEP) {
                for (index, found) in found.iter_mut().enumerate() {
                    // SAFETY: the numbers are in the block.
                    let halves = unsafe {
                        let from = from.add(index * stride);
                        [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(SIDE))]
                    };
                    *found = rounded_pair(halves[0], halves[1]);
                }
                return found;
            }
            let (early, late) = (present(matrix, column), present(matrix, column + SIDE));
            for (index, found) in found.iter_mut().enumerate() {
                let row = row + index;
                *found = rounded_pair(load(matrix, row, column, early), load(matrix, row, column + SIDE, late));
            }
        }
        Operand::Bf16(matrix) => {
            if let Some((from, stride)) = whole_block(matrix, row, column, SIDE, STEP) {
                for (index, found) in found.iter_mut().enumerate() {
                    // SAFETY: the numbers are in the block.
                    *found = unsafe { _mm512_loadu_si512(from.add(index * stride).cast()) };
                }
                return found;
            }
            let rows = matrix.rows().saturating_sub(row).min(SIDE);
            let width = matrix.columns().saturating_sub(column).min(STEP);
            let mask = ((1u64 << width) - 1) as __mmask32;
            for (index, found) in found.iter_mut().enumerate().take(rows) {
                let from = matrix.row(row + index)[column.min(matrix.columns())..].as_ptr();
                // SAFETY: it reads `width` numbers, and so many there are.
                *found = unsafe { _mm512_maskz_loadu_epi16(mask, from.cast()) };
            }
        }
    }
    found
}

/// 16 numbers of each of 16 pairs of rows, the two of a pair side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pairs(matrix: Operand<'_>, row: usize, column: usize) -> [Row; SIDE] {
    #[rustfmt::skip]
    let order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0,
    );
    let mut found = [_mm512_setzero_si512(); SIDE];
    match matrix {
        Operand::F32(matrix) => {
            if let Some((from, stride)) = whole_block(matrix, row, column, 2 * SIDE, SIDE) {
                for (index, found) in found.iter_mut().enumerate() {
                    // SAFETY: the numbers are in the block.
                    let pair = unsafe {
                        let from = from.add(2 * index * stride);
                        [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(stride))]
                    };
                    *found = _mm512_permutexvar_epi16(order, rounded_pair(pair[0], pair[1]));
                }
                return found;
            }
            let mask = present(matrix, column);
            for (index, found) in found.iter_mut().enumerate() {
                let row = row + 2 * index;
                let both = rounded_pair(load(matrix, row, column, mask), load(matrix, row + 1, column, mask));
                *found = _mm512_permutexvar_epi16(order, both);
            }
        }
        Operand::Bf16(matrix) => {
            let width = matrix.columns().saturating_sub(column).min(SIDE);
            let mask = ((1u32 << width) - 1) as __mmask16;
            let block = whole_block(matrix, row, column, 2 * SIDE, SIDE);
            for (index, found) in found.iter_mut().enumerate() {
                let (upper, lower) = match block {
                    // SAFETY: the numbers are in the block.
                    Some((from, stride)) => unsafe {
                        let from = from.add(2 * index * stride);
                        (
                            _mm256_loadu_si256(from.cast()),
                            _mm256_loadu_si256(from.add(stride).cast()),
                        )
                    },
                    None => {
                        let row = row + 2 * index;
                        (
                            load_half(matrix, row, column, mask),
                            load_half(matrix, row + 1, column, mask),
                        )
                    }
                };
                let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(upper), lower);
                *found = _mm512_permutexvar_epi16(order, both);
            }
        }
    }
    found
}

/// Where a block of a matrix by rows begins, and how far apart its rows lie; none if some of it is beyond the ends.
#[inline]
fn whole_block<E>(
    matrix: Strided<&[E]>,
    row: usize,
    column: usize,
    rows: usize,
    columns: usize,
) -> Option<(*const E, usize)> {
    assert!(matrix.is_by_rows());
    let is_whole = row + rows <= matrix.rows() && column + columns <= matrix.columns();
    let stride = matrix.row_stride as usize;
    is_whole.then(|| {
        (
            matrix.values[row * stride + column..(row + rows - 1) * stride + column + columns].as_ptr(),
            stride,
        )
    })
}

/// Which of the 16 numbers from `column` on a row has.
#[inline]
fn present(matrix: Matrix<'_>, column: usize) -> __mmask16 {
    let width = matrix.columns().saturating_sub(column).min(SIDE);
    ((1u32 << width) - 1) as __mmask16
}

/// 16 numbers of a row, of which some are present; 0 beyond the last row.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(matrix: Matrix<'_>, row: usize, column: usize, present: __mmask16) -> __m512 {
    if row >= matrix.rows() {
        return _mm512_setzero_ps();
    }
    let from = matrix.row(row)[column.min(matrix.columns())..].as_ptr();
    // SAFETY: it reads the numbers that are present.
    unsafe { _mm512_maskz_loadu_ps(present, from) }
}

/// [`load`] of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_half(matrix: Strided<&[bf16]>, row: usize, column: usize, present: __mmask16) -> __m256i {
    if row >= matrix.rows() {
        return _mm256_setzero_si256();
    }
    let from = matrix.row(row)[column.min(matrix.columns())..].as_ptr();
    // SAFETY: it reads the numbers that are present.
    unsafe { _mm256_maskz_loadu_epi16(present, from.cast()) }
}

/// The first 16 numbers, then the last, rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded_pair(first: __m512, last: __m512) -> Row {
    // SAFETY: both are 64 bytes, of which every pattern of bits is one.
    unsafe { transmute::<__m512bh, Row>(_mm512_cvtne2ps_pbh(last, first)) }
}

/// Adds the products of a block's tiles to `sums`, or writes them there, in the vector units.
///
/// # Safety
/// The tiles have been written, and `sums` too if they are added to.
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(
    clippy::needless_range_loop,
    reason = "indices of a fixed number keep the sums in registers"
)]
pub(super) unsafe fn multiply_in_vectors(rows: &Tiles, columns: &Tiles, sums: &mut Sums, store: Store) {
    /// Rows of the result whose sums stay in registers.
    const ROWS: usize = 8;
    assert_eq!(rows.len(), columns.len());
    for first in (0..BLOCK).step_by(ROWS) {
        let mut found = [[_mm512_setzero_ps(); 2]; ROWS];
        let place = |row: usize, half: usize| (first + row) * BLOCK + half * SIDE;
        if store == Store::Add {
            for row in 0..ROWS {
                for half in 0..2 {
                    // SAFETY: the sums have been written, as the caller promises.
                    found[row][half] = unsafe { _mm512_load_ps(sums.0[place(row, half)..].as_ptr().cast()) };
                }
            }
        }
        for (rows, columns) in rows.chunks_exact(BLOCK).zip(columns.chunks_exact(BLOCK)) {
            // SAFETY: the tiles have been written, as the caller promises; a row of them is 16 pairs.
            let lines: [&[i32; SIDE]; ROWS] =
                std::array::from_fn(|row| unsafe { &*rows[first + row].as_ptr().cast::<[i32; SIDE]>() });
            for pair in 0..SIDE {
                // SAFETY: as above.
                let terms = unsafe { [columns[pair].assume_init(), columns[SIDE + pair].assume_init()] };
                for row in 0..ROWS {
                    let factor = _mm512_set1_epi32(lines[row][pair]);
                    for half in 0..2 {
                        // SAFETY: both are 64 bytes, of which every pattern of bits is one.
                        found[row][half] = unsafe {
                            _mm512_dpbf16_ps(
                                found[row][half],
                                transmute::<Row, __m512bh>(factor),
                                transmute::<Row, __m512bh>(terms[half]),
                            )
                        };
                    }
                }
            }
        }
        for row in 0..ROWS {
            for half in 0..2 {
                // SAFETY: a block has so many numbers.
                unsafe { _mm512_store_ps(sums.0[place(row, half)..].as_mut_ptr().cast(), found[row][half]) };
            }
        }
    }
}

/// 16 rows and columns of a matrix by rows; 0 beyond its ends.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn square(matrix: Matrix<'_>, row: usize, column: usize) -> Square {
    let mut square = [_mm512_setzero_ps(); SIDE];
    let width = matrix.columns().saturating_sub(column).min(SIDE);
    let present = ((1u32 << width) - 1) as __mmask16;
    for (index, numbers) in square.iter_mut().enumerate() {
        if row + index < matrix.rows() && width > 0 {
            let values = &matrix.row(row + index)[column..];
            // SAFETY: it reads `width` numbers, and so many there are.
            *numbers = unsafe { _mm512_maskz_loadu_ps(present, values.as_ptr()) };
        }
    }
    square
}

/// Rows for columns: in pairs of rows, then in fours, eights and all sixteen.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: Square) -> Square {
    let mut pairs = rows;
    for i in 0..SIDE / 2 {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = pairs;
    for i in (0..SIDE).step_by(4) {
        for j in 0..2 {
            let (a, b) = (_mm512_castps_pd(pairs[i + j]), _mm512_castps_pd(pairs[i + j + 2]));
            fours[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    let mut eights = fours;
    for i in [0, 1, 2, 3, 8, 9, 10, 11] {
        eights[i] = _mm512_shuffle_f32x4::<0x88>(fours[i], fours[i + 4]);
        eights[i + 4] = _mm512_shuffle_f32x4::<0xdd>(fours[i], fours[i + 4]);
    }
    let mut columns = eights;
    for i in 0..SIDE / 2 {
        columns[i] = _mm512_shuffle_f32x4::<0x88>(eights[i], eights[i + 8]);
        columns[i + 8] = _mm512_shuffle_f32x4::<0xdd>(eights[i], eights[i + 8]);
    }
    columns
}
