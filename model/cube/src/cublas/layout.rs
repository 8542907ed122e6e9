//! A product of tensors that count by rows, as cuBLASLt is asked for it, which counts by columns.
//!
//! A matrix whose rows lie one after the other is, counted by columns, its transpose. So for `D = A·B` the library is asked for
//! `Dᵀ = Bᵀ·Aᵀ`: D needs no copy, and neither do factors that lie by rows. A factor that lies by columns, as a transposed view does, is
//! read by the library's own transposition. What is between two rows or columns, as in padded or cut out matrices, is the leading
//! dimension, which the library takes as it is.

/// Shape and strides of a tensor, strides in numbers of its format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) shape: &'a [usize],
    pub(crate) strides: &'a [usize],
}

/// `D ← op(A)·op(B)`, or that added to D, for a number of matrices at equal distances, all counted by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Columns {
    pub(crate) a: Operand,
    pub(crate) b: Operand,
    pub(crate) d: Operand,
    pub(crate) batches: usize,
}

/// Matrices as they lie, counted by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Operand {
    /// What the product takes is the transpose.
    pub(crate) transposed: bool,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// From one column to the next.
    pub(crate) leading: usize,
    /// From one matrix to the next; zero if all products share one.
    pub(crate) distance: usize,
}

/// `d = a·b`, batch by batch, as the library is asked for it. None where its strides cannot say how the numbers lie, and where there are
/// no numbers.
///
/// # Shapes
/// - a: `[…, rows, inner]`
/// - b: `[…, inner, columns]`
/// - d: `[…, rows, columns]`, where a batch dimension of a or b may be 1
pub(crate) fn by_columns(a: View, b: View, d: View) -> Option<Columns> {
    let rank = d.shape.len();
    let fits = rank >= 2
        && [a, b, d]
            .iter()
            .all(|view| view.shape.len() == rank && view.strides.len() == rank);
    if !fits || [a, b, d].iter().any(|view| view.shape.contains(&0)) {
        return None;
    }
    let [m, k, n] = [a.shape[rank - 2], a.shape[rank - 1], b.shape[rank - 1]];
    if b.shape[rank - 2] != k || d.shape[rank - 2..] != [m, n] {
        return None;
    }
    let batches = Batches::new(a, b, d)?;
    let (rows, batches) = match batches.as_rows(m, [a, d]) {
        Some(rows) => (rows, Batches::ONE),
        None => (m, batches),
    };
    let Batches { count, distances } = batches;
    let matrix = |view: View, rows: usize, columns: usize| {
        Matrix::new([rows, columns], [view.strides[rank - 2], view.strides[rank - 1]])
    };
    let (a, b, d) = (matrix(a, rows, k)?, matrix(b, k, n)?, matrix(d, rows, n)?);
    if d.order != Order::ByRows || (count > 1 && distances[2] == 0) {
        return None;
    }
    Some(Columns {
        a: b.transpose_as_it_lies(distances[1]),
        b: a.transpose_as_it_lies(distances[0]),
        d: d.transpose_as_it_lies(distances[2]),
        batches: count,
    })
}

/// The dimensions before the last two as one.
#[derive(Clone, Copy)]
struct Batches {
    count: usize,
    /// From one matrix of a, b and d to the next.
    distances: [usize; 3],
}

impl Batches {
    const ONE: Self = Self {
        count: 1,
        distances: [0; 3],
    };

    /// None where the dimensions of one of the tensors do not follow from each other, or do not fit those of d.
    fn new(a: View, b: View, d: View) -> Option<Self> {
        let mut batches = Self::ONE;
        for dimension in (0..d.shape.len() - 2).rev() {
            let size = d.shape[dimension];
            let mut strides = [0; 3];
            for (stride, view) in strides.iter_mut().zip([a, b, d]) {
                *stride = match view.shape[dimension] {
                    own if own == size => view.strides[dimension],
                    1 => 0,
                    _ => return None,
                };
            }
            if size == 1 {
                continue;
            }
            if batches.count == 1 {
                batches.distances = strides;
            } else if strides != batches.distances.map(|distance| distance * batches.count) {
                return None;
            }
            batches.count *= size;
        }
        Some(batches)
    }

    /// How many rows a and d have if all of their matrices are taken as one: the case of one b for all of them, which is one product.
    fn as_rows(&self, rows: usize, tensors: [View; 2]) -> Option<usize> {
        let [of_a, of_b, of_d] = self.distances;
        let follow = |view: View, distance: usize| {
            let stride = view.strides[view.strides.len() - 2];
            rows > 1 && distance == stride * rows
        };
        let fold = self.count > 1 && of_b == 0 && follow(tensors[0], of_a) && follow(tensors[1], of_d);
        fold.then_some(rows * self.count)
    }
}

