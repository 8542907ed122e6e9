//! Causal self-attention with rotary positions and grouped key-value heads, as LLaMA has it.

use std::cell::OnceCell;

use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Bool, DType, Tensor, backend::Backend};

use crate::cache::{DeviceCache, LayerCache, Place};
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
    pub fn init<B: Backend>(&self, device: &B::Device) -> Attention<B> {
        let head_dim = self.hidden / self.heads;
        let linear = |output| LinearConfig::new(self.hidden, output).with_bias(false).init(device);
        Attention {
            query: linear(self.hidden),
            key: linear(self.kv_heads * head_dim),
            value: linear(self.kv_heads * head_dim),
            output: linear(self.hidden),
            heads: self.heads,
            kv_heads: self.kv_heads,
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

impl<B: Backend> Attention<B> {
    /// Attends to the positions up to and including each one.
    ///
    /// # Shapes
    /// - x: `[batch, seq, hidden]`
    /// - output: `[batch, seq, hidden]`
    pub fn forward(&self, x: Tensor<B, 3>, rotary: &Rotary<B>, mask: &CausalMask<B>) -> Tensor<B, 3> {
        let [batch, seq, hidden] = x.dims();
        // On [tokens, hidden]: Burn's weight gradient of a rank-3 input would hold one [in, out] matrix per sequence.
        let x = x.reshape([batch * seq, hidden]);
        let projections = [&self.query, &self.key, &self.value];
        let fused = fused_projections(&x, projections, seq)
            .and_then(|projected| fast::causal_attention(&projected, &rotary.tables(seq), self.heads, self.kv_heads));
        let mixed = match fused {
            Some(mixed) => mixed,
            None => self.in_tensor_operations(
                projections.map(|linear| project(x.clone(), linear, seq)),
                seq,
                rotary,
                mask,
            ),
        };
        project(mixed, &self.output, seq).reshape([batch, seq, hidden])
    }

    /// Attends to the tokens that came before, which the caches have kept, and keeps the new ones.
    ///
    /// # Shapes
    /// - x: `[sequences, count, hidden]`, as many new tokens of each sequence
    /// - output: `[sequences, count, hidden]`
    pub(crate) fn extend(&self, x: Tensor<B, 3>, rotary: &Rotary<B>, places: &mut [Place<'_, B>]) -> Tensor<B, 3> {
        let [sequences, count, hidden] = x.dims();
        let x = x.reshape([sequences * count, hidden]);
        let projections = [&self.query, &self.key, &self.value];
        let fused = fused_projections(&x, projections, count)
            .and_then(|projected| self.extend_fused(projected, count, rotary, places));
        let mixed = fused.unwrap_or_else(|| {
            let projected = projections.map(|linear| project(x.clone(), linear, count));
            let parts = places.iter_mut().enumerate().map(|(index, place)| {
                let own = projected
                    .each_ref()
                    .map(|all| all.clone().narrow(0, index * count, count));
                self.extend_in_tensor_operations(own, rotary, place)
            });
            Tensor::cat(parts.collect(), 0)
        });
        project(mixed, &self.output, count).reshape([sequences, count, hidden])
    }

    /// The fused way, where it is open: what the heads have mixed of `[tokens, (heads + 2 · kv_heads) · head_dim]`.
    fn extend_fused(
        &self,
        projected: Tensor<B, 2>,
        count: usize,
        rotary: &Rotary<B>,
        places: &mut [Place<'_, B>],
    ) -> Option<Tensor<B, 2>> {
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        let tables = rotary.all_tables();
        if let [Place { cache, before: 0 }] = places
            && count > 1
        {
            let mut kept = fast::cache(&projected, heads, kv_heads)?;
            fast::keep(&projected, &tables, &mut kept)?;
            **cache = LayerCache::Host(kept);
            return fast::causal_attention(&projected, &rotary.tables(count), heads, kv_heads);
        }
        let mut sequences = Vec::new();
        for place in places.iter_mut() {
            if matches!(place.cache, LayerCache::Empty) {
                *place.cache = LayerCache::Host(fast::cache(&projected, heads, kv_heads)?);
            }
            match place.cache {
                LayerCache::Host(kept) => sequences.push((kept, place.before)),
                _ => return None,
            }
        }
        fast::cached_attention(&projected, &tables, count, &mut sequences)
    }

    /// From queries, keys and values `[tokens, heads · head_dim]` of one sequence to what the heads have mixed, `[tokens, hidden]`.
    fn extend_in_tensor_operations(
        &self,
        [query, key, value]: [Tensor<B, 2>; 3],
        rotary: &Rotary<B>,
        place: &mut Place<'_, B>,
    ) -> Tensor<B, 2> {
        let [count, hidden] = query.dims();
        let (head_dim, group) = (hidden / self.heads, self.heads / self.kv_heads);
        let split = |x: Tensor<B, 2>, heads: usize| x.reshape([1, count, heads, head_dim]);
        let by_heads = |x: Tensor<B, 4>| x.swap_dims(1, 2).squeeze_dim::<3>(0);
        let query = by_heads(rotary.forward_from(place.before, split(query, self.heads)));
        let key = by_heads(rotary.forward_from(place.before, split(key, self.kv_heads)));
        let value = by_heads(split(value, self.kv_heads));
        let [keys, values] = DeviceCache::extended(place.cache, key, value).filled();

        let seen = place.before + count;
        // The query heads that share a key head meet it together.
        let query =
            query
                .mul_scalar((head_dim as f64).sqrt().recip())
                .reshape([self.kv_heads, group * count, head_dim]);
        let scores = query.matmul(keys.swap_dims(1, 2));
        let dtype = scores.dtype();
        let scores = scores.cast(DType::F32).reshape([self.heads, count, seen]);
        let scores = if count == 1 {
            scores
        } else {
            let later = Tensor::<B, 2, Bool>::tril_mask([count, seen], place.before as i64, &scores.device());
            let zeros = Tensor::<B, 2>::zeros([count, seen], (&scores.device(), DType::F32));
            scores + zeros.mask_fill(later, f32::NEG_INFINITY).unsqueeze()
        };
        let weights = softmax(scores.reshape([self.heads * count, seen])).cast(dtype);
        let mixed = weights.reshape([self.kv_heads, group * count, seen]).matmul(values);
        let mixed = mixed.reshape([self.heads, count, head_dim]).swap_dims(0, 1);
        mixed.reshape([count, hidden])
    }

    /// From queries, keys and values `[tokens, heads · head_dim]` to what the heads have mixed, `[tokens, hidden]`.
    fn in_tensor_operations(
        &self,
        [query, key, value]: [Tensor<B, 2>; 3],
        seq: usize,
        rotary: &Rotary<B>,
        mask: &CausalMask<B>,
    ) -> Tensor<B, 2> {
        let [tokens, hidden] = query.dims();
        let (batch, head_dim) = (tokens / seq, hidden / self.heads);
        let split = |x: Tensor<B, 2>, heads: usize| x.reshape([batch, seq, heads, head_dim]);
        let query = rotary.forward(split(query, self.heads)).swap_dims(1, 2);
        let key = self.repeat(rotary.forward(split(key, self.kv_heads)).swap_dims(1, 2));
        let value = self.repeat(split(value, self.kv_heads).swap_dims(1, 2));

        let query = query.mul_scalar((head_dim as f64).sqrt().recip());
        let scores = query.matmul(key.swap_dims(2, 3));
        let dtype = scores.dtype();
        let scores = scores.cast(DType::F32).reshape([batch * self.heads, seq * seq]) + mask.tensor();
        let weights = softmax(scores.reshape([batch * self.heads * seq, seq])).cast(dtype);
        let mixed = weights.reshape([batch, self.heads, seq, seq]).matmul(value);
        mixed.swap_dims(1, 2).reshape([tokens, hidden])
    }

    /// Gives every query head its key or value head: `[batch, kv_heads, seq, head_dim]` to `[batch, heads, seq, head_dim]`.
    fn repeat(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, kv_heads, seq, head_dim] = x.dims();
        let group = self.heads / kv_heads;
        if group == 1 {
            return x;
        }
        x.unsqueeze_dim::<5>(2)
            .expand([batch, kv_heads, group, seq, head_dim])
            .reshape([batch, self.heads, seq, head_dim])
    }
}

/// What hides later positions from earlier ones, for sequences of one length; made when it is first asked for, since fused attention never
/// asks.
#[derive(Debug)]
pub struct CausalMask<B: Backend> {
    seq: usize,
    device: B::Device,
    tensor: OnceCell<Tensor<B, 2>>,
}

impl<B: Backend> CausalMask<B> {
    /// The mask for sequences of length `seq`.
    pub fn new(seq: usize, device: B::Device) -> Self {
        Self {
            seq,
            device,
            tensor: OnceCell::new(),
        }
    }

    /// To be added to the scores: 0 where a query (row) may see a key (column), −∞ where the key comes later; `[1, seq · seq]`.
    fn tensor(&self) -> Tensor<B, 2> {
        let make = || {
            let shape = [self.seq, self.seq];
            // `tril_mask` is false on and below the diagonal.
            let later = Tensor::<B, 2, Bool>::tril_mask(shape, 0, &self.device);
            let zeros = Tensor::<B, 2>::zeros(shape, (&self.device, DType::F32));
            zeros
                .mask_fill(later, f32::NEG_INFINITY)
                .reshape([1, self.seq * self.seq])
        };
        self.tensor.get_or_init(make).clone()
    }
}

/// Softmax over the last dimension. Burn's own divides by the sum, and the backward pass of a division is dear; this one multiplies by
/// its reciprocal, of which there is one per row.
fn softmax<B: Backend>(scores: Tensor<B, 2>) -> Tensor<B, 2> {
    let exponentials = (scores.clone() - scores.detach().max_dim(1)).exp();
    exponentials.clone() * exponentials.sum_dim(1).recip()
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
}

#[cfg(all(test, feature = "host"))]
mod fused {
    use super::*;
    use crate::rotary::RotaryConfig;
    use burn_flex::FlexDevice;
    use gpas_host::check::{Tracked, assert_close, gradients, random};

    /// With grouped heads, over sequences of more than one block of rows, one of which is short.
    #[test]
    fn fused_and_plain_agree() {
        let (batch, seq, hidden) = (2, 70, 24);
        for (heads, kv_heads) in [(4, 2), (2, 2), (3, 1)] {
            let attention = AttentionConfig::new(hidden, heads, kv_heads).init::<Tracked>(&FlexDevice);
            let rotary = RotaryConfig::new(80, hidden / heads).init(&FlexDevice);
            let mask = CausalMask::new(seq, FlexDevice);
            let x = random([batch, seq, hidden]);
            let flat = x.clone().reshape([batch * seq, hidden]);
            let linears = [&attention.query, &attention.key, &attention.value, &attention.output];
            let projected = [linears[0], linears[1], linears[2]].map(|linear| flat.clone().matmul(linear.weight.val()));
            let mixed = attention.in_tensor_operations(projected, seq, &rotary, &mask);
            let plain = mixed
                .matmul(attention.output.weight.val())
                .reshape([batch, seq, hidden]);
            let [fused, plain] = gradients(attention.forward(x.clone(), &rotary, &mask), plain);
            assert_close(x.grad(&fused).unwrap(), x.grad(&plain).unwrap(), "x");
            for (name, linear) in ["query", "key", "value", "output"].into_iter().zip(linears) {
                let weight = linear.weight.val();
                assert_close(weight.grad(&fused).unwrap(), weight.grad(&plain).unwrap(), name);
            }
        }
    }
}
