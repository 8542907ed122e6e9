//! The model: embedding, blocks, final norm, head.
//!
//! - no biases, untied head unless asked
//! - rotary positions, RMSNorm, SwiGLU, causal attention
//! - every normalisation scheme of the [scheme table](crate::scheme), with or without GPAS
//! - training never holds the logits of all tokens: see [`crate::loss`]
//! - with `recompute`, it never holds the activations of more than one layer: see [`StepSums::add`](crate::StepSums::add)

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{DType, Int, Tensor, backend::Backend};

use crate::attention::CausalMask;
use crate::block::Block;
use crate::cache::ModelIdentity;
use crate::config::{ConfigError, LlamaConfig};
use crate::fast;
use crate::loss::{is_outside, token_losses};
use crate::norm::{RmsNorm, RmsNormConfig};
use crate::precision::Precision;
use crate::progress::Progress;
use crate::rotary::{Rotary, RotaryConfig};
use crate::scheme::NormStart;

/// A LLaMA-style decoder.
///
/// ```
/// use burn::tensor::{Int, Tensor};
/// use burn_flex::{Flex, FlexDevice};
/// use gpas_model::LlamaConfig;
///
/// let scheme = "sandwich_gpas".parse()?;
/// // 50 token ids, a stream of 16 channels, an MLP of 44, 2 heads, 3 layers.
/// let config = LlamaConfig::new(50, 16, 44, 2, 3).with_scheme(scheme);
/// let model = config.init::<Flex>(1, &FlexDevice);
///
/// let ids = Tensor::<Flex, 2, Int>::from_ints([[7, 12, 3, 9]], &FlexDevice);
/// assert_eq!(model.forward(ids.clone()).dims(), [1, 4, 16]);
/// assert_eq!(model.logits(ids.clone()).dims(), [1, 4, 50]);
/// // The target of a position is the id that follows it; after the last one nothing follows here.
/// let targets = Tensor::<Flex, 2, Int>::from_ints([[12, 3, 9, gpas_model::IGNORE_INDEX]], &FlexDevice);
/// let losses = model.token_losses(ids, targets);
/// assert_eq!(losses.dims(), [4]);
/// # Ok::<(), gpas_model::UnknownScheme>(())
/// ```
///
/// # Panics
/// All that take token ids panic if there is no sequence or a sequence has no token; if sequences are longer than the model's
/// [positions](Self::positions); and, where tensors lie in the memory of this process, if an id is outside the vocabulary. To look at the
/// ids of a device would mean to wait for it in every step: there an id outside the vocabulary makes every loss that it has a part in NaN.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// Token embedding, `[vocab, hidden]`.
    pub embedding: Embedding<B>,
    /// Norm of the embedding, where the scheme has one.
    pub embedding_norm: Option<RmsNorm<B>>,
    /// The layers, first to last.
    pub layers: Vec<Block<B>>,
    /// Norm of the last layer's output.
    pub norm: RmsNorm<B>,
    /// Projection to the vocabulary; none where the embedding serves as head.
    pub head: Option<Linear<B>>,
    rotary: Rotary<B>,
    #[module(skip)]
    precision: Precision,
    pub(crate) recompute: bool,
    #[module(skip)]
    progress: Progress,
    #[module(skip)]
    identity: ModelIdentity,
}

impl LlamaConfig {
    /// The model before its weights are drawn: Burn draws those of projections and embeddings when they are first asked for.
    ///
    /// # Errors
    /// If the configuration is not [valid](LlamaConfig::validate).
    pub(crate) fn skeleton<B: Backend>(&self, device: &B::Device) -> Result<Llama<B>, ConfigError> {
        self.validate()?;
        let head = LinearConfig::new(self.hidden, self.vocab).with_bias(false);
        let norm = RmsNormConfig::new(self.hidden).with_epsilon(self.norm_epsilon);
        Ok(Llama {
            embedding: EmbeddingConfig::new(self.vocab, self.hidden).init(device),
            embedding_norm: self.scheme.norm.embedding_norm().map(|start| norm.init(start, device)),
            layers: (0..self.layers)
                .map(|index| Block::new(self, index, device))
                .collect::<Result<_, _>>()?,
            norm: norm.init(NormStart::PLAIN, device),
            head: (!self.tied_head).then(|| head.init(device)),
            rotary: RotaryConfig::new(self.positions(), self.hidden / self.heads)
                .with_base(self.rope_base)
                .with_scaling(self.rope_scaling)
                .init(device),
            precision: self.precision,
            recompute: self.recompute,
            progress: Progress::after(0),
            identity: ModelIdentity::default(),
        })
    }
}

