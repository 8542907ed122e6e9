//! The gradient of an optimizer step, one micro-batch after the other.
//!
//! It is a sum over sequences, and in f32 a sum depends on its order. That is not lost in the noise: the terms of a gate's gradient nearly
//! cancel, and Adam divides a gradient by its own size, so that the last places of one that is nearly 0 reach the weights. On a processor
//! every gradient of a weight is therefore added up sequence after sequence, and a micro-batch goes on with the sums where the one before
//! has left them: however a batch is cut, the step is the same to the last bit. Elsewhere the sums of the micro-batches are added.

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};

use crate::attention::CausalMask;
use crate::fast;
use crate::llama::Llama;
use crate::loss::{LossGradients, loss_with_gradients};

/// Loss and gradients of an optimizer step.
#[derive(Debug)]
pub struct StepGradients<B: AutodiffBackend> {
    /// Σ of the losses of the scored tokens, divided by the number of those of the whole step; `[1]`.
    pub loss: Tensor<B::InnerBackend, 1>,
    /// The gradients of that.
    pub gradients: GradientsParams,
}

/// An optimizer step whose micro-batches are still coming.
#[derive(Debug)]
pub struct StepSums<B: AutodiffBackend> {
    /// The model, its gates apart.
    model: Llama<B>,
    /// Each gate that both sub-layers share, and what stands for it in the second.
    gates: Vec<[ParamId; 2]>,
    scored: usize,
    loss: Option<Tensor<B::InnerBackend, 1>>,
    gradients: GradientsParams,
    /// The gradient of the head, `[hidden, vocab]`. The head may be the embedding, which has a gradient of its own besides.
    head: Option<Tensor<B::InnerBackend, 2>>,
}

impl<B: AutodiffBackend> StepSums<B> {
    /// A step that scores `scored` tokens in all. All of its micro-batches see the [progress](Llama::progress) that the model has now.
    pub fn new(model: &Llama<B>, scored: usize) -> Self {
        let (model, gates) = gates_apart(model);
        Self {
            model,
            gates,
            scored,
            loss: None,
            gradients: GradientsParams::new(),
            head: None,
        }
    }

    /// Forward and backward of one micro-batch.
    ///
    /// The head and the loss run outside autodiff, in chunks; what they send back enters the graph of the layers at the hidden states.
    /// With [`recompute`](crate::LlamaConfig::recompute) the layers run outside autodiff too: of each its input alone is kept, and going
    /// back through the layers, last to first, each is computed again from it under autodiff.
    ///
    /// # Shapes
    /// - ids, targets: `[batch, seq]`; targets are ids or [`IGNORE_INDEX`](crate::IGNORE_INDEX)
    ///
    /// # Panics
    /// As [`Llama::token_losses`].
    pub fn add(&mut self, ids: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>) {
        let targets = self.model.targets_of(&ids, targets).inner();
        if self.model.recompute {
            return self.add_recomputing(ids, targets);
        }
        let hidden = self.model.forward(ids).flatten(0, 1);
        let upstream = self.add_loss(&hidden, targets);
        let found = self.pull_back(&self.model.clone(), hidden, upstream);
        self.add_gradients(found);
    }

    fn add_recomputing(&mut self, ids: Tensor<B, 2, Int>, targets: Tensor<B::InnerBackend, 2, Int>) {
        let model = self.model.clone();
        let seq = ids.dims()[1];
        let (mask, rotary) = (CausalMask::new(seq, ids.device()), model.rotary().for_sequences_of(seq));
        let mut inputs = model.valid().residual_streams(ids.clone().inner());
        let leaf = |x: Tensor<B::InnerBackend, 3>| Tensor::<B, 3>::from_inner(x).require_grad();
        let of_leaf = |x: &Tensor<B, 3>, found: &mut B::Gradients| {
            x.grad_remove(found)
                .expect("a leaf that the result depends on has a gradient")
        };

        let x = leaf(inputs.pop().expect("there is a stream after the last layer"));
        let hidden = model.norm.forward(x.clone()).flatten(0, 1);
        let upstream = self.add_loss(&hidden, targets);
        let mut found = self.pull_back(&model.norm, hidden, upstream);
        let mut upstream = of_leaf(&x, &mut found);
        self.add_gradients(found);
        for (layer, input) in model.layers.iter().zip(inputs).rev() {
            let x = leaf(input);
            let y = layer.forward(x.clone(), model.progress(), &rotary, &mask);
            let mut found = self.pull_back(layer, y, upstream);
            upstream = of_leaf(&x, &mut found);
            self.add_gradients(found);
        }
        let found = self.pull_back(&model, model.embed(ids), upstream);
        self.add_gradients(found);
    }

