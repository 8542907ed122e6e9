//! Products on the matrix units of x86 processors (AMX), which multiply bf16 and add up in f32, fifteen times as fast as the vector units
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
//! the large ones, and the sums of pieces before they are added to what was there, so that a sum is rounded no more often at its full size
//! than one of f32: its mean error is no larger (a test compares them; of 128 terms and more it is 0.14 to 0.59 of that).
//!
//! What differs from f32: an infinity makes NaN of what it meets, and a number from 3.3962e38 on counts as one; numbers and products below
//! 1e-31 lose their last bits, and those below 1.2e-38 are 0.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, transmute};
use std::sync::OnceLock;

use super::tiles::{BLOCK, Row, SIDE, STEP, Sums, Tiles, square, transpose};
use crate::matrix::{Matrix, MatrixMut, Store};
use crate::memory::{Blank, assume_written};

/// The parts of a number.
const PARTS: usize = 3;
/// Rows of the tiles for a step of a block: of each part, those of the two tiles.
const STEP_ROWS: usize = PARTS * BLOCK;
/// Steps that are summed before they are added to the others: their tiles, of a block's rows and of its columns, just fit into a core's first
/// cache together.
const PIECE_STEPS: usize = 4;
/// Most terms for which the tiles of a block's rows are made at once.
const SECTION: usize = 512;
/// Bytes of the tiles of columns that stay in a core's second cache.
const CACHE: usize = 1 << 20;

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

/// Asks the system for the units: their registers are large, and it keeps no room for them unless it is asked. From then on it refuses threads
/// a stack for signals that has no room for them either; Rust's own have.
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call has no pointers; what it changes is as above.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Whether [`multiply`] multiplies them: there are units, the rows or the columns of either matrix lie number beside number, and none has a side
/// of 0. It depends on no number of rows or columns but 0.
pub(crate) fn multiplies(a: Matrix<'_>, b: Matrix<'_>) -> bool {
    let reads = |matrix: Matrix<'_>| matrix.is_by_rows() || matrix.transposed().is_by_rows();
    is_available() && reads(a) && reads(b) && [a.rows(), b.rows(), b.columns()].iter().all(|side| *side > 0)
}

/// `out = a·b`, or `out += a·b`, on this thread. An entry is the same sum whatever other entries are computed with it; where `out` lies by
/// columns, the small products are added up in another order.
///
/// # Panics
/// Unless the shapes fit and [`multiplies`] says yes.
pub(crate) fn multiply(out: &mut MatrixMut<'_>, store: Store, a: Matrix<'_>, b: Matrix<'_>) {
    assert!(multiplies(a, b));
    if !out.is_by_rows() {
        let mut turned = out.block(0..a.rows(), 0..b.columns()).transposed();
        return multiply(&mut turned, store, b.transposed(), a.transposed());
    }
    let terms = a.columns();
    let section = terms.div_ceil(terms.div_ceil(SECTION)).next_multiple_of(STEP);
    let block_rows = section / STEP * STEP_ROWS;
    let blocks = b.columns().div_ceil(BLOCK);
    let most = (CACHE / (block_rows * size_of::<Row>())).max(1);
    let together = blocks.div_ceil(blocks.div_ceil(most));
    let mut room = Room {
        rows: Box::new_uninit_slice(block_rows),
        columns: Box::new_uninit_slice(block_rows * together),
        // SAFETY: the numbers of `Sums` may be uninitialised.
        sums: unsafe { Box::new_uninit_slice(together).assume_init() },
        piece: Sums([MaybeUninit::uninit(); BLOCK * BLOCK]),
    };
    // SAFETY: the processor has them, and this process may use them, as was asserted.
    let units = unsafe { Units::configure() };
    for start in (0..terms).step_by(section) {
        let range = start..(start + section).min(terms);
        let store = if start == 0 { store } else { Store::Add };
        let (a, b) = (a.column_range(range.clone()), b.row_range(range));
        for first in (0..b.columns()).step_by(together * BLOCK) {
            let range = first..(first + together * BLOCK).min(b.columns());
            let mut out = out.block(0..a.rows(), range.clone());
            // SAFETY: the processor has the vectors, too.
            unsafe { multiply_section(&units, &mut room, &mut out, store, a, b.column_range(range)) };
        }
    }
}

