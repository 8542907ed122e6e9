//! Products of numbers rounded to bf16, whose exact products are added up in f32: one product of the matrix units (AMX), where f32 takes six,
//! `vdpbf16ps` where a processor has that alone, and else products of f32.
//!
//! `Σᵢ aᵢ·bᵢ` is one sum, whose terms come in their order. It may go on where another product has left it, as if both had been one: so the
//! gradient of a weight does not depend on how the sequences of a batch are cut into micro-batches.

use std::sync::OnceLock;

use super::vectors::multiply_in_vectors;
use crate::matrix::{MatrixMut, Store};
use crate::numbers::Number;
use crate::operand::Operand;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// The matrix units.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    /// The vector units, by their instruction for bf16.
    #[cfg(target_arch = "x86_64")]
    Vectors,
    /// The vector units, in f32.
    F32,
}

impl Unit {
    /// The best that the processor has.
    fn best() -> Self {
        Self::all()[0]
    }

    /// All that the processor has, the best first.
    fn all() -> &'static [Self] {
        static ALL: OnceLock<Vec<Unit>> = OnceLock::new();
        ALL.get_or_init(|| {
            let mut all = Vec::new();
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            if super::amx::is_available() && has_vectors() {
                all.push(Unit::Amx);
            }
            #[cfg(target_arch = "x86_64")]
            if has_vectors() {
                all.push(Unit::Vectors);
            }
            all.push(Unit::F32);
            all
        })
    }
}

/// Whether the vector units round to bf16 and multiply it.
#[cfg(target_arch = "x86_64")]
fn has_vectors() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

/// `out = Σ aᵢ·bᵢ`, or `out += Σ aᵢ·bᵢ`, on this thread, all numbers rounded to bf16. An entry is the same sum whatever other entries are
/// computed with it, unless the processor multiplies in f32 and it stands in the only row or the only column.
///
/// # Panics
/// Unless the shapes fit; if something is to be added to bf16.
pub(crate) fn multiply_rounded<E: Number>(
    out: &mut MatrixMut<'_, E>,
    store: Store,
    terms: &[(Operand<'_>, Operand<'_>)],
) {
    multiply_by(Unit::best(), out, store, terms);
}

fn multiply_by<E: Number>(unit: Unit, out: &mut MatrixMut<'_, E>, store: Store, terms: &[(Operand<'_>, Operand<'_>)]) {
    assert!(
        store == Store::Overwrite || E::IS_SUM,
        "a sum of bf16 would be rounded again and again"
    );
    let fits = |(a, b): &(Operand<'_>, Operand<'_>)| {
        a.rows() == out.rows() && b.columns() == out.columns() && a.columns() == b.rows()
    };
    assert!(!terms.is_empty() && terms.iter().all(fits));
    if out.rows() * out.columns() == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    {
        let lies_in_order = |operand: &Operand<'_>| operand.is_by_rows() || operand.transposed().is_by_rows();
        let has_terms = terms.iter().any(|(a, _)| a.columns() > 0);
        if unit != Unit::F32 && has_terms && terms.iter().all(|(a, b)| lies_in_order(a) && lies_in_order(b)) {
            return multiply_in_tiles(unit, out, store, terms);
        }
    }
    let _ = unit;
    in_f32(out, store, terms);
}

/// On processors without instructions for bf16.
fn in_f32<E: Number>(out: &mut MatrixMut<'_, E>, store: Store, terms: &[(Operand<'_>, Operand<'_>)]) {
    let (rows, columns) = (out.rows(), out.columns());
    let mut sums = vec![0.0; rows * columns];
    if store == Store::Add {
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = out.entry(at / columns, at % columns).wide();
        }
    }
    let mut sum = MatrixMut::new(&mut sums, rows, columns);
    for (a, b) in terms.iter().filter(|(a, _)| a.columns() > 0) {
        a.rounded(|a| b.rounded(|b| multiply_in_vectors(&mut sum, Store::Add, a, b)));
    }
    for (at, sum) in sums.into_iter().enumerate() {
        out.put_entry(at / columns, at % columns, E::nearest(sum));
    }
}

