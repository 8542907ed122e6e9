//! Every scheme learns from its initial weights, by our own loop and by Burn's; what GPAS does to the gradients inside a model.

use burn::backend::Autodiff;
use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::module::AutodiffModule;
use burn::optim::AdamConfig;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::train::logger::{FileMetricLogger, MetricLogger};
use burn::train::metric::store::Split;
use burn::train::metric::{LossMetric, NumericEntry};
use burn::train::renderer::CliMetricsRenderer;
use burn::train::{InferenceStep, Learner, SupervisedTraining};
use burn_flex::{Flex, FlexDevice};
use gpas_model::{GateConfig, Initialisation, LlamaConfig, Scheme, TokenBatch};
use gpas_train::optimizer::{OptimizerConfig, OptimizerKind};
use gpas_train::schedule::Schedule;
use gpas_train::trainer::Trainer;

type B = Autodiff<Flex>;

/// Ids of a row and the ids that follow each of them.
type Row = (Vec<u32>, Vec<i32>);

const SEQ: usize = 24;

/// A row of a sentence that repeats, so that there is something to learn.
fn row(start: usize) -> Row {
    let text = b"the quick brown fox jumps over the lazy dog and runs away; ";
    let id = |position: usize| text[position % text.len()] % 64;
    (start..start + SEQ)
        .map(|position| (u32::from(id(position)), i32::from(id(position + 1))))
        .unzip()
}

/// Rows as the model takes them.
#[derive(Clone)]
struct Rows;

impl<B: Backend> Batcher<B, Row, TokenBatch<B>> for Rows {
    fn batch(&self, rows: Vec<Row>, device: &B::Device) -> TokenBatch<B> {
        TokenBatch::from_rows(rows.iter().map(|(ids, targets)| (&ids[..], &targets[..])), device).unwrap()
    }
}

/// Two rows that differ from step to step.
fn batch<B: Backend<Device = FlexDevice>>(step: usize) -> TokenBatch<B> {
    Rows.batch(vec![row(step), row(step + SEQ)], &FlexDevice)
}

#[test]
fn every_scheme_trains_thirty_steps_from_every_initialisation() {
    let optimizer = OptimizerConfig {
        kind: OptimizerKind::Adam,
        betas: (0.9, 0.999),
        eps: 1e-8,
        weight_decay: 0.0,
        clip: 1.0,
        clip_gate: 0.0,
    };
    for scheme in Scheme::all() {
        for initialisation in [Initialisation::Published, Initialisation::Released] {
            let config = LlamaConfig::new(64, 32, 88, 2, 8)
                .with_scheme(scheme)
                .with_residual_warmup(2)
                .with_initialisation(initialisation);
            let mut trainer = Trainer::<B>::new(
                config.init(3, &FlexDevice),
                optimizer,
                Schedule::cosine(3e-3, 3, 30, 0.1).rates(),
            )
            .unwrap();
            let mut losses = Vec::new();
            for step in 0..30 {
                let (next, report) = trainer.step([batch(step)], 48);
                trainer = next;
                losses.push(report.loss);
                assert!(
                    report.norms.global.is_finite(),
                    "{scheme} {initialisation:?} step {step}"
                );
            }
            assert!(
                losses.iter().all(|loss| loss.is_finite()),
                "{scheme} {initialisation:?}: {losses:?}"
            );
            let (first, last) = (losses[0], losses[29]);
            println!("{scheme:20} {initialisation:?}: {first:.3} -> {last:.3}");
            assert!(last < 0.8 * first, "{scheme} {initialisation:?}: {first} -> {last}");
        }
    }
}

/// The step that a scheme warms up by is the same for every micro-batch, and again for a layer that is computed again.
#[test]
fn a_step_of_the_newer_schemes_is_the_same_however_it_is_computed() {
    let optimizer = OptimizerConfig {
        kind: OptimizerKind::Adam,
        betas: (0.9, 0.999),
        eps: 1e-8,
        weight_decay: 0.0,
        clip: 0.0,
        clip_gate: 0.0,
    };
    for name in ["peri", "prores", "keel", "layerscale", "rezero"] {
        for scheme in [name.to_string(), format!("{name}_gpas")] {
            // Losses and gradient norms of steps that are cut or computed in some way.
            let run = |rows: usize, recompute: bool| {
                let config = LlamaConfig::new(64, 32, 88, 2, 3)
                    .with_scheme(scheme.parse().unwrap())
                    .with_residual_warmup(2)
                    .with_recompute(recompute);
                let mut trainer = Trainer::<B>::new(
                    config.init(3, &FlexDevice),
                    optimizer,
                    Schedule::cosine(3e-3, 0, 5, 0.1).rates(),
                )
                .unwrap();
                let mut reports = Vec::new();
                for step in 0..5 {
                    let parts = [row(step), row(step + SEQ)];
                    let parts = parts.chunks(rows).map(|rows| Rows.batch(rows.to_vec(), &FlexDevice));
                    let (next, report) = trainer.step(parts, 2 * SEQ);
                    trainer = next;
                    reports.push([report.loss, report.norms.global]);
                }
                reports
            };
            let whole = run(2, false);
            for (other, how) in [(run(1, false), "row by row"), (run(2, true), "computed again")] {
                for (step, (found, expected)) in other.iter().flatten().zip(whole.iter().flatten()).enumerate() {
                    let difference = (found / expected - 1.0).abs();
                    assert!(
                        difference < 1e-4,
                        "{scheme} {how}, step {}: {found} against {expected}",
                        step / 2
                    );
                }
            }
        }
    }
}

