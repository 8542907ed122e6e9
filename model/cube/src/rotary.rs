//! From the rows of tokens to heads and back: queries and keys are turned by their positions on the way, in f32.
//!
//! A number `x_j` of a head and the one half a head away, `x_h`, become `x_j·cos_j + x_h·sin_j` and `x_h·cos_h + x_j·sin_h`, with tables
//! whose sines are negative in the first half. The gradient goes back by the transpose: `y_j·cos_j + y_h·sin_h` and `y_h·cos_h + y_j·sin_j`.
//! Each function is one launch that reads and writes every number once, both numbers of a pair by one unit.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::rows::Rows;
use crate::tensor::{Form, cubes, empty, form};

/// Units of a cube.
const UNITS: usize = 256;

/// Sizes of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Sizes {
    /// Queries, keys and values of a token.
    fn all_heads(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    /// What queries are multiplied with: `1/√head_dim`.
    fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }

    /// Shape of the rows of tokens with all their heads.
    pub(crate) fn together(&self) -> [usize; 2] {
        [self.batch * self.seq, self.all_heads() * self.head_dim]
    }

    /// Shape of the rows of tokens with the heads of the queries.
    pub(crate) fn mixed(&self) -> [usize; 2] {
        [self.batch * self.seq, self.heads * self.head_dim]
    }

    /// Shape of queries, where the heads that share a key head are below each other.
    pub(crate) fn queries(&self) -> [usize; 4] {
        let group = self.heads / self.kv_heads;
        [self.batch, self.kv_heads, group * self.seq, self.head_dim]
    }

    /// Shape of keys, and of values.
    pub(crate) fn keys(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.seq, self.head_dim]
    }

    /// Shape of scores, and of weights.
    pub(crate) fn scores(&self) -> [usize; 4] {
        let [batch, kv_heads, rows, _] = self.queries();
        [batch, kv_heads, rows, self.seq]
    }
}

