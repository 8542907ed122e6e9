//! [`Llama`] in burn-train's stock learner: steps of training and of validation, and what its metrics are told.

use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use burn_train::metric::{Adaptor, ItemLazy, LossInput, PerplexityInput};
use burn_train::{InferenceStep, TrainOutput, TrainStep};
use gpas_batch::TokenBatch;

use crate::llama::Llama;
use crate::step::StepGradients;

/// The loss of a batch, for burn-train's `LossMetric` and `PerplexityMetric`.
///
/// Both metrics average over tokens: a batch counts as much as it scores. The numbers stay on their backend until a metric reads them, on
/// the thread of the metrics.
#[derive(Clone, Debug)]
pub struct LossOutput<B: Backend> {
    /// Mean over the scored tokens, `[1]`; 0 where none is scored.
    pub loss: Tensor<B, 1>,
    /// Number of scored tokens.
    pub scored: usize,
}

impl<B: Backend> LossOutput<B> {
    /// What the batch counts in an average. A metric cannot take a batch of no token.
    fn weight(&self) -> usize {
        self.scored.max(1)
    }
}

impl<B: Backend> ItemLazy for LossOutput<B> {
    type ItemSync = Self;

    fn sync(self) -> Self {
        self
    }
}

impl<B: Backend> Adaptor<LossInput<B>> for LossOutput<B> {
    /// The mean as the loss of every scored token.
    fn adapt(&self) -> LossInput<B> {
        LossInput::new(self.loss.clone().expand([self.weight()]))
    }
}

impl<B: Backend> Adaptor<PerplexityInput<B>> for LossOutput<B> {
    /// A perplexity depends on the probability `p = exp(−loss)` of the target alone. So two classes stand for the vocabulary, the target
    /// and all others, with `ln p` and `ln(1 − p)` as logits, and no logits of whole vocabularies are kept for the metric.
    fn adapt(&self) -> PerplexityInput<B> {
        let target = self.loss.clone().neg();
        let others = target.clone().exp().neg().log1p();
        let rows = [self.weight(), 2];
        let logits = Tensor::cat(vec![target, others], 0).reshape([1, 2]).expand(rows);
        let targets = Tensor::<B, 1, Int>::zeros([rows[0]], &self.loss.device());
        PerplexityInput::new(logits, targets)
    }
}

/// The learner's optimizer step is where the model's [progress](Llama::progress) goes on by one, so that branches that warm up do so in
/// batches, accumulated ones and those of many devices as they do anywhere else. To resume at step n, give the learner the model
/// [with that progress](Llama::with_progress): the records of burn-train's checkpoints hold weights alone.
impl<B: AutodiffBackend> TrainStep for Llama<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B::InnerBackend>;

    fn step(&self, batch: TokenBatch<B>) -> TrainOutput<Self::Output> {
        let scored = batch.scored;
        let StepGradients { loss, gradients } = self.backward(batch.ids, batch.targets, scored);
        TrainOutput {
            grads: gradients,
            item: LossOutput { loss, scored },
        }
    }

    fn optimize<T, O>(self, optimizer: &mut O, rate: f64, gradients: GradientsParams) -> Self
    where
        T: AutodiffBackend,
        O: Optimizer<Self, T>,
        Self: AutodiffModule<T>,
    {
        let progress = self.progress().next();
        optimizer.step(rate, self, gradients).with_progress(progress)
    }

    fn optimize_multi<T, O>(self, optimizer: &mut O, rate: f64, gradients: MultiGradientsParams) -> Self
    where
        T: AutodiffBackend,
        O: Optimizer<Self, T>,
        Self: AutodiffModule<T>,
    {
        let progress = self.progress().next();
        optimizer.step_multi(rate, self, gradients).with_progress(progress)
    }
}