    /// What has come together; none without a micro-batch.
    pub fn finish(self) -> Option<StepGradients<B>> {
        let Self {
            model,
            gates,
            mut gradients,
            ..
        } = self;
        let (loss, head) = (self.loss?, self.head?);
        for [gate, second] in gates {
            if let Some(second) = gradients.remove::<B::InnerBackend, 1>(second) {
                add_to(&mut gradients, gate, second);
            }
        }
        match &model.head {
            Some(linear) => add_to(&mut gradients, linear.weight.id, head),
            None => add_to(&mut gradients, model.embedding.weight.id, head.transpose()),
        }
        Some(StepGradients { loss, gradients })
    }

    /// Adds the loss of some hidden states `[batch · seq, hidden]` with their targets `[batch, seq]`, and returns what it sends back.
    fn add_loss(
        &mut self,
        hidden: &Tensor<B, 2>,
        targets: Tensor<B::InnerBackend, 2, Int>,
    ) -> Tensor<B::InnerBackend, 2> {
        let [_, seq] = targets.dims();
        let LossGradients { loss, hidden, weight } = loss_with_gradients(
            hidden.clone().inner(),
            self.model.head_weight().inner(),
            targets.flatten(0, 1),
            self.scored,
            seq,
            self.head.take(),
            self.model.precision(),
        );
        self.head = Some(weight);
        self.loss = Some(match self.loss.take() {
            Some(sum) => sum + loss,
            None => loss,
        });
        hidden
    }

    /// What the gradient `upstream` of `y` sends back: `d(Σ y · c) / dy = c`. On a processor it goes on with the sums of the module's
    /// weights.
    fn pull_back<const D: usize>(
        &mut self,
        module: &impl Module<B>,
        y: Tensor<B, D>,
        upstream: Tensor<B::InnerBackend, D>,
    ) -> B::Gradients {
        struct Carry<'a, B: AutodiffBackend, const D: usize> {
            sums: &'a mut GradientsParams,
            y: Tensor<B, D>,
        }
        impl<B: AutodiffBackend, const D: usize> ModuleVisitor<B> for Carry<'_, B, D> {
            fn visit_float<const E: usize>(&mut self, param: &Param<Tensor<B, E>>) {
                if let Some(sum) = self.sums.remove::<B::InnerBackend, E>(param.id) {
                    match fast::carry_sum(&self.y, &param.val(), sum) {
                        Ok(y) => self.y = y,
                        Err(sum) => self.sums.register(param.id, sum),
                    }
                }
            }
        }
        let sums = &mut self.gradients;
        let mut carry = Carry { sums, y };
        module.visit(&mut carry);
        (carry.y * Tensor::from_inner(upstream)).sum().backward()
    }

    fn add_gradients(&mut self, found: B::Gradients) {
        let found = GradientsParams::from_grads(found, &self.model);
        let mut sums = GradientsAccumulator::new();
        sums.accumulate(&self.model, std::mem::take(&mut self.gradients));
        sums.accumulate(&self.model, found);
        self.gradients = sums.grads();
    }
}

impl<B: AutodiffBackend> Llama<B> {
    /// Loss and gradients of an optimizer step of one micro-batch that scores `scored` tokens. [`StepSums`] takes more than one.
    ///
    /// # Shapes
    /// - ids, targets: `[batch, seq]`; targets are ids or [`IGNORE_INDEX`](crate::IGNORE_INDEX)
    ///
    /// # Panics
    /// As [`Llama::token_losses`].
    pub fn backward(&self, ids: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>, scored: usize) -> StepGradients<B> {
        let mut sums = StepSums::new(self, scored);
        sums.add(ids, targets);
        sums.finish().expect("there was a micro-batch")
    }
}

