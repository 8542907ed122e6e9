//! One optimizer step, the same for `train`, `bench` and the tests: micro-batches in, an updated model out.
//!
//! A step whose loss or gradient is not finite makes no update. Whether it is must be known before the weights change, so each step reads
//! from the device once, between the backward pass and the update: one small tensor that holds its loss, the squared gradient norm of
//! every parameter and the gates. Nothing else of a step waits for the device. On a card that wait costs little where it is: as soon as the
//! few launches of the update are on their way, the card is busy with them while this process keeps its records and prepares the next
//! step. Read after the update, the same numbers would leave the card idle for just that time.

use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use gpas_model::params::{Parameter, ParameterKind, SharedParameter};
use gpas_model::weights::{NamedTensors, WeightsError};
use gpas_model::{Llama, Progress, StepGradients, StepSums, TokenBatch};

use crate::metrics::{GateRange, TrainRecord};
use crate::optimizer::{ClippedAdam, GradientNorms, OptimizerConfig, Readings};

/// A model in training with its optimizer and its place in the schedule.
pub struct Trainer<B: AutodiffBackend> {
    model: Llama<B>,
    optimizer: ClippedAdam<B>,
    schedule: RateOfStep,
    steps: u64,
}

/// The learning rate of a step, counted from 0.
type RateOfStep = Box<dyn FnMut(u64) -> f64 + Send>;

/// What one step tells of itself.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Mean loss over the step's scored tokens, before the update.
    pub loss: f64,
    /// Learning rate of the update.
    pub rate: f64,
    /// Gradient norms before clipping.
    pub norms: GradientNorms,
    /// Gradient norm of every parameter before clipping, in module order.
    pub parameter_norms: Vec<(ParameterKind, f64)>,
    /// The gates before the update, first layer to last.
    pub gates: Vec<f64>,
    /// Why no update was made, if none was.
    pub skipped: Option<NotFinite>,
}

impl StepReport {
    /// Reads what a step reports in one transfer, which waits for its backward pass.
    pub(crate) fn read<B: AutodiffBackend>(
        model: &Llama<B>,
        loss: Tensor<B::InnerBackend, 1>,
        gradients: &GradientsParams,
        rate: f64,
    ) -> Self {
        let gates = model.layers.iter().flat_map(|layer| &layer.gates);
        let gates = gates.map(|gate| gate.gate.val().inner());
        let numbers = [loss].into_iter().chain(gates).collect();
        let Readings { numbers, squares } = Readings::of(numbers, &model.parameters(), gradients);
        Self {
            loss: numbers[0],
            rate,
            norms: GradientNorms::from_squares(&squares),
            parameter_norms: squares.iter().map(|(kind, square)| (*kind, square.sqrt())).collect(),
            gates: numbers[1..].to_vec(),
            skipped: None,
        }
    }

    /// The record of the step after which `step` steps are done and `tokens` tokens scored.
    pub(crate) fn record(&self, step: u64, tokens: u64, tokens_per_s: f64) -> TrainRecord {
        let skipped = self.skipped.is_some();
        TrainRecord {
            step,
            loss: if skipped { f64::NAN } else { self.loss },
            lr: self.rate,
            tokens,
            tokens_per_s,
            grad_norm: self.norms.global,
            gate_grad_norm: self.norms.gates,
            gates: GateRange::of(&self.gates),
            skipped,
        }
    }
}

/// The first thing of a step that is no finite number, in the order in which a step computes them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum NotFinite {
    #[error("the weight {0}")]
    Weight(ParameterKind),
    #[error("the residual stream before layer {0}")]
    Stream(usize),
    #[error("the residual stream after the last layer")]
    LastStream,
    #[error("the loss")]
    Loss,
    #[error("the gradient of {0}")]
    Gradient(ParameterKind),
    #[error("the norm of all gradients, each of which is finite")]
    Norm,
}

impl<B: AutodiffBackend> Trainer<B> {
    /// A trainer at its first step. `schedule` gives the learning rate of each step, counted from 0: a recipe's
    /// [`Schedule::rates`](crate::schedule::Schedule::rates), or any function. A run that goes on asks from where it stands, so that the
    /// rate is to depend on the number of the step alone.
    ///
    /// # Examples
    /// Three steps on one batch, at a rate that halves.
    /// ```
    /// use burn::backend::Autodiff;
    /// use burn::tensor::Tensor;
    /// use burn_flex::{Flex, FlexDevice};
    /// use gpas_model::{LlamaConfig, TokenBatch};
    /// use gpas_train::optimizer::OptimizerConfig;
    /// use gpas_train::trainer::Trainer;
    ///
    /// let model = LlamaConfig::new(32, 16, 32, 2, 2).init::<Autodiff<Flex>>(1, &FlexDevice);
    /// let mut trainer = Trainer::new(model, OptimizerConfig::ADAM, |step| 1e-2 * 0.5f64.powi(step as i32))?;
    /// let mut losses = Vec::new();
    /// for _ in 0..3 {
    ///     let ids = Tensor::from_ints([[1, 2, 3, 4]], &FlexDevice);
    ///     let batch = TokenBatch::new(ids, Tensor::from_ints([[2, 3, 4, 5]], &FlexDevice))?;
    ///     let (next, report) = trainer.step([batch], 4);
    ///     trainer = next;
    ///     losses.push(report.loss);
    /// }
    /// assert!(losses[2] < losses[0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If two parameters of the model have one id.
    pub fn new(
        model: Llama<B>,
        optimizer: OptimizerConfig,
        schedule: impl FnMut(u64) -> f64 + Send + 'static,
    ) -> Result<Self, SharedParameter> {
        let optimizer = ClippedAdam::new(optimizer, &model.parameters())?;
        Ok(Self {
            model: model.with_progress(Progress::after(0)),
            optimizer,
            schedule: Box::new(schedule),
            steps: 0,
        })
    }

