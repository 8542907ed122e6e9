//! Head and next-token cross-entropy at once, a chunk of rows and a block of the vocabulary at a time.
//!
//! With logits `z = h·W` and `p = softmax(z)`, the loss of a scored row is `ln Σ exp z − z_target`; what it sends back to the logits is
//! `p − onehot(target)`.
//!
//! 1. Each block of a chunk's logits is computed, and while it is in the cache turned into `exp(z − m)` with the block's own maximum `m` of
//!    each row, and summed.
//! 2. The maxima and sums of the blocks give those of the whole rows, and with them the losses.
//! 3. Each block is scaled into `p − onehot(target)`, and while it is in the cache sent back to the hidden states and to the head.
//!
//! A logit is written once and read once; the gradient of the head is written in place, the sum of those of the sequences in their order
//! (see [`linear`](crate::linear)).

use std::mem::MaybeUninit;
use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData, TensorMetadata};
use rayon::prelude::*;

use crate::autodiff::tensor;
use crate::matrix::{Matrix, MatrixMut, Store};
use crate::memory::{Blank, assume_written, scratch};
use crate::numbers::Values;
use crate::operand::Operand;
use crate::operation::{Gradient, Wanted};
use crate::product::Products;
use crate::table::{float, memory, primitive};
use crate::vector::{exp, exp_and_sum, max, vectorised};

/// Columns of a block, so many that a chunk's block of logits stays in a core's cache.
const BLOCK: usize = 256;
/// Most rows of a chunk.
const ROWS: usize = 1024;
/// Most numbers of a chunk's logits: 128 MiB.
const NUMBERS: usize = 1 << 25;
/// Tasks that a chunk's blocks are sent back in; each has a sum of its own of the hidden states' gradient.
const TASKS: usize = 16;

/// The loss and what it sends back to the hidden states and to the head.
#[derive(Debug)]
pub struct HeadGradients<B: Backend> {
    /// The sum of the scored rows' losses, divided by `scored`; `[1]`.
    pub loss: Tensor<B, 1>,
    /// Gradient of the hidden states, `[tokens, hidden]`.
    pub hidden: Tensor<B, 2>,
    /// Gradient of the head and what it was added to, `[hidden, vocab]`.
    pub weight: Tensor<B, 2>,
}

/// Loss and gradients at once. Where the hidden states are bf16, so are the products; softmax, loss and sums are f32. The losses are divided
/// by `scored`, a row whose target is `ignored` has none, and the gradient of the head is added to `sum`, sequence after sequence of `seq` rows.
///
/// # Shapes
/// - hidden: `[tokens, hidden]`
/// - weight, sum: `[hidden, vocab]`
/// - targets: `[tokens]`
///
/// # Errors
/// `sum` as it was, where the tensors are not in the memory of this process, or are under autodiff, or the weight is bf16 and the hidden
/// states are not.
pub fn loss_with_gradients<B: Backend>(
    hidden: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    targets: &Tensor<B, 1, Int>,
    ignored: i64,
    scored: usize,
    seq: usize,
    sum: Option<Tensor<B, 2>>,
) -> Result<HeadGradients<B>, Option<Tensor<B, 2>>> {
    let Some(memory) = memory::<B>() else {
        return Err(sum);
    };
    let device = hidden.device();
    let (hidden, weight) = (primitive(hidden.clone()), primitive(weight.clone()));
    let format = hidden.dtype();
    let Some(head) = Head::new(memory.operand(&hidden), memory.operand(&weight), ignored) else {
        return Err(sum);
    };
    let (hidden, weight) = (head.hidden, head.weight);
    // In the order of the weight.
    let mut sum = sum.map(|sum| primitive(if weight.is_by_rows() { sum } else { sum.transpose() }));
    let wanted = sum
        .as_mut()
        .and_then(memory.floats_mut)
        .map_or(Wanted::Gradient, Wanted::Sum);
    let result = head.backward(&read(targets), 1.0 / scored.max(1) as f32, seq, wanted);
    let matrix = |values: Values, shape: [usize; 2], format| {
        let values = values.in_format(format);
        float(tensor::<B>(values, shape.into(), &device))
    };
    let of_format = weight.format();
    let shape = match weight.is_by_rows() {
        true => [weight.rows(), weight.columns()],
        false => [weight.columns(), weight.rows()],
    };
    let of_weight: Tensor<B, 2> = match (result.of_weight, sum.map(float)) {
        (Gradient::Values(values), None) => matrix(values, shape, of_format),
        (Gradient::Values(values), Some(sum)) => sum + matrix(values, shape, of_format),
        (_, sum) => sum.unwrap_or_else(|| unreachable!("what was added was added to it")),
    };
    Ok(HeadGradients {
        loss: Tensor::from_data(TensorData::from([result.loss as f32]), &device),
        hidden: matrix(result.of_hidden.into(), [hidden.rows(), hidden.columns()], format),
        weight: if weight.is_by_rows() {
            of_weight
        } else {
            of_weight.transpose()
        },
    })
}