#[cfg(target_arch = "x86_64")]
use in_tiles::multiply as multiply_in_tiles;

/// On processors with instructions for bf16.
#[cfg(target_arch = "x86_64")]
mod in_tiles {
    use std::mem::MaybeUninit;

    use super::Unit;
    use crate::matrix::{MatrixMut, Store};
    use crate::memory::assume_written;
    use crate::numbers::Number;
    use crate::operand::Operand;
    #[cfg(target_os = "linux")]
    use crate::product::amx::Units;
    use crate::product::tiles::{self, BLOCK, Row, STEP, Sums, Tiles};

    /// Steps after which a block waits while the others are gone through: the tiles of its rows stay in a core's first cache.
    const PIECE_STEPS: usize = 16;
    /// Bytes of the tiles of columns that stay in a core's second cache.
    const CACHE: usize = 1 << 20;

    /// `out = Σ aᵢ·bᵢ`, or `out += Σ aᵢ·bᵢ`.
    pub(super) fn multiply<E: Number>(
        unit: Unit,
        out: &mut MatrixMut<'_, E>,
        store: Store,
        terms: &[(Operand<'_>, Operand<'_>)],
    ) {
        let (rows, columns) = (out.rows(), out.columns());
        if !out.is_by_rows() {
            let mut turned = out.block(0..rows, 0..columns).transposed();
            let terms: Vec<_> = terms.iter().map(|(a, b)| (b.transposed(), a.transposed())).collect();
            return multiply(unit, &mut turned, store, &terms);
        }
        let steps: usize = terms.iter().map(|(a, _)| steps_of(a)).sum();
        let tiles = steps * BLOCK;
        let blocks = columns.div_ceil(BLOCK);
        let most = (CACHE / (tiles * size_of::<Row>())).max(1);
        let together = blocks.div_ceil(blocks.div_ceil(most));
        let mut room = Room {
            rows: Box::new_uninit_slice(tiles),
            columns: Box::new_uninit_slice(tiles * together),
            // SAFETY: the numbers of `Sums` may be uninitialised.
            sums: unsafe { Box::new_uninit_slice(together).assume_init() },
        };
        let unit = Multiplier::new(unit);
        for first in (0..columns).step_by(together * BLOCK) {
            let range = first..(first + together * BLOCK).min(columns);
            let terms: Vec<_> = terms.iter().map(|(a, b)| (*a, b.column_range(range.clone()))).collect();
            // SAFETY: the processor has the vectors: every unit that multiplies tiles comes with them.
            unsafe { multiply_columns(&unit, &mut room, &mut out.block(0..rows, range), store, &terms) };
        }
    }

    fn steps_of(a: &Operand<'_>) -> usize {
        a.columns().div_ceil(STEP)
    }

    /// Where a product is prepared.
    struct Room {
        /// Tiles of a block's rows.
        rows: Box<Tiles>,
        /// Tiles of the columns of all blocks side by side.
        columns: Box<Tiles>,
        /// Results of these blocks.
        sums: Box<[Sums]>,
    }

