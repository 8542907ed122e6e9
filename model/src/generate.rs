//! Generation: sequences go on token by token, and what they have been through is kept in a [`Cache`] each.
//!
//! Sequences of different lengths go on together without padding: attention alone looks at other tokens than a layer's own, and it asks
//! each sequence's cache. So a sequence's result does not depend on what it goes with; on a CPU, where each row of the products is summed
//! by itself, not even in the last bit.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::attention::{CausalMask, Place};
use crate::cache::Cache;
use crate::fast;
use crate::llama::{Llama, checked};

impl<B: Backend> Llama<B> {
    /// The cache of a sequence without tokens. It is this model's: no other takes it, not even one of the same sizes.
    pub fn cache(&self) -> Cache<B> {
        Cache::new(self.identity().clone(), self.layers.len())
    }

    /// Lets a sequence go on with some tokens: the stream after the final norm, `[tokens, hidden]`, for
    /// [`head_logits`](Self::head_logits) and [`next_logits`](Self::next_logits).
    ///
    /// # Panics
    /// If there are no ids, one of them is outside the vocabulary, the sequence gets longer than the model's positions, or the cache is
    /// another model's.
    pub fn extend(&self, ids: &[u32], cache: &mut Cache<B>) -> Tensor<B, 2> {
        self.extend_each(ids, ids.len(), &mut [cache])
    }

    /// Lets each of some sequences go on with one token: the logits of what follows it, `[sequences, vocab]`.
    ///
    /// # Panics
    /// If there is not one id for each cache, or as [`extend`](Self::extend) does.
    pub fn decode(&self, ids: &[u32], caches: &mut [&mut Cache<B>]) -> Tensor<B, 2> {
        let (tokens, sequences) = (ids.len(), caches.len());
        assert_eq!(tokens, sequences, "there are {tokens} tokens for {sequences} sequences");
        self.next_logits(self.extend_each(ids, 1, caches))
    }

    /// `count` new tokens of each sequence, one's after another's.
    fn extend_each(&self, ids: &[u32], count: usize, caches: &mut [&mut Cache<B>]) -> Tensor<B, 2> {
        assert!(!ids.is_empty(), "there is no token to go on with");
        for cache in caches.iter() {
            assert!(
                cache.model == *self.identity(),
                "the cache is another model's; `Llama::cache` makes one of this model"
            );
            self.assert_length(cache.tokens + count);
        }
        let longest = caches.iter().map(|cache| cache.tokens + count).max().unwrap_or(count);
        // Several tokens at once are those of one sequence. A single token is the last one of its own, and has its row for that length.
        let rotary = if count > 1 {
            self.rotary().of_length(longest)
        } else {
            self.rotary().clone()
        };
        let device = self.embedding.weight.val().device();
        let mask = |cache: &&mut Cache<B>| CausalMask::after(cache.tokens, count, device.clone());
        let masks: Vec<CausalMask<B>> = caches.iter().map(mask).collect();
        let vocab = self.vocab();
        let rows = ids.iter().map(|id| checked(i64::from(*id), vocab));
        let data = TensorData::new(rows.collect(), [caches.len(), count]);
        let mut x = self.embed(Tensor::from_data(data, &device));
        for (index, layer) in self.layers.iter().enumerate() {
            let places = caches.iter_mut().zip(&masks).map(|(cache, mask)| Place {
                cache: &mut cache.layers[index],
                mask,
            });
            let mut places: Vec<Place<'_, B>> = places.collect();
            x = layer.forward_with(x, self.progress(), |attention, z| {
                attention.extend(z, &rotary, &mut places)
            });
        }
        for cache in caches {
            cache.tokens += count;
        }
        self.norm.forward(x).flatten(0, 1)
    }

