//! A normalisation scheme of one's own: described in a row, trained for some steps, saved by its released names and loaded again.
//!
//! ```text
//! cargo run --release -p gpas-model --example own_scheme
//! ```

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::{AdamConfig, Optimizer};
use burn::tensor::{Int, Tensor};
use burn_flex::{Flex, FlexDevice};
use gpas_model::scheme::{BranchScaling, SchemeRow, Wiring};
use gpas_model::weights::SafetensorsFile;
use gpas_model::{Llama, LlamaConfig, NormScheme, Scheme};

type B = Autodiff<Flex>;

/// Post-LN in the first half of the layers; Sandwich-LN with a trained scale per channel in the second.
static HALVES: SchemeRow = SchemeRow::new("halves", "Post-LN below, scaled Sandwich-LN above", &|layer| {
    if layer.index < layer.layers / 2 {
        return Wiring::POST;
    }
    Wiring {
        branch_scale: Some(BranchScaling::PerChannel { start: 0.5 }),
        ..Wiring::SANDWICH
    }
});

/// Sequences of 17 tokens, each of which is its predecessor times 3, plus 1, modulo 31.
fn sequences(first: i32) -> (Tensor<B, 2, Int>, Tensor<B, 2, Int>) {
    let tokens = |start: i32| std::iter::successors(Some(start), |token| Some((token * 3 + 1) % 31)).take(17);
    let ids: Vec<i32> = (0..8).flat_map(|row| tokens((first + row) % 31)).collect();
    let ids = Tensor::<B, 1, Int>::from_ints(ids.as_slice(), &FlexDevice).reshape([8, 17]);
    (ids.clone().narrow(1, 0, 16), ids.narrow(1, 1, 16))
}

fn loss(model: &Llama<Flex>) -> f32 {
    let (ids, targets) = sequences(0);
    let losses = model.token_losses(ids.inner(), targets.inner());
    losses.mean().into_scalar()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scheme = Scheme {
        norm: NormScheme::own(&HALVES)?,
        gpas: true,
    };
    let config = LlamaConfig::new(31, 32, 88, 4, 4).with_scheme(scheme);
    print!("{}", config.describe());

    let mut model = config.try_init::<B>(1, &FlexDevice)?;
    let before = loss(&model.valid());
    let mut adam = AdamConfig::new().init();
    for step in 0..60 {
        let (ids, targets) = sequences(step);
        let found = model.backward(ids, targets, 8 * 16);
        let progress = model.progress().next();
        model = adam.step(3e-3, model, found.gradients).with_progress(progress);
    }
    let trained = model.valid();
    println!("loss {before:.3} before, {:.3} after 60 steps", loss(&trained));

    let path = std::env::temp_dir().join(format!("own_scheme-{}.safetensors", std::process::id()));
    trained.save(&config, &path)?;
    let names = SafetensorsFile::open(&path)?;
    for (name, _, shape) in names.tensors().filter(|(name, ..)| name.contains("layers.3.")) {
        println!("{name} {shape:?}");
    }
    let loaded = Llama::<Flex>::load(&config, &path, &FlexDevice)?;
    std::fs::remove_file(&path)?;
    println!("loss {:.3} after loading", loss(&loaded));
    assert_eq!(loss(&loaded).to_bits(), loss(&trained).to_bits());
    assert!(loss(&trained) < 0.5 * before, "the scheme has learned");
    Ok(())
}
