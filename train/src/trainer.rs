//! One optimizer step, the same for `train`, `bench` and the tests: micro-batches in, an updated model out.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use gpas_model::{Llama, TokenBatch};

use crate::optimizer::{ClippedAdam, GradientNorms, OptimizerConfig, OptimizerRecord};
use crate::schedule::Schedule;

/// A model in training with its optimizer and its place in the schedule.
pub struct Trainer<B: AutodiffBackend> {
    model: Llama<B>,
    optimizer: ClippedAdam<Llama<B>, B>,
    schedule: Schedule,
    steps: u64,
}

/// What one step tells of itself, still on the device: reading it waits for the step to finish.
#[derive(Clone, Debug)]
pub struct StepReport<B: AutodiffBackend> {
    /// Mean loss over the step's scored tokens, before the update; `[1]`.
    pub loss: Tensor<B::InnerBackend, 1>,
    /// Gradient norms before clipping.
    pub norms: GradientNorms<B::InnerBackend>,
    /// Learning rate of the update.
    pub rate: f64,
}

impl<B: AutodiffBackend> Trainer<B> {
    /// A trainer at its first step.
    pub fn new(model: Llama<B>, optimizer: OptimizerConfig, schedule: Schedule) -> Self {
        Self {
            model,
            optimizer: ClippedAdam::new(optimizer),
            schedule,
            steps: 0,
        }
    }

    /// A trainer that goes on after `steps` steps.
    pub fn resume(self, record: OptimizerRecord<Llama<B>, B>, steps: u64) -> Self {
        Self {
            optimizer: self.optimizer.load_record(record),
            steps,
            ..self
        }
    }

    /// The model as it is now.
    pub fn model(&self) -> &Llama<B> {
        &self.model
    }

    /// The optimizer's moments, to be saved.
    pub fn optimizer_record(&self) -> OptimizerRecord<Llama<B>, B> {
        self.optimizer.to_record()
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One update from micro-batches that score `scored` tokens in all. Each adds the sum of its losses divided by `scored`, so the
    /// gradient is that of the mean over the step's scored tokens, however the step is cut. Takes the trainer and gives it back, so that
    /// the optimizer owns the weights it updates.
    ///
    /// # Panics
    /// If there is no micro-batch.
    pub fn step(self, micro_batches: impl IntoIterator<Item = TokenBatch<B>>, scored: usize) -> (Self, StepReport<B>) {
        let Self {
            model,
            mut optimizer,
            schedule,
            steps,
        } = self;
        let (loss, gradients) = micro_batches
            .into_iter()
            .map(|batch| model.backward(batch.ids, batch.targets, scored))
            .map(|part| (part.loss, part.gradients))
            .reduce(|(loss, sum), (part_loss, part)| (loss + part_loss, add(&model, sum, part)))
            .expect("a step has at least one micro-batch");
        let rate = schedule.rate(steps);
        let (model, norms) = optimizer.step(rate, model, gradients);
        let trainer = Self {
            model,
            optimizer,
            schedule,
            steps: steps + 1,
        };
        (trainer, StepReport { loss, norms, rate })
    }
}

/// Adds up the gradients of two micro-batches, parameter by parameter.
fn add<B: AutodiffBackend>(model: &Llama<B>, sum: GradientsParams, part: GradientsParams) -> GradientsParams {
    let mut accumulator = burn::optim::GradientsAccumulator::new();
    accumulator.accumulate(model, sum);
    accumulator.accumulate(model, part);
    accumulator.grads()
}
