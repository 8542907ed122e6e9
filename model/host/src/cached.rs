//! Attention of new tokens to the keys and values that their sequences have kept.
//!
//! A token reads each key and each value of its sequence once, and nothing that was kept is copied, so its time is linear in the length of
//! the sequence.

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::attention::turn;
use crate::autodiff::tensor;
use crate::numbers::Values;
use crate::table::{float, memory, primitive};
use crate::vector::{add, add_four, dot, exp_and_sum, max, vectorised};

/// Keys, turned by their positions, and values of one sequence in one layer.
#[derive(Clone, Debug)]
pub struct HostCache {
    heads: Heads,
    /// For each key-value head, `[tokens, head_dim]`.
    keys: Vec<Vec<f32>>,
    /// For each key-value head, `[tokens, head_dim]`.
    values: Vec<Vec<f32>>,
}

/// The sizes of the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Heads {
    /// Numbers of a token: its queries, keys and values side by side.
    fn width(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// The tables of the rotation from the first position on, `[positions, head_dim]`.
#[derive(Clone, Copy)]
struct Tables<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Tables<'_> {
    /// A head of one token, turned by its position and scaled.
    fn turn(&self, x: &[f32], position: usize, scale: f32, out: &mut [f32]) {
        let (width, range) = (x.len(), position * x.len()..(position + 1) * x.len());
        turn(x, width, &self.cos[range.clone()], &self.sin[range], width, scale, out);
    }
}

/// The cache of a sequence that has no token yet and whose tokens are projected as this one; none where [`cached_attention`] is none.
///
/// # Shapes
/// - projected: `[tokens, (heads + 2 · kv_heads) · head_dim]`
pub fn cache<B: Backend>(projected: &Tensor<B, 2>, heads: usize, kv_heads: usize) -> Option<HostCache> {
    memory::<B>()?;
    let [_, width] = projected.dims();
    let empty = || vec![Vec::new(); kv_heads];
    Some(HostCache {
        heads: Heads {
            heads,
            kv_heads,
            head_dim: width / (heads + 2 * kv_heads),
        },
        keys: empty(),
        values: empty(),
    })
}

impl HostCache {
    /// Keeps keys and values of tokens `[tokens, (heads + 2 · kv_heads) · d]`, the first of which stands at position `first`.
    fn append(&mut self, projected: &[f32], first: usize, tables: Tables<'_>) {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads;
        for (position, token) in (first..).zip(projected.chunks_exact(self.heads.width())) {
            let (keys, values) = token[heads * head_dim..].split_at(kv_heads * head_dim);
            for (kept, key) in self.keys.iter_mut().zip(keys.chunks_exact(head_dim)) {
                let start = kept.len();
                kept.resize(start + head_dim, 0.0);
                tables.turn(key, position, 1.0, &mut kept[start..]);
            }
            for (kept, value) in self.values.iter_mut().zip(values.chunks_exact(head_dim)) {
                kept.extend_from_slice(value);
            }
        }
    }
}

/// Keeps keys and values of the first tokens of a sequence; none where [`cached_attention`] is none.
///
/// # Shapes
/// - projected: `[tokens, (heads + 2 · kv_heads) · head_dim]`
/// - tables: the cosines and sines of all positions, `[positions, head_dim]`
pub fn keep<B: Backend>(projected: &Tensor<B, 2>, tables: &[Tensor<B, 2>; 2], cache: &mut HostCache) -> Option<()> {
    let memory = memory::<B>()?;
    let projected = primitive(projected.clone());
    let tables = tables.clone().map(primitive);
    let tables = Tables {
        cos: (memory.floats)(&tables[0])?,
        sin: (memory.floats)(&tables[1])?,
    };
    cache.append(&memory.numbers(&projected)?.widened(), 0, tables);
    Some(())
}

/// Attention of `count` new tokens of each sequence to the sequence's tokens, themselves included. None where the tensors do not lie row by
/// row in the memory of this process, or are under autodiff; then nothing was kept. What is kept is f32, whatever the format of the tokens.
///
/// # Shapes
/// - projected: `[sequences · count, (heads + 2 · kv_heads) · head_dim]`
/// - tables: the cosines and sines of all positions, `[positions, head_dim]`
/// - sequences: what each has kept, and the number of its tokens before the new ones
/// - output: `[sequences · count, heads · head_dim]`
pub fn cached_attention<B: Backend>(
    projected: &Tensor<B, 2>,
    tables: &[Tensor<B, 2>; 2],
    count: usize,
    sequences: &mut [(&mut HostCache, usize)],
) -> Option<Tensor<B, 2>> {
    let memory = memory::<B>()?;
    let heads = sequences.first()?.0.heads;
    let device = projected.device();
    let projected = primitive(projected.clone());
    let tables = tables.clone().map(primitive);
    let projected = memory.numbers(&projected)?;
    let format = projected.format();
    let projected = projected.widened();
    let tables = Tables {
        cos: (memory.floats)(&tables[0])?,
        sin: (memory.floats)(&tables[1])?,
    };
    let own = projected.chunks_exact(projected.len() / sequences.len());
    for ((cache, before), own) in sequences.iter_mut().zip(own) {
        cache.append(own, *before, tables);
    }
    let positions = sequences
        .iter()
        .flat_map(|(cache, before)| (*before..before + count).map(|position| Asking { cache, position }));
    let (values, shape) = attend(&projected, heads, &positions.collect::<Vec<_>>(), tables);
    Some(float(tensor::<B>(
        Values::F32(values).in_format(format),
        shape,
        &device,
    )))
}

/// A new token: what its sequence has kept, itself included, and its position.
#[derive(Clone, Copy)]
struct Asking<'a> {
    cache: &'a HostCache,
    position: usize,
}

/// Attention of new tokens `[tokens, (heads + 2 · kv_heads) · d]` to what their sequences have kept, `[tokens, heads · d]`.
fn attend(projected: &[f32], heads: Heads, asking: &[Asking<'_>], tables: Tables<'_>) -> (Vec<f32>, Shape) {
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