/// Adds a gradient to that of a parameter.
fn add_to<B: Backend, const D: usize>(gradients: &mut GradientsParams, id: ParamId, part: Tensor<B, D>) {
    let sum = match gradients.remove::<B, D>(id) {
        Some(sum) => sum + part,
        None => part,
    };
    gradients.register(id, sum);
}

/// A model in which a gate that both sub-layers share is two, with one value: the backward pass comes to the second sub-layer of all
/// sequences of a micro-batch first, so that their sums must not mix.
fn gates_apart<B: AutodiffBackend>(model: &Llama<B>) -> (Llama<B>, Vec<[ParamId; 2]>) {
    let mut model = model.clone();
    let mut gates = Vec::new();
    for layer in &mut model.layers {
        if let [shared] = layer.gates.as_slice() {
            let mut second = shared.clone();
            let value = shared.gate.val();
            let leaf = value.clone().detach().set_require_grad(value.is_require_grad());
            second.gate = Param::initialized(ParamId::new(), leaf);
            gates.push([shared.gate.id, second.gate.id]);
            layer.gates.push(second);
        }
    }
    (model, gates)
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use crate::config::LlamaConfig;
    use crate::precision::Precision;
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};

    type Tracked = Autodiff<Flex>;

    const BATCH: usize = 8;
    /// Tasks, blocks and pieces end within sequences.
    const SEQ: usize = 150;

    /// The gradients in module order.
    fn bits(model: &Llama<Tracked>, gradients: &GradientsParams) -> Vec<Vec<u32>> {
        struct Bits<'a> {
            gradients: &'a GradientsParams,
            bits: Vec<Vec<u32>>,
        }
        impl<B: AutodiffBackend> ModuleVisitor<B> for Bits<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
                if let Some(gradient) = self.gradients.get::<B::InnerBackend, D>(param.id) {
                    let values: Vec<f32> = gradient.into_data().to_vec().expect("f32");
                    self.bits.push(values.into_iter().map(f32::to_bits).collect());
                }
            }
        }
        let mut bits = Bits {
            gradients,
            bits: Vec::new(),
        };
        model.visit(&mut bits);
        bits.bits
    }

    #[test]
    fn every_cut_of_a_batch_gives_the_same_bits() {
        let tokens = |times: usize| -> Tensor<Tracked, 2, Int> {
            let ids = (0..BATCH * SEQ).map(|i| (i * times % 311 % 300) as i32);
            Tensor::<Tracked, 1, Int>::from_ints(ids.collect::<Vec<_>>().as_slice(), &FlexDevice).reshape([BATCH, SEQ])
        };
        let (ids, targets) = (tokens(37), tokens(53));
        for (scheme, tied, precision) in [
            ("pre_gpas", false, Precision::F32),
            ("sandwich_gpas", false, Precision::F32),
            ("post_gpas", true, Precision::F32),
            ("peri_gpas", false, Precision::F32),
            ("layerscale_gpas", true, Precision::F32),
            ("pre_gpas", false, Precision::Bf16),
            ("post_gpas", true, Precision::Bf16),
        ] {
            let config = LlamaConfig::new(300, 48, 80, 3, 4)
                .with_scheme(scheme.parse().unwrap())
                .with_precision(precision)
                .with_tied_head(tied);
            let model = config.init::<Tracked>(1, &FlexDevice);
            let step = |model: &Llama<Tracked>, size: usize| {
                let mut sums = StepSums::new(model, BATCH * SEQ);
                for start in (0..BATCH).step_by(size) {
                    let part = |all: &Tensor<Tracked, 2, Int>| all.clone().narrow(0, start, size.min(BATCH - start));
                    sums.add(part(&ids), part(&targets));
                }
                sums.finish().unwrap()
            };
            let whole = step(&model, BATCH);
            let expected = bits(&model, &whole.gradients);
            let mut again = model.clone();
            again.recompute = true;
            for size in [1, 2, 3, 4, 8] {
                for (model, how) in [(&model, ""), (&again, " computed again")] {
                    let found = step(model, size);
                    assert!(
                        bits(model, &found.gradients) == expected,
                        "{scheme} in {precision:?}, micro-batches of {size}{how}"
                    );
                    let [loss, expected] = [&found.loss, &whole.loss].map(|loss| loss.clone().into_scalar());
                    assert!((loss / expected - 1.0).abs() < 1e-6, "{loss} against {expected}");
                }
            }
        }
    }
}
