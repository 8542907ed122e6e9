//! The model: embedding, blocks, final norm, head.
//!
//! - no biases, untied head unless asked
//! - rotary positions, RMSNorm, SwiGLU, causal attention
//! - every normalisation scheme of the [scheme table](crate::scheme), with or without GPAS
//! - training never holds the logits of all tokens: see [`crate::loss`]
//! - with `recompute`, it never holds the activations of more than one layer: see [`StepSums::add`]

mod step;

pub use step::{StepGradients, StepSums};

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Int, Tensor, backend::Backend};
#[cfg(feature = "train")]
use burn_train::metric::{Adaptor, ItemLazy, LossInput};
#[cfg(feature = "train")]
use burn_train::{InferenceStep, TrainOutput, TrainStep};
use gpas_batch::TokenBatch;

use crate::attention::CausalMask;
use crate::block::Block;
use crate::config::{ConfigError, LlamaConfig};
use crate::fast;
use crate::loss::token_losses;
use crate::norm::{RmsNorm, RmsNormConfig};
use crate::precision::Precision;
use crate::progress::Progress;
use crate::rotary::{Rotary, RotaryConfig};
use crate::scheme::NormStart;

/// A LLaMA-style decoder.
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
    recompute: bool,
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
            rotary: RotaryConfig::new(self.max_positions, self.hidden / self.heads)
                .with_base(self.rope_base)
                .init(device),
            precision: self.precision,
            recompute: self.recompute,
        })
    }
}

impl<B: Backend> Llama<B> {
    /// The residual stream before each layer, then after the last: `layers + 1` tensors `[batch, seq, hidden]`.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    pub fn residual_streams(&self, ids: Tensor<B, 2, Int>, progress: Progress) -> Vec<Tensor<B, 3>> {
        let mut streams = Vec::new();
        let last = self.walk(ids, progress, |x| streams.push(x.clone()));
        streams.push(last);
        streams
    }

    /// The residual stream before each layer, then after the final norm: `layers + 1` tensors `[batch, seq, hidden]`, as `transformers`
    /// returns them.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    pub fn hidden_states(&self, ids: Tensor<B, 2, Int>, progress: Progress) -> Vec<Tensor<B, 3>> {
        let mut states = Vec::new();
        let last = self.walk(ids, progress, |x| states.push(x.clone()));
        states.push(self.norm.forward(last));
        states
    }

    /// The stream after the final norm.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    /// - output: `[batch, seq, hidden]`
    pub fn forward(&self, ids: Tensor<B, 2, Int>, progress: Progress) -> Tensor<B, 3> {
        self.norm.forward(self.walk(ids, progress, |_| ()))
    }

    /// The stream before the first layer, `[batch, seq, hidden]`.
    pub(crate) fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let rows = self.look_up(ids);
        match &self.embedding_norm {
            Some(norm) => norm.forward(rows),
            None => rows,
        }
    }

    /// The embeddings' rows, `[batch, seq, hidden]`.
    fn look_up(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let table = self.embedding.weight.val();
        fast::embed(&table, &ids).unwrap_or_else(|| self.embedding.forward(ids))
    }

    /// Goes through the layers, showing the stream before each one, and returns it after the last.
    fn walk(
        &self,
        ids: Tensor<B, 2, Int>,
        progress: Progress,
        before_layer: impl FnMut(&Tensor<B, 3>),
    ) -> Tensor<B, 3> {
        self.walk_from(0, self.embed(ids), progress, before_layer)
    }

    /// Goes through the layers from `first` on, before which the stream is `x`.
    fn walk_from(
        &self,
        first: usize,
        mut x: Tensor<B, 3>,
        progress: Progress,
        mut before_layer: impl FnMut(&Tensor<B, 3>),
    ) -> Tensor<B, 3> {
        let mask = CausalMask::new(x.dims()[1], x.device());
        for layer in self.layers.iter().skip(first) {
            before_layer(&x);
            x = layer.forward(x, progress, &self.rotary, &mask);
        }
        x
    }

    pub(crate) fn rotary(&self) -> &Rotary<B> {
        &self.rotary
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
    pub fn logits(&self, ids: Tensor<B, 2, Int>, progress: Progress) -> Tensor<B, 3> {
        let [batch, seq] = ids.dims();
        let hidden = flatten(self.forward(ids, progress));
        let logits = self.head_logits(hidden);
        let vocab = logits.dims()[1];
        logits.reshape([batch, seq, vocab])
    }

    /// Loss of every position, 0 where the target is [`IGNORE_INDEX`](crate::IGNORE_INDEX).
    ///
    /// # Shapes
    /// - ids, targets: `[batch, seq]`; the target of a position is the id that follows it
    /// - output: `[batch · seq]`
    pub fn token_losses(&self, ids: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>, progress: Progress) -> Tensor<B, 1> {
        self.losses_of(self.walk(ids, progress, |_| ()), targets)
    }

    /// Loss of every position when the stream is this after the last layer, 0 where the target is [`IGNORE_INDEX`](crate::IGNORE_INDEX).
    ///
    /// # Shapes
    /// - stream: `[batch, seq, hidden]`, the last of [`residual_streams`](Self::residual_streams)
    /// - targets: `[batch, seq]`
    /// - output: `[batch · seq]`
    pub fn losses_of(&self, stream: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
        let hidden = flatten(self.norm.forward(stream));
        token_losses(hidden, self.head_weight(), targets.flatten(0, 1), self.precision)
    }

    /// Loss of every position without layer `index`: the one after it sees the stream that is before it. Less the
    /// [loss](Self::token_losses) with it, this is how much the model needs the layer.
    ///
    /// # Shapes
    /// - stream: `[batch, seq, hidden]`, that before the layer
    /// - targets: `[batch, seq]`
    /// - output: `[batch · seq]`
    pub fn token_losses_without(
        &self,
        index: usize,
        stream: Tensor<B, 3>,
        targets: Tensor<B, 2, Int>,
        progress: Progress,
    ) -> Tensor<B, 1> {
        self.losses_of(self.walk_from(index + 1, stream, progress, |_| ()), targets)
    }

    /// The projection to the vocabulary, `[hidden, vocab]`.
    pub fn head_weight(&self) -> Tensor<B, 2> {
        match &self.head {
            Some(head) => head.weight.val(),
            None => self.embedding.weight.val().transpose(),
        }
    }
}

