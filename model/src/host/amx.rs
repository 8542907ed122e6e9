//! Products on the matrix units of x86 processors (AMX), which multiply bf16 and add up in f32, sixteen times as fast as the vector units
//! multiply f32.
//!
//! A number of 24 bits is the sum of three of 8 bits each, exactly: `x = x₀ + x₁ + x₂` with `x₀ = bf16(x)`, `x₁ = bf16(x − x₀)` and
//! `x₂ = x − x₀ − x₁` (arXiv 1904.06376). Of the nine products of the parts of two numbers six are made,
//!
//! ```text
//! x·y ≈ (x₀y₂ + x₀y₁ + x₁y₁ + x₁y₀ + x₂y₀) + x₀y₀
//! ```
//!
//! and those left out are at most 2⁻²⁴ of `x·y`, the half of an f32's last bit. The small ones of [`PIECE_STEPS`] · 32 terms are added up before
//! the large ones, so that a sum is rounded no more often at its full size than one of f32: the result is as exact (a test compares them).
//!
//! What differs from f32: an infinity makes NaN of what it meets; numbers above 3.39e38 count as infinite; those below 1e-33 lose their last
//! bits, and those below 1e-38 are 0.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::matrix::{Into, Matrix, MatrixMut};

/// Rows of a tile, and f32 in one of them.
const SIDE: usize = 16;
/// Rows and columns of a result that are computed at once: two by two tiles.
const BLOCK: usize = 2 * SIDE;
/// Terms of a sum that a tile of parts holds for each row or column of the result.
const STEP: usize = 32;
/// The parts of a number.
const PARTS: usize = 3;
/// Rows of the tiles for a step of a block: of each part, those of the two tiles.
const STEP_ROWS: usize = PARTS * BLOCK;
/// Steps that are summed before they are added to the result: their tiles, of a block's rows and of its columns, stay in a core's first cache
/// together.
const PIECE_STEPS: usize = 4;
/// Most terms for which the tiles of a block's rows are made at once.
const SECTION: usize = 512;
/// Bytes of the tiles of columns that stay in a core's second cache.
const CACHE: usize = 1 << 20;

/// A row of a tile: 16 f32, or 32 bf16.
type Row = __m512i;
/// Tiles to be written.
type Tiles = [MaybeUninit<Row>];
/// 16 rows of 16 numbers.
type Square = [__m512; SIDE];

/// Whether the processor has such units and the system lets this process use them.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        if !is_x86_feature_detected!("avx512f") || !is_x86_feature_detected!("avx512bf16") {
            return false;
        }
        #[allow(unused_unsafe, reason = "a safe function from some version of Rust on")]
        // SAFETY: every processor of 64 bits has the instruction, and one with AVX-512 these pages of it.
        let features = unsafe { __cpuid_count(7, 0) }.edx;
        features & AMX_BF16 != 0 && features & AMX_TILE != 0 && is_permitted()
    })
}

/// Asks the system for the units: their registers are large, and it keeps no room for them unless it is asked.
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call has no pointers, and only allows this process to use registers that it otherwise must not touch.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Whether [`multiply`] reads such a matrix: its rows or its columns lie number beside number.
pub(super) fn reads(matrix: Matrix<'_>) -> bool {
    matrix.is_by_rows() || matrix.transposed().is_by_rows()
}

/// `out = a·b`, or `out += a·b`, on this thread. An entry is the same sum whatever other entries are computed with it.
///
/// # Panics
/// Unless the units are available, the shapes fit, there is at least one term, and the matrices can be read.
pub(super) fn multiply(out: &mut MatrixMut<'_>, into: Into, a: Matrix<'_>, b: Matrix<'_>) {
    assert!(is_available() && reads(a) && reads(b));
    assert!(out.rows() == a.rows() && out.columns() == b.columns() && a.columns() == b.rows() && b.rows() > 0);
    if !out.is_by_rows() {
        let mut turned = out.block(0..a.rows(), 0..b.columns()).transposed();
        return multiply(&mut turned, into, b.transposed(), a.transposed());
    }
    let terms = a.columns();
    let section = terms.div_ceil(terms.div_ceil(SECTION)).next_multiple_of(STEP);
    for start in (0..terms).step_by(section) {
        let range = start..(start + section).min(terms);
        let into = if start == 0 { into } else { Into::Sum };
        // SAFETY: the processor has the vectors and the units, as was asserted.
        unsafe { multiply_section(out, into, a.column_range(range.clone()), b.row_range(range)) };
    }
}

