//! Causal self-attention with rotary positions and grouped key-value heads, as LLaMA has it:
//! `softmax(q·kᵀ / √d + causal mask) · v`, head by head.
//!
//! Over whole sequences ([`Attention::forward`]) and over new tokens of sequences whose earlier ones a cache has kept
//! ([`Attention::extend`]) it is the same function of queries, keys, values and mask; they differ in where keys and values come from.

use std::cell::OnceCell;

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Bool, DType, Tensor, backend::Backend};

use crate::cache::LayerCache;
use crate::fast;
use crate::precision::{fused_projections, project};
use crate::rotary::Rotary;

/// Configuration of [`Attention`]; no projection has a bias.
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of query heads; divides `hidden`.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
}

impl AttentionConfig {
    /// Attention with Burn's default initialisation.
    ///
    /// # Panics
    /// If `heads` does not divide `hidden`, or `kv_heads` does not divide `heads`.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Attention<B> {
        let Self {
            hidden,
            heads,
            kv_heads,
        } = *self;
        assert!(
            heads > 0 && hidden.is_multiple_of(heads),
            "{heads} heads do not divide a stream of {hidden} channels"
        );
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{kv_heads} key-value heads do not divide {heads} query heads"
        );
        let head_dim = hidden / heads;
        let linear = |input, output| LinearConfig::new(input, output).with_bias(false).init(device);
        Attention {
            query: linear(hidden, hidden),
            key: linear(hidden, kv_heads * head_dim),
            value: linear(hidden, kv_heads * head_dim),
            output: linear(hidden, hidden),
            heads,
            kv_heads,
        }
    }
}

/// `softmax(q·kᵀ / √d + causal mask) · v`, head by head.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// Projection to the queries.
    pub query: Linear<B>,
    /// Projection to the keys.
    pub key: Linear<B>,
    /// Projection to the values.
    pub value: Linear<B>,
    /// Projection of the heads' results back onto the stream.
    pub output: Linear<B>,
    heads: usize,
    kv_heads: usize,
}

/// The mathematics: all of attention between its projections.
///
/// `softmax(q·kᵀ / √d + mask) · v`. The query heads that share a key head may stand below each other, as rows of one product.
///
/// # Shapes
/// - query: `[batch, heads, rows, head_dim]`, turned by its positions; `rows` is a multiple of the mask's queries
/// - key, value: `[batch, heads, seen, head_dim]`, the keys turned by their positions
/// - output: as the query
fn attend<B: Backend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    mask: &CausalMask<B>,
) -> Tensor<B, 4> {
    let [batch, heads, rows, head_dim] = query.dims();
    let seen = key.dims()[2];
    let query = query.mul_scalar((head_dim as f64).sqrt().recip());
    let scores = query.matmul(key.swap_dims(2, 3));
    let dtype = scores.dtype();
    let weights = softmax(mask.hide_later(scores.cast(DType::F32))).cast(dtype);
    weights.reshape([batch, heads, rows, seen]).matmul(value)
}

/// Softmax over the last dimension. Burn's own divides by the sum, and the backward pass of a division is dear; this one multiplies by
/// its reciprocal, of which there is one per row.
fn softmax<B: Backend>(scores: Tensor<B, 2>) -> Tensor<B, 2> {
    let exponentials = (scores.clone() - scores.detach().max_dim(1)).exp();
    exponentials.clone() * exponentials.sum_dim(1).recip()
}

impl<B: Backend> Attention<B> {
    /// Attends to the positions up to and including each one.
    ///
    /// # Shapes
    /// - x: `[batch, seq, hidden]`
    /// - output: `[batch, seq, hidden]`
    ///
    /// # Panics
    /// If the mask is for another length, or the rotary tables are shorter than `seq`.
    pub fn forward(&self, x: Tensor<B, 3>, rotary: &Rotary<B>, mask: &CausalMask<B>) -> Tensor<B, 3> {
        let [batch, seq, hidden] = x.dims();
        assert_eq!(seq, mask.queries, "the length of the sequences, and that of the mask");
        // On [tokens, hidden]: Burn's weight gradient of a rank-3 input would hold one [in, out] matrix per sequence.
        let x = x.reshape([batch * seq, hidden]);
        let mixed = self.fused(&x, seq, rotary).unwrap_or_else(|| {
            let projected = self.projected(x, seq).map(|x| self.split(x, seq));
            self.in_tensor_operations(projected, rotary, mask)
        });
        project(mixed, &self.output, seq).reshape([batch, seq, hidden])
    }