    /// [`multiply`] of as many columns as there is room for.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn multiply_columns<E: Number>(
        unit: &Multiplier,
        room: &mut Room,
        out: &mut MatrixMut<'_, E>,
        store: Store,
        terms: &[(Operand<'_>, Operand<'_>)],
    ) {
        let (tiles, blocks) = (room.rows.len(), out.columns().div_ceil(BLOCK));
        for (index, tiles) in room.columns.chunks_exact_mut(tiles).take(blocks).enumerate() {
            let mut rest = tiles;
            for (a, b) in terms {
                let (tiles, others) = rest.split_at_mut(steps_of(a) * BLOCK);
                tiles::put_columns(*b, index * BLOCK, tiles);
                rest = others;
            }
        }
        for first_row in (0..out.rows()).step_by(BLOCK) {
            let mut rest = &mut *room.rows;
            for (a, _) in terms {
                let (tiles, others) = rest.split_at_mut(steps_of(a) * BLOCK);
                tiles::put_rows(*a, first_row, tiles);
                rest = others;
            }
            if store == Store::Add {
                for (index, sums) in room.sums[..blocks].iter_mut().enumerate() {
                    read_block(out, first_row, index * BLOCK, sums);
                }
            }
            for start in (0..tiles).step_by(PIECE_STEPS * BLOCK) {
                let piece = start..(start + PIECE_STEPS * BLOCK).min(tiles);
                let rows = &room.rows[piece.clone()];
                let store = if start == 0 { store } else { Store::Add };
                for (columns, sums) in room.columns.chunks_exact(tiles).zip(&mut room.sums[..blocks]) {
                    // SAFETY: the tiles of all steps and blocks were written above, and so were sums that are added to.
                    unsafe { unit.multiply(rows, &columns[piece.clone()], sums, store) };
                }
            }
            for (index, sums) in room.sums[..blocks].iter_mut().enumerate() {
                // SAFETY: the first piece has written all of it.
                let sums = unsafe { assume_written(&mut sums.0) };
                write_block(out, first_row, index * BLOCK, sums);
            }
        }
    }

    /// What is in a block of the result; 0 beyond its ends.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn read_block<E: Number>(out: &mut MatrixMut<'_, E>, first_row: usize, first_column: usize, sums: &mut Sums) {
        let columns = first_column..(first_column + BLOCK).min(out.columns());
        for (index, sums) in sums.0.chunks_exact_mut(BLOCK).enumerate() {
            sums.fill(MaybeUninit::new(0.0));
            if first_row + index < out.rows() {
                let row = &out.row(first_row + index)[columns.clone()];
                for (sum, value) in sums.iter_mut().zip(row) {
                    sum.write(value.wide());
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn write_block<E: Number>(out: &mut MatrixMut<'_, E>, first_row: usize, first_column: usize, sums: &[f32]) {
        let width = BLOCK.min(out.columns() - first_column);
        for (row, sums) in (first_row..out.rows()).zip(sums.chunks_exact(BLOCK)) {
            let mut numbers = [E::nearest(0.0); BLOCK];
            for (number, sum) in numbers.iter_mut().zip(sums) {
                *number = E::nearest(*sum);
            }
            // Where the number of columns is known, it is a few instructions instead of a call.
            match width {
                BLOCK => out.put(row, first_column, &numbers),
                _ => out.put(row, first_column, &numbers[..width]),
            }
        }
    }

    /// A unit that is ready.
    enum Multiplier {
        #[cfg(target_os = "linux")]
        Amx(Units),
        Vectors,
    }

    impl Multiplier {
        fn new(unit: Unit) -> Self {
            match unit {
                #[cfg(target_os = "linux")]
                // SAFETY: the processor has them, and this process may use them, or they would not be among the units.
                Unit::Amx => Multiplier::Amx(unsafe { Units::configure() }),
                Unit::Vectors | Unit::F32 => Multiplier::Vectors,
            }
        }

        /// Adds the products of a block's tiles to `sums`, or writes them there.
        ///
        /// # Safety
        /// The tiles have been written, and `sums` too if they are added to.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn multiply(&self, rows: &Tiles, columns: &Tiles, sums: &mut Sums, store: Store) {
            // SAFETY: as the caller promises.
            unsafe {
                match self {
                    #[cfg(target_os = "linux")]
                    Multiplier::Amx(units) => units.multiply_rounded(rows, columns, sums, store),
                    Multiplier::Vectors => tiles::multiply_in_vectors(rows, columns, sums, store),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Matrix, Strided};
    use crate::numbers::converted;
    use burn::tensor::bf16;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn numbers(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
        (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// A matrix of some numbers in each format and order: f32 and bf16, by rows and by columns.
    struct Forms {
        rows: usize,
        columns: usize,
        wide: [Vec<f32>; 2],
        narrow: [Vec<bf16>; 2],
    }

    impl Forms {
        fn new(values: &[f32], rows: usize, columns: usize) -> Self {
            let turned: Vec<f32> = (0..values.len())
                .map(|at| values[at % rows * columns + at / rows])
                .collect();
            let narrow = [converted(values), converted(&turned)];
            Self {
                rows,
                columns,
                wide: [values.to_vec(), turned],
                narrow,
            }
        }

        fn all(&self) -> [Operand<'_>; 4] {
            let (rows, columns) = (self.rows, self.columns);
            [
                Operand::F32(Matrix::new(&self.wide[0], rows, columns)),
                Operand::F32(Matrix::new(&self.wide[1], columns, rows).transposed()),
                Operand::Bf16(Strided::<&[_]>::new(&self.narrow[0], rows, columns)),
                Operand::Bf16(Strided::<&[_]>::new(&self.narrow[1], columns, rows).transposed()),
            ]
        }
    }

    /// The sum of the rounded terms of each entry, and the sum of their sizes.
    fn exact(a: &[f32], b: &[f32], [rows, inner, columns]: [usize; 3]) -> Vec<(f64, f64)> {
        let [a, b] = [a, b].map(converted::<f32, bf16>);
        let entry = |at: usize| {
            let (row, column) = (at / columns, at % columns);
            let terms = (0..inner).map(|k| a[row * inner + k].to_f64() * b[k * columns + column].to_f64());
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        };
        (0..rows * columns).map(entry).collect()
    }

    /// Operands of either format, in either order, by every unit: products of the rounded numbers, to the rounding of f32, into f32 and into bf16.
    #[test]
    fn products_are_those_of_the_rounded_numbers() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for shape @ [rows, inner, columns] in [[1, 1, 1], [3, 5, 7], [33, 20, 48], [70, 600, 41], [40, 130, 700]] {
            let (a, b) = (numbers(&mut rng, rows * inner), numbers(&mut rng, inner * columns));
            let expected = exact(&a, &b, shape);
            let (a, b) = (Forms::new(&a, rows, inner), Forms::new(&b, inner, columns));
            for unit in Unit::all() {
                for (a, b) in a.all().into_iter().flat_map(|a| b.all().map(|b| (a, b))) {
                    let what = format!("{unit:?}, {shape:?}");
                    let mut sum = vec![f32::NAN; rows * columns];
                    for (store, times) in [(Store::Overwrite, 1.0), (Store::Add, 2.0)] {
                        multiply_by(*unit, &mut MatrixMut::new(&mut sum, rows, columns), store, &[(a, b)]);
                        for (found, (expected, size)) in sum.iter().zip(&expected) {
                            let error = (f64::from(*found) - times * expected).abs();
                            assert!(error <= 2e-6 * size, "{what}: {found} for {times} · {expected}");
                        }
                    }
                    let mut turned = vec![f32::NAN; rows * columns];
                    let mut out = MatrixMut::new(&mut turned, columns, rows).transposed();
                    multiply_by(*unit, &mut out, Store::Overwrite, &[(a, b)]);
                    let mut narrow = vec![bf16::NAN; rows * columns];
                    let mut out = MatrixMut::new(&mut narrow, rows, columns);
                    multiply_by(*unit, &mut out, Store::Overwrite, &[(a, b)]);
                    for (at, (expected, size)) in expected.iter().enumerate() {
                        let error = (f64::from(turned[at % columns * rows + at / columns]) - expected).abs();
                        assert!(error <= 2e-6 * size, "{what}, by columns: {error}");
                        let error = (narrow[at].to_f64() - expected).abs();
                        let allowed = 2e-6 * size + expected.abs() / 256.0;
                        assert!(error <= allowed, "{what}, as bf16: {error}");
                    }
                }
            }
        }
    }

    /// However the terms of a sum are cut into products, it is the same sum to the last bit: of sequences, the gradient of a weight.
    #[test]
    fn a_sum_goes_on_where_it_was_left() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (rows, columns, seq, count) = (45, 70, 150, 5);
        let (a, b) = (
            numbers(&mut rng, rows * seq * count),
            numbers(&mut rng, seq * count * columns),
        );
        let a = Operand::F32(Matrix::new(&a, seq * count, rows).transposed());
        let b = Operand::F32(Matrix::new(&b, seq * count, columns));
        let sequence = |index: usize| {
            let range = index * seq..(index + 1) * seq;
            (a.column_range(range.clone()), b.row_range(range))
        };
        let terms: Vec<_> = (0..count).map(sequence).collect();
        for unit in Unit::all() {
            let sum = |size: usize| {
                let mut sum = vec![f32::NAN; rows * columns];
                for (index, terms) in terms.chunks(size).enumerate() {
                    let store = if index == 0 { Store::Overwrite } else { Store::Add };
                    multiply_by(*unit, &mut MatrixMut::new(&mut sum, rows, columns), store, terms);
                }
                sum
            };
            let whole = sum(count);
            for size in 1..count {
                assert!(sum(size) == whole, "{unit:?}, {size} sequences at once");
            }
        }
    }

    /// To the last bit: a sequence is the same numbers in a micro-batch of any size.
    #[test]
    fn an_entry_does_not_depend_on_the_others() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let [rows, inner, columns] = [70, 600, 700];
        let (a, b) = (numbers(&mut rng, rows * inner), numbers(&mut rng, inner * columns));
        let a = Operand::F32(Matrix::new(&a, rows, inner));
        let b = Operand::F32(Matrix::new(&b, inner, columns));
        for unit in Unit::all() {
            let bits = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| -> Vec<u32> {
                let mut out = vec![f32::NAN; rows.len() * columns.len()];
                let mut matrix = MatrixMut::new(&mut out, rows.len(), columns.len());
                let terms = [(a.row_range(rows), b.column_range(columns))];
                multiply_by(*unit, &mut matrix, Store::Overwrite, &terms);
                out.into_iter().map(f32::to_bits).collect()
            };
            let whole = bits(0..rows, 0..columns);
            for part_rows in [3..5, 0..31, 32..65] {
                for part_columns in [5..21, 300..333, 0..700] {
                    let found = bits(part_rows.clone(), part_columns.clone());
                    let rows = part_rows.clone();
                    let expected = rows.flat_map(|row| &whole[row * columns..][part_columns.clone()]);
                    assert!(found.iter().eq(expected), "{unit:?}: {part_rows:?}, {part_columns:?}");
                }
            }
        }
    }

    /// NaN and infinity stay in their row, and reach it.
    #[test]
    fn what_is_not_finite_shows() {
        for unit in Unit::all() {
            for bad in [f32::NAN, f32::INFINITY] {
                let (mut a, b) = (vec![1.0; 40 * 40], vec![1.0; 40 * 40]);
                a[3 * 40 + 5] = bad;
                let mut out = vec![0.0; 40 * 40];
                let terms = [(
                    Operand::F32(Matrix::new(&a, 40, 40)),
                    Operand::F32(Matrix::new(&b, 40, 40)),
                )];
                multiply_by(*unit, &mut MatrixMut::new(&mut out, 40, 40), Store::Overwrite, &terms);
                for (at, found) in out.iter().enumerate() {
                    let is_right = if at / 40 == 3 {
                        !found.is_finite()
                    } else {
                        *found == 40.0
                    };
                    assert!(is_right, "{unit:?}: {found} at {at}");
                }
            }
        }
    }
}
