//! Causal attention of rotated queries and keys, head by head and a block of rows at a time: of the `[seq, seq]` scores nothing is kept.
//!
//! With `P = softmax(q·kᵀ/√d)` below the diagonal and the gradient `g` of `P·v`: `∂L/∂v = Pᵀ·g`, and with `dP = g·vᵀ` and
//! `dS = P ⊙ (dP − rowsum(P ⊙ dP))`, `∂L/∂q = dS·k/√d` and `∂L/∂k = dSᵀ·q/√d`. The backward pass computes P again from the logarithm of
//! each row's sum (as FlashAttention, arXiv 2205.14135). A block of rows meets the keys up to its last row only, so close to half of the
//! products are never made.
//!
//! In bf16 the products alone are different: queries, scores and sums are f32 here too, and rounded while they are put in order for a product.

use std::mem::MaybeUninit;
use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor, bf16};
use rayon::prelude::*;

use crate::matrix::{Matrix, MatrixMut, Store, Strided};
use crate::memory::{Blank, scratch, written};
use crate::numbers::{Number, Numbers};
use crate::operand::Operand;
use crate::operation::{Gradient, Kept, Operation, Output, View, Wanted, Wide};
use crate::product::{multiply_in_vectors, multiply_rounded};
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
struct Head<'a, E> {
    /// The rows of the whole sequence, with all heads.
    values: &'a [E],
    width: usize,
    columns: (usize, usize),
}

impl<'a, E: Number> Head<'a, E> {
    fn new(values: &'a [E], sequence: usize, seq: usize, width: usize, head: usize, head_dim: usize) -> Self {
        Self {
            values: &values[sequence * seq * width..(sequence + 1) * seq * width],
            width,
            columns: (head * head_dim, (head + 1) * head_dim),
        }
    }

    fn matrix(self) -> Strided<&'a [E]> {
        let (rows, (first, end)) = (self.values.len() / self.width, self.columns);
        Strided::<&[_]>::new(self.values, rows, self.width).column_range(first..end)
    }

    /// Its rows from the first number of the head on, and how far apart they lie, as f32: in their place, or else in `room`.
    fn widened<'r>(self, room: &'r mut [f32]) -> (&'r [f32], usize)
    where
        'a: 'r,
    {
        let (first, end) = self.columns;
        match E::as_f32(self.values) {
            Some(values) => (&values[first..], self.width),
            None => {
                widen_rows(self.matrix(), room);
                (room, end - first)
            }
        }
    }
}

/// How the numbers of a format are multiplied where there are a hundred rows and columns.
trait Attends: Number {
    fn operand(matrix: Strided<&[Self]>) -> Operand<'_>;

    /// `out = a·b`, or `out += a·b`.
    fn multiply_sum(out: &mut MatrixMut<'_>, store: Store, a: Operand<'_>, b: Operand<'_>);

    /// `out = a·b`.
    fn multiply_one(out: &mut MatrixMut<'_, Self>, a: Operand<'_>, b: Operand<'_>);

    /// The transpose of a head, as several products take it best; there is room for it.
    fn turned<'a>(head: Matrix<'a>, room: &'a mut Blank) -> Matrix<'a>;

    /// [`turned`](Self::turned) of numbers of this format.
    fn turned_own<'a>(head: Strided<&'a [Self]>, room: &'a mut Blank) -> Operand<'a>;
}

impl Attends for f32 {
    fn operand(matrix: Strided<&[Self]>) -> Operand<'_> {
        Operand::F32(matrix)
    }

    fn multiply_sum(out: &mut MatrixMut<'_>, store: Store, a: Operand<'_>, b: Operand<'_>) {
        a.widened(|a| b.widened(|b| multiply_in_vectors(out, store, a, b)));
    }

    fn multiply_one(out: &mut MatrixMut<'_>, a: Operand<'_>, b: Operand<'_>) {
        Self::multiply_sum(out, Store::Overwrite, a, b);
    }

    fn turned<'a>(head: Matrix<'a>, room: &'a mut Blank) -> Matrix<'a> {
        head.transpose_into(room)
    }

    fn turned_own<'a>(head: Matrix<'a>, room: &'a mut Blank) -> Operand<'a> {
        Operand::F32(head.transpose_into(room))
    }
}

impl Attends for bf16 {
    fn operand(matrix: Strided<&[Self]>) -> Operand<'_> {
        Operand::Bf16(matrix)
    }