    /// Attends to the tokens that came before, which the caches have kept, and keeps the new ones.
    ///
    /// # Shapes
    /// - x: `[sequences, count, hidden]`, as many new tokens of each sequence
    /// - output: `[sequences, count, hidden]`
    pub(crate) fn extend(&self, x: Tensor<B, 3>, rotary: &Rotary<B>, sequences: &mut [Place<'_, B>]) -> Tensor<B, 3> {
        let [batch, count, hidden] = x.dims();
        let x = x.reshape([batch * count, hidden]);
        let mixed = self.fused_extend(&x, count, rotary, sequences).unwrap_or_else(|| {
            let projected = self.projected(x, count);
            let parts = sequences.iter_mut().enumerate().map(|(index, place)| {
                let own = projected.each_ref().map(|x| x.clone().narrow(0, index * count, count));
                let [query, key, value] = own.map(|x| self.split(x, count));
                let [query, key] = [query, key].map(|x| rotary.forward_from(place.mask.before, x).swap_dims(1, 2));
                let [key, value] = place.cache.append(key, value.swap_dims(1, 2));
                // Keys are many here and queries few: no key is repeated, the query heads that share it meet it together.
                let query = query.reshape([1, self.kv_heads, self.group() * count, hidden / self.heads]);
                let mixed = attend(query, key, value, place.mask);
                let mixed = mixed.reshape([1, self.heads, count, hidden / self.heads]);
                mixed.swap_dims(1, 2).reshape([count, hidden])
            });
            Tensor::cat(parts.collect(), 0)
        });
        project(mixed, &self.output, count).reshape([batch, count, hidden])
    }

    /// From queries, keys and values `[batch, seq, heads, head_dim]` to what the heads mix, `[batch · seq, hidden]`.
    fn in_tensor_operations(
        &self,
        [query, key, value]: [Tensor<B, 4>; 3],
        rotary: &Rotary<B>,
        mask: &CausalMask<B>,
    ) -> Tensor<B, 2> {
        let [batch, seq, heads, head_dim] = query.dims();
        let [query, key] = [query, key].map(|x| rotary.forward(x).swap_dims(1, 2));
        let [key, value] = [key, value.swap_dims(1, 2)].map(|x| self.repeat(x));
        let mixed = attend(query, key, value, mask);
        mixed.swap_dims(1, 2).reshape([batch * seq, heads * head_dim])
    }

    /// Queries, keys and values of `x`, `[tokens, heads · head_dim]` each.
    fn projected(&self, x: Tensor<B, 2>, seq: usize) -> [Tensor<B, 2>; 3] {
        [&self.query, &self.key, &self.value].map(|linear| project(x.clone(), linear, seq))
    }

    /// `[tokens, heads · head_dim]` as `[batch, seq, heads, head_dim]`.
    fn split(&self, x: Tensor<B, 2>, seq: usize) -> Tensor<B, 4> {
        let [tokens, width] = x.dims();
        let head_dim = self.head_dim();
        x.reshape([tokens / seq, seq, width / head_dim, head_dim])
    }

    /// Gives every query head its key or value head: `[batch, kv_heads, seq, head_dim]` to `[batch, heads, seq, head_dim]`.
    fn repeat(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, kv_heads, seq, head_dim] = x.dims();
        let group = self.group();
        if group == 1 {
            return x;
        }
        x.unsqueeze_dim::<5>(2)
            .expand([batch, kv_heads, group, seq, head_dim])
            .reshape([batch, self.heads, seq, head_dim])
    }

    fn head_dim(&self) -> usize {
        self.query.weight.shape()[1] / self.heads
    }

    /// Query heads that share a key and a value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// What the heads mix, where there is a fast way.
    fn fused(&self, x: &Tensor<B, 2>, seq: usize, rotary: &Rotary<B>) -> Option<Tensor<B, 2>> {
        let projected = fused_projections(x, [&self.query, &self.key, &self.value], seq)?;
        fast::causal_attention(&projected, &rotary.tables(seq), self.heads, self.kv_heads)
    }

