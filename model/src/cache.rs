//! Generation: what a sequence has been through is kept as the keys and values of its tokens, so that a further token costs one pass of
//! one token through the layers.
//!
//! Every sequence has a cache of its own. Sequences of different lengths go on together without padding: attention alone looks at other
//! tokens than a layer's own, and it asks each sequence's cache. So a sequence's result does not depend on what it goes with; on a CPU,
//! where each row of the products is summed by itself, not even in the last bit.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::fast;
use crate::llama::Llama;
use crate::progress::Progress;

/// Keys and values of the tokens of one sequence, in every layer. It grows with them.
#[derive(Clone, Debug)]
pub struct Cache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    tokens: usize,
}

impl<B: Backend> Cache<B> {
    /// Number of tokens that the sequence has so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// Keys, turned by their positions, and values of one sequence in one layer.
#[derive(Clone, Debug)]
pub(crate) enum LayerCache<B: Backend> {
    /// No token yet.
    Empty,
    /// In the memory of this process, where the fused operations run.
    Host(fast::HostCache),
    /// On a device.
    Device(DeviceCache<B>),
}

/// Keys and values in tensors `[kv_heads, room, head_dim]`, of which the first `tokens` positions are filled.
#[derive(Clone, Debug)]
pub(crate) struct DeviceCache<B: Backend> {
    keys: Tensor<B, 3>,
    values: Tensor<B, 3>,
    tokens: usize,
}

/// Positions by which room grows at least; it doubles, so that all copies together are no more than twice what they end with.
const ROOM: usize = 64;

impl<B: Backend> DeviceCache<B> {
    /// Appends tokens to what a layer has, and returns it.
    ///
    /// # Shapes
    /// - keys, values: `[kv_heads, tokens, head_dim]`
    pub(crate) fn extended(layer: &mut LayerCache<B>, keys: Tensor<B, 3>, values: Tensor<B, 3>) -> &Self {
        let [kv_heads, count, head_dim] = keys.dims();
        let old = match std::mem::replace(layer, LayerCache::Empty) {
            LayerCache::Device(old) => Some(old),
            _ => None,
        };
        let tokens = old.as_ref().map_or(0, |old| old.tokens);
        let end = tokens + count;
        let append = |old: Option<Tensor<B, 3>>, new: Tensor<B, 3>| {
            let held = old.as_ref().map_or(0, |old| old.dims()[1]);
            let old = match old {
                Some(old) if end <= held => old,
                old => {
                    let more = (end - held).max(held).next_multiple_of(ROOM);
                    let blank = Tensor::zeros([kv_heads, more, head_dim], (&new.device(), new.dtype()));
                    Tensor::cat(old.into_iter().chain([blank]).collect(), 1)
                }
            };
            // Nobody else holds the tensor, so the backend writes in place.
            old.slice_assign([0..kv_heads, tokens..end, 0..head_dim], new)
        };
        let (old_keys, old_values) = old.map(|old| (old.keys, old.values)).unzip();
        let grown = Self {
            keys: append(old_keys, keys),
            values: append(old_values, values),
            tokens: end,
        };
        *layer = LayerCache::Device(grown);
        match layer {
            LayerCache::Device(grown) => grown,
            _ => unreachable!("it was put there above"),
        }
    }

    /// Keys and values of all tokens, each `[kv_heads, tokens, head_dim]`.
    pub(crate) fn filled(&self) -> [Tensor<B, 3>; 2] {
        [&self.keys, &self.values].map(|tensor| tensor.clone().narrow(1, 0, self.tokens))
    }
}

/// The place of some new tokens of one sequence in one layer.
pub(crate) struct Place<'a, B: Backend> {
    /// What the layer has of the tokens before them.
    pub(crate) cache: &'a mut LayerCache<B>,
    /// Number of tokens before them.
    pub(crate) before: usize,
}

impl<B: Backend> Llama<B> {
    /// The cache of a sequence without tokens.
    pub fn cache(&self) -> Cache<B> {
        Cache {
            layers: self.layers.iter().map(|_| LayerCache::Empty).collect(),
            tokens: 0,
        }
    }

    /// Lets a sequence go on with some tokens: the stream after the final norm, `[tokens, hidden]`, for
    /// [`head_logits`](Self::head_logits) and [`next_logits`](Self::next_logits).
    ///
    /// # Panics
    /// If there are no ids, one of them is outside the vocabulary, or the sequence gets longer than the model's positions.
    pub fn extend(&self, ids: &[u32], progress: Progress, cache: &mut Cache<B>) -> Tensor<B, 2> {
        self.extend_each(ids, progress, &mut [cache])
    }

    /// Lets each of some sequences go on with one token: the logits of what follows it, `[sequences, vocab]`.
    ///
    /// # Panics
    /// If there is not one id for each cache, or as [`extend`](Self::extend) does.
    pub fn decode(&self, ids: &[u32], progress: Progress, caches: &mut [&mut Cache<B>]) -> Tensor<B, 2> {
        assert_eq!(ids.len(), caches.len());
        self.next_logits(self.extend_each(ids, progress, caches))
    }