    fn multiply_sum(out: &mut MatrixMut<'_>, store: Store, a: Operand<'_>, b: Operand<'_>) {
        multiply_rounded(out, store, &[(a, b)]);
    }

    fn multiply_one(out: &mut MatrixMut<'_, Self>, a: Operand<'_>, b: Operand<'_>) {
        multiply_rounded(out, Store::Overwrite, &[(a, b)]);
    }

    /// Its columns are put in order for a product either way.
    fn turned<'a>(head: Matrix<'a>, _room: &'a mut Blank) -> Matrix<'a> {
        head.transposed()
    }

    fn turned_own<'a>(head: Strided<&'a [Self]>, _room: &'a mut Blank) -> Operand<'a> {
        Operand::Bf16(head.transposed())
    }
}

/// The tables of the rotation, `[seq, d]`.
#[derive(Clone, Copy)]
struct Turn<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    head_dim: usize,
}

impl<'a> Turn<'a> {
    fn new(cos: &'a Wide<'_>, sin: &'a Wide<'_>) -> Self {
        Self {
            cos: &cos.values,
            sin: &sin.values,
            head_dim: cos.width(),
        }
    }

    /// `1/√d`.
    fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }

    /// A head's rows, each turned by its position and scaled. There is `room` for the head.
    fn forward<E: Number>(&self, head: Head<'_, E>, scale: f32, room: &mut [f32], out: &mut [f32]) {
        let (values, width) = head.widened(room);
        turn(values, width, self.cos, self.sin, self.head_dim, scale, out);
    }

    /// The gradient of [`forward`](Self::forward), into the rows of a head. There is `room` for the head.
    fn backward<E: Number>(&self, values: &[f32], scale: f32, room: &mut [f32], out: MatrixMut<'_, E>) {
        turn_back(values, self.cos, self.sin, self.head_dim, scale, room);
        put_rows(room, out);
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
    of_v: Vec<f32>,
    /// A head on the way from or to its format.
    one: Vec<f32>,
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
            of_v: head(),
            one: head(),
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
    fn scores<E: Attends>(&self, out: &mut [f32], q: &[f32], turned_k: Matrix<'_>, rows: Range<usize>) {
        let q = Matrix::new(q, self.seq, turned_k.rows()).row_range(rows.clone());
        let k = turned_k.column_range(0..rows.end);
        let (q, k) = (Operand::F32(q), Operand::F32(k));
        E::multiply_sum(&mut MatrixMut::new(out, rows.len(), rows.end), Store::Overwrite, q, k);
    }

    /// What the heads mix, `[tokens, heads · d]`; writes `ln Σ exp` of each row of scores, `[batch, heads, seq]`.
    fn mixed<E: Attends>(&self, x: &[E], width: usize, turn: Turn<'_>, log_sums: &mut [f32]) -> Vec<E> {
        let (seq, heads, kv_heads) = (self.seq, self.heads, self.kv_heads);
        let (tokens, head_dim) = (x.len() / width, turn.head_dim);
        let write = |mixed: &mut Blank<E>| {
            // One task for each head of each sequence; their results are columns of the sequence's rows.
            let outs: Vec<MatrixMut<'_, E>> = mixed
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
                    let at = |head| Head::new(x, sequence, seq, width, head, head_dim);
                    turn.forward(at(head), turn.scale(), &mut room.one, &mut room.q);
                    turn.forward(at(heads + kv_head), 1.0, &mut room.one, &mut room.k);
                    let turned_k = E::turned(Matrix::new(&room.k, seq, head_dim), &mut room.turned_k);
                    let value = E::operand(at(heads + kv_heads + kv_head).matrix());
                    for rows in self.blocks() {
                        let seen = rows.end;
                        let weights = &mut room.weights[..rows.len() * seen];
                        self.scores::<E>(weights, &room.q, turned_k, rows.clone());
                        softmax(weights, rows.start, &mut log_sums[rows.clone()]);
                        let weights = Operand::F32(Matrix::new(weights, rows.len(), seen));
                        let value = value.row_range(0..seen);
                        E::multiply_one(&mut out.row_range(rows), weights, value);
                    }
                },
            );
        };
        // SAFETY: the tasks are all columns of all sequences, the blocks all rows, and a product writes all of its entries.
        unsafe { written(tokens * heads * head_dim, write) }
    }

    /// The gradient of the queries, keys and values, from what [`mixed`](Self::mixed) wrote and the gradient of its result.
    fn of_projected<E: Attends>(
        &self,
        x: &[E],
        width: usize,
        turn: Turn<'_>,
        log_sums: &[f32],
        upstream: &[E],
    ) -> Vec<E> {
        let (seq, heads, kv_heads) = (self.seq, self.heads, self.kv_heads);
        let (head_dim, group) = (turn.head_dim, heads / kv_heads);
        let write = |of_x: &mut Blank<E>| {
            // One task for each key head of each sequence, which goes through the query heads that share it: their gradients, then the key's,
            // then the value's.
            let mut outs = Vec::new();
            for sequence in of_x.chunks_exact_mut(seq * width) {
                // SAFETY: a task writes each of its columns and reads none.
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
                |room, (task, (of_queries, of_key, of_value))| {
                    let (sequence, kv_head) = (task / kv_heads, task % kv_heads);
                    let at = |head| Head::new(x, sequence, seq, width, head, head_dim);
                    turn.forward(at(heads + kv_head), 1.0, &mut room.one, &mut room.k);
                    room.of_k.fill(0.0);
                    room.of_v.fill(0.0);
                    for (member, of_query) in of_queries.into_iter().enumerate() {
                        let head = kv_head * group + member;
                        let upstream = Head::new(upstream, sequence, seq, heads * head_dim, head, head_dim);
                        let log_sums = &log_sums[(sequence * heads + head) * seq..][..seq];
                        let value = at(heads + kv_heads + kv_head);
                        self.pull_back_head(room, turn, [at(head), value, upstream], log_sums);
                        turn.backward(&room.of_q, turn.scale(), &mut room.one, of_query);
                    }
                    // The queries were scaled before they met the keys.
                    turn.backward(&room.of_k, 1.0, &mut room.one, of_key);
                    put_rows(&room.of_v, of_value);
                },
            );
        };
        // SAFETY: the heads' columns are all of a row, and the tasks write all of them.
        unsafe { written(x.len(), write) }
    }

    /// Writes the gradient of the turned queries of a head, and adds those of the turned keys, which `room` holds, and of the values.
    fn pull_back_head<E: Attends>(
        &self,
        room: &mut Scratch,
        turn: Turn<'_>,
        [query, value, upstream]: [Head<'_, E>; 3],
        log_sums: &[f32],
    ) {
        let (seq, head_dim) = (self.seq, turn.head_dim);
        turn.forward(query, turn.scale(), &mut room.one, &mut room.q);
        let turned_k = E::turned(Matrix::new(&room.k, seq, head_dim), &mut room.turned_k);
        let turned_v = E::turned_own(value.matrix(), &mut room.turned_v);
        let [q, k] = [&room.q, &room.k].map(|head| Operand::F32(Matrix::new(head, seq, head_dim)));
        let upstream = E::operand(upstream.matrix());
        for rows in self.blocks() {
            let seen = rows.end;
            let weights = &mut room.weights[..rows.len() * seen];
            let of_weights = &mut room.of_weights[..rows.len() * seen];
            let upstream = upstream.row_range(rows.clone());
            self.scores::<E>(weights, &room.q, turned_k, rows.clone());
            let mut block = MatrixMut::new(of_weights, rows.len(), seen);
            E::multiply_sum(&mut block, Store::Overwrite, upstream, turned_v.column_range(0..seen));
            softmax_backward(weights, of_weights, rows.start, &log_sums[rows.clone()]);

            let weights = Operand::F32(Matrix::new(weights, rows.len(), seen));
            let of_scores = Operand::F32(Matrix::new(of_weights, rows.len(), seen));
            let mut of_v = MatrixMut::new(&mut room.of_v, seq, head_dim);
            E::multiply_sum(&mut of_v.row_range(0..seen), Store::Add, weights.transposed(), upstream);
            let mut of_q = MatrixMut::new(&mut room.of_q, seq, head_dim);
            E::multiply_sum(
                &mut of_q.row_range(rows.clone()),
                Store::Overwrite,
                of_scores,
                k.row_range(0..seen),
            );
            let mut of_k = MatrixMut::new(&mut room.of_k, seq, head_dim);
            E::multiply_sum(
                &mut of_k.row_range(0..seen),
                Store::Add,
                of_scores.transposed(),
                q.row_range(rows),
            );
        }
    }
}

