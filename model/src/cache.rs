//! What a sequence has been through, kept as the keys and values of its tokens, so that a further token costs one pass of one token
//! through the layers.

use std::sync::Arc;

use burn::tensor::{Tensor, backend::Backend};

use crate::fast;

/// Keys and values of the tokens of one sequence, in every layer. It grows with them.
///
/// ```
/// use burn_flex::{Flex, FlexDevice};
/// use gpas_model::LlamaConfig;
///
/// let model = LlamaConfig::new(50, 16, 44, 2, 2).init::<Flex>(1, &FlexDevice);
/// let mut cache = model.cache();
/// // The prompt at once, then the token that is most likely to follow, three times.
/// let mut logits = model.next_logits(model.extend(&[7, 12, 3], &mut cache).slice([2..3]));
/// for _ in 0..3 {
///     let next: i32 = logits.argmax(1).into_scalar();
///     logits = model.decode(&[next as u32], &mut [&mut cache]);
/// }
/// assert_eq!(cache.tokens(), 6);
/// ```
#[derive(Clone, Debug)]
pub struct Cache<B: Backend> {
    pub(crate) layers: Vec<LayerCache<B>>,
    pub(crate) tokens: usize,
    pub(crate) model: ModelIdentity,
}

impl<B: Backend> Cache<B> {
    /// The cache of a sequence without tokens, for a model of so many layers.
    pub(crate) fn new(model: ModelIdentity, layers: usize) -> Self {
        Self {
            layers: (0..layers).map(|_| LayerCache::Empty).collect(),
            tokens: 0,
            model,
        }
    }

    /// Number of tokens that the sequence has so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// Tells the model that a cache is for from others of the same sizes. A model's clones are the same model.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelIdentity(Arc<()>);

impl PartialEq for ModelIdentity {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Keys, turned by their positions, and values of one sequence in one layer.
#[derive(Clone, Debug)]
pub(crate) enum LayerCache<B: Backend> {
    /// No token yet.
    Empty,
    /// In the memory of this process, where the fused operations run.
    Host(fast::HostCache),
    /// In tensors.
    Device(DeviceCache<B>),
}

/// Keys and values in tensors `[1, kv_heads, room, head_dim]`, of which the first `tokens` positions are filled.
#[derive(Clone, Debug)]
pub(crate) struct DeviceCache<B: Backend> {
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
    tokens: usize,
}

/// Positions by which room grows at least; it doubles, so that all copies together are no more than twice what they end with.
const ROOM: usize = 64;

impl<B: Backend> LayerCache<B> {
    /// Appends tokens to those that are kept in tensors, and returns keys and values of all of them.
    ///
    /// # Shapes
    /// - key, value: `[1, kv_heads, new tokens, head_dim]`
    /// - output: `[1, kv_heads, all tokens, head_dim]`
    pub(crate) fn append(&mut self, key: Tensor<B, 4>, value: Tensor<B, 4>) -> [Tensor<B, 4>; 2] {
        // Taken out of its place, so that nobody else holds the tensors and the backend writes into them.
        let (keys, values, tokens) = match std::mem::replace(self, Self::Empty) {
            Self::Empty => (None, None, 0),
            Self::Device(old) => (Some(old.keys), Some(old.values), old.tokens),
            Self::Host(_) => unreachable!("the fused operations take every token of a sequence or none"),
        };
        let end = tokens + key.dims()[2];
        let (keys, values) = (written(keys, key, tokens), written(values, value, tokens));
        let filled = [&keys, &values].map(|tensor| tensor.clone().narrow(2, 0, end));
        *self = Self::Device(DeviceCache {
            keys,
            values,
            tokens: end,
        });
        filled
    }
}

/// `old`, of which `tokens` positions are filled, with `new` behind them; in more room where it has too little.
fn written<B: Backend>(old: Option<Tensor<B, 4>>, new: Tensor<B, 4>, tokens: usize) -> Tensor<B, 4> {
    let [_, kv_heads, count, head_dim] = new.dims();
    let end = tokens + count;
    let held = old.as_ref().map_or(0, |old| old.dims()[2]);
    let roomy = match old {
        Some(old) if end <= held => old,
        old => {
            let more = (end - held).max(held).next_multiple_of(ROOM);
            let blank = Tensor::zeros([1, kv_heads, more, head_dim], (&new.device(), new.dtype()));
            Tensor::cat(old.into_iter().chain([blank]).collect(), 2)
        }
    };
    roomy.slice_assign([0..1, 0..kv_heads, tokens..end, 0..head_dim], new)
}
