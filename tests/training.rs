//! Every scheme learns from its initial weights.

use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor};
use burn_flex::{Flex, FlexDevice};
use gpas_model::{Initialisation, LlamaConfig, Scheme, TokenBatch};
use gpas_tests::cosine;
use gpas_train::optimizer::{OptimizerConfig, OptimizerKind};
use gpas_train::trainer::Trainer;

type B = Autodiff<Flex>;

/// A sentence that repeats, so that there is something to learn.
fn batch(step: usize) -> TokenBatch<B> {
    let text = b"the quick brown fox jumps over the lazy dog and runs away; ";
    let id = |position: usize| i32::from(text[(position + step) % text.len()] % 64);
    let (ids, targets): (Vec<i32>, Vec<i32>) = (0..2 * 24).map(|position| (id(position), id(position + 1))).unzip();
    let tensor = |values: Vec<i32>| Tensor::<B, 1, Int>::from_ints(values.as_slice(), &FlexDevice).reshape([2, 24]);
    TokenBatch {
        ids: tensor(ids),
        targets: tensor(targets),
    }
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
                .with_initialisation(initialisation);
            let mut trainer = Trainer::<B>::new(config.init(3, &FlexDevice), optimizer, cosine(3e-3, 3, 30, 0.1));
            let mut losses = Vec::new();
            for step in 0..30 {
                let (next, report) = trainer.step([batch(step)], 48);
                trainer = next;
                losses.push(report.loss.into_scalar());
                assert!(
                    report.norms.global.into_scalar().is_finite(),
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
