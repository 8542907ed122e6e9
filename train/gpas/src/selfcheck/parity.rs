//! How far a backend is from a golden: outputs, gradients and a training, through the library's own model, optimizer and step.

use burn::module::{AutodiffModule, Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use gpas_model::compare::{largest, largest_difference, largest_magnitude};
use gpas_model::params::{Parameter, ParameterValue};
use gpas_model::weights::{HostTensor, NamedTensors, WeightsError};
use gpas_model::{Llama, LlamaConfig};

use super::golden::{Golden, HostBatch};
use gpas_train::trainer::Trainer;

/// The largest differences that are allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    /// An entry of a hidden state.
    pub hidden: f64,
    /// A logit.
    pub logits: f64,
    /// A loss.
    pub loss: f64,
    /// An entry of a gradient, as a share of the largest one of its tensor or of a fifth of the model's largest, whichever is more.
    pub gradient: f64,
    /// A weight after the training.
    pub trained: f64,
}

impl Tolerances {
    /// For backends that compute every product in f32. A float64 run of the same cases differs from the float32 goldens by at most 1.5e-5 in logits, 5.5e-6
    /// of the model's largest gradient entry, 8e-7 in training losses and 3.2e-5 in a trained weight.
    pub const F32: Self = Self {
        hidden: 3e-5,
        logits: 3e-5,
        loss: 1e-5,
        gradient: 1e-4,
        trained: 2e-4,
    };

    /// For backends that compute products in f32, and functions such as the exponential as exactly as a graphics interface promises: to
    /// about ten units in the last place.
    pub const GRAPHICS: Self = Self {
        hidden: 1e-4,
        logits: 1e-4,
        loss: 2e-5,
        gradient: 2e-4,
        trained: 1e-3,
    };

    /// For backends whose products may be in TF32, which rounds factors to ten bits after the leading one.
    pub const TF32: Self = Self {
        hidden: 2.5e-2,
        logits: 2e-2,
        loss: 3e-3,
        gradient: 3e-2,
        trained: 2e-3,
    };
}

/// The largest difference of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    /// Which quantity differs.
    pub what: &'static str,
    /// The largest difference that was found.
    pub found: f64,
    /// The largest difference that is allowed.
    pub allowed: f64,
}

impl Measure {
    /// Whether the difference is allowed. NaN is not.
    pub fn passes(&self) -> bool {
        self.found <= self.allowed
    }
}

/// Losses of a training, one per step, and the model after it.
pub type Trained<B> = (Vec<f64>, Llama<B>);

/// All that differs from a golden.
///
/// # Errors
/// If the golden's parameters are not those of its model.
pub fn compare<B: AutodiffBackend>(
    golden: &Golden,
    tolerances: &Tolerances,
    device: &B::Device,
) -> Result<Vec<Measure>, WeightsError> {
    compare_with_training::<B>(golden, tolerances, device, |model| train(golden, model, device))
}

/// [`compare`] with a training of the caller's own.
///
/// # Errors
/// If the golden's parameters are not those of its model.
pub fn compare_with_training<B: AutodiffBackend>(
    golden: &Golden,
    tolerances: &Tolerances,
    device: &B::Device,
    train: impl FnOnce(Llama<B>) -> Result<Trained<B>, WeightsError>,
) -> Result<Vec<Measure>, WeightsError> {
    let config = &golden.config;
    let model = Llama::<B>::from_tensors(config, &golden.parameters, device)?;
    let states = model.hidden_states(golden.batch.on::<B>(device).ids);
    let states = states.into_iter().map(host).zip(&golden.hidden);
    let hidden = largest(states.map(|(found, expected)| difference(&found, expected)));
    let logits = difference(&host(model.logits(golden.batch.on::<B>(device).ids)), &golden.logits);

    let (loss, gradients) = backward(&model, &golden.batch, device);
    let gradients = gradients_by_name(&model, &gradients, config)?;
    let peak = |tensor: &HostTensor| largest_magnitude(&tensor.values);
    let peak_of_model = largest(golden.gradients.values().map(peak));
    let gradient = largest_by_name(&gradients, &golden.gradients, |found, expected| {
        difference(found, expected) / peak(expected).max(0.2 * peak_of_model)
    });

    let (losses, model) = train(model)?;
    let training_loss = largest_difference(&losses, &golden.training_losses);
    let trained = largest_by_name(&model.valid().to_tensors(config)?, &golden.trained, difference);

    let measure = |what, found, allowed| Measure { what, found, allowed };
    Ok(vec![
        measure("hidden states", hidden, tolerances.hidden),
        measure("logits", logits, tolerances.logits),
        measure("loss", (loss - golden.loss).abs(), tolerances.loss),
        measure("gradients", gradient, tolerances.gradient),
        measure("training losses", training_loss, tolerances.loss),
        measure("trained weights", trained, tolerances.trained),
    ])
}

