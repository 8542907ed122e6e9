//! Parity with the published models: every golden, on every CPU backend, through the library's own model, optimizer and step. What a GPU's
//! backend has to show is in `selfcheck.rs`.
//!
//! Which differences are allowed, and why, stands at `Tolerances` in `train/src/selfcheck/parity.rs`.

use burn::backend::Autodiff;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::AutodiffBackend;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use gpas::selfcheck::golden::{Cut, Golden, HostBatch};
use gpas::selfcheck::parity::{Measure, Tolerances, Trained, compare, compare_with_training};
use gpas_model::weights::NamedTensors;
use gpas_model::{Llama, Precision};
use gpas_tests::{committed_goldens, goldens};
use gpas_train::optimizer::{ClippedAdam, GradientNorms, OptimizerConfig};

/// A deliberate mistake, to show that the goldens would catch it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    ClippingOff,
    GatesClippedSingly,
    MicroBatchMeansAveraged,
    NormMisplaced,
    StopGradientOff,
}

impl Mistake {
    /// What a model or a training with this mistake in it differs by.
    fn differences(self, golden: &Golden) -> Vec<Measure> {
        type B = Autodiff<Flex>;
        let device = Default::default();
        let mut golden = golden.clone();
        match self {
            Mistake::ClippingOff => (golden.optimizer.clip, golden.optimizer.clip_gate) = (0.0, 0.0),
            Mistake::StopGradientOff => golden.config.gate.stop_gradient = false,
            Mistake::NormMisplaced => misplace_norms(&mut golden),
            Mistake::GatesClippedSingly | Mistake::MicroBatchMeansAveraged => {
                let train = |model| Ok(train_wrongly::<B>(&golden, model, self, &device));
                return compare_with_training(&golden, &Tolerances::F32, &device, train).expect("a golden");
            }
        }
        compare::<B>(&golden, &Tolerances::F32, &device).expect("a golden")
    }
}

/// The training of a golden, with one of the two mistakes that lie in the step itself.
fn train_wrongly<B: AutodiffBackend>(
    golden: &Golden,
    mut model: Llama<B>,
    mistake: Mistake,
    device: &B::Device,
) -> Trained<B> {
    let singly = mistake == Mistake::GatesClippedSingly;
    let mut config = golden.optimizer;
    if singly {
        config.clip_gate = 0.0;
    }
    let mut losses = Vec::new();
    let mut optimizer = ClippedAdam::new(config, &model.parameters()).expect("parameters with ids of their own");
    for (index, step) in golden.steps().iter().enumerate() {
        let scored: usize = step.iter().map(HostBatch::scored).sum();
        let mut accumulator = GradientsAccumulator::new();
        let mut loss = 0.0;
        for host in step {
            let batch = host.on::<B>(device);
            let denominator = if singly { scored } else { host.scored() * step.len() };
            let part = model.backward(batch.ids, batch.targets, denominator);
            loss += part.loss.into_data().iter::<f64>().sum::<f64>();
            accumulator.accumulate(&model, part.gradients);
        }
        losses.push(loss);
        let mut gradients = accumulator.grads();
        if singly {
            clip_gates_singly(&model, &mut gradients, &golden.optimizer);
        }
        let norms = GradientNorms::of(&model.parameters(), &gradients);
        model = optimizer.step(golden.schedule.rate(index as u64), model, gradients, &norms);
    }
    (losses, model)
}

fn clip_gates_singly<B: AutodiffBackend>(model: &Llama<B>, gradients: &mut GradientsParams, config: &OptimizerConfig) {
    for gate in model.layers.iter().flat_map(|layer| &layer.gates) {
        if let Some(gradient) = gradients.remove::<B::InnerBackend, 1>(gate.gate.id) {
            let norm: f64 = gradient.clone().abs().into_data().iter::<f64>().sum();
            let factor = (config.clip_gate / (norm + 1e-6)).min(1.0);
            gradients.register(gate.gate.id, gradient.mul_scalar(factor));
        }
    }
}

/// The `pre` weights as those of a `post` model: the norms stand on the sums instead of before the sub-layers.
fn misplace_norms(golden: &mut Golden) {
    if golden.config.scheme.to_string() != "pre" {
        return;
    }
    golden.config.scheme = "post".parse().expect("a scheme");
    let rename = |name: &String| {
        name.replace("post_attention_layernorm", "post_feedforward_layernorm")
            .replace("input_layernorm", "post_attention_layernorm")
    };
    let renamed = |tensors: &NamedTensors| {
        let tensors = tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone()));
        tensors.collect()
    };
    golden.parameters = renamed(&golden.parameters);
    golden.gradients = renamed(&golden.gradients);
    golden.trained = renamed(&golden.trained);
}

