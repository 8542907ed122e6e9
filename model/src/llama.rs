//! The model: embedding, blocks, final norm, head.
//!
//! - no biases, untied head unless asked
//! - rotary positions, RMSNorm, SwiGLU, causal attention
//! - every normalisation scheme of the [scheme table](crate::scheme), with or without GPAS
//! - training never holds the logits of all tokens: see [`crate::loss`]

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, backend::Backend};
use burn_train::metric::{Adaptor, ItemLazy, LossInput};
use burn_train::{InferenceStep, TrainOutput, TrainStep};

use crate::attention::causal_mask;
use crate::block::Block;
use crate::config::LlamaConfig;
use crate::init::initialise;
use crate::loss::{IGNORE_INDEX, loss_with_gradients, token_losses};
use crate::norm::{RmsNorm, RmsNormConfig};
use crate::rotary::{Rotary, RotaryConfig};
use crate::scheme::NormStart;

/// A LLaMA-style decoder.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// Token embedding, `[vocab, hidden]`.
    pub embedding: Embedding<B>,
    /// The layers, first to last.
    pub layers: Vec<Block<B>>,
    /// Norm of the last layer's output.
    pub norm: RmsNorm<B>,
    /// Projection to the vocabulary; none where the embedding serves as head.
    pub head: Option<Linear<B>>,
    rotary: Rotary<B>,
}

impl LlamaConfig {
    /// The model with its scheme's initial weights, which are a function of (`seed`, parameter name) alone: equal across schemes that
    /// initialise alike, across backends and machines.
    ///
    /// # Panics
    /// If the configuration is not [valid](LlamaConfig::validate).
    pub fn init<B: Backend>(&self, seed: u64, device: &B::Device) -> Llama<B> {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let head = LinearConfig::new(self.hidden, self.vocab).with_bias(false);
        let model = Llama {
            embedding: EmbeddingConfig::new(self.vocab, self.hidden).init(device),
            layers: (0..self.layers).map(|index| Block::new(self, index, device)).collect(),
            norm: RmsNormConfig::new(self.hidden)
                .with_epsilon(self.norm_epsilon)
                .init(NormStart::PLAIN, device),
            head: (!self.tied_head).then(|| head.init(device)),
            rotary: RotaryConfig::new(self.max_positions, self.hidden / self.heads)
                .with_base(self.rope_base)
                .init(device),
        };
        initialise(model, self, seed)
    }
}

