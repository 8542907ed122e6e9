//! A batch of token sequences, as the data side makes it and the model side takes it.
#![doc = include_str!("../README.md")]

use burn::tensor::backend::Backend;
use burn::tensor::{Element, Int, Tensor, TensorData};

/// The target of a position that is not scored, as in PyTorch.
///
/// Targets are signed on the host, so that this value needs no flag beside it; 32 bits are what every backend's integers hold.
pub const IGNORE_INDEX: i32 = -100;

/// The largest id: ids and targets share one integer type on the device, which has at least 32 bits and a sign.
const LARGEST_ID: u32 = i32::MAX as u32;

/// Sequences and what each of their positions is scored against.
///
/// Its constructors check it, so that `ids` and `targets` have one shape and `scored` is the number of scored positions.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TokenBatch<B: Backend> {
    /// The input tokens, `[batch, seq]`.
    pub ids: Tensor<B, 2, Int>,
    /// For each position the id that follows it, or [`IGNORE_INDEX`]; `[batch, seq]`.
    pub targets: Tensor<B, 2, Int>,
    /// Number of positions that are scored.
    pub scored: usize,
}

/// Why sequences are not a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// There is no position to compute on.
    #[error("a batch needs at least one sequence of at least one position")]
    Empty,
    /// A sequence and its targets do not belong together.
    #[error("row {row} has {ids} ids and {targets} targets: each position needs one of both")]
    Unpaired {
        /// The row, from 0.
        row: usize,
        /// Its ids.
        ids: usize,
        /// Its targets.
        targets: usize,
    },
    /// The sequences do not have one length.
    #[error(
        "row {row} has {found} positions, the rows before it {expected}: fill shorter rows up with positions that are not scored"
    )]
    UnequalRows {
        /// The first row that differs, from 0.
        row: usize,
        /// Its positions.
        found: usize,
        /// Those of the first row.
        expected: usize,
    },
    /// An id that no integer type of a backend is sure to hold.
    #[error("row {row}, position {position}: id {id} is above {LARGEST_ID}, the largest that a tensor holds")]
    Id {
        /// The row, from 0.
        row: usize,
        /// The position in the row, from 0.
        position: usize,
        /// The id.
        id: u32,
    },
    /// A target that is neither an id nor [`IGNORE_INDEX`].
    #[error(
        "row {row}, position {position}: target {target} is neither an id nor {IGNORE_INDEX}, which marks a position that is not scored"
    )]
    Target {
        /// The row, from 0.
        row: usize,
        /// The position in the row, from 0.
        position: usize,
        /// The target.
        target: i32,
    },
    /// Tensors of ids and targets that do not have one shape.
    #[error("ids have the shape {ids:?} and targets {targets:?}: both are [batch, seq]")]
    Shapes {
        /// The shape of the ids.
        ids: [usize; 2],
        /// The shape of the targets.
        targets: [usize; 2],
    },
    /// Tensors with entries below zero that are not [`IGNORE_INDEX`].
    #[error("{ids} ids are below zero, and {targets} targets that are not {IGNORE_INDEX}")]
    Negative {
        /// Ids below zero.
        ids: usize,
        /// Targets below zero that do not say that a position is not scored.
        targets: usize,
    },
}

impl<B: Backend> TokenBatch<B> {
    /// A batch of tensors that are on the device already. It waits for the device once, to count what is scored.
    ///
    /// # Shapes
    /// - ids, targets: `[batch, seq]`; targets are ids or [`IGNORE_INDEX`]
    ///
    /// # Errors
    /// When the shapes differ, there is no position, or an entry is below zero that must not be.
    pub fn new(ids: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>) -> Result<Self, BatchError> {
        let shapes = (ids.dims(), targets.dims());
        if shapes.0 != shapes.1 {
            return Err(BatchError::Shapes {
                ids: shapes.0,
                targets: shapes.1,
            });
        }
        let positions = shapes.0[0] * shapes.0[1];
        if positions == 0 {
            return Err(BatchError::Empty);
        }
        let counts = [
            targets.clone().not_equal_elem(IGNORE_INDEX),
            targets.clone().lower_elem(0),
            ids.clone().lower_elem(0),
        ];
        let counts = counts.map(|which| which.int().sum()).to_vec();
        let counts: Vec<i64> = Tensor::cat(counts, 0).into_data().iter::<i64>().collect();
        let count = |at: usize| usize::try_from(counts[at]).unwrap_or(0);
        let (scored, below) = (count(0), count(1));
        let negative = (count(2), below.saturating_sub(positions - scored));
        if negative != (0, 0) {
            return Err(BatchError::Negative {
                ids: negative.0,
                targets: negative.1,
            });
        }
        Ok(Self { ids, targets, scored })
    }

    /// A batch of sequences on the host, each as its ids and its targets, in the device's own integer type.
    ///
    /// # Errors
    /// When the rows do not have one length, there is no position, or an id or a target is none. Whether ids are inside a model's
    /// vocabulary is for the model to say.
    pub fn from_rows<'a>(
        rows: impl IntoIterator<Item = (&'a [u32], &'a [i32])>,
        device: &B::Device,
    ) -> Result<Self, BatchError> {
        let (mut ids, mut targets) = (Vec::new(), Vec::new());
        let (mut count, mut seq) = (0, 0);
        for (row, (row_ids, row_targets)) in rows.into_iter().enumerate() {
            if row == 0 {
                seq = row_ids.len();
            }
            check_row(row, seq, row_ids, row_targets)?;
            ids.extend_from_slice(row_ids);
            targets.extend_from_slice(row_targets);
            count += 1;
        }
        if ids.is_empty() {
            return Err(BatchError::Empty);
        }
        let scored = targets.iter().filter(|&&target| target != IGNORE_INDEX).count();
        Ok(Self {
            ids: on_device(ids, [count, seq], device),
            targets: on_device(targets, [count, seq], device),
            scored,
        })
    }
}