fn told(measures: &[Measure]) -> String {
    let told = measures
        .iter()
        .map(|Measure { what, found, .. }| format!("{what} {found:.1e}"));
    told.collect::<Vec<_>>().join(", ")
}

fn parity<B: AutodiffBackend>(backend: &str, goldens: Vec<Golden>) {
    let mut failed = Vec::new();
    for golden in goldens {
        let found = compare::<B>(&golden, &Tolerances::F32, &B::Device::default()).expect("a golden");
        println!("{:32} {backend:8} {}", golden.name, told(&found));
        if !found.iter().all(Measure::passes) {
            failed.push(golden.name);
        }
    }
    assert!(failed.is_empty(), "{backend} differs from the goldens: {failed:?}");
}

#[test]
fn parity_flex() {
    parity::<Autodiff<Flex>>("flex", goldens());
}

#[test]
fn parity_ndarray() {
    parity::<Autodiff<NdArray>>("ndarray", goldens());
}

/// With products in bfloat16, in the fused operations: the largest differences over all goldens, with a quarter of headroom.
#[test]
fn parity_in_bfloat16() {
    const ROUNDED: Tolerances = Tolerances {
        hidden: 0.14,
        logits: 0.1,
        loss: 0.018,
        gradient: 0.29,
        trained: 0.011,
    };
    let mut goldens = goldens();
    for golden in &mut goldens {
        golden.config.precision = Precision::Bf16;
    }
    let mut largest: Vec<Measure> = Vec::new();
    for golden in &goldens {
        let found = compare::<Autodiff<Flex>>(golden, &ROUNDED, &Default::default()).expect("a golden");
        println!("{:32} bf16 {}", golden.name, told(&found));
        for measure in found {
            assert!(measure.found > 0.0, "{}: {} is that of f32", golden.name, measure.what);
            match largest.iter_mut().find(|largest| largest.what == measure.what) {
                Some(largest) if largest.found >= measure.found => (),
                Some(largest) => *largest = measure,
                None => largest.push(measure),
            }
        }
    }
    println!("{:32} bf16 {}", "all", told(&largest));
    assert!(largest.iter().all(Measure::passes), "{}", told(&largest));
}

/// Both clips included: a step is the same whether its batch is taken whole, in the golden's micro-batches, or row by row.
#[test]
fn parity_however_a_step_is_cut() {
    for (cut, name) in [(Cut::Whole, "whole"), (Cut::Rows, "rows")] {
        let mut goldens = goldens();
        for golden in &mut goldens {
            golden.cut = cut;
        }
        parity::<Autodiff<Flex>>(name, goldens);
    }
}

/// Layers that are computed again in the backward pass give the same gradients.
#[test]
fn parity_with_recomputation() {
    let mut goldens = goldens();
    for golden in &mut goldens {
        golden.config.recompute = true;
    }
    parity::<Autodiff<Flex>>("again", goldens);
}

/// Each deliberate mistake breaks a case that passes without it. The committed goldens are made for that (all of the paper's schemes,
/// limits that clip, unequal micro-batches); others need not show every mistake.
#[test]
fn parity_of_the_committed_goldens_catches_mistakes() {
    let mistakes = [
        Mistake::ClippingOff,
        Mistake::GatesClippedSingly,
        Mistake::MicroBatchMeansAveraged,
        Mistake::NormMisplaced,
        Mistake::StopGradientOff,
    ];
    let goldens = committed_goldens();
    parity::<Autodiff<Flex>>("flex", goldens.clone());
    for mistake in mistakes {
        let is_broken = |golden: &&Golden| !mistake.differences(golden).iter().all(Measure::passes);
        let broken: Vec<&str> = goldens
            .iter()
            .filter(is_broken)
            .map(|golden| golden.name.as_str())
            .collect();
        println!(
            "{mistake:?} breaks {} of {}: {}",
            broken.len(),
            goldens.len(),
            broken.join(" ")
        );
        assert!(!broken.is_empty(), "{mistake:?} goes unnoticed");
    }
}
