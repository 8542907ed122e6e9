//! Causal attention of rotated queries and keys, head by head and a block of rows at a time: of the `[seq, seq]` scores nothing is kept.
//!
//! With `P = softmax(q·kᵀ/√d)` below the diagonal and the gradient `g` of `P·v`: `∂L/∂v = Pᵀ·g`, and with `dP = g·vᵀ` and
//! `dS = P ⊙ (dP − rowsum(P ⊙ dP))`, `∂L/∂q = dS·k/√d` and `∂L/∂k = dSᵀ·q/√d`. The backward pass computes P again from the logarithm of
//! each row's sum (as FlashAttention, arXiv 2205.14135). A block of rows meets the keys up to its last row only, so close to half of the
//! products are never made.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::matrix::{Into, Matrix, MatrixMut, multiply};
use super::vector::{dot, exp, exp_and_sum, max, vectorised};
use super::{Gradient, Operation, Output, View};

/// Rows of a block.
const ROWS: usize = 64;

/// Attention over the inputs queries `[batch · seq, heads · d]`, keys and values `[batch · seq, kv_heads · d]`, and the tables of cosines
/// and of sines of [`Rotary`](crate::Rotary), `[positions, d]`.
#[derive(Debug)]
pub(crate) struct CausalAttention {
    pub(crate) seq: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
}

/// Queries, or keys, or values of one head of one sequence.
#[derive(Clone, Copy)]
struct Head<'a> {
    /// Of the whole sequence, with all heads.
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
        Matrix::new(self.values, self.values.len() / self.width, self.width)
            .column_range(self.columns.0..self.columns.1)
    }

    fn row(self, index: usize) -> &'a [f32] {
        &self.values[index * self.width..][self.columns.0..self.columns.1]
    }
}

/// The tables of the rotation.
#[derive(Clone, Copy)]
struct Turn<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    head_dim: usize,
}

impl Turn<'_> {
    /// A head's rows, each turned by its position and scaled.
    fn forward(&self, head: Head<'_>, scale: f32, out: &mut [f32]) {
        for (position, out) in out.chunks_exact_mut(self.head_dim).enumerate() {
            let (cos, sin) = self.at(position);
            turn(head.row(position), cos, sin, scale, out);
        }
    }

    /// The other way round, into the rows of a gradient.
    fn backward(&self, values: &[f32], scale: f32, out: &mut MatrixMut<'_>) {
        for (position, values) in values.chunks_exact(self.head_dim).enumerate() {
            let (cos, sin) = self.at(position);
            turn_back(values, cos, sin, scale, out.row(position));
        }
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.head_dim..(position + 1) * self.head_dim;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

impl CausalAttention {
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let seq = self.seq;
        (0..seq).step_by(ROWS).map(move |start| start..(start + ROWS).min(seq))
    }
}

impl Operation<5> for CausalAttention {
    /// `ln Σ exp` of each row of scores, `[batch, heads, seq]`.
    type Kept = Arc<Vec<f32>>;