    /// What the heads mix of new tokens, where there is a fast way.
    fn fused_extend(
        &self,
        x: &Tensor<B, 2>,
        count: usize,
        rotary: &Rotary<B>,
        sequences: &mut [Place<'_, B>],
    ) -> Option<Tensor<B, 2>> {
        // On a device, and under autodiff, what is kept stays in tensors.
        if !fast::is_in_memory::<B>() || B::ad_enabled(&x.device()) {
            return None;
        }
        let projected = fused_projections(x, [&self.query, &self.key, &self.value], count)?;
        let tables = rotary.all_tables();
        if let [place] = sequences
            && place.mask.before == 0
            && count > 1
        {
            let mut kept = fast::cache(&projected, self.heads, self.kv_heads)?;
            fast::keep(&projected, &tables, &mut kept)?;
            *place.cache = LayerCache::Host(kept);
            return fast::causal_attention(&projected, &rotary.tables(count), self.heads, self.kv_heads);
        }
        let mut kept = Vec::new();
        for place in sequences.iter_mut() {
            if matches!(place.cache, LayerCache::Empty) {
                *place.cache = LayerCache::Host(fast::cache(&projected, self.heads, self.kv_heads)?);
            }
            match place.cache {
                LayerCache::Host(cache) => kept.push((cache, place.mask.before)),
                _ => return None,
            }
        }
        fast::cached_attention(&projected, &tables, count, &mut kept)
    }
}

/// The place of some new tokens of one sequence in one layer.
pub(crate) struct Place<'a, B: Backend> {
    /// What the layer has of the tokens before them.
    pub(crate) cache: &'a mut LayerCache<B>,
    /// What they see.
    pub(crate) mask: &'a CausalMask<B>,
}

/// What hides later positions from earlier ones, for sequences of one length; made when it is first asked for, since fused attention never
/// asks.
#[derive(Debug)]
pub struct CausalMask<B: Backend> {
    /// Positions that every query sees besides those of the queries.
    before: usize,
    queries: usize,
    device: B::Device,
    tensor: OnceCell<Tensor<B, 2>>,
}

impl<B: Backend> CausalMask<B> {
    /// The mask for sequences of length `seq`.
    pub fn new(seq: usize, device: B::Device) -> Self {
        Self::after(0, seq, device)
    }

    /// The mask for `queries` tokens behind `before` others, all of which they see.
    pub(crate) fn after(before: usize, queries: usize, device: B::Device) -> Self {
        Self {
            before,
            queries,
            device,
            tensor: OnceCell::new(),
        }
    }

    /// Adds 0 where a query (row) may see a key (column), −∞ where the key comes later.
    ///
    /// # Shapes
    /// - scores: `[batch, heads, rows, before + queries]`, where `rows` is a multiple of the queries
    /// - output: `[batch · heads · rows, before + queries]`
    fn hide_later(&self, scores: Tensor<B, 4>) -> Tensor<B, 2> {
        let [batch, heads, rows, seen] = scores.dims();
        let all_rows = batch * heads * rows;
        // A single query is the last position: nothing comes later.
        if self.queries == 1 {
            return scores.reshape([all_rows, seen]);
        }
        let masked = scores.reshape([all_rows / self.queries, self.queries * seen]) + self.tensor();
        masked.reshape([all_rows, seen])
    }