/// Where a product is prepared.
struct Room {
    /// Tiles of a block's rows.
    rows: Box<Tiles>,
    /// Tiles of the columns of all blocks side by side.
    columns: Box<Tiles>,
    /// Results of these blocks.
    sums: Box<[Sums]>,
    /// Result of a piece.
    piece: Sums,
}

/// [`multiply`] of at most [`SECTION`] terms and as many columns as there is room for.
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_section(
    units: &Units,
    room: &mut Room,
    out: &mut MatrixMut<'_>,
    store: Store,
    a: Matrix<'_>,
    b: Matrix<'_>,
) {
    let steps = a.columns().div_ceil(STEP);
    let tiles = steps * STEP_ROWS;
    let blocks = b.columns().div_ceil(BLOCK);
    for (index, tiles) in room.columns.chunks_exact_mut(tiles).take(blocks).enumerate() {
        put_columns(b, index * BLOCK, tiles);
    }
    for first_row in (0..a.rows()).step_by(BLOCK) {
        put_rows(a, first_row, &mut room.rows[..tiles]);
        for step in (0..steps).step_by(PIECE_STEPS) {
            let piece = step * STEP_ROWS..(step + PIECE_STEPS).min(steps) * STEP_ROWS;
            let rows = &room.rows[piece.clone()];
            for (columns, sums) in room.columns.chunks_exact(tiles).zip(&mut room.sums[..blocks]) {
                let columns = &columns[piece.clone()];
                // SAFETY: the tiles of all steps and blocks were written above.
                unsafe {
                    if step == 0 {
                        units.multiply(rows, columns, &mut sums.0);
                        continue;
                    }
                    units.multiply(rows, columns, &mut room.piece.0);
                    let piece = assume_written(&mut room.piece.0);
                    for (sum, value) in assume_written(&mut sums.0).iter_mut().zip(piece) {
                        *sum += *value;
                    }
                }
            }
        }
        for (index, sums) in room.sums[..blocks].iter_mut().enumerate() {
            // SAFETY: the first piece has written all of it.
            let sums = unsafe { assume_written(&mut sums.0) };
            let columns = index * BLOCK..((index + 1) * BLOCK).min(b.columns());
            for (row, sums) in (first_row..a.rows()).zip(sums.chunks_exact(BLOCK)) {
                let sums = &sums[..columns.len()];
                match (store, <&[f32; BLOCK]>::try_from(sums)) {
                    // Where the number of columns is known, it is a few instructions instead of a call.
                    (Store::Overwrite, Ok(sums)) => out.put(row, columns.start, sums),
                    (Store::Overwrite, Err(_)) => out.put(row, columns.start, sums),
                    (Store::Add, _) => out.row(row)[columns.clone()]
                        .iter_mut()
                        .zip(sums)
                        .for_each(|(out, sum)| *out += sum),
                }
            }
        }
    }
}

/// The shapes of the eight registers (`LDTILECFG` in Intel's manual).
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The units of this thread, with eight registers of 16 rows of 64 bytes. Dropped, it gives the registers back, so that the system need not
/// keep them when another thread runs.
pub(super) struct Units {
    /// The registers belong to one thread, so this stays on it.
    thread: PhantomData<*const ()>,
}