fn check_row(row: usize, seq: usize, ids: &[u32], targets: &[i32]) -> Result<(), BatchError> {
    if ids.len() != targets.len() {
        return Err(BatchError::Unpaired {
            row,
            ids: ids.len(),
            targets: targets.len(),
        });
    }
    if ids.len() != seq {
        return Err(BatchError::UnequalRows {
            row,
            found: ids.len(),
            expected: seq,
        });
    }
    if let Some(position) = ids.iter().position(|&id| id > LARGEST_ID) {
        return Err(BatchError::Id {
            row,
            position,
            id: ids[position],
        });
    }
    let is_wrong = |target: &i32| *target < 0 && *target != IGNORE_INDEX;
    if let Some(position) = targets.iter().position(is_wrong) {
        return Err(BatchError::Target {
            row,
            position,
            target: targets[position],
        });
    }
    Ok(())
}

/// The one place where ids of the host become the backend's integers.
fn on_device<B: Backend, E: Element>(values: Vec<E>, shape: [usize; 2], device: &B::Device) -> Tensor<B, 2, Int> {
    Tensor::from_data(TensorData::new(values, shape).convert::<B::IntElem>(), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::{Flex, FlexDevice};

    type Row<'a> = (&'a [u32], &'a [i32]);

    fn from_rows(rows: &[Row<'_>]) -> Result<TokenBatch<Flex>, BatchError> {
        TokenBatch::from_rows(rows.iter().copied(), &FlexDevice)
    }

    fn values(tensor: &Tensor<Flex, 2, Int>) -> Vec<i64> {
        tensor.to_data().iter::<i64>().collect()
    }

    #[test]
    fn rows_become_tensors_and_what_is_scored_is_counted() {
        let largest = i32::MAX as u32;
        let batch = from_rows(&[(&[1, largest], &[2, IGNORE_INDEX]), (&[3, 0], &[0, i32::MAX])]).unwrap();
        assert_eq!(values(&batch.ids), [1, i64::from(largest), 3, 0]);
        assert_eq!(values(&batch.targets), [2, -100, 0, i64::from(i32::MAX)]);
        assert_eq!(
            (batch.ids.dims(), batch.targets.dims(), batch.scored),
            ([2, 2], [2, 2], 3)
        );
        let again = TokenBatch::new(batch.ids, batch.targets).unwrap();
        assert_eq!(again.scored, 3);
        assert_eq!(from_rows(&[(&[1], &[IGNORE_INDEX])]).unwrap().scored, 0);
    }

    #[test]
    fn rows_that_are_no_batch_are_refused_with_their_place() {
        let expected = [2, 1, 0].map(|found| BatchError::UnequalRows {
            row: 1,
            found,
            expected: 3,
        });
        for (ids, error) in [&[1, 2][..], &[1], &[]].into_iter().zip(expected) {
            let targets = vec![1; ids.len()];
            assert_eq!(
                from_rows(&[(&[1, 2, 3], &[1, 2, 3]), (ids, &targets)]).unwrap_err(),
                error
            );
        }
        let place = (1, 0);
        let (row, position) = place;
        for (rows, error) in [
            (vec![], BatchError::Empty),
            (vec![(&[][..], &[][..]); 2], BatchError::Empty),
            (
                vec![(&[1, 2], &[1])],
                BatchError::Unpaired {
                    row: 0,
                    ids: 2,
                    targets: 1,
                },
            ),
            (
                vec![(&[1], &[2]), (&[1 << 31], &[2])],
                BatchError::Id {
                    row,
                    position,
                    id: 1 << 31,
                },
            ),
            (
                vec![(&[1], &[2]), (&[1], &[-1])],
                BatchError::Target {
                    row,
                    position,
                    target: -1,
                },
            ),
        ] {
            assert_eq!(from_rows(&rows).unwrap_err(), error);
        }
    }

    #[test]
    fn tensors_that_are_no_batch_are_refused() {
        let tensor = |values: [[i32; 2]; 2]| Tensor::<Flex, 2, Int>::from_ints(values, &FlexDevice);
        let good = tensor([[1, 2], [3, 4]]);
        let refused = |ids: Tensor<Flex, 2, Int>, targets| TokenBatch::new(ids, targets).unwrap_err();
        assert_eq!(
            refused(good.clone(), good.clone().narrow(0, 0, 1)),
            BatchError::Shapes {
                ids: [2, 2],
                targets: [1, 2]
            }
        );
        let empty = || Tensor::empty([0, 2], &FlexDevice);
        assert_eq!(refused(empty(), empty()), BatchError::Empty);
        assert_eq!(
            refused(tensor([[1, -100], [-1, 4]]), tensor([[-100, -1], [-2, 4]])),
            BatchError::Negative { ids: 2, targets: 2 }
        );
    }
}