/// In an isolated block GPAS's Jacobian is the identity. Inside a model its stop-gradient changes what flows down: the gradient at the
/// embedding is neither that of the same scaling without the stop-gradient nor that of the model without GPAS.
#[test]
fn inside_a_model_gpas_changes_the_gradient_that_flows_down() {
    let gate = GateConfig::new().with_init(0.7);
    let plain = LlamaConfig::new(64, 32, 88, 2, 2).with_scheme("pre".parse().unwrap());
    let stopped = plain.clone().with_scheme("pre_gpas".parse().unwrap()).with_gate(gate);
    let unstopped = stopped.clone().with_gate(gate.with_stop_gradient(false));
    // One seed gives all three the same weights.
    let run = |config: &LlamaConfig| {
        let model = config.init::<B>(3, &FlexDevice);
        let TokenBatch { ids, targets, .. } = batch(0);
        let part = model.backward(ids, targets, 2 * SEQ);
        let gradient = part.gradients.get::<Flex, 2>(model.embedding.weight.id);
        (part.loss.into_scalar(), gradient.expect("a gradient of the embedding"))
    };
    let ((stopped_loss, gradient), (unstopped_loss, unstopped), (_, plain)) =
        (run(&stopped), run(&unstopped), run(&plain));
    assert_eq!(
        stopped_loss, unstopped_loss,
        "the stop-gradient has no part in the forward pass"
    );
    let norm = |tensor: Tensor<Flex, 2>| tensor.square().sum().sqrt().into_scalar();
    for (other, name) in [(unstopped, "without the stop-gradient"), (plain, "without GPAS")] {
        let difference = norm(gradient.clone() - other.clone()) / norm(other);
        println!("the embedding's gradient differs from that {name} by {difference:.3} of its norm");
        assert!(difference > 1e-3, "{name}: {difference}");
    }
}

/// Burn's own learner trains the model, with nothing from this workspace but the model.
#[test]
fn a_stock_learner_trains_the_model() {
    let place = tempfile::tempdir().unwrap();
    // Three batches of two rows.
    let rows: Vec<Row> = (0..6).map(|index| row(index * SEQ)).collect();
    let training = DataLoaderBuilder::<B, _, _>::new(Rows)
        .batch_size(2)
        .build(InMemDataset::new(rows.clone()));
    let validation = DataLoaderBuilder::<Flex, _, _>::new(Rows)
        .batch_size(6)
        .build(InMemDataset::new(rows.clone()));
    let scheme = "pre_gpas".parse().unwrap();
    let model = LlamaConfig::new(64, 32, 88, 2, 2)
        .with_scheme(scheme)
        .init::<B>(3, &FlexDevice);
    let loss = |model: &gpas_model::Llama<Flex>| {
        let output = InferenceStep::step(model, Rows.batch(rows.clone(), &FlexDevice));
        f64::from(output.loss.into_scalar())
    };
    let before = loss(&model.valid());

    let result = SupervisedTraining::new(place.path(), training, validation)
        .metrics((LossMetric::<Flex>::new(),))
        .num_epochs(1)
        // The default ones take over the terminal and the process's logger.
        .renderer(CliMetricsRenderer::new())
        .with_application_logger(None)
        .launch(Learner::new(model, AdamConfig::new().init(), 3e-3));

    let after = loss(&result.model);
    let recorded = |split| -> Vec<f64> {
        let entries = FileMetricLogger::new(place.path()).read_numeric("Loss", 1, &split);
        entries.unwrap().iter().map(NumericEntry::current).collect()
    };
    let (trained, validated) = (recorded(Split::Train), recorded(Split::Valid));
    println!("{before:.4} -> {after:.4}; training losses {trained:?}, validation {validated:?}");
    assert!(after.is_finite() && after < 0.97 * before, "{before} -> {after}");
    assert_eq!(trained.len(), 3, "{trained:?}");
    assert!(trained[2] < trained[0], "{trained:?}");
    // What the metric saw is the loss of the model that comes back.
    assert_eq!(validated.len(), 1, "{validated:?}");
    assert!((validated[0] - after).abs() < 1e-6, "{validated:?}, {after}");
}
