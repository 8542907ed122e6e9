//! Causal attention of rotated queries and keys, head by head and a block of rows at a time: of the `[seq, seq]` scores nothing is kept.
//!
//! With `P = softmax(q·kᵀ/√d)` below the diagonal and the gradient `g` of `P·v`: `∂L/∂v = Pᵀ·g`, and with `dP = g·vᵀ` and
//! `dS = P ⊙ (dP − rowsum(P ⊙ dP))`, `∂L/∂q = dS·k/√d` and `∂L/∂k = dSᵀ·q/√d`. The backward pass computes P again from the logarithm of
//! each row's sum (as FlashAttention, arXiv 2205.14135). A block of rows meets the keys up to its last row only, so close to half of the
//! products are never made.

use std::mem::MaybeUninit;
use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::matrix::{Matrix, MatrixMut, Store};
use crate::memory::{Blank, scratch, written};
use crate::operation::{Gradient, Kept, Operation, Output, View, Wanted};
use crate::product::multiply_in_vectors;
use crate::table::{apply, input};
use crate::vector::{dot, exp, exp_and_sum, max, vectorised};

/// Rows of a block.
const ROWS: usize = 64;

/// Causal attention within sequences of one length. The queries, keys and values of a token stand side by side in its row; `tables` are the
/// cosines and the sines of the rotation, which turns the first half of a head against the second.
///
/// # Shapes
/// - projected: `[batch · seq, (heads + 2 · kv_heads) · d]`
/// - tables: `[seq, d]`
/// - output: `[batch · seq, heads · d]`
pub fn causal_attention<B: Backend>(
    projected: &Tensor<B, 2>,
    tables: &[Tensor<B, 2>; 2],
    heads: usize,
    kv_heads: usize,
) -> Option<Tensor<B, 2>> {
    let [cos, sin] = tables;
    let attention = CausalAttention {
        seq: cos.dims()[0],
        heads,
        kv_heads,
    };
    apply(attention, [input(projected)?, input(cos)?, input(sin)?])
}

#[derive(Debug)]
struct CausalAttention {
    seq: usize,
    heads: usize,
    kv_heads: usize,
}

/// Numbers of one head of one sequence in the rows of its tokens.
#[derive(Clone, Copy)]
struct Head<'a> {
    /// The rows of the whole sequence, with all heads.
    values: &'a [f32],
    width: usize,
    columns: (usize, usize),
}

impl<'a> Head<'a> {
    fn new(values: &'a [f32], sequence: usize, seq: usize, width: usize, head: usize, head_dim: usize) -> Self {
        Self {
            values: &values[sequence * seq * width..(sequence + 1) * seq * width],
            width,
            columns: (head * head_dim, (head + 1) * head_dim),
        }
    }

    fn matrix(self) -> Matrix<'a> {
        let (rows, (first, end)) = (self.values.len() / self.width, self.columns);
        Matrix::new(self.values, rows, self.width).column_range(first..end)
    }
}

/// The tables of the rotation, `[seq, d]`.
#[derive(Clone, Copy)]
struct Turn<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    head_dim: usize,
}

impl Turn<'_> {
    /// A head's rows, each turned by its position and scaled.
    fn forward(&self, head: Head<'_>, scale: f32, out: &mut [f32]) {
        let first = head.columns.0;
        turn(
            &head.values[first..],
            head.width,
            self.cos,
            self.sin,
            self.head_dim,
            scale,
            out,
        );
    }

    /// The gradient of [`forward`](Self::forward), into the rows of a head.
    fn backward(&self, values: &[f32], scale: f32, out: MatrixMut<'_>) {
        turn_back(values, self.cos, self.sin, self.head_dim, scale, out);
    }
}

/// The buffers of a thread, each for one head.
struct Scratch {
    /// Turned and scaled queries, `[seq, d]`.
    q: Vec<f32>,
    /// Turned keys, `[seq, d]`.
    k: Vec<f32>,
    /// Room for the transpose of the keys.
    turned_k: Vec<MaybeUninit<f32>>,
    /// Room for the transpose of the values.
    turned_v: Vec<MaybeUninit<f32>>,
    of_q: Vec<f32>,
    of_k: Vec<f32>,
    /// Scores and weights of a block of rows.
    weights: Vec<f32>,
    of_weights: Vec<f32>,
}