    /// `[1, queries · (before + queries)]`.
    fn tensor(&self) -> Tensor<B, 2> {
        let make = || {
            let shape = [self.queries, self.before + self.queries];
            // `tril_mask` is false on and below the diagonal.
            let later = Tensor::<B, 2, Bool>::tril_mask(shape, self.before as i64, &self.device);
            let zeros = Tensor::<B, 2>::zeros(shape, (&self.device, DType::F32));
            zeros
                .mask_fill(later, f32::NEG_INFINITY)
                .reshape([1, shape[0] * shape[1]])
        };
        self.tensor.get_or_init(make).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotary::RotaryConfig;
    use burn::tensor::{Distribution, Tolerance};
    use burn_flex::{Flex, FlexDevice};

    fn attend(attention: &Attention<Flex>, x: Tensor<Flex, 3>) -> Tensor<Flex, 3> {
        let rotary = RotaryConfig::new(16, 4).init(&FlexDevice);
        let seq = x.dims()[1];
        attention.forward(x, &rotary, &CausalMask::new(seq, FlexDevice))
    }

    #[test]
    fn a_position_does_not_see_later_ones() {
        let attention = AttentionConfig::new(8, 2, 1).init::<Flex>(&FlexDevice);
        let x = Tensor::<Flex, 3>::random([2, 6, 8], Distribution::Default, &FlexDevice);
        let changed = x.clone().slice_assign(
            [0..2, 4..6, 0..8],
            Tensor::random([2, 2, 8], Distribution::Default, &FlexDevice),
        );
        let head = |y: Tensor<Flex, 3>| y.narrow(1, 0, 4).into_data();
        let (before, after) = (attend(&attention, x), attend(&attention, changed));
        assert_ne!(before.to_data(), after.to_data());
        head(before).assert_approx_eq::<f32>(&head(after), Tolerance::absolute(1e-6));
    }

    /// The first position sees only itself, so its result is its own value, projected.
    #[test]
    fn the_first_position_returns_its_own_value() {
        let attention = AttentionConfig::new(8, 2, 2).init::<Flex>(&FlexDevice);
        let x = Tensor::<Flex, 3>::random([1, 3, 8], Distribution::Default, &FlexDevice);
        let first = x.clone().narrow(1, 0, 1).reshape([1, 8]);
        let expected = attention.output.forward(attention.value.forward(first));
        attend(&attention, x)
            .narrow(1, 0, 1)
            .reshape([1, 8])
            .into_data()
            .assert_approx_eq::<f32>(&expected.into_data(), Tolerance::absolute(1e-6));
    }

    #[test]
    #[should_panic(expected = "3 heads do not divide a stream of 8 channels")]
    fn heads_that_do_not_divide_the_stream_are_named() {
        AttentionConfig::new(8, 3, 1).init::<Flex>(&FlexDevice);
    }

    #[test]
    #[should_panic(expected = "3 key-value heads do not divide 4 query heads")]
    fn key_heads_that_do_not_divide_the_query_heads_are_named() {
        AttentionConfig::new(8, 4, 3).init::<Flex>(&FlexDevice);
    }

    #[test]
    #[should_panic(expected = "the length of the sequences, and that of the mask")]
    fn a_mask_for_another_length_is_refused() {
        let attention = AttentionConfig::new(8, 2, 1).init::<Flex>(&FlexDevice);
        let rotary = RotaryConfig::new(16, 4).init(&FlexDevice);
        attention.forward(
            Tensor::ones([1, 3, 8], &FlexDevice),
            &rotary,
            &CausalMask::new(4, FlexDevice),
        );
    }
}

#[cfg(all(test, feature = "host"))]
mod fused {
    use super::*;
    use crate::rotary::RotaryConfig;
    use burn_flex::FlexDevice;
    use gpas_host::check::{FORMATS, Tracked, assert_close_in, gradients_in, random};

    /// With grouped heads, over sequences of more than one block of rows, one of which is short.
    #[test]
    fn fused_and_plain_agree() {
        FORMATS.into_iter().for_each(fused_and_plain_agree_in);
    }

    fn fused_and_plain_agree_in(format: DType) {
        let (batch, seq, hidden) = (2, 70, 24);
        for (heads, kv_heads) in [(4, 2), (2, 2), (3, 1)] {
            let attention = AttentionConfig::new(hidden, heads, kv_heads).init::<Tracked>(&FlexDevice);
            let rotary = RotaryConfig::new(80, hidden / heads).init(&FlexDevice);
            let mask = CausalMask::new(seq, FlexDevice);
            let x = random([batch, seq, hidden]);
            // A cast of its own for each graph: a backward pass consumes it.
            let given = || x.clone().cast(format);
            let flat = given().cast(DType::F32).reshape([batch * seq, hidden]);
            let linears = [&attention.query, &attention.key, &attention.value, &attention.output];
            let projected = [linears[0], linears[1], linears[2]].map(|linear| flat.clone().matmul(linear.weight.val()));
            let projected = projected.map(|x| attention.split(x, seq));
            let mixed = attention.in_tensor_operations(projected, &rotary, &mask);
            let plain = mixed
                .matmul(attention.output.weight.val())
                .reshape([batch, seq, hidden]);
            let [fused, plain] = gradients_in(format, attention.forward(given(), &rotary, &mask), plain);
            assert_close_in(
                format,
                x.grad(&fused).expect("a gradient"),
                x.grad(&plain).expect("a gradient"),
                "x",
            );
            for (name, linear) in ["query", "key", "value", "output"].into_iter().zip(linears) {
                let weight = linear.weight.val();
                assert_close_in(
                    format,
                    weight.grad(&fused).expect("a gradient"),
                    weight.grad(&plain).expect("a gradient"),
                    name,
                );
            }
        }
    }
}