/// Queries, turned and scaled, keys, turned, and values of rows of tokens.
pub(crate) fn turned_heads<R: CubeRuntime>(
    together: CubeTensor<R>,
    tables: &[CubeTensor<R>; 2],
    sizes: Sizes,
) -> [CubeTensor<R>; 3] {
    let [cos, sin] = tables;
    let together = Rows::new(together);
    let shapes = [sizes.queries(), sizes.keys(), sizes.keys()];
    let [q, k, v] = shapes.map(|shape| empty(&together.tensor, Form::new(shape, together.tensor.dtype)));
    let half = sizes.head_dim / 2;
    let vector = together.vector_size(half);
    let pairs = together.count * sizes.all_heads() * (half / vector);
    turn::launch::<R>(
        &together.tensor.client.clone(),
        cubes(pairs.div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
        vector,
        together.tensor.clone().into_tensor_arg(),
        cos.clone().into_tensor_arg(),
        sin.clone().into_tensor_arg(),
        q.clone().into_tensor_arg(),
        k.clone().into_tensor_arg(),
        v.clone().into_tensor_arg(),
        sizes.scale(),
        pairs,
        together.pitch / vector,
        sizes.seq,
        sizes.heads,
        sizes.kv_heads,
        half / vector,
        [together.tensor.dtype.into(), cos.dtype.into()],
    );
    [q, k, v]
}

/// The transpose of [`turned_heads`]: rows of tokens of what came back to queries, keys and values.
pub(crate) fn turned_back<R: CubeRuntime>(
    heads: [CubeTensor<R>; 3],
    tables: &[CubeTensor<R>; 2],
    sizes: Sizes,
) -> CubeTensor<R> {
    let [cos, sin] = tables;
    let [q, k, v] = heads.map(Rows::new);
    let together = empty(&q.tensor, Form::new(sizes.together(), q.tensor.dtype));
    let half = sizes.head_dim / 2;
    let vector = q.vector_size(k.pitch | v.pitch | half);
    let pairs = form(&together).rows() * sizes.all_heads() * (half / vector);
    turn_back::launch::<R>(
        &together.client.clone(),
        cubes(pairs.div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
        vector,
        together.clone().into_tensor_arg(),
        cos.clone().into_tensor_arg(),
        sin.clone().into_tensor_arg(),
        q.tensor.into_tensor_arg(),
        k.tensor.into_tensor_arg(),
        v.tensor.into_tensor_arg(),
        sizes.scale(),
        pairs,
        q.pitch / vector,
        k.pitch / vector,
        v.pitch / vector,
        sizes.seq,
        sizes.heads,
        sizes.kv_heads,
        half / vector,
        [together.dtype.into(), cos.dtype.into()],
    );
    together
}

/// Heads `[batch, a, b, head_dim]` in the order of `[batch, b, a, head_dim]`, as a tensor of this shape: heads of tokens as rows of heads, or
/// the other way round.
pub(crate) fn exchanged<R: CubeRuntime, const D: usize>(
    heads: CubeTensor<R>,
    [a, b]: [usize; 2],
    shape: [usize; D],
) -> CubeTensor<R> {
    let heads = Rows::new(heads);
    let exchanged = empty(&heads.tensor, Form::new(shape, heads.tensor.dtype));
    let vector = heads.vector_size(heads.width);
    let count = form(&exchanged).shape.num_elements() / vector;
    exchange::launch::<R>(
        &heads.tensor.client.clone(),
        cubes(count.div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
        vector,
        heads.tensor.clone().into_tensor_arg(),
        exchanged.clone().into_tensor_arg(),
        count,
        a,
        b,
        heads.pitch / vector,
        heads.width / vector,
        heads.tensor.dtype.into(),
    );
    exchanged
}

/// One vector is the work of one unit.
#[cube(launch)]
fn exchange<F: Float, N: Size>(
    heads: &Tensor<Vector<F, N>>,
    exchanged: &mut Tensor<Vector<F, N>>,
    count: usize,
    a: usize,
    b: usize,
    pitch: usize,
    #[comptime] width: usize,
    #[define(F)] _format: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place < count {
        let head = place / width;
        let (batch, rest) = (head / (a * b), head % (a * b));
        let from = batch * a * b + rest % a * b + rest / a;
        exchanged[place] = heads[from * pitch + place % width];
    }
}

/// A pair of vectors, one half a head from the other, is the work of one unit.
#[cube(launch)]
fn turn<F: Float, T: Float, N: Size>(
    together: &Tensor<Vector<F, N>>,
    cos: &Tensor<Vector<T, N>>,
    sin: &Tensor<Vector<T, N>>,
    q: &mut Tensor<Vector<F, N>>,
    k: &mut Tensor<Vector<F, N>>,
    v: &mut Tensor<Vector<F, N>>,
    scale: f32,
    pairs: usize,
    pitch: usize,
    seq: usize,
    #[comptime] heads: usize,
    #[comptime] kv_heads: usize,
    #[comptime] half: usize,
    #[define(F, T)] _formats: [StorageType; 2],
) {
    let all = comptime!(heads + 2 * kv_heads);
    let width = comptime!(2 * half);
    if ABSOLUTE_POS < pairs {
        let (column, head) = (ABSOLUTE_POS % half, ABSOLUTE_POS / half % all);
        let token = ABSOLUTE_POS / comptime!(half * all);
        let (batch, position) = (token / seq, token % seq);
        let at = position * width + column;
        let from = token * pitch + head * width + column;
        if head < heads {
            let to = ((batch * heads + head) * seq + position) * width + column;
            turn_pair::<F, T, N>(together, from, q, to, cos, sin, at, scale, half);
        } else if head < comptime!(heads + kv_heads) {
            let to = ((batch * kv_heads + head - heads) * seq + position) * width + column;
            turn_pair::<F, T, N>(together, from, k, to, cos, sin, at, 1.0, half);
        } else {
            let to = ((batch * kv_heads + head - comptime!(heads + kv_heads)) * seq + position) * width + column;
            v[to] = together[from];
            v[to + half] = together[from + half];
        }
    }
}

#[cube]
fn turn_pair<F: Float, T: Float, N: Size>(
    source: &Tensor<Vector<F, N>>,
    from: usize,
    target: &mut Tensor<Vector<F, N>>,
    to: usize,
    cos: &Tensor<Vector<T, N>>,
    sin: &Tensor<Vector<T, N>>,
    at: usize,
    scale: f32,
    #[comptime] half: usize,
) {
    let a = Vector::<f32, N>::cast_from(source[from]);
    let b = Vector::<f32, N>::cast_from(source[from + half]);
    let turned_a = a * Vector::cast_from(cos[at]) + b * Vector::cast_from(sin[at]);
    let turned_b = b * Vector::cast_from(cos[at + half]) + a * Vector::cast_from(sin[at + half]);
    let scale = Vector::<f32, N>::new(scale);
    target[to] = Vector::cast_from(turned_a * scale);
    target[to + half] = Vector::cast_from(turned_b * scale);
}

/// A pair of vectors, one half a head from the other, is the work of one unit.
#[cube(launch)]
fn turn_back<F: Float, T: Float, N: Size>(
    together: &mut Tensor<Vector<F, N>>,
    cos: &Tensor<Vector<T, N>>,
    sin: &Tensor<Vector<T, N>>,
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    scale: f32,
    pairs: usize,
    q_pitch: usize,
    k_pitch: usize,
    v_pitch: usize,
    seq: usize,
    #[comptime] heads: usize,
    #[comptime] kv_heads: usize,
    #[comptime] half: usize,
    #[define(F, T)] _formats: [StorageType; 2],
) {
    let all = comptime!(heads + 2 * kv_heads);
    let width = comptime!(2 * half);
    if ABSOLUTE_POS < pairs {
        let (column, head) = (ABSOLUTE_POS % half, ABSOLUTE_POS / half % all);
        let token = ABSOLUTE_POS / comptime!(half * all);
        let (batch, position) = (token / seq, token % seq);
        let at = position * width + column;
        let to = (token * all + head) * width + column;
        if head < heads {
            let from = ((batch * heads + head) * seq + position) * q_pitch + column;
            turn_pair_back::<F, T, N>(q, from, together, to, cos, sin, at, scale, half);
        } else if head < comptime!(heads + kv_heads) {
            let from = ((batch * kv_heads + head - heads) * seq + position) * k_pitch + column;
            turn_pair_back::<F, T, N>(k, from, together, to, cos, sin, at, 1.0, half);
        } else {
            let from = ((batch * kv_heads + head - comptime!(heads + kv_heads)) * seq + position) * v_pitch + column;
            together[to] = v[from];
            together[to + half] = v[from + half];
        }
    }
}

#[cube]
fn turn_pair_back<F: Float, T: Float, N: Size>(
    source: &Tensor<Vector<F, N>>,
    from: usize,
    target: &mut Tensor<Vector<F, N>>,
    to: usize,
    cos: &Tensor<Vector<T, N>>,
    sin: &Tensor<Vector<T, N>>,
    at: usize,
    scale: f32,
    #[comptime] half: usize,
) {
    let a = Vector::<f32, N>::cast_from(source[from]);
    let b = Vector::<f32, N>::cast_from(source[from + half]);
    let of_a = a * Vector::cast_from(cos[at]) + b * Vector::cast_from(sin[at + half]);
    let of_b = b * Vector::cast_from(cos[at + half]) + a * Vector::cast_from(sin[at]);
    let scale = Vector::<f32, N>::new(scale);
    target[to] = Vector::cast_from(of_a * scale);
    target[to + half] = Vector::cast_from(of_b * scale);
}
