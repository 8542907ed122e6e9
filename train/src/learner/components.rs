//! The model as burn-train's learner takes it.
//!
//! What burn-train's metrics see of a step is the output of the model's [`TrainStep`], so that [`Pretraining`] gives the records of a run. A
//! strategy of burn-train's own would train with it too, one batch a step; that is how its test runs it.

use std::time::Instant;

use burn::module::Module;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{Adam, LearningRate};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn_train::metric::{Adaptor, ItemLazy};
use burn_train::{InferenceStep, LearningComponentsMarker, TrainOutput, TrainStep};
use gpas_model::{Llama, StepGradients, TokenBatch};

use crate::metrics::{EvalRecord, TrainRecord};
use crate::trainer::StepReport;

/// What burn-train's types are filled with. Its rate and its optimizer are never stepped: those of a run are its trainer's.
pub(super) type Components<B> =
    LearningComponentsMarker<B, LearningRate, Pretraining<B>, OptimizerAdaptor<Adam, Pretraining<B>, B>>;

/// A model whose steps give the records of a run.
#[derive(Module, Debug)]
pub(super) struct Pretraining<B: Backend> {
    pub llama: Llama<B>,
}

impl<B: AutodiffBackend> TrainStep for Pretraining<B> {
    type Input = TokenBatch<B>;
    type Output = TrainRecord;

    /// One batch as a whole step; which one it is and at what rate, only the strategy knows.
    fn step(&self, batch: TokenBatch<B>) -> TrainOutput<TrainRecord> {
        let begin = Instant::now();
        let positions = batch.ids.shape().num_elements();
        let scored = batch.scored;
        let StepGradients { loss, gradients } = self.llama.backward(batch.ids, batch.targets, scored);
        let report = StepReport::read(&self.llama, loss, &gradients, f64::NAN);
        let speed = positions as f64 / begin.elapsed().as_secs_f64();
        TrainOutput {
            grads: gradients,
            item: report.record(0, scored as u64, speed),
        }
    }
}

impl<B: Backend> InferenceStep for Pretraining<B> {
    type Input = TokenBatch<B>;
    type Output = EvalRecord;

    fn step(&self, batch: TokenBatch<B>) -> EvalRecord {
        let losses = self.llama.token_losses(batch.ids, batch.targets);
        let sum: f64 = losses.into_data().iter::<f64>().sum();
        let loss = sum / batch.scored.max(1) as f64;
        EvalRecord {
            loss,
            perplexity: loss.exp(),
            tokens: batch.scored as u64,
            ..EvalRecord::default()
        }
    }
}

/// A record's numbers have left the device before it is made.
impl ItemLazy for TrainRecord {
    type ItemSync = Self;

    fn sync(self) -> Self {
        self
    }
}

impl ItemLazy for EvalRecord {
    type ItemSync = Self;

    fn sync(self) -> Self {
        self
    }
}

impl Adaptor<TrainRecord> for TrainRecord {
    fn adapt(&self) -> Self {
        self.clone()
    }
}

impl Adaptor<EvalRecord> for EvalRecord {
    fn adapt(&self) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn::optim::AdamConfig;
    use burn_flex::{Flex, FlexDevice};
    use burn_train::{Learner, SupervisedTraining};
    use gpas_data::{EvaluationBatches, TrainBatches, WindowMode, Windows, stack};
    use gpas_model::LlamaConfig;

    use super::super::display::Display;
    use super::super::metric::NotKept;
    use super::*;
    use crate::evaluate::tests::{SEQ, VOCAB, prepared};

    type B = burn::backend::Autodiff<Flex>;

    /// The model and the loaders are what burn-train takes them for: its own strategy trains with them.
    #[test]
    fn a_strategy_of_burn_trains_own_trains_with_them() {
        let place = tempfile::tempdir().unwrap();
        let data = prepared(place.path());
        let windows = |store: &gpas_data::store::TokenStore| {
            Windows::new(store.clone(), WindowMode::Packed, SEQ, data.pad()).unwrap()
        };
        let train = TrainBatches::<B>::new(windows(data.train()), 1, 4, 0..20, FlexDevice).unwrap();
        let valid = EvaluationBatches::<Flex>::new(windows(data.validation()), 4, None, FlexDevice).unwrap();
        let whole = |model: &Pretraining<Flex>| {
            let indices = 0..valid.batches();
            let windows: Vec<_> = indices
                .flat_map(|index| valid.windows_of_batch(index).unwrap())
                .collect();
            InferenceStep::step(model, stack(&windows, &FlexDevice).unwrap()).loss
        };
        let model = Pretraining::<B> {
            llama: LlamaConfig::new(VOCAB, 16, 32, 2, 2).init(1, &FlexDevice),
        };
        let before = whole(&burn::module::AutodiffModule::valid(&model));
        let learner = Learner::new(model, AdamConfig::new().init::<B, Pretraining<B>>(), 1e-2);
        let trained = SupervisedTraining::<Components<B>>::new(place.path(), Arc::new(train), Arc::new(valid.clone()))
            .with_metric_logger(NotKept)
            .with_application_logger(None)
            .renderer(Display(None))
            .launch(learner);
        let after = whole(&trained.model);
        assert!(after < before - 0.5, "{before} to {after}");
    }
}