/// The training of a golden, through the step of every run.
fn train<B: AutodiffBackend>(golden: &Golden, model: Llama<B>, device: &B::Device) -> Result<Trained<B>, WeightsError> {
    let mut trainer = Trainer::new(model, golden.optimizer, golden.schedule.rates())?;
    let mut losses = Vec::new();
    for step in golden.steps() {
        let scored = step.iter().map(HostBatch::scored).sum();
        let (next, report) = trainer.step(step.iter().map(|batch| batch.on::<B>(device)), scored);
        trainer = next;
        losses.push(report.loss);
    }
    Ok((losses, trainer.model().clone()))
}

fn backward<B: AutodiffBackend>(model: &Llama<B>, batch: &HostBatch, device: &B::Device) -> (f64, GradientsParams) {
    let scored = batch.scored();
    let batch = batch.on::<B>(device);
    let part = model.backward(batch.ids, batch.targets, scored);
    (f64::from(host(part.loss).values[0]), part.gradients)
}

fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> HostTensor {
    let shape = tensor.dims().to_vec();
    let values = tensor.into_data().iter::<f32>().collect();
    HostTensor { shape, values }
}

/// Gradients as a model, so that they get their released names and orientation from the weights' own code.
fn gradients_by_name<B: AutodiffBackend>(
    model: &Llama<B>,
    gradients: &GradientsParams,
    config: &LlamaConfig,
) -> Result<NamedTensors, WeightsError> {
    struct Replace<'a>(&'a GradientsParams);
    impl<B: Backend> ModuleMapper<B> for Replace<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            match self.0.get::<B, D>(param.id) {
                Some(gradient) => Param::initialized(param.id, gradient),
                None => param,
            }
        }
    }
    let mut named = model.valid().map(&mut Replace(gradients)).to_tensors(config)?;
    for Parameter { kind, value } in model.parameters() {
        let has_gradient = match value {
            ParameterValue::Vector(param) => gradients.get::<B::InnerBackend, 1>(param.id).is_some(),
            ParameterValue::Matrix(param) => gradients.get::<B::InnerBackend, 2>(param.id).is_some(),
        };
        if let Some(name) = config.released_name(kind).filter(|_| !has_gradient) {
            named.remove(&name);
        }
    }
    Ok(named)
}

/// The largest difference between the entries of two tensors; no number if they have not one shape.
fn difference(found: &HostTensor, expected: &HostTensor) -> f64 {
    if found.shape != expected.shape {
        return f64::NAN;
    }
    largest_difference(&found.values, &expected.values)
}

/// The largest difference over all tensors, as `measure` has it; no number if the names differ.
fn largest_by_name(
    found: &NamedTensors,
    expected: &NamedTensors,
    measure: impl Fn(&HostTensor, &HostTensor) -> f64,
) -> f64 {
    if !found.keys().eq(expected.keys()) {
        return f64::NAN;
    }
    let pairs = found.values().zip(expected.values());
    largest(pairs.map(|(found, expected)| measure(found, expected)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tensors that are missing, have another shape or hold NaN fail.
    #[test]
    fn what_cannot_be_compared_does_not_pass() {
        let tensor = |values: &[f32]| HostTensor {
            shape: vec![values.len()],
            values: values.to_vec(),
        };
        let passes = |found| {
            let what = "x";
            let allowed = 1.0;
            Measure { what, found, allowed }.passes()
        };
        assert!(passes(difference(&tensor(&[1.0, 2.0]), &tensor(&[1.5, 2.0]))));
        assert!(!passes(difference(&tensor(&[1.0]), &tensor(&[1.0, 2.0]))));
        assert!(!passes(difference(&tensor(&[f32::NAN, 2.0]), &tensor(&[1.0, 2.0]))));
        assert!(!passes(largest_difference(&[0.0, f64::NAN, 0.0], &[0.0; 3])));
        assert!(!passes(largest_difference(&[0.0], &[0.0; 3])));
        let named = |name: &str| NamedTensors::from([(name.to_string(), tensor(&[1.0]))]);
        assert!(passes(largest_by_name(&named("a"), &named("a"), difference)));
        assert!(!passes(largest_by_name(&named("a"), &named("b"), difference)));
        assert!(!passes(largest_by_name(&NamedTensors::new(), &named("b"), difference)));
    }
}
