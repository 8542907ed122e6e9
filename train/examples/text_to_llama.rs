//! From text to a trained model: documents, a tokenizer of their own, prepared data, batches, a Llama with GPAS, training steps.
//!
//! `cargo run --release -p gpas-train --example text_to_llama`

use std::error::Error;
use std::fs;

use burn::backend::Autodiff;
use burn::data::dataloader::DataLoader;
use burn_flex::{Flex, FlexDevice};
use gpas_data::bpe::train_bpe;
use gpas_data::prepare::{PrepareOptions, prepare};
use gpas_data::source::{Documents, ReadOptions};
use gpas_data::{PreparedData, TrainBatches, WindowMode, Windows};
use gpas_model::LlamaConfig;
use gpas_train::optimizer::OptimizerConfig;
use gpas_train::schedule::Schedule;
use gpas_train::trainer::Trainer;

type B = Autodiff<Flex>;

const STEPS: usize = 60;

fn main() -> Result<(), Box<dyn Error>> {
    // Documents, one a line; any number of .jsonl, .parquet or .txt files would do as well.
    let place = tempfile::tempdir()?;
    let text = place.path().join("sums.jsonl");
    let sums = (0..400)
        .map(|n| (n % 20, n / 20))
        .map(|(a, b)| format!("{a} and {b} make {}", a + b));
    let lines: Vec<String> = sums.map(|sum| format!("{{\"text\": \"{sum}\"}}\n")).collect();
    fs::write(&text, lines.concat())?;
    let sources = [text];

    // A tokenizer trained on them, and the documents as tokens, a tenth of them held out.
    let tokenizer = place.path().join("tokenizer.json");
    train_bpe(Documents::open(&sources, ReadOptions::default())?, 280, true)?.save(&tokenizer)?;
    let out = place.path().join("prepared");
    prepare(&PrepareOptions::new(sources, tokenizer, "0.1".parse()?, &out))?;
    let data = PreparedData::open(&out)?;

    // Batches of 8 sequences of 32 tokens, in an order that is a function of (seed, step).
    let (seed, device) = (1, FlexDevice);
    let windows = Windows::new(data.train().clone(), WindowMode::Packed, 32, data.pad())?;
    let batches = TrainBatches::<B>::new(windows, seed, 8, 0..STEPS, device)?;

    // A model of two layers, and training steps on what the data loader gives.
    let config = LlamaConfig::new(data.tokenizer().vocab_size(), 32, 88, 2, 2).with_scheme("pre_gpas".parse()?);
    let optimizer = OptimizerConfig {
        clip: 1.0,
        ..OptimizerConfig::ADAM
    };
    let schedule = Schedule::cosine(1e-2, 6, STEPS as u64, 0.1);
    let mut trainer = Trainer::new(config.init::<B>(seed, &device), optimizer, schedule.rates())?;
    let mut losses = Vec::new();
    for batch in batches.iter() {
        let scored = batch.scored;
        let (next, report) = trainer.step([batch], scored);
        trainer = next;
        losses.push(report.loss);
    }
    batches.damage().check()?;

    let (first, last) = (losses[0], losses[STEPS - 1]);
    println!("loss {first:.3} before the first step, {last:.3} before the last");
    assert!(last.is_finite() && last < 0.6 * first, "{losses:?}");
    Ok(())
}