fn flatten<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 2> {
    x.flatten(0, 1)
}

impl<B: AutodiffBackend> Llama<B> {
    /// Loss and gradients of an optimizer step of one micro-batch that scores `scored` tokens and comes after those of `progress`.
    /// [`StepSums`] takes more than one.
    ///
    /// # Shapes
    /// - ids, targets: `[batch, seq]`; targets are ids or [`IGNORE_INDEX`](crate::IGNORE_INDEX)
    pub fn backward(
        &self,
        ids: Tensor<B, 2, Int>,
        targets: Tensor<B, 2, Int>,
        scored: usize,
        progress: Progress,
    ) -> StepGradients<B> {
        let mut sums = StepSums::new(self, scored, progress);
        sums.add(ids, targets);
        sums.finish().expect("there was a micro-batch")
    }
}

/// Mean loss over the scored tokens of a batch, for Burn's metrics.
#[cfg(feature = "train")]
#[derive(Debug)]
pub struct LossOutput<B: Backend> {
    /// Shape `[1]`.
    pub loss: Tensor<B, 1>,
}

#[cfg(feature = "train")]
impl<B: Backend> ItemLazy for LossOutput<B> {
    type ItemSync = LossOutput<burn_flex::Flex>;

    fn sync(self) -> Self::ItemSync {
        LossOutput {
            loss: Tensor::from_data(self.loss.into_data(), &Default::default()),
        }
    }
}

#[cfg(feature = "train")]
impl<B: Backend> Adaptor<LossInput<B>> for LossOutput<B> {
    fn adapt(&self) -> LossInput<B> {
        LossInput::new(self.loss.clone())
    }
}

/// Burn's learner counts no steps for its models: to it, every branch has its full weight from the start.
#[cfg(feature = "train")]
impl<B: AutodiffBackend> TrainStep for Llama<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B::InnerBackend>;

    fn step(&self, batch: TokenBatch<B>) -> TrainOutput<Self::Output> {
        let StepGradients { loss, gradients } =
            self.backward(batch.ids, batch.targets, batch.scored, Progress::COMPLETE);
        TrainOutput {
            grads: gradients,
            item: LossOutput { loss },
        }
    }
}

#[cfg(feature = "train")]
impl<B: Backend> InferenceStep for Llama<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B>;

    fn step(&self, batch: TokenBatch<B>) -> Self::Output {
        let loss = self.token_losses(batch.ids, batch.targets, Progress::COMPLETE).sum();
        LossOutput {
            loss: loss.div_scalar(batch.scored.max(1) as f64),
        }
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
    use burn::optim::GradientsParams;
    use burn::tensor::TensorData;
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
            let found = model.backward(tokens(7), tokens(11), 60, Progress::COMPLETE);
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