impl Scratch {
    fn new(seq: usize, head_dim: usize) -> Self {
        let head = || vec![0.0; seq * head_dim];
        Self {
            q: head(),
            k: head(),
            turned_k: scratch(Matrix::room_of_transpose(seq, head_dim)),
            turned_v: scratch(Matrix::room_of_transpose(seq, head_dim)),
            of_q: head(),
            of_k: head(),
            weights: vec![0.0; ROWS * seq],
            of_weights: vec![0.0; ROWS * seq],
        }
    }
}

impl CausalAttention {
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let seq = self.seq;
        (0..seq).step_by(ROWS).map(move |start| start..(start + ROWS).min(seq))
    }

    /// `q·kᵀ` of a block of rows with the keys up to its last one.
    fn scores(&self, out: &mut [f32], q: &[f32], turned_k: Matrix<'_>, rows: Range<usize>) {
        let q = Matrix::new(q, self.seq, turned_k.rows()).row_range(rows.clone());
        let k = turned_k.column_range(0..rows.end);
        multiply_in_vectors(&mut MatrixMut::new(out, rows.len(), rows.end), Store::Overwrite, q, k);
    }
}

impl Operation<3> for CausalAttention {
    fn first_summed(&self) -> usize {
        3
    }

    /// Keeps `ln Σ exp` of each row of scores, `[batch, heads, seq]`.
    fn forward(&self, [x, cos, sin]: [View<'_>; 3]) -> Output {
        let (seq, heads, kv_heads) = (self.seq, self.heads, self.kv_heads);
        let (tokens, width, head_dim) = (x.shape[0], x.width(), cos.width());
        let turn = Turn {
            cos: cos.values,
            sin: sin.values,
            head_dim,
        };
        let scale = (head_dim as f32).sqrt().recip();
        let mut log_sums = vec![0.0; tokens * heads];
        let write = |mixed: &mut Blank| {
            // One task for each head of each sequence; their results are columns of the sequence's rows.
            let outs: Vec<MatrixMut<'_>> = mixed
                .chunks_exact_mut(seq * heads * head_dim)
                .flat_map(|sequence| {
                    // SAFETY: a task writes each block of its rows by a product that overwrites, and reads none.
                    let sequence = unsafe { MatrixMut::blank(sequence, seq, heads * head_dim) };
                    sequence.column_blocks(head_dim)
                })
                .collect();
            let tasks = outs.into_par_iter().zip(log_sums.par_chunks_exact_mut(seq));
            tasks.enumerate().for_each_init(
                || Scratch::new(seq, head_dim),
                |room, (task, (mut out, log_sums))| {
                    let (sequence, head) = (task / heads, task % heads);
                    let kv_head = head / (heads / kv_heads);
                    let at = |head| Head::new(x.values, sequence, seq, width, head, head_dim);
                    turn.forward(at(head), scale, &mut room.q);
                    turn.forward(at(heads + kv_head), 1.0, &mut room.k);
                    let turned_k = Matrix::new(&room.k, seq, head_dim).transpose_into(&mut room.turned_k);
                    let value = at(heads + kv_heads + kv_head).matrix();
                    for rows in self.blocks() {
                        let seen = rows.end;
                        let weights = &mut room.weights[..rows.len() * seen];
                        self.scores(weights, &room.q, turned_k, rows.clone());
                        softmax(weights, rows.start, &mut log_sums[rows.clone()]);
                        let weights = Matrix::new(weights, rows.len(), seen);
                        multiply_in_vectors(
                            &mut out.row_range(rows),
                            Store::Overwrite,
                            weights,
                            value.row_range(0..seen),
                        );
                    }
                },
            );
        };
        // SAFETY: the tasks are all columns of all sequences, the blocks all rows, and a product writes all of its entries.
        let mixed = unsafe { written(tokens * heads * head_dim, write) };
        Output {
            values: mixed,
            shape: Shape::from([tokens, heads * head_dim]),
            kept: Kept::new(log_sums),
        }
    }

    fn backward(
        &self,
        [x, cos, sin]: [View<'_>; 3],
        log_sums: &[f32],
        upstream: &[f32],
        _wanted: [Wanted<'_>; 3],
    ) -> [Gradient; 3] {
        let (seq, heads, kv_heads) = (self.seq, self.heads, self.kv_heads);
        let (width, head_dim, group) = (x.width(), cos.width(), heads / kv_heads);
        let turn = Turn {
            cos: cos.values,
            sin: sin.values,
            head_dim,
        };
        let scale = (head_dim as f32).sqrt().recip();
        let write = |of_x: &mut Blank| {
            // One task for each key head of each sequence, which goes through the query heads that share it: their gradients, then the key's,
            // then the value's.
            let mut outs = Vec::new();
            for sequence in of_x.chunks_exact_mut(seq * width) {
                // SAFETY: a task fills each of its columns with zeros before it adds to them.
                let mut columns = unsafe { MatrixMut::blank(sequence, seq, width) }.column_blocks(head_dim);
                let mut of_values = columns.split_off(heads + kv_heads).into_iter();
                let mut of_keys = columns.split_off(heads).into_iter();
                let mut of_queries = columns.into_iter();
                while let (Some(of_key), Some(of_value)) = (of_keys.next(), of_values.next()) {
                    let of_queries: Vec<_> = of_queries.by_ref().take(group).collect();
                    outs.push((of_queries, of_key, of_value));
                }
            }
            outs.into_par_iter().enumerate().for_each_init(
                || Scratch::new(seq, head_dim),
                |room, (task, (of_queries, mut of_key, mut of_value))| {
                    let (sequence, kv_head) = (task / kv_heads, task % kv_heads);
                    let at = |head| Head::new(x.values, sequence, seq, width, head, head_dim);
                    turn.forward(at(heads + kv_head), 1.0, &mut room.k);
                    let turned_k = Matrix::new(&room.k, seq, head_dim).transpose_into(&mut room.turned_k);
                    let value = at(heads + kv_heads + kv_head).matrix();
                    let turned_v = value.transpose_into(&mut room.turned_v);
                    room.of_k.fill(0.0);
                    of_key.zero();
                    of_value.zero();
                    for (member, mut of_query) in of_queries.into_iter().enumerate() {
                        of_query.zero();
                        let head = kv_head * group + member;
                        turn.forward(at(head), scale, &mut room.q);
                        let upstream = Head::new(upstream, sequence, seq, heads * head_dim, head, head_dim).matrix();
                        let log_sums = &log_sums[(sequence * heads + head) * seq..][..seq];
                        for rows in self.blocks() {
                            let seen = rows.end;
                            let weights = &mut room.weights[..rows.len() * seen];
                            let of_weights = &mut room.of_weights[..rows.len() * seen];
                            let upstream = upstream.row_range(rows.clone());
                            self.scores(weights, &room.q, turned_k, rows.clone());
                            let mut block = MatrixMut::new(of_weights, rows.len(), seen);
                            multiply_in_vectors(&mut block, Store::Overwrite, upstream, turned_v.column_range(0..seen));
                            softmax_backward(weights, of_weights, rows.start, &log_sums[rows.clone()]);

                            let weights = Matrix::new(weights, rows.len(), seen);
                            let of_scores = Matrix::new(of_weights, rows.len(), seen);
                            multiply_in_vectors(
                                &mut of_value.row_range(0..seen),
                                Store::Add,
                                weights.transposed(),
                                upstream,
                            );
                            let mut of_q = MatrixMut::new(&mut room.of_q, seq, head_dim);
                            let k = Matrix::new(&room.k, seq, head_dim).row_range(0..seen);
                            multiply_in_vectors(&mut of_q.row_range(rows.clone()), Store::Overwrite, of_scores, k);
                            let mut of_k = MatrixMut::new(&mut room.of_k, seq, head_dim);
                            let q = Matrix::new(&room.q, seq, head_dim).row_range(rows);
                            multiply_in_vectors(&mut of_k.row_range(0..seen), Store::Add, of_scores.transposed(), q);
                        }
                        turn.backward(&room.of_q, scale, of_query);
                    }
                    // The queries were scaled before they met the keys.
                    turn.backward(&room.of_k, 1.0, of_key);
                },
            );
        };
        // SAFETY: the heads' columns are all of a row, and each is filled with zeros first.
        let of_x = unsafe { written(x.values.len(), write) };
        [Gradient::Values(of_x), Gradient::None, Gradient::None]
    }
}

vectorised! {
    /// Softmax of each row over the columns up to its own number, which is `first` for the first row; 0 after that.
    fn softmax(scores: &'a mut [f32], first: usize, log_sums: &'a mut [f32]) -> () {
        let columns = scores.len() / log_sums.len();
        for (seen, (row, log_sum)) in (first + 1..).zip(scores.chunks_exact_mut(columns).zip(log_sums)) {
            // All columns, so that the loops run over whole vectors: exp(−∞) adds nothing to the sum.
            row[seen..].fill(f32::NEG_INFINITY);
            let largest = max(row);
            let sum = exp_and_sum(row, largest);
            let inverse = 1.0 / sum;
            for weight in row.iter_mut() {
                *weight *= inverse;
            }
            row[seen..].fill(0.0);
            *log_sum = largest + sum.ln();
        }
    }

    /// From scores and the gradient of the weights to the weights and the gradient of the scores.
    fn softmax_backward(scores: &'a mut [f32], gradients: &'a mut [f32], first: usize, log_sums: &'a [f32]) -> () {
        let columns = scores.len() / log_sums.len();
        let rows = scores.chunks_exact_mut(columns).zip(gradients.chunks_exact_mut(columns));
        for (seen, ((weights, gradients), log_sum)) in (first + 1..).zip(rows.zip(log_sums)) {
            for weight in weights.iter_mut() {
                *weight = exp(*weight - *log_sum);
            }
            weights[seen..].fill(0.0);
            gradients[seen..].fill(0.0);
            let mean = dot(weights, gradients);
            for (gradient, weight) in gradients.iter_mut().zip(weights.iter()) {
                *gradient = *weight * (*gradient - mean);
            }
        }
    }

    /// `(x · cos + swapped(x) · sin) · scale` of each row, where the halves of `swapped(x)` have changed places. The rows of `x` are `width`
    /// apart.
    pub(crate) fn turn(x: &'a [f32], width: usize, cos: &'a [f32], sin: &'a [f32], head_dim: usize, scale: f32, out: &'a mut [f32]) -> () {
        let half = head_dim / 2;
        let tables = cos.chunks_exact(head_dim).zip(sin.chunks_exact(head_dim));
        for ((x, (cos, sin)), out) in x.chunks(width).zip(tables).zip(out.chunks_exact_mut(head_dim)) {
            let (left, right) = x[..head_dim].split_at(half);
            let (out_left, out_right) = out.split_at_mut(half);
            let ((cos_left, cos_right), (sin_left, sin_right)) = (cos.split_at(half), sin.split_at(half));
            weigh(left, cos_left, right, sin_left, scale, out_left);
            weigh(right, cos_right, left, sin_right, scale, out_right);
        }
    }

    /// The gradient of [`turn`], row after row.
    fn turn_back(g: &'a [f32], cos: &'a [f32], sin: &'a [f32], head_dim: usize, scale: f32, out: MatrixMut<'a>) -> () {
        let mut out = out;
        let half = head_dim / 2;
        let tables = cos.chunks_exact(head_dim).zip(sin.chunks_exact(head_dim));
        for (position, (g, (cos, sin))) in g.chunks_exact(head_dim).zip(tables).enumerate() {
            let (left, right) = g.split_at(half);
            let (out_left, out_right) = out.row(position).split_at_mut(half);
            let ((cos_left, cos_right), (sin_left, sin_right)) = (cos.split_at(half), sin.split_at(half));
            weigh(left, cos_left, right, sin_right, scale, out_left);
            weigh(right, cos_right, left, sin_left, scale, out_right);
        }
    }
}

/// `out = (a·b + c·d) · scale`, in blocks of their own: the slices are too short for a check that they do not overlap.
#[inline(always)]
fn weigh(a: &[f32], b: &[f32], c: &[f32], d: &[f32], scale: f32, out: &mut [f32]) {
    const SIDE: usize = 8;
    let (blocks, rest) = out.as_chunks_mut::<SIDE>();
    let done = blocks.len() * SIDE;
    let pairs = a.as_chunks::<SIDE>().0.iter().zip(b.as_chunks::<SIDE>().0);
    let pairs = pairs.zip(c.as_chunks::<SIDE>().0.iter().zip(d.as_chunks::<SIDE>().0));
    for (((a, b), (c, d)), out) in pairs.zip(blocks) {
        let mut sums = [0.0; SIDE];
        for i in 0..SIDE {
            sums[i] = (a[i] * b[i] + c[i] * d[i]) * scale;
        }
        *out = sums;
    }
    for (i, out) in (done..).zip(rest) {
        *out = (a[i] * b[i] + c[i] * d[i]) * scale;
    }
}