impl<B: Backend> Llama<B> {
    /// The model after so many optimizer steps. Weights do not change: it is for schemes whose branches warm up.
    pub fn with_progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// How far training has come: 0 steps for a model with initial weights, [complete](Progress::COMPLETE) for one with loaded weights,
    /// unless it has been [told](Self::with_progress).
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Number of token ids.
    pub fn vocab(&self) -> usize {
        self.embedding.weight.shape()[0]
    }

    /// Length of the longest sequence.
    pub fn positions(&self) -> usize {
        self.rotary.positions()
    }

    /// The residual stream before each layer, then after the last: `layers + 1` tensors `[batch, seq, hidden]`.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    pub fn residual_streams(&self, ids: Tensor<B, 2, Int>) -> Vec<Tensor<B, 3>> {
        let mut streams = Vec::new();
        let last = self.walk(ids, |x| streams.push(x.clone()));
        streams.push(last);
        streams
    }

    /// The residual stream before each layer, then after the final norm: `layers + 1` tensors `[batch, seq, hidden]`, as `transformers`
    /// returns them.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    pub fn hidden_states(&self, ids: Tensor<B, 2, Int>) -> Vec<Tensor<B, 3>> {
        let mut states = Vec::new();
        let last = self.walk(ids, |x| states.push(x.clone()));
        states.push(self.norm.forward(last));
        states
    }

    /// The stream after the final norm.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    /// - output: `[batch, seq, hidden]`
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.norm.forward(self.walk(ids, |_| ()))
    }

    /// The stream before the first layer, `[batch, seq, hidden]`.
    pub(crate) fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, seq] = ids.dims();
        assert!(batch > 0 && seq > 0, "{batch} sequences of {seq} tokens are no batch");
        self.assert_length(seq);
        let rows = self.look_up(ids);
        match &self.embedding_norm {
            Some(norm) => norm.forward(rows),
            None => rows,
        }
    }

    /// The embeddings' rows, `[batch, seq, hidden]`.
    fn look_up(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        if fast::is_in_memory::<B>() {
            let vocab = self.vocab();
            ids.to_data().iter::<i64>().for_each(|id| _ = checked(id, vocab));
        }
        fast::embed(&self.embedding.weight.val(), &ids).unwrap_or_else(|| self.embedding.forward(ids))
    }

    pub(crate) fn assert_length(&self, tokens: usize) {
        let positions = self.positions();
        assert!(
            tokens <= positions,
            "a sequence of {tokens} tokens is longer than the model's {positions} positions"
        );
    }

    /// Goes through the layers, showing the stream before each one, and returns it after the last.
    fn walk(&self, ids: Tensor<B, 2, Int>, before_layer: impl FnMut(&Tensor<B, 3>)) -> Tensor<B, 3> {
        self.walk_from(0, self.embed(ids), before_layer)
    }

    /// Goes through the layers from `first` on, before which the stream is `x`.
    fn walk_from(
        &self,
        first: usize,
        mut x: Tensor<B, 3>,
        mut before_layer: impl FnMut(&Tensor<B, 3>),
    ) -> Tensor<B, 3> {
        let seq = x.dims()[1];
        let (mask, rotary) = (CausalMask::new(seq, x.device()), self.rotary.for_sequences_of(seq));
        for layer in self.layers.iter().skip(first) {
            before_layer(&x);
            x = layer.forward(x, self.progress, &rotary, &mask);
        }
        x
    }

    pub(crate) fn rotary(&self) -> &Rotary<B> {
        &self.rotary
    }

    pub(crate) fn identity(&self) -> &ModelIdentity {
        &self.identity
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Number format of the matrix products.
    pub(crate) fn products(&self) -> DType {
        self.precision.products()
    }

    /// Logits of every position, in f32. They are large: training and evaluation use the losses below instead.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    /// - output: `[batch, seq, vocab]`
    pub fn logits(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, seq] = ids.dims();
        let logits = self.head_logits(self.forward(ids).flatten(0, 1));
        let vocab = logits.dims()[1];
        logits.reshape([batch, seq, vocab])
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

    /// Loss of every position, 0 where the target is [`IGNORE_INDEX`](crate::IGNORE_INDEX).
    ///
    /// # Shapes
    /// - ids, targets: `[batch, seq]`; the target of a position is the id that follows it
    /// - output: `[batch · seq]`
    ///
    /// # Panics
    /// If ids and targets have not one shape, and, where tensors lie in the memory of this process, if a target is neither an id nor
    /// [`IGNORE_INDEX`](crate::IGNORE_INDEX). On a device the loss of such a target is NaN.
    pub fn token_losses(&self, ids: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
        let targets = self.targets_of(&ids, targets);
        self.losses_of(self.walk(ids, |_| ()), targets)
    }

    /// Loss of every position when the stream is this after the last layer, 0 where the target is [`IGNORE_INDEX`](crate::IGNORE_INDEX).
    ///
    /// # Shapes
    /// - stream: `[batch, seq, hidden]`, the last of [`residual_streams`](Self::residual_streams)
    /// - targets: `[batch, seq]`
    /// - output: `[batch · seq]`
    pub fn losses_of(&self, stream: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
        let hidden = self.norm.forward(stream).flatten(0, 1);
        token_losses(hidden, self.head_weight(), targets.flatten(0, 1), self.precision)
    }

    /// Loss of every position without layer `index`: the one after it sees the stream that is before it. Less the
    /// [loss](Self::token_losses) with it, this is how much the model needs the layer.
    ///
    /// # Shapes
    /// - stream: `[batch, seq, hidden]`, that before the layer
    /// - targets: `[batch, seq]`
    /// - output: `[batch · seq]`
    pub fn token_losses_without(&self, index: usize, stream: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
        self.losses_of(self.walk_from(index + 1, stream, |_| ()), targets)
    }

    /// The targets of a batch, [marked] where nobody looks at the ids.
    pub(crate) fn targets_of(&self, ids: &Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>) -> Tensor<B, 2, Int> {
        assert_eq!(
            ids.dims(),
            targets.dims(),
            "the shape of the ids, and that of their targets"
        );
        if fast::is_in_memory::<B>() {
            return targets;
        }
        marked(ids.clone(), targets, self.vocab())
    }

    /// The projection to the vocabulary, `[hidden, vocab]`.
    pub fn head_weight(&self) -> Tensor<B, 2> {
        match &self.head {
            Some(head) => head.weight.val(),
            None => self.embedding.weight.val().transpose(),
        }
    }
}

