//! Attention of new tokens to the keys and values that their sequences have kept.
//!
//! A token reads each key and each value of its sequence once, so its time grows with the length as they do, and nothing that was kept is
//! copied.

use burn::tensor::Shape;
use rayon::prelude::*;

use super::attention::turn;
use super::few::{add, add_four};
use super::vector::{dot, exp_and_sum, max, vectorised};

/// Keys, turned by their positions, and values of one sequence in one layer: of each key-value head, `[tokens, head_dim]`.
#[derive(Clone, Debug)]
pub(crate) struct HostCache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// The sizes of the heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    /// Numbers of a token: its queries, keys and values side by side.
    fn width(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// The tables of the rotation from the first position on, `[positions, head_dim]`.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

impl Tables<'_> {
    /// A head of one token, turned by its position and scaled.
    fn turn(&self, x: &[f32], position: usize, scale: f32, out: &mut [f32]) {
        let (width, range) = (x.len(), position * x.len()..(position + 1) * x.len());
        turn(x, width, &self.cos[range.clone()], &self.sin[range], width, scale, out);
    }
}

impl HostCache {
    pub(crate) fn new(heads: Heads) -> Self {
        let empty = || vec![Vec::new(); heads.kv_heads];
        Self {
            keys: empty(),
            values: empty(),
        }
    }

    /// Keeps keys and values of tokens `[tokens, (heads + 2 · kv_heads) · d]`, the first of which stands at position `first`.
    pub(super) fn append(&mut self, projected: &[f32], heads: Heads, first: usize, tables: Tables<'_>) {
        let dim = heads.head_dim;
        for (position, token) in (first..).zip(projected.chunks_exact(heads.width())) {
            let (keys, values) = token[heads.heads * dim..].split_at(heads.kv_heads * dim);
            for (kept, key) in self.keys.iter_mut().zip(keys.chunks_exact(dim)) {
                let start = kept.len();
                kept.resize(start + dim, 0.0);
                tables.turn(key, position, 1.0, &mut kept[start..]);
            }
            for (kept, value) in self.values.iter_mut().zip(values.chunks_exact(dim)) {
                kept.extend_from_slice(value);
            }
        }
    }
}

/// A new token: what its sequence has kept, itself included, and its position.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) cache: &'a HostCache,
    pub(super) position: usize,
}

/// What the heads of new tokens `[tokens, (heads + 2 · kv_heads) · d]` mix, `[tokens, heads · d]`.
pub(super) fn attend(projected: &[f32], heads: Heads, asking: &[Asking<'_>], tables: Tables<'_>) -> (Vec<f32>, Shape) {
    /// Numbers that are worth more than one thread.
    const PARALLEL: usize = 1 << 16;
    let (dim, group) = (heads.head_dim, heads.heads / heads.kv_heads);
    let mut mixed = vec![0.0; asking.len() * heads.heads * dim];
    // One task for each key-value head of each token: its query heads stand side by side.
    let one = |(task, out): (usize, &mut [f32])| {
        let (token, kv_head) = (task / heads.kv_heads, task % heads.kv_heads);
        let Asking { cache, position } = asking[token];
        let queries = &projected[token * heads.width() + kv_head * group * dim..][..group * dim];
        let seen = (position + 1) * dim;
        let (keys, values) = (&cache.keys[kv_head][..seen], &cache.values[kv_head][..seen]);
        let scale = (dim as f32).sqrt().recip();
        let mut query = vec![0.0; dim];
        let mut weights = vec![0.0; position + 1];
        for (raw, out) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            tables.turn(raw, position, scale, &mut query);
            mix(&query, keys, values, &mut weights, out);
        }
    };
    let work: usize = asking.iter().map(|asking| asking.position + 1).sum::<usize>() * heads.kv_heads * dim;
    let outs = |mixed| <[f32]>::par_chunks_mut(mixed, group * dim).enumerate();
    if work < PARALLEL {
        mixed.chunks_mut(group * dim).enumerate().for_each(one);
    } else {
        outs(&mut mixed).for_each(one);
    }
    (mixed, Shape::from([asking.len(), heads.heads * dim]))
}

vectorised! {
    /// `out = softmax(q·kᵀ)·v` of one query; `out` is 0 before.
    fn mix(query: &'a [f32], keys: &'a [f32], values: &'a [f32], weights: &'a mut [f32], out: &'a mut [f32]) -> () {
        let dim = query.len();
        for (weight, key) in weights.iter_mut().zip(keys.chunks_exact(dim)) {
            *weight = dot(query, key);
        }
        let largest = max(weights);
        let inverse = 1.0 / exp_and_sum(weights, largest);
        let (fours, rest) = weights.as_chunks::<4>();
        for (weights, values) in fours.iter().zip(values.chunks_exact(4 * dim)) {
            let (a, b) = values.split_at(2 * dim);
            let ((v0, v1), (v2, v3)) = (a.split_at(dim), b.split_at(dim));
            add_four(out, *weights, [v0, v1, v2, v3]);
        }
        let left = values.chunks_exact(dim).skip(fours.len() * 4);
        for (weight, value) in rest.iter().zip(left) {
            add(out, *weight, value);
        }
        for out in out.iter_mut() {
            *out *= inverse;
        }
    }
}