    /// [`head_logits`](Self::head_logits) of the last token of each sequence: the same on a CPU, to the last bit, whatever other sequences
    /// there are.
    pub fn next_logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        if self.products() == DType::F32
            && let Some(logits) = fast::few_rows(&hidden, &self.head_weight())
        {
            return logits;
        }
        self.head_logits(hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::LayerCache;
    use crate::compare::{largest_difference, largest_magnitude};
    use crate::config::{GateConfig, LlamaConfig};
    use crate::precision::Precision;
    use crate::progress::Progress;
    use crate::rope_scaling::{RopeScaling, RopeScalingFields, RopeType};
    use crate::scheme::{GateSite, Scheme};
    use burn_flex::{Flex, FlexDevice};

    const VOCAB: usize = 53;

    /// In the middle of a warm-up of branches.
    fn model<B: Backend>(config: &LlamaConfig) -> Llama<B> {
        config.init(3, &Default::default()).with_progress(Progress::after(700))
    }

    fn config() -> LlamaConfig {
        LlamaConfig::new(VOCAB, 24, 44, 4, 4)
            .with_kv_heads(Some(2))
            .with_gate(GateConfig::new().with_init(0.6))
    }

    fn ids(count: usize, seed: usize) -> Vec<u32> {
        (0..count)
            .map(|i| ((i * i * 7 + seed * 13 + i) % VOCAB) as u32)
            .collect()
    }

    fn uncached(model: &Llama<Flex>, ids: &[u32]) -> Vec<f32> {
        let values: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        let shape = [1, values.len()];
        let ids = Tensor::from_data(TensorData::new(values, shape), &FlexDevice);
        model.logits(ids).into_data().into_vec().unwrap()
    }

    fn logits<B: Backend>(model: &Llama<B>, ids: &[u32], cache: &mut Cache<B>) -> Vec<f32> {
        let logits = model.head_logits(model.extend(ids, cache));
        logits.into_data().into_vec().unwrap()
    }

    /// Fails if the numbers differ by more than `bound`, or would not differ if one of them were not a number.
    fn assert_near(found: &[f32], expected: &[f32], bound: f64, what: &str) {
        let difference = largest_difference(found, expected);
        assert!(difference <= bound, "{what}: {difference}");
        let mut broken = found.to_vec();
        broken[found.len() / 2] = f32::NAN;
        assert!(largest_difference(&broken, expected).is_nan(), "{what}");
    }

    /// A prompt at once, then tokens one by one, then several at once, for every scheme and every place of its gate.
    #[test]
    fn cached_and_uncached_logits_agree() {
        let sites = [
            GateSite::Default,
            GateSite::Before,
            GateSite::AfterNorm,
            GateSite::AfterModule,
        ];
        for scheme in Scheme::all() {
            for site in sites {
                let gate = config().gate.with_site(site);
                let config = config().with_scheme(scheme).with_gate(gate);
                if config.validate().is_err() || (!scheme.gpas && site != GateSite::Default) {
                    continue;
                }
                let model = model::<Flex>(&config);
                let ids = ids(50, 1);
                let expected = uncached(&model, &ids);
                let mut cache = model.cache();
                let mut found = logits(&model, &ids[..37], &mut cache);
                for id in &ids[37..44] {
                    let row = model.decode(&[*id], &mut [&mut cache]);
                    found.extend(row.into_data().into_vec::<f32>().unwrap());
                }
                found.extend(logits(&model, &ids[44..], &mut cache));
                assert_eq!(cache.tokens(), 50);
                assert_near(&found, &expected, 1e-5, &format!("{scheme} {site:?}"));
            }
        }
    }

    /// In tensor operations, as on a GPU: under autodiff, where the fused operations of generation do not run.
    #[test]
    fn the_device_cache_agrees_too() {
        type Other = burn::backend::Autodiff<Flex>;
        for (kv_heads, tied) in [(1, false), (2, true), (4, false)] {
            let config = config().with_kv_heads(Some(kv_heads)).with_tied_head(tied);
            let expected = uncached(&model(&config), &ids(140, 1));
            let model = model::<Other>(&config);
            let (ids, mut cache) = (ids(140, 1), model.cache());
            let mut found = logits(&model, &ids[..30], &mut cache);
            assert!(matches!(cache.layers[0], LayerCache::Device(_)));
            // Past the room of the start and of its first growth.
            for part in [30..31, 31..32, 32..70, 70..71, 71..139, 139..140] {
                found.extend(logits(&model, &ids[part], &mut cache));
            }
            assert_near(&found, &expected, 1e-5, &format!("{kv_heads} {tied}"));
        }
    }

    fn scalings() -> [RopeScaling; 3] {
        [RopeType::Linear, RopeType::Llama3, RopeType::Yarn].map(|rope_type| {
            let fields = RopeScalingFields {
                rope_type,
                factor: Some(4.0),
                original_max_position_embeddings: Some(16),
                low_freq_factor: Some(1.0),
                high_freq_factor: Some(4.0),
                ..RopeScalingFields::default()
            };
            fields.complete(64).unwrap()
        })
    }

    /// With projections large enough that it counts what is attended to.
    fn strong<B: Backend>(config: &LlamaConfig) -> Llama<B> {
        let mut tensors = model::<B>(config).to_tensors(config).unwrap();
        for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.ends_with("proj.weight")) {
            tensor.values.iter_mut().for_each(|weight| *weight *= 8.0);
        }
        Llama::from_tensors(config, &tensors, &Default::default()).unwrap()
    }