    /// A trainer that goes on after `steps` steps and `updates` updates with these [moments](Self::moments).
    ///
    /// # Errors
    /// If the moments are not those of this model.
    pub fn resume(self, moments: NamedTensors, updates: u64, steps: u64) -> Result<Self, WeightsError> {
        let parameters = self.model.parameters();
        let optimizer = self.optimizer.with_tensors(&parameters, moments, updates)?;
        Ok(Self {
            model: self.model.with_progress(Progress::after(steps)),
            optimizer,
            steps,
            ..self
        })
    }

    /// The model as it is now. Its [`Progress`] is the number of steps done.
    pub fn model(&self) -> &Llama<B> {
        &self.model
    }

    /// The model, the training over.
    pub fn into_model(self) -> Llama<B> {
        self.model
    }

    /// The optimizer's moments, on the host.
    ///
    /// # Errors
    /// If a device gives no numbers.
    pub fn moments(&self) -> Result<NamedTensors, WeightsError> {
        self.optimizer.to_tensors()
    }

    /// Updates made; as many as steps, less those that were skipped.
    pub fn updates(&self) -> u64 {
        self.optimizer.updates()
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step on micro-batches that score `scored` tokens in all. Each adds the sum of its losses divided by `scored`, so the
    /// gradient is that of the mean over the step's scored tokens, however the step is cut. Takes the trainer and gives it back, so that
    /// the optimizer owns the weights it updates.
    ///
    /// # Panics
    /// If there is no micro-batch.
    pub fn step(self, micro_batches: impl IntoIterator<Item = TokenBatch<B>>, scored: usize) -> (Self, StepReport) {
        let Self {
            model,
            mut optimizer,
            mut schedule,
            steps,
        } = self;
        let mut ids = Vec::new();
        let mut sums = StepSums::new(&model, scored);
        for batch in micro_batches {
            ids.push(batch.ids.clone());
            sums.add(batch.ids, batch.targets);
        }
        let StepGradients { loss, gradients } = sums.finish().expect("a step has at least one micro-batch");
        let mut report = StepReport::read(&model, loss, &gradients, schedule(steps));
        let model = if report.loss.is_finite() && report.norms.global.is_finite() {
            optimizer.step(report.rate, model, gradients, &report.norms)
        } else {
            report.skipped = Some(first_not_finite(&model, &ids, &report));
            model
        };
        let trainer = Self {
            model: model.with_progress(Progress::after(steps + 1)),
            optimizer,
            schedule,
            steps: steps + 1,
        };
        (trainer, report)
    }
}

/// Where the numbers of a step went bad first, found by going through it once more.
fn first_not_finite<B: AutodiffBackend>(model: &Llama<B>, ids: &[Tensor<B, 2, Int>], report: &StepReport) -> NotFinite {
    let inner = model.valid();
    let bad = |parameter: &Parameter<'_, B::InnerBackend>| !is_finite(parameter.flat());
    if let Some(weight) = inner.parameters().into_iter().find(bad) {
        return NotFinite::Weight(weight.kind);
    }
    for ids in ids {
        let streams = inner.residual_streams(ids.clone().inner());
        let layers = streams.len() - 1;
        if let Some(layer) = streams.into_iter().position(|stream| !is_finite(stream)) {
            return match layer {
                layer if layer == layers => NotFinite::LastStream,
                layer => NotFinite::Stream(layer),
            };
        }
    }
    if !report.loss.is_finite() {
        return NotFinite::Loss;
    }
    // The backward pass comes to the last parameters first.
    let mut backwards = report.parameter_norms.iter().rev();
    match backwards.find(|(_, norm)| !norm.is_finite()) {
        Some((kind, _)) => NotFinite::Gradient(*kind),
        None => NotFinite::Norm,
    }
}

fn is_finite<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> bool {
    use burn::tensor::ElementConversion;
    tensor.is_finite().all().into_scalar().elem()
}