/// A token id of the vocabulary.
pub(crate) fn checked(id: i64, vocab: usize) -> i64 {
    assert!(
        usize::try_from(id).is_ok_and(|row| row < vocab),
        "token id {id} is outside the vocabulary of {vocab}"
    );
    id
}

/// The targets, and one outside the vocabulary where the id is outside it, for a device on which nobody looks at ids: the loss is NaN there.
fn marked<B: Backend>(ids: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>, vocab: usize) -> Tensor<B, 2, Int> {
    targets.mask_fill(is_outside(ids, vocab), -1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::{Flex, FlexDevice};

    fn small() -> Llama<Flex> {
        LlamaConfig::new(10, 8, 16, 2, 1)
            .with_max_positions(4)
            .init(1, &FlexDevice)
    }

    fn ids<const S: usize>(ids: [i32; S]) -> Tensor<Flex, 2, Int> {
        Tensor::<Flex, 1, Int>::from_ints(ids, &FlexDevice).unsqueeze()
    }

    #[cfg(feature = "host")]
    #[test]
    #[should_panic(expected = "token id 10 is outside the vocabulary of 10")]
    fn an_id_above_the_vocabulary_is_named() {
        small().forward(ids([3, 10]));
    }

    #[cfg(feature = "host")]
    #[test]
    #[should_panic(expected = "token id -1 is outside the vocabulary of 10")]
    fn an_id_below_zero_is_named() {
        small().logits(ids([-1]));
    }

    #[test]
    #[should_panic(expected = "a sequence of 5 tokens is longer than the model's 4 positions")]
    fn a_sequence_that_is_too_long_is_named() {
        small().forward(ids([1, 2, 3, 4, 5]));
    }

    #[test]
    #[should_panic(expected = "0 sequences of 4 tokens are no batch")]
    fn a_batch_without_sequences_is_refused() {
        small().forward(Tensor::empty([0, 4], &FlexDevice));
    }

    #[test]
    #[should_panic(expected = "2 sequences of 0 tokens are no batch")]
    fn sequences_without_tokens_are_refused() {
        small().forward(Tensor::empty([2, 0], &FlexDevice));
    }

    #[test]
    #[should_panic(expected = "the shape of the ids, and that of their targets")]
    fn targets_of_another_shape_are_refused() {
        small().token_losses(ids([1, 2]), ids([1, 2, 3]));
    }

    /// See `loss` for what becomes of such a target.
    #[test]
    fn a_position_whose_id_nobody_looks_at_gets_a_target_outside_the_vocabulary() {
        let targets = marked(ids([3, 10, -1, 9]), ids([1, 2, -100, -100]), 10);
        assert_eq!(targets.into_data().iter::<i64>().collect::<Vec<_>>(), [1, -1, -1, -100]);
    }

    #[test]
    fn progress_is_set_and_kept() {
        let model = small();
        assert_eq!(model.progress(), Progress::after(0));
        let model = model.with_progress(Progress::after(7));
        assert_eq!(model.clone().progress(), Progress::after(7));
        let model: Llama<burn::backend::Autodiff<Flex>> = LlamaConfig::new(10, 8, 16, 2, 1).init(1, &FlexDevice);
        let inner = burn::module::AutodiffModule::valid(&model.with_progress(Progress::after(7)));
        assert_eq!(inner.progress(), Progress::after(7));
    }
}

#[cfg(all(test, feature = "host"))]
mod fused {
    use super::*;
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
    use burn::optim::GradientsParams;
    use burn::tensor::TensorData;
    use burn::tensor::backend::AutodiffBackend;
    use burn_flex::{Flex, FlexDevice};
    use gpas_host::check::{Tracked, assert_close, gradients};

    /// Over rows of more than one task, some of which come more than once.
    #[test]
    fn fused_and_plain_embeddings_agree() {
        let model = LlamaConfig::new(600, 8, 16, 2, 1).init::<Tracked>(1, &FlexDevice);
        let ids = Tensor::from_ints([[5, 599, 5], [0, 520, 599]], &FlexDevice);
        let [fused, plain] = gradients(model.look_up(ids.clone()), model.embedding.forward(ids));
        let table = model.embedding.weight.val();
        assert_close(table.grad(&fused).unwrap(), table.grad(&plain).unwrap(), "table");
    }

    /// Whoever asks Burn to compute some operations again gets tensor operations, which it does that with.
    #[test]
    fn balanced_checkpointing_gives_the_same_gradients() {
        type Balanced = Autodiff<Flex, BalancedCheckpointing>;

        fn step<B: AutodiffBackend<InnerBackend = Flex>>() -> (Llama<B>, GradientsParams) {
            let config = LlamaConfig::new(50, 24, 40, 2, 2).with_scheme("sandwich_gpas".parse().unwrap());
            let model = config.init::<B>(1, &Default::default());
            let tokens = |times: usize| {
                let ids: Vec<i64> = (0..60).map(|i| (i * times % 50) as i64).collect();
                Tensor::from_data(TensorData::new(ids, [3, 20]), &Default::default())
            };
            let found = model.backward(tokens(7), tokens(11), 60);
            (model, found.gradients)
        }
        assert!(!gpas_host::runs::<Balanced>());
        let ((fused, of_fused), (plain, of_plain)) = (step::<Tracked>(), step::<Balanced>());
        for (fused, plain) in fused.layers.iter().zip(&plain.layers) {
            let weights = |layer: &Block<_>| [&layer.attention.query, &layer.mlp.down].map(|linear| linear.weight.id);
            let found = weights(fused).map(|id| of_fused.get::<Flex, 2>(id).unwrap());
            let ids = [&plain.attention.query, &plain.mlp.down].map(|linear| linear.weight.id);
            let expected = ids.map(|id| of_plain.get::<Flex, 2>(id).unwrap());
            for (found, expected) in found.into_iter().zip(expected) {
                assert_close(found, expected, "weight");
            }
        }
    }
}
