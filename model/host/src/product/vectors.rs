//! Products on the vector units, by the `gemm` crate. They have less to prepare than the matrix units: for products of a hundred rows or
//! columns, and for processors without others.

use crate::matrix::{Matrix, MatrixMut, Store};

/// `out = a·b`, or `out += a·b`, on this thread. An entry is the same sum whatever other entries are computed with it, unless it stands in the
/// only row or the only column.
///
/// # Panics
/// Unless the shapes fit.
pub(crate) fn multiply_in_vectors(out: &mut MatrixMut<'_>, store: Store, a: Matrix<'_>, b: Matrix<'_>) {
    /// Most columns of `a` that `gemm` takes at once whatever the size of the result. More than those it cuts as that size suggests.
    const DEPTH: usize = 512;
    /// Most entries of a result that `gemm` sums in another order if the numbers of a row of `a` and those of a column of `b` lie side by
    /// side.
    const FEW: usize = 256;
    assert!(out.rows() == a.rows() && out.columns() == b.columns() && a.columns() == b.rows());
    if a.columns() > DEPTH {
        let piece = a.columns().div_ceil(a.columns().div_ceil(DEPTH));
        return in_pieces(store, a, b, piece, |store, a, b| multiply_in_vectors(out, store, a, b));
    }
    if out.rows() * out.columns() <= FEW && a.column_stride == 1 && b.row_stride == 1 && b.column_stride != 1 {
        let columns = b.transposed();
        let numbers = (0..b.rows()).flat_map(|row| (0..b.columns()).map(move |column| columns.row(column)[row]));
        let numbers: Vec<_> = numbers.collect();
        return multiply_in_vectors(out, store, a, Matrix::new(&numbers, b.rows(), b.columns()));
    }
    // SAFETY: the shapes fit, and both kinds of matrices hold all their entries: `Matrix` borrows them, `MatrixMut` has them to itself.
    unsafe {
        gemm::gemm(
            out.rows(),
            out.columns(),
            a.columns(),
            out.values.first,
            out.column_stride,
            out.row_stride,
            store == Store::Add,
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

/// Calls `one` for `piece` columns of `a` after the other, with the rows of `b` that they meet; after the first, a product adds to the result.
pub(crate) fn in_pieces(
    store: Store,
    a: Matrix<'_>,
    b: Matrix<'_>,
    piece: usize,
    mut one: impl FnMut(Store, Matrix<'_>, Matrix<'_>),
) {
    if a.columns() <= piece {
        return one(store, a, b);
    }
    for start in (0..a.columns()).step_by(piece) {
        let range = start..(start + piece).min(a.columns());
        let store = if start == 0 { store } else { Store::Add };
        one(store, a.column_range(range.clone()), b.row_range(range));
    }
}