/// Which numbers of a matrix are beside each other in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    ByRows,
    ByColumns,
}

struct Matrix {
    rows: usize,
    columns: usize,
    order: Order,
    leading: usize,
}

impl Matrix {
    /// None where neither rows nor columns are without gaps between their numbers, or where they overlap.
    fn new([rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> Option<Self> {
        // The stride of a dimension of one number says nothing: any that the library takes will do.
        let leading = |count, length, stride, inner_stride| match (count, length) {
            (1, 1) => Some(1),
            (1, _) => (inner_stride == 1).then_some(length),
            (_, 1) => (stride >= 1).then_some(stride),
            _ => (inner_stride == 1 && stride >= length).then_some(stride),
        };
        let by_rows = leading(rows, columns, row_stride, column_stride).map(|leading| (Order::ByRows, leading));
        let by_columns =
            || leading(columns, rows, column_stride, row_stride).map(|leading| (Order::ByColumns, leading));
        let (order, leading) = by_rows.or_else(by_columns)?;
        Some(Self {
            rows,
            columns,
            order,
            leading,
        })
    }

    /// The transpose of the matrix, out of its numbers as they lie.
    fn transpose_as_it_lies(&self, distance: usize) -> Operand {
        let (transposed, rows, columns) = match self.order {
            Order::ByRows => (false, self.columns, self.rows),
            Order::ByColumns => (true, self.rows, self.columns),
        };
        Operand {
            transposed,
            rows,
            columns,
            leading: self.leading,
            distance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor in memory of some length, every number of which is different.
    struct Tensor {
        memory: Vec<f64>,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    }

    impl Tensor {
        /// Row by row, each row padded.
        fn padded(shape: &[usize], padding: usize, seed: f64) -> Self {
            let mut strides = vec![1; shape.len()];
            let mut stride = 1;
            for dimension in (0..shape.len()).rev() {
                strides[dimension] = stride;
                stride *= shape[dimension] + if dimension + 1 == shape.len() { padding } else { 0 };
            }
            let memory = (0..stride).map(|place| ((place as f64 + seed) * 0.37).sin()).collect();
            Self {
                memory,
                offset: 0,
                shape: shape.to_vec(),
                strides,
            }
        }

        fn new(shape: &[usize], seed: f64) -> Self {
            Self::padded(shape, 0, seed)
        }

        fn swap(mut self, one: usize, other: usize) -> Self {
            self.shape.swap(one, other);
            self.strides.swap(one, other);
            self
        }

        fn narrow(mut self, dimension: usize, start: usize, size: usize) -> Self {
            assert!(start + size <= self.shape[dimension]);
            self.offset += start * self.strides[dimension];
            self.shape[dimension] = size;
            self
        }

        fn view(&self) -> View<'_> {
            View {
                shape: &self.shape,
                strides: &self.strides,
            }
        }

        fn place(&self, index: &[usize]) -> usize {
            let dimensions = index.iter().zip(&self.shape).zip(&self.strides);
            let steps = dimensions.map(|((index, size), stride)| if *size == 1 { 0 } else { index * stride });
            self.offset + steps.sum::<usize>()
        }
    }

    /// Every index of a shape.
    fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
        shape.iter().fold(vec![vec![]], |indices, size| {
            let longer = |index: Vec<usize>| {
                (0..*size).map(move |next| {
                    let mut index = index.clone();
                    index.push(next);
                    index
                })
            };
            indices.into_iter().flat_map(longer).collect()
        })
    }

    /// `d = a·b` from the meaning of shape and strides.
    fn by_meaning(a: &Tensor, b: &Tensor, d: &mut Tensor) {
        let rank = d.shape.len();
        let inner = a.shape[rank - 1];
        for index in indices(&d.shape.clone()) {
            let term = |k: usize| {
                let (mut of_a, mut of_b) = (index.clone(), index.clone());
                of_a[rank - 1] = k;
                of_b[rank - 2] = k;
                a.memory[a.place(&of_a)] * b.memory[b.place(&of_b)]
            };
            let place = d.place(&index);
            d.memory[place] = (0..inner).map(term).sum();
        }
    }

    /// The product as BLAS defines it, with its own rules for sizes checked. Factors in the library's order: `a` is what it calls A.
    fn by_blas(question: &Columns, a: &Tensor, b: &Tensor, d: &mut Tensor) {
        let op = |operand: &Operand| match operand.transposed {
            false => [operand.rows, operand.columns],
            true => [operand.columns, operand.rows],
        };
        let ([m, k], [k_of_b, n]) = (op(&question.a), op(&question.b));
        assert_eq!(k, k_of_b);
        assert_eq!([question.d.rows, question.d.columns], [m, n]);
        assert!(!question.d.transposed);
        for operand in [&question.a, &question.b, &question.d] {
            assert!(operand.leading >= operand.rows, "{question:?}");
        }
        let place = |tensor: &Tensor, operand: &Operand, batch: usize, row: usize, column: usize| {
            let [row, column] = if operand.transposed {
                [column, row]
            } else {
                [row, column]
            };
            tensor.offset + batch * operand.distance + row + column * operand.leading
        };
        for batch in 0..question.batches {
            for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                let term = |inner: usize| {
                    a.memory[place(a, &question.a, batch, row, inner)]
                        * b.memory[place(b, &question.b, batch, inner, column)]
                };
                let sum = (0..k).map(term).sum();
                let place = place(d, &question.d, batch, row, column);
                d.memory[place] = sum;
            }
        }
    }

    #[track_caller]
    fn assert_same(a: &Tensor, b: &Tensor, d: impl Fn() -> Tensor) -> Columns {
        let (mut expected, mut found) = (d(), d());
        by_meaning(a, b, &mut expected);
        let question = by_columns(a.view(), b.view(), found.view()).expect("the library can do it");
        // The library's A is the second factor.
        by_blas(&question, b, a, &mut found);
        // All of the memory, so that nothing beside the numbers of the tensor was written.
        assert_eq!(found.memory, expected.memory, "{question:?}");
        question
    }

    #[test]
    fn every_order_of_factors() {
        for [m, n, k] in [
            [3, 5, 4],
            [1, 5, 4],
            [3, 1, 4],
            [3, 5, 1],
            [1, 1, 4],
            [1, 5, 1],
            [3, 1, 1],
            [1, 1, 1],
        ] {
            for transposed in [[false, false], [false, true], [true, false], [true, true]] {
                let factor = |shape: [usize; 2], transposed: bool, seed| match transposed {
                    false => Tensor::new(&shape, seed),
                    true => Tensor::new(&[shape[1], shape[0]], seed).swap(0, 1),
                };
                let (a, b) = (factor([m, k], transposed[0], 1.0), factor([k, n], transposed[1], 2.0));
                let question = assert_same(&a, &b, || Tensor::new(&[m, n], 3.0));
                if [m, n, k] == [3, 5, 4] {
                    assert_eq!([question.b.transposed, question.a.transposed], transposed);
                }
            }
        }
    }

    #[test]
    fn a_product_is_asked_for_as_its_transpose() {
        let (a, b) = (Tensor::new(&[3, 4], 1.0), Tensor::new(&[5, 4], 2.0).swap(0, 1));
        let question = assert_same(&a, &b, || Tensor::new(&[3, 5], 0.0));
        let operand = |transposed, rows, columns| Operand {
            transposed,
            rows,
            columns,
            leading: rows,
            distance: 0,
        };
        let expected = Columns {
            a: operand(true, 4, 5),
            b: operand(false, 4, 3),
            d: operand(false, 5, 3),
            batches: 1,
        };
        assert_eq!(question, expected);
    }

    #[test]
    fn padded_and_cut_out_matrices() {
        let a = Tensor::padded(&[3, 4], 3, 1.0);
        let b = Tensor::new(&[9, 11], 2.0).narrow(0, 2, 4).narrow(1, 3, 5);
        let question = assert_same(&a, &b, || Tensor::padded(&[3, 5], 2, 3.0));
        assert_eq!([question.a.leading, question.b.leading, question.d.leading], [11, 7, 7]);
        let a = Tensor::new(&[8, 9], 1.0).narrow(0, 1, 4).narrow(1, 5, 3).swap(0, 1);
        assert_same(&a, &b, || Tensor::new(&[20, 6], 3.0).narrow(0, 4, 3).narrow(1, 1, 5));
    }

    #[test]
    fn batches() {
        let (a, b) = (Tensor::new(&[2, 3, 4, 5], 1.0), Tensor::padded(&[2, 3, 5, 6], 1, 2.0));
        let question = assert_same(&a, &b, || Tensor::new(&[2, 3, 4, 6], 3.0));
        assert_eq!(
            (question.batches, question.a.distance, question.b.distance),
            (6, 35, 20)
        );
        let transposed = Tensor::new(&[2, 3, 6, 5], 2.0).swap(2, 3);
        assert_same(&a, &transposed, || Tensor::new(&[2, 3, 4, 6], 3.0));
        // Heads of one sequence beside each other in a row, as attention has them.
        let heads = |seed| Tensor::new(&[1, 7, 3, 4], seed).swap(1, 2);
        let question = assert_same(&heads(1.0), &heads(2.0).swap(2, 3), || Tensor::new(&[1, 3, 7, 7], 0.0));
        assert_eq!((question.batches, question.a.distance, question.a.leading), (3, 4, 12));
    }

    #[test]
    fn a_factor_that_all_batches_share() {
        let shared = Tensor::new(&[1, 5, 6], 2.0);
        let question = assert_same(&Tensor::new(&[3, 4, 5], 1.0), &shared, || Tensor::new(&[3, 4, 6], 0.0));
        assert_eq!(
            (question.batches, question.d.columns),
            (1, 12),
            "the rows of all batches are one matrix"
        );
        let cut = Tensor::new(&[3, 9, 5], 1.0).narrow(1, 2, 4);
        let question = assert_same(&cut, &shared, || Tensor::new(&[3, 4, 6], 0.0));
        assert_eq!(
            (question.batches, question.a.distance),
            (3, 0),
            "they are not if rows are left out"
        );
        let by_columns = Tensor::new(&[3, 5, 4], 1.0).swap(1, 2);
        assert_same(&by_columns, &shared, || Tensor::new(&[3, 4, 6], 0.0));
        assert_same(&Tensor::new(&[1, 4, 5], 1.0), &Tensor::new(&[3, 5, 6], 2.0), || {
            Tensor::new(&[3, 4, 6], 0.0)
        });
        // Vectors, whose one row says nothing of its stride.
        assert_same(&Tensor::new(&[3, 1, 5], 1.0), &shared, || Tensor::new(&[3, 1, 6], 0.0));
        assert_same(
            &Tensor::new(&[2, 3, 4, 5], 1.0),
            &Tensor::new(&[2, 1, 5, 6], 2.0).narrow(0, 1, 1),
            || Tensor::new(&[2, 3, 4, 6], 0.0),
        );
    }

    #[test]
    fn what_the_library_cannot_do() {
        let refused = |a: &Tensor, b: &Tensor, d: &Tensor| by_columns(a.view(), b.view(), d.view()).is_none();
        let (a, b, d) = (
            Tensor::new(&[3, 4], 1.0),
            Tensor::new(&[4, 5], 2.0),
            Tensor::new(&[3, 5], 0.0),
        );
        assert!(!refused(&a, &b, &d));
        // Gaps between the numbers of rows and of columns.
        let gaps = Tensor::new(&[3, 4, 2], 1.0).narrow(2, 0, 1);
        let gaps = Tensor {
            shape: gaps.shape[..2].to_vec(),
            strides: gaps.strides[..2].to_vec(),
            ..gaps
        };
        assert!(refused(&gaps, &b, &d));
        // One row for all.
        let repeated = Tensor {
            strides: vec![0, 1],
            ..Tensor::new(&[3, 4], 1.0)
        };
        assert!(refused(&repeated, &b, &d));
        // A result by columns.
        assert!(refused(&a, &b, &Tensor::new(&[5, 3], 0.0).swap(0, 1)));
        // No numbers.
        assert!(refused(&Tensor::new(&[3, 0], 0.0), &Tensor::new(&[0, 5], 0.0), &d));
        // Shapes that do not fit.
        assert!(refused(&a, &a, &d));
        assert!(refused(
            &Tensor::new(&[2, 3, 4], 1.0),
            &Tensor::new(&[3, 4, 5], 2.0),
            &Tensor::new(&[3, 3, 5], 0.0)
        ));
        // Heads of several sequences have two distances.
        let heads = |seed| Tensor::new(&[2, 7, 3, 4], seed).swap(1, 2);
        assert!(refused(
            &heads(1.0),
            &heads(2.0).swap(2, 3),
            &Tensor::new(&[2, 3, 7, 7], 0.0)
        ));
        // A sum for all batches.
        let shared = Tensor {
            strides: vec![0, 5, 1],
            ..Tensor::new(&[2, 3, 5], 0.0)
        };
        assert!(refused(
            &Tensor::new(&[2, 3, 4], 1.0),
            &Tensor::new(&[2, 4, 5], 2.0),
            &shared
        ));
    }
}