impl Operation<3> for CausalAttention {
    fn first_summed(&self) -> usize {
        3
    }

    /// Keeps `ln Σ exp` of each row of scores, `[batch, heads, seq]`.
    fn forward(&self, [x, cos, sin]: [View<'_>; 3]) -> Output {
        let (tokens, width) = (x.shape[0], x.width());
        let [cos, sin] = [cos, sin].map(View::widened);
        let turn = Turn::new(&cos, &sin);
        let mut log_sums = vec![0.0; tokens * self.heads];
        let values = match x.values {
            Numbers::F32(x) => f32::values(self.mixed(x, width, turn, &mut log_sums)),
            Numbers::Bf16(x) => bf16::values(self.mixed(x, width, turn, &mut log_sums)),
        };
        Output {
            values,
            shape: Shape::from([tokens, self.heads * turn.head_dim]),
            kept: Kept::new(log_sums),
        }
    }

    fn backward(
        &self,
        [x, cos, sin]: [View<'_>; 3],
        log_sums: &[f32],
        upstream: Numbers<'_>,
        _wanted: [Wanted<'_>; 3],
    ) -> [Gradient; 3] {
        let width = x.width();
        let [cos, sin] = [cos, sin].map(View::widened);
        let turn = Turn::new(&cos, &sin);
        let of_x = match (x.values, upstream) {
            (Numbers::Bf16(x), Numbers::Bf16(upstream)) => {
                bf16::values(self.of_projected(x, width, turn, log_sums, upstream))
            }
            (x, upstream) => {
                let (x, upstream) = (x.widened(), upstream.widened());
                f32::values(self.of_projected(&x, width, turn, log_sums, &upstream))
            }
        };
        [Gradient::Values(of_x), Gradient::None, Gradient::None]
    }
}

vectorised! {
    /// The rows of a matrix one after the other, as f32.
    fn widen_rows[E: Number](rows: Strided<&'a [E]>, out: &'a mut [f32]) -> () {
        for (index, out) in out.chunks_exact_mut(rows.columns()).enumerate() {
            for (out, value) in out.iter_mut().zip(rows.row(index)) {
                *out = value.wide();
            }
        }
    }

    /// Numbers row by row, in the format of the rows of a matrix that they are for.
    fn put_rows[E: Number](values: &'a [f32], out: MatrixMut<'a, E>) -> () {
        const SIDE: usize = 16;
        let mut out = out;
        let width = out.columns();
        for (row, values) in values.chunks_exact(width).enumerate() {
            let (blocks, rest) = values.as_chunks::<SIDE>();
            for (index, block) in blocks.iter().enumerate() {
                let mut numbers = [E::nearest(0.0); SIDE];
                for i in 0..SIDE {
                    numbers[i] = E::nearest(block[i]);
                }
                out.put(row, index * SIDE, &numbers);
            }
            for (column, value) in (blocks.len() * SIDE..).zip(rest) {
                out.put(row, column, &[E::nearest(*value)]);
            }
        }
    }

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
    fn turn_back(g: &'a [f32], cos: &'a [f32], sin: &'a [f32], head_dim: usize, scale: f32, out: &'a mut [f32]) -> () {
        let half = head_dim / 2;
        let tables = cos.chunks_exact(head_dim).zip(sin.chunks_exact(head_dim));
        for ((g, (cos, sin)), out) in g.chunks_exact(head_dim).zip(tables).zip(out.chunks_exact_mut(head_dim)) {
            let (left, right) = g.split_at(half);
            let (out_left, out_right) = out.split_at_mut(half);
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