/// Loss of every row, 0 where the target is `ignored`; none where [`loss_with_gradients`] returns an error.
///
/// # Shapes
/// - hidden: `[tokens, hidden]`
/// - weight: `[hidden, vocab]`
/// - targets and output: `[tokens]`
pub fn token_losses<B: Backend>(
    hidden: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    targets: &Tensor<B, 1, Int>,
    ignored: i64,
) -> Option<Tensor<B, 1>> {
    let memory = memory::<B>()?;
    let device = hidden.device();
    let (hidden, weight) = (primitive(hidden.clone()), primitive(weight.clone()));
    let head = Head::new(memory.operand(&hidden), memory.operand(&weight), ignored)?;
    let losses = head.losses(&read(targets));
    let count = losses.len();
    Some(Tensor::from_data(TensorData::new(losses, [count]), &device))
}

fn read<B: Backend>(targets: &Tensor<B, 1, Int>) -> Vec<i64> {
    targets.to_data().iter::<i64>().collect()
}

/// What [`Head::backward`] returns.
struct Sent {
    loss: f64,
    /// `[tokens, hidden]`.
    of_hidden: Vec<f32>,
    /// In the order of the weight.
    of_weight: Gradient,
}

/// Hidden states `[tokens, hidden]` before a head `[hidden, vocab]`.
struct Head<'a> {
    hidden: Operand<'a>,
    weight: Operand<'a>,
    products: Products,
    /// The target of a row that is not scored.
    ignored: i64,
}

/// Some rows with their targets; each scored row has the same share of the loss.
struct Chunk<'a> {
    hidden: Operand<'a>,
    targets: &'a [i64],
    share: f32,
    /// Rows of a sequence.
    seq: usize,
}

/// The maximum and the sum of one row within one block of logits.
#[derive(Clone, Copy, Default)]
struct Part {
    max: f32,
    /// `Σ exp(z − max)`.
    sum: f32,
}

impl<'a> Head<'a> {
    /// None where there are no such numbers, or the weight is bf16 and the hidden states are not.
    fn new(hidden: Option<Operand<'a>>, weight: Option<Operand<'a>>, ignored: i64) -> Option<Self> {
        let (hidden, weight) = (hidden?, weight?);
        if let (Operand::F32(_), Operand::Bf16(_)) = (hidden, weight) {
            return None;
        }
        Some(Self {
            hidden,
            weight,
            products: Products::of(hidden),
            ignored,
        })
    }

    /// Numbers of the first columns of the blocks.
    fn starts(&self) -> Vec<usize> {
        (0..self.weight.columns()).step_by(BLOCK).collect()
    }

    /// Chunks of rows, each of as many as the logits and the tasks' sums leave room for: whole sequences, or a part of one.
    fn chunks(&self, seq: usize) -> Vec<Range<usize>> {
        let width = self.hidden.columns().max(1);
        let rows = (NUMBERS / self.weight.columns())
            .min(NUMBERS / 2 / TASKS / width)
            .clamp(16, ROWS);
        let (tokens, seq) = (self.hidden.rows(), seq.max(1));
        let cut = |whole: Range<usize>, rows: usize| {
            let end = whole.end;
            whole.step_by(rows).map(move |start| start..(start + rows).min(end))
        };
        if seq <= rows {
            return cut(0..tokens, rows / seq * seq).collect();
        }
        cut(0..tokens, seq).flat_map(|sequence| cut(sequence, rows)).collect()
    }

