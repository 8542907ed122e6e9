//! What a fused operation is: the same mathematics as some tensor operations, as loops over slices, with a backward pass of its own.
//!
//! No sum depends on how work is cut among threads, and what is summed across a cut is summed in order, so the same numbers come out on
//! every run.

use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Shape};
use rayon::prelude::*;

use crate::matrix::Store;
use crate::memory::{Blank, as_blank, written};
use crate::numbers::{Numbers, Values};
use crate::operand::Operand;

/// An input of an operation.
#[derive(Clone, Debug)]
pub(crate) struct View<'a> {
    /// Row by row.
    pub(crate) values: Numbers<'a>,
    pub(crate) shape: Shape,
}

impl<'a> View<'a> {
    /// Size of the last dimension.
    pub(crate) fn width(&self) -> usize {
        self.shape.as_slice().last().copied().unwrap_or(1)
    }

    /// As f32.
    pub(crate) fn widened(self) -> Wide<'a> {
        Wide {
            values: self.values.widened(),
            shape: self.shape,
        }
    }

    /// A tensor of two dimensions as a matrix.
    pub(crate) fn matrix(&self) -> Operand<'a> {
        Operand::new(self.values, self.shape[0], self.shape[1])
    }
}

/// An input of an operation, as f32.
#[derive(Clone, Debug)]
pub(crate) struct Wide<'a> {
    /// Row by row.
    pub(crate) values: Cow<'a, [f32]>,
    pub(crate) shape: Shape,
}

impl Wide<'_> {
    /// Size of the last dimension.
    pub(crate) fn width(&self) -> usize {
        self.shape.as_slice().last().copied().unwrap_or(1)
    }

    /// How many numbers a sequence of `[batch, seq, hidden]` has; a tensor of lower rank is one sequence.
    pub(crate) fn sequence(&self) -> usize {
        let length = self.values.len().max(1);
        match self.shape.as_slice() {
            [batch, _, _, ..] => length / (*batch).max(1),
            _ => length,
        }
    }

    /// For each sequence the sums of its pieces of at most `piece` numbers, which are handled in parallel and added up in their order.
    pub(crate) fn sums_of_sequences(
        &self,
        piece: usize,
        sums: impl Fn(Range<usize>) -> Vec<f64> + Sync,
    ) -> Vec<Vec<f64>> {
        let (length, sequence) = (self.values.len(), self.sequence());
        let sequences = (0..length).into_par_iter().step_by(sequence);
        let sums = sequences.map(|start| {
            let end = (start + sequence).min(length);
            let pieces = (start..end).into_par_iter().step_by(piece);
            let parts: Vec<Vec<f64>> = pieces.map(|start| sums(start..(start + piece).min(end))).collect();
            let add = |mut sum: Vec<f64>, part: Vec<f64>| {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                sum
            };
            parts.into_iter().reduce(add).unwrap_or_default()
        });
        sums.collect()
    }
}

/// What the backward pass of an operation needs besides its inputs; empty for most.
pub(crate) type Kept = Arc<Vec<f32>>;

/// What an operation returns.
pub(crate) struct Output {
    /// Row by row.
    pub(crate) values: Values,
    pub(crate) shape: Shape,
    pub(crate) kept: Kept,
}

impl Output {
    /// The output of an operation whose backward pass needs nothing but the inputs.
    pub(crate) fn new(values: impl Into<Values>, shape: Shape) -> Self {
        let (values, kept) = (values.into(), Kept::default());
        Self { values, shape, kept }
    }
}

/// What is asked for of one input of an operation.
pub(crate) enum Wanted<'a> {
    Nothing,
    Gradient,
    /// To be added to the sum over the sequences that came before.
    Sum(&'a mut [f32]),
}

impl Wanted<'_> {
    pub(crate) fn is_wanted(&self) -> bool {
        !matches!(self, Wanted::Nothing)
    }

    /// The gradient that `write` writes, or adds to the sum.
    ///
    /// # Safety
    /// Where it is to [overwrite](Store::Overwrite), `write` leaves none of the `length` numbers unwritten, and it writes numbers only.
    pub(crate) unsafe fn write(self, length: usize, write: impl FnOnce(&mut Blank, Store)) -> Gradient {
        match self {
            Wanted::Nothing => Gradient::None,
            // SAFETY: as the caller promises.
            Wanted::Gradient => Gradient::Values(unsafe { written(length, |out| write(out, Store::Overwrite)) }.into()),
            Wanted::Sum(sum) => {
                assert_eq!(sum.len(), length);
                // SAFETY: numbers only are written, as the caller promises.
                write(unsafe { as_blank(sum) }, Store::Add);
                Gradient::Added
            }
        }
    }

    /// The sum of the sequences' parts, added in their order.
    pub(crate) fn add_up(self, length: usize, parts: impl IntoIterator<Item = Vec<f64>>) -> Gradient {
        let add_to = |sum: &mut [f32]| {
            for part in parts {
                for (sum, part) in sum.iter_mut().zip(part) {
                    *sum = (f64::from(*sum) + part) as f32;
                }
            }
        };
        match self {
            Wanted::Nothing => Gradient::None,
            Wanted::Gradient => {
                let mut sum = vec![0.0; length];
                add_to(&mut sum);
                Gradient::Values(sum.into())
            }
            Wanted::Sum(sum) => {
                add_to(sum);
                Gradient::Added
            }
        }
    }
}

/// What an operation sends back to one of its inputs.
pub(crate) enum Gradient {
    /// No gradient: none was wanted.
    None,
    /// The gradient has been added to the sum.
    Added,
    /// The gradient of the output, unchanged.
    Upstream,
    /// These numbers, in the shape of the input.
    Values(Values),
}

/// A differentiable operation of `N` tensors over slices. Whatever it returns is rounded to the format of the tensor that it is for, if it
/// is not in it already.
pub(crate) trait Operation<const N: usize>: Debug + Send + 'static {
    /// The first input whose gradient adds to what has come back before, and so do those after it: the weights, and the stream where that
    /// saves a walk over it. The gradient of a weight is a sum over the sequences, and is to be added up in their order, one after the
    /// other: then it does not depend on which of them a micro-batch holds.
    fn first_summed(&self) -> usize;

    /// Number format of the output, where that of the first input is `first`.
    fn format(&self, first: DType) -> DType {
        first
    }

    fn forward(&self, inputs: [View<'_>; N]) -> Output;

    /// The gradients of the inputs; `upstream` is that of the output.
    fn backward(
        &self,
        inputs: [View<'_>; N],
        kept: &[f32],
        upstream: Numbers<'_>,
        wanted: [Wanted<'_>; N],
    ) -> [Gradient; N];
}