    fn forward(&self, [query, key, value, cos, sin]: [View<'_>; 5]) -> Output<Self::Kept> {
        let (seq, heads, group) = (self.seq, self.heads, self.heads / self.kv_heads);
        let (width, kv_width, head_dim) = (query.width(), key.width(), cos.width());
        let turn = Turn {
            cos: cos.values,
            sin: sin.values,
            head_dim,
        };
        let scale = (head_dim as f32).sqrt().recip();
        let mut mixed = vec![0.0; query.values.len()];
        let mut log_sums = vec![0.0; query.values.len() / head_dim];
        // One task for each head of each sequence; their results are columns of the sequence's rows.
        let outs: Vec<MatrixMut<'_>> = mixed
            .chunks_exact_mut(seq * width)
            .flat_map(|sequence| MatrixMut::new(sequence, seq, width).column_blocks(head_dim))
            .collect();
        let tasks = outs.into_par_iter().zip(log_sums.par_chunks_exact_mut(seq));
        let scratch = || {
            [
                vec![0.0; seq * head_dim],
                vec![0.0; seq * head_dim],
                vec![0.0; ROWS * seq],
            ]
        };
        tasks
            .enumerate()
            .for_each_init(scratch, |[q, k, scores], (task, (mut out, log_sums))| {
                let (sequence, head) = (task / heads, task % heads);
                let kv_head = |values| Head::new(values, sequence, seq, kv_width, head / group, head_dim);
                turn.forward(Head::new(query.values, sequence, seq, width, head, head_dim), scale, q);
                turn.forward(kv_head(key.values), 1.0, k);
                let value = kv_head(value.values).matrix();
                for rows in self.blocks() {
                    let seen = rows.end;
                    let scores = &mut scores[..rows.len() * seen];
                    similarities(scores, q, k, head_dim, rows.clone());
                    softmax(scores, rows.start, &mut log_sums[rows.clone()]);
                    let scores = Matrix::new(scores, rows.len(), seen);
                    multiply(&mut out.row_range(rows), Into::Empty, scores, value.row_range(0..seen));
                }
            });
        Output {
            values: mixed,
            shape: query.shape,
            kept: Arc::new(log_sums),
        }
    }

    fn backward(
        &self,
        [query, key, value, cos, sin]: [View<'_>; 5],
        log_sums: &Self::Kept,
        upstream: &[f32],
        _wanted: [bool; 5],
    ) -> [Gradient; 5] {
        let (seq, group) = (self.seq, self.heads / self.kv_heads);
        let (width, kv_width, head_dim) = (query.width(), key.width(), cos.width());
        let turn = Turn {
            cos: cos.values,
            sin: sin.values,
            head_dim,
        };
        let scale = (head_dim as f32).sqrt().recip();
        let mut of_query = vec![0.0; query.values.len()];
        let mut of_key = vec![0.0; key.values.len()];
        let mut of_value = vec![0.0; value.values.len()];
        // One task for each key head of each sequence, which goes through the query heads that share it.
        fn split(values: &mut [f32], seq: usize, width: usize, columns: usize) -> Vec<MatrixMut<'_>> {
            values
                .chunks_exact_mut(seq * width)
                .flat_map(|sequence| MatrixMut::new(sequence, seq, width).column_blocks(columns))
                .collect()
        }
        let outs = split(&mut of_query, seq, width, group * head_dim).into_par_iter();
        let outs = outs.zip(split(&mut of_key, seq, kv_width, head_dim));
        let outs = outs.zip(split(&mut of_value, seq, kv_width, head_dim));
        let scratch = || {
            let head = || vec![0.0; seq * head_dim];
            (
                [head(), head(), head(), head()],
                [vec![0.0; ROWS * seq], vec![0.0; ROWS * seq]],
            )
        };
        outs.enumerate()
            .for_each_init(scratch, |([q, k, of_q, of_k], [weights, of_weights]), (task, outs)| {
                let ((of_query, mut of_key), mut of_value) = outs;
                let (sequence, kv_head) = (task / self.kv_heads, task % self.kv_heads);
                let shared = |values| Head::new(values, sequence, seq, kv_width, kv_head, head_dim);
                turn.forward(shared(key.values), 1.0, k);
                let value = shared(value.values).matrix();
                of_k.fill(0.0);
                for row in 0..seq {
                    of_value.row(row).fill(0.0);
                }
                for (member, mut of_query) in of_query.column_blocks(head_dim).into_iter().enumerate() {
                    let head = kv_head * group + member;
                    turn.forward(Head::new(query.values, sequence, seq, width, head, head_dim), scale, q);
                    let upstream = Head::new(upstream, sequence, seq, width, head, head_dim).matrix();
                    let log_sums = &log_sums[(sequence * self.heads + head) * seq..][..seq];
                    for rows in self.blocks() {
                        let seen = rows.end;
                        let (weights, of_weights) =
                            (&mut weights[..rows.len() * seen], &mut of_weights[..rows.len() * seen]);
                        let upstream = upstream.row_range(rows.clone());
                        similarities(weights, q, k, head_dim, rows.clone());
                        let mut block = MatrixMut::new(of_weights, rows.len(), seen);
                        multiply(&mut block, Into::Empty, upstream, value.row_range(0..seen).transposed());
                        softmax_backward(weights, of_weights, rows.start, &log_sums[rows.clone()]);

                        let weights = Matrix::new(weights, rows.len(), seen);
                        let of_scores = Matrix::new(of_weights, rows.len(), seen);
                        multiply(
                            &mut of_value.row_range(0..seen),
                            Into::Sum,
                            weights.transposed(),
                            upstream,
                        );
                        let mut of_q = MatrixMut::new(
                            &mut of_q[rows.start * head_dim..rows.end * head_dim],
                            rows.len(),
                            head_dim,
                        );
                        multiply(
                            &mut of_q,
                            Into::Empty,
                            of_scores,
                            Matrix::new(k, seq, head_dim).row_range(0..seen),
                        );
                        let mut of_k = MatrixMut::new(&mut of_k[..seen * head_dim], seen, head_dim);
                        let q = Matrix::new(q, seq, head_dim).row_range(rows);
                        multiply(&mut of_k, Into::Sum, of_scores.transposed(), q);
                    }
                    turn.backward(of_q, scale, &mut of_query);
                }
                // The queries were scaled already.
                turn.backward(of_k, 1.0, &mut of_key);
            });
        [
            Gradient::Values(of_query),
            Gradient::Values(of_key),
            Gradient::Values(of_value),
            Gradient::None,
            Gradient::None,
        ]
    }
}

/// `q·kᵀ` of a block of rows with the keys up to its last one.
fn similarities(out: &mut [f32], q: &[f32], k: &[f32], head_dim: usize, rows: Range<usize>) {
    let q = Matrix::new(&q[rows.start * head_dim..rows.end * head_dim], rows.len(), head_dim);
    let k = Matrix::new(&k[..rows.end * head_dim], rows.end, head_dim);
    multiply(
        &mut MatrixMut::new(out, rows.len(), rows.end),
        Into::Empty,
        q,
        k.transposed(),
    );
}

vectorised! {
    /// Softmax of each row over the columns up to its own number, which is `first` for the first row; 0 after that.
    fn softmax(scores: &'a mut [f32], first: usize, log_sums: &'a mut [f32]) -> () {
        let columns = scores.len() / log_sums.len();
        let mut seen = first;
        for (row, log_sum) in scores.chunks_exact_mut(columns).zip(log_sums) {
            seen += 1;
            let (row, later) = row.split_at_mut(seen);
            later.fill(0.0);
            let largest = max(row);
            let sum = exp_and_sum(row, largest);
            let inverse = 1.0 / sum;
            for weight in row {
                *weight *= inverse;
            }
            *log_sum = largest + sum.ln();
        }
    }

    /// From scores and the gradient of the weights to the weights and the gradient of the scores.
    fn softmax_backward(scores: &'a mut [f32], gradients: &'a mut [f32], first: usize, log_sums: &'a [f32]) -> () {
        let columns = scores.len() / log_sums.len();
        let mut seen = first;
        let rows = scores.chunks_exact_mut(columns).zip(gradients.chunks_exact_mut(columns));
        for ((weights, gradients), log_sum) in rows.zip(log_sums) {
            seen += 1;
            let (weights, later) = weights.split_at_mut(seen);
            later.fill(0.0);
            let (gradients, later) = gradients.split_at_mut(seen);
            later.fill(0.0);
            for weight in weights.iter_mut() {
                *weight = exp(*weight - *log_sum);
            }
            let mean = dot(weights, gradients);
            for (gradient, weight) in gradients.iter_mut().zip(weights.iter()) {
                *gradient = *weight * (*gradient - mean);
            }
        }
    }

    /// `(x · cos + swapped(x) · sin) · scale`, where the halves of `swapped(x)` have changed places.
    fn turn(x: &'a [f32], cos: &'a [f32], sin: &'a [f32], scale: f32, out: &'a mut [f32]) -> () {
        let half = x.len() / 2;
        let (left, right) = x.split_at(half);
        let (out_left, out_right) = out.split_at_mut(half);
        for i in 0..half {
            out_left[i] = (left[i] * cos[i] + right[i] * sin[i]) * scale;
        }
        for i in 0..half {
            out_right[i] = (right[i] * cos[half + i] + left[i] * sin[half + i]) * scale;
        }
    }

    /// The gradient of [`turn`].
    fn turn_back(g: &'a [f32], cos: &'a [f32], sin: &'a [f32], scale: f32, out: &'a mut [f32]) -> () {
        let half = g.len() / 2;
        let (left, right) = g.split_at(half);
        let (out_left, out_right) = out.split_at_mut(half);
        for i in 0..half {
            out_left[i] = (left[i] * cos[i] + right[i] * sin[half + i]) * scale;
        }
        for i in 0..half {
            out_right[i] = (right[i] * cos[half + i] + left[i] * sin[i]) * scale;
        }
    }
}
