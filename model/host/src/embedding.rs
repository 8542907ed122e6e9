//! The rows of a table by their numbers; back, each row of the gradient is added to the one that it came from.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Shape, Tensor};
use rayon::prelude::*;

use crate::matrix::Store;
use crate::memory::{Blank, assume_written};
use crate::numbers::{Numbers, Values};
use crate::operation::{Gradient, Operation, Output, View, Wanted};
use crate::table::{apply, input};

/// Rows of the table in one task.
const ROWS: usize = 512;

/// The rows of a table that ids name.
///
/// # Shapes
/// - table: `[vocab, hidden]`
/// - ids: `[batch, seq]`
/// - output: `[batch, seq, hidden]`
///
/// # Panics
/// If an id is not a row of the table.
pub fn embed<B: Backend>(table: &Tensor<B, 2>, ids: &Tensor<B, 2, Int>) -> Option<Tensor<B, 3>> {
    let (table, shape) = (input(table)?, ids.dims());
    let ids = ids.to_data().iter::<i64>().map(|id| id as usize).collect();
    apply(Embed { ids, shape }, [table])
}

#[derive(Debug)]
struct Embed {
    ids: Vec<usize>,
    /// `[batch, seq]`.
    shape: [usize; 2],
}

impl Embed {
    fn rows<E: Copy>(&self, table: &[E], width: usize) -> Vec<E> {
        let mut rows = Vec::with_capacity(self.ids.len() * width);
        for id in &self.ids {
            rows.extend_from_slice(&table[id * width..(id + 1) * width]);
        }
        rows
    }
}

impl Operation<1> for Embed {
    fn first_summed(&self) -> usize {
        0
    }

    fn forward(&self, [table]: [View<'_>; 1]) -> Output {
        let width = table.width();
        let values = match table.values {
            Numbers::F32(table) => Values::F32(self.rows(table, width)),
            Numbers::Bf16(table) => Values::Bf16(self.rows(table, width)),
        };
        Output::new(values, Shape::from([self.shape[0], self.shape[1], width]))
    }

    fn backward(
        &self,
        [table]: [View<'_>; 1],
        _kept: &[f32],
        upstream: Numbers<'_>,
        [wanted]: [Wanted<'_>; 1],
    ) -> [Gradient; 1] {
        let upstream = upstream.widened();
        let width = table.width();
        let part = |(task, out): (usize, &mut Blank), store| {
            if store == Store::Overwrite {
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
        let write = |out: &mut Blank, store| {
            let tasks = out.par_chunks_mut(ROWS * width).enumerate();
            tasks.for_each(|task| part(task, store));
        };
        // SAFETY: the tasks are all the rows.
        [unsafe { wanted.write(table.values.len(), write) }]
    }
}