    /// Beyond the positions before scaling, with the fused operations and in tensor operations.
    #[test]
    fn cached_and_uncached_logits_of_scaled_positions_agree() {
        fn check<B: Backend>(config: &LlamaConfig, expected: &[f32]) {
            let (model, ids) = (strong::<B>(config), ids(50, 1));
            let mut cache = model.cache();
            let mut found = logits(&model, &ids[..13], &mut cache);
            for part in [13..14, 14..31, 31..32, 32..50] {
                found.extend(logits(&model, &ids[part], &mut cache));
            }
            assert_near(&found, expected, 1e-5, &format!("{:?}", config.rope_scaling));
        }
        for scaling in scalings() {
            let config = config().with_max_positions(64).with_rope_scaling(scaling);
            let expected = uncached(&strong(&config), &ids(50, 1));
            let unscaled = config.clone().with_rope_scaling(RopeScaling::Default);
            let plain = uncached(&strong(&unscaled), &ids(50, 1));
            assert!(largest_difference(&expected, &plain) > 1e-3, "{scaling:?}");
            check::<Flex>(&config, &expected);
            check::<burn::backend::Autodiff<Flex>>(&config, &expected);
        }
    }

    /// Up to the original positions there is no difference. Beyond, what comes at once is what it is uncached, and a token that comes alone is
    /// turned by the frequencies of the length that it makes, the keys before it staying as they were.
    #[test]
    fn a_scaling_by_length_goes_by_the_length_at_which_a_token_comes() {
        let scaling = RopeScaling::Dynamic {
            factor: 4.0,
            original_max_position_embeddings: 16,
        };
        let config = config().with_max_positions(16).with_rope_scaling(scaling);
        let (fused, plain) = (model::<Flex>(&config), model::<burn::backend::Autodiff<Flex>>(&config));
        let ids = ids(50, 1);
        assert_eq!(fused.positions(), 64);
        let mut cache = fused.cache();
        let mut found = logits(&fused, &ids[..9], &mut cache);
        for id in &ids[9..16] {
            found.extend(logits(&fused, &[*id], &mut cache));
        }
        assert_near(&found, &uncached(&fused, &ids[..16]), 1e-5, "within");

        let (mut cache, mut other) = (fused.cache(), plain.cache());
        let mut found = logits(&fused, &ids[..40], &mut cache);
        assert_near(&found, &uncached(&fused, &ids[..40]), 1e-5, "at once");
        let mut expected = logits(&plain, &ids[..40], &mut other);
        for id in &ids[40..] {
            found.extend(logits(&fused, &[*id], &mut cache));
            expected.extend(logits(&plain, &[*id], &mut other));
        }
        assert_near(&found, &expected, 1e-5, "fused and in tensor operations");
        let last = &found[49 * VOCAB..];
        let whole = &uncached(&fused, &ids)[49 * VOCAB..];
        assert!(
            largest_difference(last, whole) > 1e-6,
            "the keys before it were turned by other frequencies"
        );

        // Each by its own length, whatever it goes with.
        let mut caches = [5, 40, 23].map(|length| {
            let mut cache = fused.cache();
            fused.extend(&ids[..length], &mut cache);
            cache
        });
        let alone = caches
            .clone()
            .map(|mut cache| logits(&fused, &[7], &mut cache))
            .concat();
        let mut all: Vec<_> = caches.iter_mut().collect();
        let together = fused.decode(&[7; 3], &mut all).into_data().into_vec::<f32>().unwrap();
        assert_near(&together, &alone, 1e-5, "together");
    }

