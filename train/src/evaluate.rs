//! Evaluation: the mean loss over validation tokens, and its exponential, the perplexity.
//!
//! The average is over tokens, not over batches. (The released trainer's batch count starts at 1, so what it reports is the loss times
//! n / (n + 1) for n batches.)

use burn::data::dataloader::batcher::Batcher;
use burn::tensor::backend::Backend;
use gpas_data::DataError;
use gpas_data::batch::{EvaluationBatches, Window, WindowBatcher, Windows};
use gpas_model::{Llama, TokenBatch};

use crate::metrics::EvalRecord;

/// Loss and perplexity of `model` on the first windows that hold `tokens` scored tokens, after `step` optimizer steps.
///
/// # Errors
/// If there is no window, or the data is damaged.
pub fn evaluate<B: Backend>(
    model: &Llama<B>,
    windows: Windows,
    batch: usize,
    tokens: Option<usize>,
    step: u64,
    device: &B::Device,
) -> Result<EvalRecord, DataError> {
    let batches = EvaluationBatches::<B>::new(windows, batch, tokens, device.clone())?;
    let mut loss = 0.0;
    for index in 0..batches.batches() {
        let batch = to_device(batches.windows_of_batch(index)?, device);
        // Added up on the host in f64: the same on every backend but for the losses themselves.
        let losses = model.token_losses(batch.ids, batch.targets).into_data();
        loss += losses.iter::<f64>().sum::<f64>();
    }
    let tokens = batches.scored();
    let loss = loss / tokens.max(1) as f64;
    Ok(EvalRecord {
        step,
        loss,
        perplexity: loss.exp(),
        tokens: tokens as u64,
    })
}

/// Windows as the model takes them.
pub fn to_device<B: Backend>(windows: Vec<Window>, device: &B::Device) -> TokenBatch<B> {
    let batch: gpas_data::batch::TokenBatch<B> = WindowBatcher.batch(windows, device);
    TokenBatch {
        ids: batch.ids,
        targets: batch.targets,
    }
}