    /// As many new tokens of each sequence, one's after another's.
    fn extend_each(&self, ids: &[u32], progress: Progress, caches: &mut [&mut Cache<B>]) -> Tensor<B, 2> {
        let (sequences, count) = (caches.len(), ids.len() / caches.len());
        assert!(count > 0, "there is no token");
        let data = TensorData::new(ids.iter().map(|id| i64::from(*id)).collect(), [sequences, count]);
        let mut x = self.embed(Tensor::from_data(data, &self.embedding.weight.val().device()));
        for (index, layer) in self.layers.iter().enumerate() {
            let places = caches.iter_mut().map(|cache| Place {
                before: cache.tokens,
                cache: &mut cache.layers[index],
            });
            let mut places: Vec<Place<'_, B>> = places.collect();
            x = layer.forward_with(x, progress, |attention, z| {
                attention.extend(z, self.rotary(), &mut places)
            });
        }
        for cache in caches {
            cache.tokens += count;
        }
        self.norm.forward(x).flatten(0, 1)
    }

    /// Logits of hidden states after the final norm, in f32.
    ///
    /// # Shapes
    /// - hidden: `[tokens, hidden]`
    /// - output: `[tokens, vocab]`
    pub fn head_logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let (weight, products) = (self.head_weight(), self.products());
        hidden.cast(products).matmul(weight.cast(products)).cast(DType::F32)
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
    use crate::compare::{largest_difference, largest_magnitude};
    use crate::config::LlamaConfig;
    use crate::gpas::{GateSite, GpasConfig};
    use crate::precision::Precision;
    use crate::scheme::Scheme;
    use burn_flex::{Flex, FlexDevice};

    const VOCAB: usize = 53;

    /// In the middle of a warm-up of branches.
    fn progress() -> Progress {
        Progress::after(700)
    }

    fn config() -> LlamaConfig {
        LlamaConfig::new(VOCAB, 24, 44, 4, 4)
            .with_kv_heads(Some(2))
            .with_gate(GpasConfig::new().with_init(0.6))
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
        model.logits(ids, progress()).into_data().into_vec().unwrap()
    }

    fn logits<B: Backend>(model: &Llama<B>, ids: &[u32], cache: &mut Cache<B>) -> Vec<f32> {
        let logits = model.head_logits(model.extend(ids, progress(), cache));
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
                let model = config.init::<Flex>(3, &FlexDevice);
                let ids = ids(50, 1);
                let expected = uncached(&model, &ids);
                let mut cache = model.cache();
                let mut found = logits(&model, &ids[..37], &mut cache);
                for id in &ids[37..44] {
                    let row = model.decode(&[*id], progress(), &mut [&mut cache]);
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
            let expected = uncached(&config.init(3, &FlexDevice), &ids(140, 1));
            let model = config.init::<Other>(3, &FlexDevice);
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

    /// Whatever else is in the batch, how many there are and how long they are: the same bits.
    #[cfg(feature = "host")]
    #[test]
    fn a_sequence_does_not_depend_on_its_batch() {
        for tied in [false, true] {
            let model = config().with_tied_head(tied).init::<Flex>(3, &FlexDevice);
            let lengths = [5, 1, 23, 70, 2];
            let alone: Vec<Vec<f32>> = lengths
                .iter()
                .enumerate()
                .map(|(index, length)| {
                    let mut cache = model.cache();
                    let mut found = logits(&model, &ids(*length, index), &mut cache);
                    for step in 0..3 {
                        let next = model.decode(&[(index + step) as u32], progress(), &mut [&mut cache]);
                        found = next.into_data().into_vec().unwrap();
                    }
                    found
                })
                .collect();
            // Four times over.
            let mut caches: Vec<_> = (0..20).map(|_| model.cache()).collect();
            for (index, cache) in caches.iter_mut().enumerate() {
                model.extend(&ids(lengths[index % 5], index % 5), progress(), cache);
            }
            let mut found = Vec::new();
            for step in 0..3 {
                let next: Vec<u32> = (0..20).map(|index| (index % 5 + step) as u32).collect();
                let mut all: Vec<_> = caches.iter_mut().collect();
                found = model
                    .decode(&next, progress(), &mut all)
                    .into_data()
                    .into_vec::<f32>()
                    .unwrap();
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
        let model = config.init::<Flex>(3, &FlexDevice);
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
        let model = config().init::<Flex>(3, &FlexDevice);
        let mut cache = model.cache();
        model.extend(&ids(9, 1), progress(), &mut cache);
        let before = logits(&model, &[7], &mut cache.clone());
        logits(&model, &ids(5, 2), &mut cache.clone());
        assert_eq!(logits(&model, &[7], &mut cache), before);
    }
}
