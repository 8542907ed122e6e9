//! The rows of a table by their numbers; back, each row of the gradient is added to the one that it came from.

use burn::tensor::Shape;
use rayon::prelude::*;

use super::matrix::Into;
use super::memory::{Blank, assume_written};
use super::{Gradient, Operation, Output, View, Wanted};

/// Rows of the table in one task.
const ROWS: usize = 512;

/// Rows of a table `[vocab, hidden]`.
#[derive(Debug)]
pub(crate) struct Embed {
    /// Which, `[batch, seq]`.
    pub(crate) ids: Vec<usize>,
    pub(crate) shape: [usize; 2],
}

impl Operation<1> for Embed {
    type Kept = ();

    const FIRST_SUMMED: usize = 0;

    fn forward(&self, [table]: [View<'_>; 1]) -> Output<()> {
        let width = table.width();
        let mut rows = Vec::with_capacity(self.ids.len() * width);
        for id in &self.ids {
            rows.extend_from_slice(&table.values[id * width..(id + 1) * width]);
        }
        Output {
            values: rows,
            shape: Shape::from([self.shape[0], self.shape[1], width]),
            kept: (),
        }
    }

    fn backward(&self, [table]: [View<'_>; 1], (): &(), upstream: &[f32], [wanted]: [Wanted<'_>; 1]) -> [Gradient; 1] {
        let width = table.width();
        let part = |(task, out): (usize, &mut Blank), into| {
            if into == Into::Empty {
                out.fill(std::mem::MaybeUninit::new(0.0));
            }
            // SAFETY: filled above, or a sum.
            let out = unsafe { assume_written(out) };
            let (first, rows) = (task * ROWS, out.len() / width);
            // In the order of the tokens, whatever the threads do.
            for (id, upstream) in self.ids.iter().zip(upstream.chunks_exact(width)) {
                if (first..first + rows).contains(id) {
                    let row = (id - first) * width;
                    for (sum, value) in out[row..row + width].iter_mut().zip(upstream) {
                        *sum += value;
                    }
                }
            }
        };
        let write = |out: &mut Blank, into| {
            let tasks = out.par_chunks_mut(ROWS * width).enumerate();
            tasks.for_each(|task| part(task, into));
        };
        // SAFETY: the tasks are all the rows.
        [unsafe { wanted.write(table.values.len(), write) }]
    }
}