    /// Logits of some hidden states and of the block that begins at column `start`, then [`exponentials`]; puts the logits of the targets
    /// that lie in the block where they belong.
    fn block(
        &self,
        hidden: Operand<'_>,
        start: usize,
        out: &mut Blank,
        targets: &[i64],
        of_targets: &mut [f32],
    ) -> Vec<Part> {
        let width = out.len() / hidden.rows();
        let weight = self.weight.column_range(start..start + width);
        self.products.multiply(
            // SAFETY: the product overwrites all of it.
            &mut unsafe { MatrixMut::blank(out, hidden.rows(), width) },
            Store::Overwrite,
            hidden,
            weight,
        );
        // SAFETY: a product writes all of its entries.
        let out = unsafe { assume_written(out) };
        for ((row, target), logit) in out.chunks_exact(width).zip(targets).zip(of_targets) {
            if let Some(found) = column(*target, start, width) {
                *logit = row[found];
            }
        }
        let mut parts = vec![Part::default(); hidden.rows()];
        exponentials(out, width, &mut parts);
        parts
    }

    fn losses(&self, targets: &[i64]) -> Vec<f32> {
        let tokens = self.hidden.rows();
        let mut losses = vec![0.0; tokens];
        // Rows enough that packing the head's blocks costs little beside the products.
        const TASK: usize = 256;
        losses.par_chunks_mut(TASK).enumerate().for_each_init(
            || scratch(TASK * BLOCK),
            |block, (index, losses)| {
                let rows = index * TASK..index * TASK + losses.len();
                let (hidden, targets) = (self.hidden.row_range(rows.clone()), &targets[rows.clone()]);
                let mut of_targets = vec![0.0; rows.len()];
                let blocks: Vec<Vec<Part>> = self
                    .starts()
                    .into_iter()
                    .map(|start| {
                        let width = BLOCK.min(self.weight.columns() - start);
                        self.block(
                            hidden,
                            start,
                            &mut block[..rows.len() * width],
                            targets,
                            &mut of_targets,
                        )
                    })
                    .collect();
                for (row, loss) in losses.iter_mut().enumerate() {
                    if targets[row] != self.ignored {
                        let whole = whole_row(&blocks, row);
                        *loss = whole.max - of_targets[row] + whole.sum.ln();
                    }
                }
            },
        );
        losses
    }

    fn backward(&self, targets: &[i64], share: f32, seq: usize, wanted: Wanted<'_>) -> Sent {
        let (tokens, width, vocab) = (self.hidden.rows(), self.hidden.columns(), self.weight.columns());
        let mut of_hidden = vec![0.0; tokens * width];
        let mut loss = 0.0;
        let write = |of_weight: &mut Blank, store| {
            let chunks = self.chunks(seq);
            let Some(rows) = chunks.iter().map(Range::len).max() else {
                if store == Store::Overwrite {
                    of_weight.fill(MaybeUninit::new(0.0));
                }
                return;
            };
            let mut logits = scratch(rows * vocab);
            let mut sums = scratch(TASKS * rows * width);
            for range in chunks {
                let chunk = Chunk {
                    hidden: self.hidden.row_range(range.clone()),
                    targets: &targets[range.clone()],
                    share,
                    seq,
                };
                // SAFETY: the products of the first chunk overwrite all of it, unless it is a sum.
                let of_weight = unsafe {
                    if self.weight.is_by_rows() {
                        MatrixMut::blank(of_weight, width, vocab)
                    } else {
                        MatrixMut::blank(of_weight, vocab, width).transposed()
                    }
                };
                let store = if range.start == 0 { store } else { Store::Add };
                let of_hidden = &mut of_hidden[range.start * width..range.end * width];
                loss += self.chunk(&chunk, &mut logits, &mut sums, of_hidden, of_weight, store);
            }
        };
        // SAFETY: the blocks of a chunk are all columns, and the first chunk writes into every entry of theirs.
        let of_weight = unsafe { wanted.write(width * vocab, write) };
        Sent {
            loss,
            of_hidden,
            of_weight,
        }
    }