/// [`multiply`] of at most [`SECTION`] terms into a matrix by rows.
///
/// # Safety
/// The process may use the units.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply_section(out: &mut MatrixMut<'_>, into: Into, a: Matrix<'_>, b: Matrix<'_>) {
    let (rows, columns) = (out.rows(), out.columns());
    let steps = a.columns().div_ceil(STEP);
    let block_rows = steps * STEP_ROWS;
    let blocks = columns.div_ceil(BLOCK);
    let most = (CACHE / (block_rows * size_of::<Row>())).max(1);
    let width = blocks.div_ceil(blocks.div_ceil(most)) * BLOCK;
    let mut tiles = vec![MaybeUninit::uninit(); block_rows * (1 + width / BLOCK)];
    let (left, right) = tiles.split_at_mut(block_rows);
    let mut result = [MaybeUninit::<Row>::uninit(); BLOCK * BLOCK / SIDE];

    configure();
    for first_column in (0..columns).step_by(width) {
        let end = (first_column + width).min(columns);
        let starts = (first_column..end).step_by(BLOCK);
        for (start, tiles) in starts.clone().zip(right.chunks_exact_mut(block_rows)) {
            put_columns(b, start, tiles);
        }
        for row in (0..rows).step_by(BLOCK) {
            put_rows(a, row, left);
            let row_range = row..(row + BLOCK).min(rows);
            for step in (0..steps).step_by(PIECE_STEPS) {
                let piece = step * STEP_ROWS..(step + PIECE_STEPS).min(steps) * STEP_ROWS;
                let into = if step == 0 { into } else { Into::Sum };
                for (start, right) in starts.clone().zip(right.chunks_exact(block_rows)) {
                    let mut out = out.block(row_range.clone(), start..(start + BLOCK).min(end));
                    // SAFETY: the tiles of all steps were written above, and the units are configured. A whole block has room for a
                    // result.
                    unsafe {
                        let (left, right) = (&left[piece.clone()], &right[piece.clone()]);
                        if into == Into::Empty && out.rows() == BLOCK && out.columns() == BLOCK {
                            multiply_tiles(left, right, out.as_mut_ptr(), out.row_stride());
                            continue;
                        }
                        multiply_tiles(left, right, result.as_mut_ptr().cast(), BLOCK);
                    }
                    if into == Into::Empty {
                        out.zero();
                    }
                    // SAFETY: written just now, and of `Row`s as well as of `f32`s every pattern of bits is one.
                    let result: &[f32; BLOCK * BLOCK] = unsafe { &*result.as_ptr().cast() };
                    for (index, result) in result.chunks_exact(BLOCK).take(out.rows()).enumerate() {
                        for (out, value) in out.row(index).iter_mut().zip(result) {
                            *out += value;
                        }
                    }
                }
            }
        }
    }
    release();
}

/// What the units are told of their eight registers (Intel's manual, volume 1, 18.2).
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Registers of 16 rows of 64 bytes.
#[inline]
fn configure() {
    let registers = |count: usize| std::array::from_fn(|index| usize::from(index < 8) * count);
    let configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: registers(size_of::<Row>()).map(|bytes| bytes as u16),
        rows: registers(SIDE).map(|rows| rows as u8),
    };
    // SAFETY: it reads the configuration; compiled code uses none of the registers.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly)) };
}

/// Gives the registers back, so that the system need not keep them when another thread runs.
#[inline]
fn release() {
    // SAFETY: compiled code uses none of the registers.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// The products of a block's tiles, of at most [`PIECE_STEPS`]: first the small ones of all steps, then the large ones.
///
/// Registers 0 to 3 hold the result, 4 and 5 a part of the rows, 6 and 7 a part of the columns.
///
/// # Safety
/// The tiles have been written, the units are configured, and `out` is 32 rows of 32 numbers, `stride` apart.
#[inline]
unsafe fn multiply_tiles(left: &Tiles, right: &Tiles, out: *mut f32, stride: usize) {
    macro_rules! rows {
        ($part:literal) => {
            concat!(
                "tileloadd tmm4, [{left} + {line} + 2048 * ",
                $part,
                "]\n",
                "tileloadd tmm5, [{left} + {line} + 2048 * ",
                $part,
                " + 1024]\n",
            )
        };
    }
    macro_rules! columns {
        ($part:literal) => {
            concat!(
                "tileloadd tmm6, [{right} + {line} + 2048 * ",
                $part,
                "]\n",
                "tileloadd tmm7, [{right} + {line} + 2048 * ",
                $part,
                " + 1024]\n",
            )
        };
    }
    macro_rules! products {
        () => {
            "tdpbf16ps tmm0, tmm4, tmm6\n tdpbf16ps tmm1, tmm4, tmm7\n tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7\n"
        };
    }
    const BYTES: usize = STEP_ROWS * size_of::<Row>();
    let steps = left.len() / STEP_ROWS;
    assert!(left.len() == right.len() && steps > 0);
    // SAFETY: it reads the tiles of `steps` steps on either side, and writes the 32 by 32 numbers; compiled code uses none of the registers.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            rows!(0), columns!(2), products!(),
            columns!(1), products!(),
            rows!(1), products!(),
            columns!(0), products!(),
            rows!(2), products!(),
            "add {left}, {bytes}", "add {right}, {bytes}", "dec {steps}", "jnz 2b",
            "mov {left}, {left_start}", "mov {right}, {right_start}", "mov {steps}, {count}",
            "3:",
            rows!(0), columns!(0), products!(),
            "add {left}, {bytes}", "add {right}, {bytes}", "dec {steps}", "jnz 3b",
            "tilestored [{upper} + {stride}], tmm0", "tilestored [{upper} + {stride} + 64], tmm1",
            "tilestored [{lower} + {stride}], tmm2", "tilestored [{lower} + {stride} + 64], tmm3",
            left = inout(reg) left.as_ptr() => _,
            right = inout(reg) right.as_ptr() => _,
            steps = inout(reg) steps => _,
            left_start = in(reg) left.as_ptr(),
            right_start = in(reg) right.as_ptr(),
            count = in(reg) steps,
            line = in(reg) size_of::<Row>(),
            upper = in(reg) out,
            lower = in(reg) out.add(SIDE * stride),
            stride = in(reg) stride * size_of::<f32>(),
            bytes = const BYTES,
            options(nostack),
        );
    }
}