    /// Whatever else is in the batch, how many there are and how long they are: the same bits.
    #[cfg(feature = "host")]
    #[test]
    fn a_sequence_does_not_depend_on_its_batch() {
        for tied in [false, true] {
            let model = model::<Flex>(&config().with_tied_head(tied));
            let lengths = [5, 1, 23, 70, 2];
            let alone: Vec<Vec<f32>> = lengths
                .iter()
                .enumerate()
                .map(|(index, length)| {
                    let mut cache = model.cache();
                    let mut found = logits(&model, &ids(*length, index), &mut cache);
                    for step in 0..3 {
                        let next = model.decode(&[(index + step) as u32], &mut [&mut cache]);
                        found = next.into_data().into_vec().unwrap();
                    }
                    found
                })
                .collect();
            // Four times over.
            let mut caches: Vec<_> = (0..20).map(|_| model.cache()).collect();
            for (index, cache) in caches.iter_mut().enumerate() {
                model.extend(&ids(lengths[index % 5], index % 5), cache);
            }
            let mut found = Vec::new();
            for step in 0..3 {
                let next: Vec<u32> = (0..20).map(|index| (index % 5 + step) as u32).collect();
                let mut all: Vec<_> = caches.iter_mut().collect();
                found = model.decode(&next, &mut all).into_data().into_vec::<f32>().unwrap();
            }
            for (index, row) in found.chunks(VOCAB).enumerate() {
                assert_eq!(row, alone[index % 5], "{index}");
            }
        }
    }

    /// Matrix products in bfloat16 go the way of tensor operations.
    #[test]
    fn other_number_formats_generate() {
        let config = config().with_precision(Precision::Bf16);
        let model = model::<Flex>(&config);
        let ids = ids(20, 1);
        let expected = uncached(&model, &ids);
        let mut cache = model.cache();
        let mut found = logits(&model, &ids[..12], &mut cache);
        for id in &ids[12..] {
            found.extend(logits(&model, &[*id], &mut cache));
        }
        assert_near(&found, &expected, 0.02 * largest_magnitude(&expected), "bfloat16");
    }

    #[test]
    fn a_clone_goes_its_own_way() {
        let model = model::<Flex>(&config());
        let mut cache = model.cache();
        model.extend(&ids(9, 1), &mut cache);
        let before = logits(&model, &[7], &mut cache.clone());
        logits(&model, &ids(5, 2), &mut cache.clone());
        assert_eq!(logits(&model, &[7], &mut cache), before);
    }

    #[test]
    #[should_panic(expected = "the cache is another model's")]
    fn the_cache_of_another_model_is_refused() {
        let mut cache = model::<Flex>(&config()).cache();
        model::<Flex>(&config()).extend(&ids(3, 1), &mut cache);
    }

    #[test]
    #[should_panic(expected = "the cache is another model's")]
    fn loaded_weights_are_another_model() {
        let model = model::<Flex>(&config());
        let mut cache = model.cache();
        model.extend(&ids(3, 1), &mut cache);
        let tensors = model.to_tensors(&config()).unwrap();
        let loaded = Llama::<Flex>::from_tensors(&config(), &tensors, &FlexDevice).unwrap();
        loaded.extend(&[1], &mut cache);
    }

    #[test]
    fn a_clone_of_the_model_goes_on_with_its_caches() {
        let model = model::<Flex>(&config());
        let mut cache = model.cache();
        model.extend(&ids(3, 1), &mut cache);
        assert_eq!(model.clone().decode(&[1], &mut [&mut cache]).dims(), [1, VOCAB]);
    }

    #[test]
    #[should_panic(expected = "token id 53 is outside the vocabulary of 53")]
    fn a_token_outside_the_vocabulary_is_named() {
        let model = model::<Flex>(&config());
        model.extend(&[1, 53], &mut model.cache());
    }

    #[test]
    #[should_panic(expected = "a sequence of 11 tokens is longer than the model's 10 positions")]
    fn a_sequence_that_grows_too_long_is_named() {
        let model = model::<Flex>(&config().with_max_positions(10));
        let mut cache = model.cache();
        model.extend(&ids(10, 1), &mut cache);
        model.decode(&[1], &mut [&mut cache]);
    }

    #[test]
    #[should_panic(expected = "there is no token to go on with")]
    fn no_token_is_refused() {
        let model = model::<Flex>(&config());
        model.extend(&[], &mut model.cache());
    }

    #[test]
    #[should_panic(expected = "there are 2 tokens for 1 sequences")]
    fn a_token_without_a_sequence_is_refused() {
        let model = model::<Flex>(&config());
        model.decode(&[1, 2], &mut [&mut model.cache()]);
    }
}