impl Drop for Units {
    fn drop(&mut self) {
        // SAFETY: there are such units, or it would not have been made.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

#[rustfmt::skip]
macro_rules! load_rows {
    ($part:literal) => { concat!(
        "tileloadd tmm4, [{rows} + {line} * 1 + {part} * ", $part, "]\n",
        "tileloadd tmm5, [{rows} + {line} * 1 + {part} * ", $part, " + {tile}]\n",
    ) };
}

#[rustfmt::skip]
macro_rules! load_columns {
    ($part:literal) => { concat!(
        "tileloadd tmm6, [{columns} + {line} * 1 + {part} * ", $part, "]\n",
        "tileloadd tmm7, [{columns} + {line} * 1 + {part} * ", $part, " + {tile}]\n",
    ) };
}

#[rustfmt::skip]
macro_rules! products {
    () => { concat!(
        "tdpbf16ps tmm0, tmm4, tmm6\n tdpbf16ps tmm1, tmm4, tmm7\n",
        "tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7\n",
    ) };
}

impl Units {
    /// # Safety
    /// [`is_available`] has said yes.
    pub(super) unsafe fn configure() -> Self {
        let registers = |count: usize| std::array::from_fn(|index| usize::from(index < 8) * count);
        let configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: registers(size_of::<Row>()).map(|bytes| bytes as u16),
            rows: registers(SIDE).map(|rows| rows as u8),
        };
        // SAFETY: there are units, as the caller says; it reads the configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly)) };
        Self { thread: PhantomData }
    }

    /// The products of a block's tiles, of at most [`PIECE_STEPS`]: first the small ones of all steps, then the large ones.
    ///
    /// Registers 0 to 3 hold the result, 4 and 5 a part of the rows, 6 and 7 a part of the columns.
    ///
    /// # Safety
    /// The tiles have been written.
    #[inline]
    unsafe fn multiply(&self, rows: &Tiles, columns: &Tiles, out: &mut Blank) {
        const LINE: usize = size_of::<Row>();
        let steps = rows.len() / STEP_ROWS;
        assert!(rows.len() == columns.len() && steps > 0 && out.len() == BLOCK * BLOCK);
        let upper = out.as_mut_ptr();
        // SAFETY: it reads the tiles of `steps` steps on either side, and writes 32 rows of 32 numbers.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                load_rows!(0), load_columns!(2), products!(),
                load_columns!(1), products!(),
                load_rows!(1), products!(),
                load_columns!(0), products!(),
                load_rows!(2), products!(),
                "add {rows}, {step}", "add {columns}, {step}", "dec {steps}", "jnz 2b",
                "mov {rows}, {first_row}", "mov {columns}, {first_column}", "mov {steps}, {count}",
                "3:",
                load_rows!(0), load_columns!(0), products!(),
                "add {rows}, {step}", "add {columns}, {step}", "dec {steps}", "jnz 3b",
                "tilestored [{upper} + {width} * 1], tmm0", "tilestored [{upper} + {width} * 1 + {line_bytes}], tmm1",
                "tilestored [{lower} + {width} * 1], tmm2", "tilestored [{lower} + {width} * 1 + {line_bytes}], tmm3",
                rows = inout(reg) rows.as_ptr() => _,
                columns = inout(reg) columns.as_ptr() => _,
                steps = inout(reg) steps => _,
                first_row = in(reg) rows.as_ptr(),
                first_column = in(reg) columns.as_ptr(),
                count = in(reg) steps,
                line = in(reg) LINE,
                upper = in(reg) upper,
                lower = in(reg) upper.add(SIDE * BLOCK),
                width = in(reg) BLOCK * size_of::<f32>(),
                line_bytes = const LINE,
                tile = const SIDE * LINE,
                part = const BLOCK * LINE,
                step = const STEP_ROWS * LINE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Units {
    /// Adds the products of a block's tiles of numbers in one part to `sums`, or writes them there. What is there is where the sum goes on:
    /// it is rounded as if the terms of all calls had come in one.
    ///
    /// # Safety
    /// The tiles have been written, and `sums` too if they are added to.
    #[inline]
    pub(super) unsafe fn multiply_rounded(&self, rows: &Tiles, columns: &Tiles, sums: &mut Sums, store: Store) {
        const LINE: usize = size_of::<Row>();
        let steps = rows.len() / BLOCK;
        assert!(rows.len() == columns.len() && steps > 0);
        let upper = sums.0.as_mut_ptr();
        // SAFETY: it reads the tiles of `steps` steps on either side, and reads and writes 32 rows of 32 numbers.
        unsafe {
            asm!(
                "test {adds:e}, {adds:e}", "jnz 4f",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "jmp 5f",
                "4:",
                "tileloadd tmm0, [{upper} + {width} * 1]", "tileloadd tmm1, [{upper} + {width} * 1 + {line_bytes}]",
                "tileloadd tmm2, [{lower} + {width} * 1]", "tileloadd tmm3, [{lower} + {width} * 1 + {line_bytes}]",
                "5:",
                "tileloadd tmm4, [{rows} + {line} * 1]", "tileloadd tmm6, [{columns} + {line} * 1]",
                "tileloadd tmm7, [{columns} + {line} * 1 + {tile}]", "tileloadd tmm5, [{rows} + {line} * 1 + {tile}]",
                products!(),
                "add {rows}, {step}", "add {columns}, {step}", "dec {steps}", "jnz 5b",
                "tilestored [{upper} + {width} * 1], tmm0", "tilestored [{upper} + {width} * 1 + {line_bytes}], tmm1",
                "tilestored [{lower} + {width} * 1], tmm2", "tilestored [{lower} + {width} * 1 + {line_bytes}], tmm3",
                adds = in(reg) u32::from(store == Store::Add),
                rows = inout(reg) rows.as_ptr() => _,
                columns = inout(reg) columns.as_ptr() => _,
                steps = inout(reg) steps => _,
                line = in(reg) LINE,
                upper = in(reg) upper,
                lower = in(reg) upper.add(SIDE * BLOCK),
                width = in(reg) BLOCK * size_of::<f32>(),
                line_bytes = const LINE,
                tile = const SIDE * LINE,
                step = const BLOCK * LINE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Tiles of the 32 rows of a matrix from `first` on: in each row of a tile 32 terms of a row's sums.
#[target_feature(enable = "avx512f,avx512bf16")]
fn put_rows(a: Matrix<'_>, first: usize, tiles: &mut Tiles) {
    for (step, tiles) in tiles.chunks_exact_mut(STEP_ROWS).enumerate() {
        for half in [0, SIDE] {
            let (row, term) = (first + half, step * STEP);
            let [early, late] = if a.is_by_rows() {
                [square(a, row, term), square(a, row, term + SIDE)]
            } else {
                let a = a.transposed();
                [transpose(square(a, term, row)), transpose(square(a, term + SIDE, row))]
            };
            for index in 0..SIDE {
                for (part, tile_row) in split(early[index], late[index]).into_iter().enumerate() {
                    tiles[part * BLOCK + half + index].write(tile_row);
                }
            }
        }
    }
}

/// Tiles of the 32 columns of a matrix from `first` on: in each row of a tile two terms of 16 columns' sums, side by side.
#[target_feature(enable = "avx512f,avx512bf16")]
fn put_columns(b: Matrix<'_>, first: usize, tiles: &mut Tiles) {
    for (step, tiles) in tiles.chunks_exact_mut(STEP_ROWS).enumerate() {
        for half in [0, SIDE] {
            let (term, column) = (step * STEP, first + half);
            let terms = if b.is_by_rows() {
                [square(b, term, column), square(b, term + SIDE, column)]
            } else {
                let b = b.transposed();
                [
                    transpose(square(b, column, term)),
                    transpose(square(b, column, term + SIDE)),
                ]
            };
            for (index, pair) in terms.as_flattened().chunks_exact(2).enumerate() {
                for (part, tile_row) in split_pairs(pair[0], pair[1]).into_iter().enumerate() {
                    tiles[part * BLOCK + half + index].write(tile_row);
                }
            }
        }
    }
}

/// The parts of 32 numbers in their order.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn split(mut first: __m512, mut last: __m512) -> [Row; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        // SAFETY: both are 64 bytes, of which every pattern of bits is one.
        *part = unsafe { transmute::<__m512bh, Row>(_mm512_cvtne2ps_pbh(last, first)) };
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
    unsafe { transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(numbers)) }
}

/// bf16 as f32: their bits are the upper half of its.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(numbers: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(numbers)))
}

#[cfg(test)]
mod tests {
    use super::super::vectors::multiply_in_vectors;
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    type Multiply = fn(&mut MatrixMut<'_>, Store, Matrix<'_>, Matrix<'_>);

    /// `[rows, inner]` times `[inner, columns]`, added to `out`.
    fn add(multiply: Multiply, a: &[f32], b: &[f32], [rows, inner, columns]: [usize; 3], out: &mut [f32]) {
        let mut out = MatrixMut::new(out, rows, columns);
        multiply(
            &mut out,
            Store::Add,
            Matrix::new(a, rows, inner),
            Matrix::new(b, inner, columns),
        );
    }

    /// The root of the mean square of the errors, each as a part of the sum of its terms' sizes.
    fn error(found: &[f32], expected: &[(f64, f64)]) -> f64 {
        let squares = found
            .iter()
            .zip(expected)
            .map(|(found, (sum, size))| ((f64::from(*found) - sum) / size).powi(2));
        (squares.sum::<f64>() / found.len() as f64).sqrt()
    }

    /// Numbers from `lowest` to 1, times powers of two up to `powers` either way.
    fn numbers(rng: &mut ChaCha8Rng, count: usize, lowest: f32, powers: f32) -> Vec<f32> {
        let mut one = || rng.random_range(lowest..1.0) * rng.random_range(-powers..powers).exp2();
        (0..count).map(|_| one()).collect()
    }

    /// The sum of the terms of each entry, and the sum of their sizes.
    fn exact(a: &[f32], b: &[f32], [rows, inner, columns]: [usize; 3]) -> Vec<(f64, f64)> {
        let entry = |at: usize| {
            let (row, column) = (at / columns, at % columns);
            let terms = (0..inner).map(|k| f64::from(a[row * inner + k]) * f64::from(b[k * columns + column]));
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        };
        (0..rows * columns).map(entry).collect()
    }

    /// Sums of terms of either sign, which cancel, and of positive ones, which grow.
    #[test]
    fn products_are_as_exact_as_those_of_f32() {
        if !is_available() {
            return println!("skipped: this processor has no AMX units");
        }
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let shapes = [
            [33, 20, 48],
            [64, 128, 70],
            [40, 384, 64],
            [32, 1376, 96],
            [64, 2048, 33],
            [40, 600, 700],
        ];
        for shape @ [rows, inner, columns] in shapes {
            for (lowest, powers) in [(-1.0, 0.1), (0.0, 0.1), (-1.0, 3.0), (-1.0, 20.0), (0.0, 20.0)] {
                let a = numbers(&mut rng, rows * inner, lowest, powers);
                let b = numbers(&mut rng, inner * columns, lowest, powers);
                let expected = exact(&a, &b, shape);
                let [units, vectors] = [multiply as Multiply, multiply_in_vectors].map(|multiply| {
                    let mut out = vec![0.0; rows * columns];
                    add(multiply, &a, &b, shape, &mut out);
                    error(&out, &expected)
                });
                println!("{shape:?} from {lowest}, powers of {powers}: {:.2}", units / vectors);
                assert!(
                    units <= vectors,
                    "{shape:?} from {lowest}, powers of {powers}: {units:e}, vectors {vectors:e}"
                );
            }
        }
    }

    /// As the gradient of a weight is added up, sequence by sequence.
    #[test]
    fn sums_that_grow_are_as_exact_as_those_of_f32() {
        if !is_available() {
            return println!("skipped: this processor has no AMX units");
        }
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let shape @ [rows, inner, columns] = [40, 512, 40];
        let mut sums = [vec![0.0; rows * columns], vec![0.0; rows * columns]];
        let mut expected = vec![(0.0, 0.0); rows * columns];
        for _ in 0..64 {
            let (a, b) = (
                numbers(&mut rng, rows * inner, 0.0, 0.1),
                numbers(&mut rng, inner * columns, 0.0, 0.1),
            );
            for (expected, one) in expected.iter_mut().zip(exact(&a, &b, shape)) {
                *expected = (expected.0 + one.0, expected.1 + one.1);
            }
            for (multiply, sum) in [multiply as Multiply, multiply_in_vectors].into_iter().zip(&mut sums) {
                add(multiply, &a, &b, shape, sum);
            }
        }
        let [units, vectors] = sums.map(|sum| error(&sum, &expected));
        println!("{:.2}", units / vectors);
        assert!(units <= vectors, "{units:e}, vectors {vectors:e}");
    }

    /// To the last bit, also where it is the only row or the only column.
    #[test]
    fn an_entry_does_not_depend_on_the_others() {
        if !is_available() {
            return println!("skipped: this processor has no AMX units");
        }
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let [rows, inner, columns] = [70, 600, 700];
        let (a, b) = (
            numbers(&mut rng, rows * inner, -1.0, 3.0),
            numbers(&mut rng, inner * columns, -1.0, 3.0),
        );
        let (a, b) = (Matrix::new(&a, rows, inner), Matrix::new(&b, inner, columns));
        let bits = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| -> Vec<u32> {
            let (a, b) = (a.row_range(rows.clone()), b.column_range(columns.clone()));
            let mut out = vec![f32::NAN; rows.len() * columns.len()];
            multiply(
                &mut MatrixMut::new(&mut out, rows.len(), columns.len()),
                Store::Overwrite,
                a,
                b,
            );
            out.into_iter().map(f32::to_bits).collect()
        };
        let whole = bits(0..rows, 0..columns);
        for part_rows in [0..1, 3..5, 0..31, 32..65, 69..70] {
            for part_columns in [0..1, 5..21, 300..333, 0..700, 699..700] {
                let found = bits(part_rows.clone(), part_columns.clone());
                let expected = part_rows
                    .clone()
                    .flat_map(|row| &whole[row * columns..][part_columns.clone()]);
                assert!(
                    found.iter().eq(expected),
                    "rows {part_rows:?}, columns {part_columns:?}"
                );
            }
        }
    }

    #[test]
    fn what_f32_holds_is_exact() {
        if !is_available() {
            return println!("skipped: this processor has no AMX units");
        }
        let product = |x: f32, y: f32| {
            let mut out = [0.0];
            add(multiply, &[x], &[y], [1, 1, 1], &mut out);
            out[0]
        };
        let pi = std::f32::consts::PI;
        for x in [
            0.0,
            1.0,
            16_777_215.0,
            8_388_609.0,
            1.0 + f32::EPSILON,
            0.1,
            pi,
            1.234_567_8e-31,
            3.396e38,
        ] {
            for x in [x, -x] {
                assert_eq!(product(x, 1.0), x);
                assert_eq!(product(0.5, x), x / 2.0);
            }
        }
        assert_eq!(product(4097.0, 4095.0), 16_777_215.0);
        let small = 1.234_567_8e-34;
        assert!(product(small, 1.0) != small && (product(small, 1.0) / small - 1.0).abs() < 1e-4);
        assert_eq!(product(1e-38, 1.0), 0.0);
        for (x, y) in [
            (f32::NAN, 1.0),
            (1.0, f32::NAN),
            (f32::INFINITY, 1.0),
            (1.0, f32::NEG_INFINITY),
            (3.3962e38, 1.0),
        ] {
            assert!(product(x, y).is_nan(), "{x:e} · {y:e}");
        }
        // NaN stays in its row.
        let (mut a, b) = (vec![1.0; 40 * 40], vec![1.0; 40 * 40]);
        a[3 * 40 + 5] = f32::NAN;
        let mut out = vec![0.0; 40 * 40];
        add(multiply, &a, &b, [40, 40, 40], &mut out);
        for (at, found) in out.iter().enumerate() {
            assert!(
                if at / 40 == 3 { found.is_nan() } else { *found == 40.0 },
                "{at}: {found}"
            );
        }
    }
}