impl<B: Backend> InferenceStep for Llama<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B>;

    fn step(&self, batch: TokenBatch<B>) -> Self::Output {
        let scored = batch.scored;
        let loss = self.token_losses(batch.ids, batch.targets).sum();
        LossOutput {
            loss: loss.div_scalar(scored.max(1) as f64),
            scored,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::LlamaConfig;
    use crate::progress::Progress;
    use burn::backend::Autodiff;
    use burn::data::dataloader::batcher::Batcher;
    use burn::data::dataloader::{DataLoader, DataLoaderBuilder, Progress as Position};
    use burn::data::dataset::InMemDataset;
    use burn::optim::SgdConfig;
    use burn_flex::{Flex, FlexDevice};
    use burn_train::metric::{LossMetric, Metric, MetricMetadata, Numeric, PerplexityMetric};
    use burn_train::{Learner, SupervisedTraining};

    type Tracked = Autodiff<Flex>;

    /// Sequences of ids, each scored against itself one position on.
    #[derive(Clone, Debug)]
    struct Shifted;

    impl<B: Backend> Batcher<B, Vec<i32>, TokenBatch<B>> for Shifted {
        fn batch(&self, rows: Vec<Vec<i32>>, device: &B::Device) -> TokenBatch<B> {
            let part = |from: usize| {
                let rows = rows.iter().map(|row| {
                    let row = &row[from..from + row.len() - 1];
                    Tensor::<B, 1, Int>::from_ints(row, device)
                });
                Tensor::stack(rows.collect(), 0)
            };
            TokenBatch::new(part(0), part(1)).unwrap()
        }
    }

    fn loader<B: Backend>(batch: usize) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        let rows = (0..12).map(|row| (0..7).map(|at| (row * 5 + at * 3) % 11).collect());
        let rows: Vec<Vec<i32>> = rows.collect();
        DataLoaderBuilder::new(Shifted)
            .batch_size(batch)
            .build(InMemDataset::new(rows))
    }

    /// Branches of 4 · l steps.
    fn model() -> Llama<Tracked> {
        LlamaConfig::new(11, 16, 24, 2, 2)
            .with_scheme("prores_gpas".parse().unwrap())
            .with_residual_warmup(4)
            .init(1, &FlexDevice)
    }

    fn train(batch: usize, accumulated: usize) -> Llama<Flex> {
        let place = tempfile::tempdir().unwrap();
        let training = SupervisedTraining::new(place.path(), loader::<Tracked>(batch), loader::<Flex>(5))
            .metrics((LossMetric::new(), PerplexityMetric::new()))
            .grads_accumulation(accumulated)
            .with_application_logger(None)
            .num_epochs(2);
        let learner = Learner::new(model(), SgdConfig::new().init(), 0.1);
        training.launch(learner).model
    }

    /// In the learner of burn-train as it is, with its metrics: one step more for each update, whatever an update is made of.
    #[test]
    fn branches_warm_up_in_the_stock_learner() {
        // Two epochs of 12 sequences.
        for (batch, accumulated, updates) in [(4, 1, 6), (4, 3, 2), (2, 2, 6)] {
            let trained = train(batch, accumulated);
            assert_eq!(
                trained.progress(),
                Progress::after(updates),
                "{batch} sequences, {accumulated} batches"
            );
            let factor = |layer: usize| trained.layers[layer].mlp_residual.branch_factor(trained.progress());
            let expected = [4.0, 8.0].map(|steps| (updates as f64 / steps).min(1.0));
            assert_eq!([factor(0), factor(1)], expected);
        }
    }

    /// Before the first step a branch adds nothing, so that its weights have no gradient; after it they have one.
    #[test]
    fn a_step_of_the_learner_sees_the_steps_before_it() {
        let batch = || loader::<Tracked>(3).iter().next().unwrap();
        let norm = |model: &Llama<Tracked>| {
            let gradients = TrainStep::step(model, batch()).grads;
            let gradient = gradients.get::<Flex, 2>(model.layers[0].mlp.up.weight.id);
            gradient.unwrap().abs().max().into_scalar()
        };
        let model = model();
        assert_eq!(norm(&model), 0.0);
        let mut optimizer = SgdConfig::new().init::<Tracked, Llama<Tracked>>();
        let gradients = TrainStep::step(&model, batch()).grads;
        let model = model.optimize::<Tracked, _>(&mut optimizer, 0.1, gradients);
        assert!(norm(&model) > 0.0);
        assert_eq!(model.clone().progress(), Progress::after(1));
    }

    /// Over batches that score unlike numbers of tokens: what the metrics show is the mean over all tokens, and its exponential.
    #[test]
    fn stock_metrics_show_means_over_tokens() {
        let model = model().valid().with_progress(Progress::COMPLETE);
        let (mut loss, mut perplexity) = (LossMetric::<Flex>::new(), PerplexityMetric::<Flex>::new());
        let metadata = MetricMetadata {
            progress: Position::new(1, 1),
            global_progress: Position::new(1, 1),
            iteration: None,
            lr: None,
        };
        let (mut sum, mut tokens) = (0.0, 0);
        for (index, batch) in loader::<Flex>(5).iter().enumerate() {
            // Every other position of the second batch is not scored.
            let mask =
                Tensor::<Flex, 2, Int>::from_ints([[0, index as i32 % 2, 0, 0, 0, index as i32 % 2]], &FlexDevice);
            let mask = mask.expand(batch.targets.dims()).bool();
            let targets = batch.targets.mask_fill(mask, gpas_batch::IGNORE_INDEX);
            let losses = model.token_losses(batch.ids.clone(), targets.clone()).into_data();
            sum += losses.iter::<f64>().sum::<f64>();
            let batch = TokenBatch::new(batch.ids, targets).unwrap();
            let output = InferenceStep::step(&model, batch).sync();
            tokens += output.scored;
            loss.update(&output.adapt(), &metadata);
            perplexity.update(&output.adapt(), &metadata);
        }
        // 12 sequences of 6 positions, two of which are not scored in the second batch of 5.
        assert_eq!(tokens, 12 * 6 - 5 * 2);
        let mean = sum / tokens as f64;
        let found = loss.running_value().current();
        assert!((found / mean - 1.0).abs() < 1e-5, "{found} against {mean}");
        let (found, expected) = (perplexity.value().current(), mean.exp());
        assert!((found / expected - 1.0).abs() < 1e-5, "{found} against {expected}");
    }

    /// What is not finite is shown, and a certain prediction has a perplexity of 1.
    #[test]
    fn perplexities_of_extreme_losses() {
        let perplexity = |loss: f32| {
            let output = LossOutput {
                loss: Tensor::<Flex, 1>::from_floats([loss], &FlexDevice),
                scored: 3,
            };
            let mut metric = PerplexityMetric::<Flex>::new();
            let metadata = MetricMetadata {
                progress: Position::new(1, 1),
                global_progress: Position::new(1, 1),
                iteration: None,
                lr: None,
            };
            metric.update(&output.adapt(), &metadata);
            metric.value().current()
        };
        assert_eq!(perplexity(0.0), 1.0);
        assert!(perplexity(f32::NAN).is_nan());
        assert!((perplexity(30.0) / 30f64.exp() - 1.0).abs() < 1e-5);
    }
}