    /// The loss of a chunk, whose gradients go to `of_hidden` and, as `store` says, to `of_weight`.
    fn chunk(
        &self,
        chunk: &Chunk<'_>,
        logits: &mut Blank,
        sums: &mut Blank,
        of_hidden: &mut [f32],
        of_weight: MatrixMut<'_>,
        store: Store,
    ) -> f64 {
        let Chunk {
            hidden,
            targets,
            share,
            seq,
        } = *chunk;
        let (count, width, vocab) = (hidden.rows(), hidden.columns(), self.weight.columns());
        let starts = self.starts();
        // One after the other, each row by row, so that a product writes into one piece.
        let mut blocks: Vec<&mut Blank> = logits[..count * vocab].chunks_mut(count * BLOCK).collect();
        let computed: Vec<(Vec<Part>, Vec<f32>)> = blocks
            .par_iter_mut()
            .zip(&starts)
            .map(|(block, start)| {
                let mut of_targets = vec![0.0; count];
                (self.block(hidden, *start, block, targets, &mut of_targets), of_targets)
            })
            .collect();
        let (parts, of_targets): (Vec<_>, Vec<_>) = computed.into_iter().unzip();

        let mut loss = 0.0;
        let shares: Vec<Part> = (0..count)
            .map(|row| {
                let whole = whole_row(&parts, row);
                let target = targets[row];
                if target == self.ignored {
                    return Part {
                        max: whole.max,
                        sum: 0.0,
                    };
                }
                let of_target = match usize::try_from(target) {
                    Ok(target) if target < vocab => of_targets[target / BLOCK][row],
                    _ => f32::NAN,
                };
                loss += f64::from(whole.max - of_target + whole.sum.ln()) * f64::from(share);
                Part {
                    max: whole.max,
                    sum: share / whole.sum,
                }
            })
            .collect();

        let by_columns = hidden.transposed();
        let outs = of_weight.column_blocks(BLOCK).into_iter();
        let mut work: Vec<_> = outs.zip(blocks).zip(&starts).zip(&parts).collect();
        // Neighbouring blocks are one task's, the same ones whatever the number of threads.
        let each = work.len().div_ceil(TASKS);
        let used = work.len().div_ceil(each);
        let sums = &mut sums[..used * count * width];
        let tasks = work.par_chunks_mut(each).zip(sums.par_chunks_mut(count * width));
        tasks.for_each(|(blocks, sum)| {
            for (index, (((out, block), start), parts)) in blocks.iter_mut().enumerate() {
                // SAFETY: `Self::block` has written all of it.
                let block = unsafe { assume_written(block) };
                let columns = block.len() / count;
                scale(block, columns, parts, &shares);
                for (row, target) in targets.iter().enumerate() {
                    if let Some(found) = column(*target, **start, columns) {
                        block[row * columns + found] -= share;
                    }
                }
                let of_logits = Operand::F32(Matrix::new(block, count, columns));
                let weight = self.weight.column_range(**start..**start + columns);
                let before = if index == 0 { Store::Overwrite } else { Store::Add };
                self.products.multiply(
                    // SAFETY: the product of the first block overwrites all of it.
                    &mut unsafe { MatrixMut::blank(sum, count, width) },
                    before,
                    of_logits,
                    weight.transposed(),
                );
                self.products.multiply_in_pieces(out, store, by_columns, of_logits, seq);
            }
        });
        // SAFETY: so many tasks there were, and each wrote its sum.
        add_up(of_hidden, unsafe { assume_written(sums) });
        loss
    }
}

/// Where a target stands in the block of `width` columns from `start`.
fn column(target: i64, start: usize, width: usize) -> Option<usize> {
    let column = usize::try_from(target).ok()?.checked_sub(start)?;
    (column < width).then_some(column)
}

/// Maximum and sum of a row from those of its blocks.
fn whole_row(blocks: &[Vec<Part>], row: usize) -> Part {
    let max = blocks
        .iter()
        .map(|parts| parts[row].max)
        .fold(f32::NEG_INFINITY, f32::max);
    let sum = blocks
        .iter()
        .map(|parts| parts[row].sum * exp(parts[row].max - max))
        .sum();
    Part { max, sum }
}

/// Adds up the tasks' sums in their order.
fn add_up(out: &mut [f32], sums: &[f32]) {
    const PIECE: usize = 1 << 13;
    let length = out.len();
    out.par_chunks_mut(PIECE).enumerate().for_each(|(index, out)| {
        for sum in sums.chunks_exact(length) {
            for (out, value) in out.iter_mut().zip(&sum[index * PIECE..]) {
                *out += value;
            }
        }
    });
}

vectorised! {
    /// `exp(z − max)` of each row in the place of the logits, with the maximum and the sum.
    fn exponentials(logits: &'a mut [f32], columns: usize, parts: &'a mut [Part]) -> () {
        for (row, part) in logits.chunks_exact_mut(columns).zip(parts) {
            part.max = max(row);
            part.sum = exp_and_sum(row, part.max);
        }
    }

    /// The softmax of each row times its share of the loss: `exp(z − max)` was taken with the block's own maximum.
    fn scale(block: &'a mut [f32], columns: usize, parts: &'a [Part], shares: &'a [Part]) -> () {
        for ((row, part), share) in block.chunks_exact_mut(columns).zip(parts).zip(shares) {
            let factor = exp(part.max - share.max) * share.sum;
            for value in row {
                *value *= factor;
            }
        }
    }
}