/// Tiles of the 32 rows of a matrix from `first` on: in each row of a tile 32 terms of a row's sums.
#[target_feature(enable = "avx512f,avx512bf16")]
fn put_rows(a: Matrix<'_>, first: usize, tiles: &mut Tiles) {
    for (step, tiles) in tiles.chunks_exact_mut(STEP_ROWS).enumerate() {
        for half in 0..2 {
            let (row, term) = (first + half * SIDE, step * STEP);
            let terms = if a.is_by_rows() {
                [square(a, row, term), square(a, row, term + SIDE)]
            } else {
                let a = a.transposed();
                [transpose(square(a, term, row)), transpose(square(a, term + SIDE, row))]
            };
            for index in 0..SIDE {
                let parts = split(terms[0][index], terms[1][index]);
                for (part, row) in parts.into_iter().enumerate() {
                    tiles[part * BLOCK + half * SIDE + index].write(row);
                }
            }
        }
    }
}

/// Tiles of the 32 columns of a matrix from `first` on: in each row of a tile two terms of 16 columns' sums, side by side.
#[target_feature(enable = "avx512f,avx512bf16")]
fn put_columns(b: Matrix<'_>, first: usize, tiles: &mut Tiles) {
    for (step, tiles) in tiles.chunks_exact_mut(STEP_ROWS).enumerate() {
        for half in 0..2 {
            let (term, column) = (step * STEP, first + half * SIDE);
            let terms = if b.is_by_rows() {
                [square(b, term, column), square(b, term + SIDE, column)]
            } else {
                let b = b.transposed();
                [
                    transpose(square(b, column, term)),
                    transpose(square(b, column, term + SIDE)),
                ]
            };
            for index in 0..SIDE {
                let pair = &terms[index / (SIDE / 2)][2 * index % SIDE..][..2];
                let parts = split_pairs(pair[0], pair[1]);
                for (part, row) in parts.into_iter().enumerate() {
                    tiles[part * BLOCK + half * SIDE + index].write(row);
                }
            }
        }
    }
}

/// 16 rows and columns of a matrix by rows; 0 beyond its ends.
#[inline]
#[target_feature(enable = "avx512f")]
fn square(matrix: Matrix<'_>, row: usize, column: usize) -> Square {
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

/// The parts of 32 numbers in their order.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn split(mut first: __m512, mut last: __m512) -> [Row; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        *part = bits(_mm512_cvtne2ps_pbh(last, first));
        first = _mm512_sub_ps(first, widened(_mm512_castsi512_si256(*part)));
        last = _mm512_sub_ps(last, widened(_mm512_extracti64x4_epi64::<1>(*part)));
    }
    parts
}

/// The parts of 16 pairs of numbers, the two of a pair side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn split_pairs(mut first: __m512, mut second: __m512) -> [Row; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        let (low, high) = (widened(half_bits(first)), widened(half_bits(second)));
        *part = _mm512_or_si512(
            _mm512_srli_epi32::<16>(_mm512_castps_si512(low)),
            _mm512_castps_si512(high),
        );
        first = _mm512_sub_ps(first, low);
        second = _mm512_sub_ps(second, high);
    }
    parts
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn half_bits(numbers: __m512) -> __m256i {
    // SAFETY: both are 32 bytes, of which every pattern of bits is one.
    unsafe { std::mem::transmute(_mm512_cvtneps_pbh(numbers)) }
}