impl<B: Backend> Llama<B> {
    /// The residual stream before each layer, then after the final norm: `layers + 1` tensors `[batch, seq, hidden]`.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    pub fn hidden_states(&self, ids: Tensor<B, 2, Int>) -> Vec<Tensor<B, 3>> {
        let mut states = Vec::new();
        let last = self.walk(ids, |x| states.push(x.clone()));
        states.push(last);
        states
    }

    /// The stream after the final norm.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    /// - output: `[batch, seq, hidden]`
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.walk(ids, |_| ())
    }

    /// Goes through the layers, showing the stream before each one, and returns it after the final norm.
    fn walk(&self, ids: Tensor<B, 2, Int>, mut before_layer: impl FnMut(&Tensor<B, 3>)) -> Tensor<B, 3> {
        let mut x = self.embedding.forward(ids);
        let mask = causal_mask::<B>(x.dims()[1], &x.device());
        for layer in &self.layers {
            before_layer(&x);
            x = layer.forward(x, &self.rotary, &mask);
        }
        self.norm.forward(x)
    }

    /// Logits of every position. They are large: training and evaluation use the losses below instead.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    /// - output: `[batch, seq, vocab]`
    pub fn logits(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, seq] = ids.dims();
        let hidden = flatten(self.forward(ids));
        let logits = hidden.matmul(self.head_weight());
        let vocab = logits.dims()[1];
        logits.reshape([batch, seq, vocab])
    }

    /// Loss of every position, 0 where the target is [`IGNORE_INDEX`].
    ///
    /// # Shapes
    /// - ids, targets: `[batch, seq]`; the target of a position is the id that follows it
    /// - output: `[batch · seq]`
    pub fn token_losses(&self, ids: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
        token_losses(flatten(self.forward(ids)), self.head_weight(), targets.flatten(0, 1))
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

/// What one micro-batch adds to an optimizer step.
#[derive(Debug)]
pub struct MicroBatch<B: AutodiffBackend> {
    /// Its share of the step's loss, `[1]`: Σ over its scored tokens divided by those of the whole step.
    pub loss: Tensor<B::InnerBackend, 1>,
    /// The same share of the gradients.
    pub gradients: GradientsParams,
}

impl<B: AutodiffBackend> Llama<B> {
    /// Forward and backward of one micro-batch of an optimizer step that scores `scored` tokens in all.
    ///
    /// The head and the loss run outside autodiff, in chunks; what they send back enters the graph of the layers at the hidden states.
    ///
    /// # Shapes
    /// - ids, targets: `[batch, seq]`; targets are ids or [`IGNORE_INDEX`]
    pub fn backward(&self, ids: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>, scored: usize) -> MicroBatch<B> {
        let hidden = flatten(self.forward(ids));
        let head = loss_with_gradients(
            hidden.clone().inner(),
            self.head_weight().inner(),
            targets.inner().flatten(0, 1),
            scored,
        );
        // d(Σ h · c) / dh = c, with c the gradient that the loss sends to the hidden states.
        let seed = (hidden * Tensor::from_inner(head.hidden)).sum();
        let mut gradients = GradientsParams::from_grads(seed.backward(), self);
        match &self.head {
            Some(linear) => gradients.register(linear.weight.id, head.weight),
            None => {
                let id = self.embedding.weight.id;
                let tied = head.weight.transpose();
                let gradient = match gradients.remove::<B::InnerBackend, 2>(id) {
                    Some(embedding) => embedding + tied,
                    None => tied,
                };
                gradients.register(id, gradient);
            }
        }
        MicroBatch {
            loss: head.loss,
            gradients,
        }
    }
}

/// A batch for language modelling: the input of [`TrainStep`] and [`InferenceStep`].
#[derive(Clone, Debug)]
pub struct TokenBatch<B: Backend> {
    /// `[batch, seq]`.
    pub ids: Tensor<B, 2, Int>,
    /// `[batch, seq]`: the id that follows each position, or [`IGNORE_INDEX`].
    pub targets: Tensor<B, 2, Int>,
}

/// Mean loss over the scored tokens of a batch, for Burn's metrics.
#[derive(Debug)]
pub struct LossOutput<B: Backend> {
    /// Shape `[1]`.
    pub loss: Tensor<B, 1>,
}

impl<B: Backend> ItemLazy for LossOutput<B> {
    type ItemSync = LossOutput<burn_flex::Flex>;

    fn sync(self) -> Self::ItemSync {
        LossOutput {
            loss: Tensor::from_data(self.loss.into_data(), &Default::default()),
        }
    }
}

impl<B: Backend> Adaptor<LossInput<B>> for LossOutput<B> {
    fn adapt(&self) -> LossInput<B> {
        LossInput::new(self.loss.clone())
    }
}

impl<B: AutodiffBackend> TrainStep for Llama<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B::InnerBackend>;

    fn step(&self, batch: TokenBatch<B>) -> TrainOutput<Self::Output> {
        let scored = count_scored(batch.targets.clone().inner());
        let MicroBatch { loss, gradients } = self.backward(batch.ids, batch.targets, scored);
        TrainOutput {
            grads: gradients,
            item: LossOutput { loss },
        }
    }
}

impl<B: Backend> InferenceStep for Llama<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B>;

    fn step(&self, batch: TokenBatch<B>) -> Self::Output {
        let scored = count_scored(batch.targets.clone());
        let loss = self.token_losses(batch.ids, batch.targets).sum();
        LossOutput {
            loss: loss.div_scalar(scored.max(1) as f64),
        }
    }
}

fn count_scored<B: Backend>(targets: Tensor<B, 2, Int>) -> usize {
    use burn::tensor::ElementConversion;
    let scored: i64 = targets.not_equal_elem(IGNORE_INDEX).int().sum().into_scalar().elem();
    scored as usize
}