#[inline]
fn bits(numbers: __m512bh) -> Row {
    // SAFETY: both are 64 bytes, of which every pattern of bits is one.
    unsafe { std::mem::transmute(numbers) }
}

/// bf16 as f32: their bits are the upper half of its.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(numbers: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(numbers)))
}

/// Rows for columns: of pairs, then of pairs of pairs, then of quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: Square) -> Square {
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

#[cfg(test)]
mod tests {
    use super::super::matrix::multiply_in_vectors;
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// `[rows, inner]` times `[inner, columns]`, with the numbers that were there before.
    fn product(
        multiply: fn(&mut MatrixMut<'_>, Into, Matrix<'_>, Matrix<'_>),
        [a, b, before]: [&[f32]; 3],
        [rows, inner, columns]: [usize; 3],
    ) -> Vec<f32> {
        let mut out = before.to_vec();
        let mut to = MatrixMut::new(&mut out, rows, columns);
        multiply(
            &mut to,
            Into::Sum,
            Matrix::new(a, rows, inner),
            Matrix::new(b, inner, columns),
        );
        out
    }

    /// Sums of terms of either sign, which cancel, and of positive ones, which grow: the errors, as roots of mean squares, of the units and of
    /// the vectors.
    #[test]
    fn products_are_as_exact_as_those_of_f32() {
        if !is_available() {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for shape @ [rows, inner, columns] in [
            [33, 20, 48],
            [64, 128, 70],
            [40, 384, 64],
            [32, 1376, 96],
            [64, 2048, 33],
        ] {
            for (lowest, powers) in [(-1.0f32, 0.1f32), (0.0, 0.1), (-1.0, 3.0), (-1.0, 20.0), (0.0, 20.0)] {
                let mut numbers = |count: usize| -> Vec<f32> {
                    let mut one = || rng.random_range(lowest..1.0) * rng.random_range(-powers..powers).exp2();
                    (0..count).map(|_| one()).collect()
                };
                let (a, b, before) = (numbers(rows * inner), numbers(inner * columns), numbers(rows * columns));
                let error = |found: &[f32]| -> f64 {
                    let squares = found.iter().enumerate().map(|(at, found)| {
                        let (row, column) = (at / columns, at % columns);
                        let terms =
                            (0..inner).map(|k| f64::from(a[row * inner + k]) * f64::from(b[k * columns + column]));
                        (terms.sum::<f64>() + f64::from(before[at]) - f64::from(*found)).powi(2)
                    });
                    (squares.sum::<f64>() / found.len() as f64).sqrt()
                };
                let [units, vectors] =
                    [multiply, multiply_in_vectors].map(|multiply| error(&product(multiply, [&a, &b, &before], shape)));
                // A sum of few terms far apart is hardly more than one product, of whose parts some were left out.
                let most = if inner < 64 { 1.2 } else { 0.8 };
                assert!(
                    units <= most * vectors,
                    "{shape:?} from {lowest}, powers of {powers}: {units:e}, vectors {vectors:e}"
                );
            }
        }
    }

    /// The numbers of 24 bits that the parts hold, products of them that f32 holds, and those that are no numbers.
    #[test]
    fn what_f32_holds_is_exact() {
        if !is_available() {
            return;
        }
        let alone = |x: f32, y: f32| product(multiply, [&[x], &[y], &[0.0]], [1, 1, 1])[0];
        for x in [
            0.0,
            1.0,
            -1.0,
            16_777_215.0,
            8_388_609.0,
            1.0 + f32::EPSILON,
            1e-30,
            3e38,
            0.1,
            std::f32::consts::PI,
        ] {
            assert_eq!(alone(x, 1.0), x);
            assert_eq!(alone(2.0, x / 4.0), x / 2.0);
            assert_eq!(alone(-x, 1.0), -x);
        }
        assert_eq!(alone(4097.0, 4095.0), 16_777_215.0);
        assert!(alone(f32::NAN, 1.0).is_nan() && alone(1.0, f32::NAN).is_nan());
        assert!(!alone(f32::INFINITY, 1.0).is_finite() && !alone(1.0, f32::NEG_INFINITY).is_finite());
        assert_eq!(alone(1e-40, 1.0), 0.0);
        // A number that is none stays in its row and column.
        let (mut a, b) = (vec![1.0; 40 * 40], vec![1.0; 40 * 40]);
        a[3 * 40 + 5] = f32::NAN;
        let found = product(multiply, [&a, &b, &vec![0.0; 40 * 40]], [40, 40, 40]);
        for (at, found) in found.iter().enumerate() {
            assert_eq!(found.is_nan(), at / 40 == 3);
            assert!(found.is_nan() || *found == 40.0);
        }
    }
}
