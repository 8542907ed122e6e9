//! How fast a model generates here: a prompt of random tokens, then one token at a time, the most probable one, with the key-value cache.

use std::time::Instant;

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use gpas_model::{Llama, Progress};
use serde::Serialize;

use super::{BenchmarkError, Candidate, RandomIds, median};
use gpas_serve::sampler::most_probable;
use gpas_train::backend::{BackendTask, Selected};
use gpas_train::training::check_precision;

/// What to time.
pub struct GenerationBenchmark {
    /// The model.
    pub model: Candidate,
    /// Tokens of the prompt.
    pub length: usize,
    /// Tokens after it.
    pub tokens: usize,
    /// Where it runs, for the report.
    pub selected: Selected,
}

/// The result, with the keys of the `transformers` peer and more.
#[derive(Clone, Debug, Serialize)]
pub struct GenerationReport {
    /// This program and its backend.
    pub peer: String,
    /// Name of the size.
    pub preset: String,
    /// Normalisation scheme.
    pub scheme: String,
    /// Tokens of the prompt.
    pub length: usize,
    /// Tokens that were generated.
    pub tokens: usize,
    /// Tokens of the prompt per second.
    pub prompt_tokens_per_s: f64,
    /// Generated tokens per second at the median one.
    pub tokens_per_s: f64,
}

impl BackendTask for GenerationBenchmark {
    type Output = Result<GenerationReport, BenchmarkError>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let Candidate { recipe, config } = self.model;
        check_precision::<B>(&config, &device)?;
        let model: Llama<B::InnerBackend> = config.init(recipe.train.seed, &device);
        let model = model.with_progress(Progress::COMPLETE);
        let mut random = RandomIds {
            state: recipe.train.seed,
            vocab: config.vocab as u64,
        };
        let ids: Vec<u32> = (0..self.length).map(|_| random.next() as u32).collect();
        // The first time warms up.
        generate(&model, &ids, self.tokens);
        let (prompt_s, times) = generate(&model, &ids, self.tokens);
        let rounded = |rate: f64| (rate * 10.0).round() / 10.0;
        Ok(GenerationReport {
            peer: format!("gpas-{}", self.selected),
            preset: recipe.model.preset,
            scheme: recipe.model.scheme.to_string(),
            length: self.length,
            tokens: self.tokens,
            prompt_tokens_per_s: rounded(self.length as f64 / prompt_s),
            tokens_per_s: rounded(1.0 / median(times)),
        })
    }
}

/// Seconds of the prompt, and of each token after it.
fn generate<B: Backend>(model: &Llama<B>, ids: &[u32], tokens: usize) -> (f64, Vec<f64>) {
    let next = |logits: Tensor<B, 2>| {
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        most_probable(&logits)
    };
    let mut cache = model.cache();
    let begin = Instant::now();
    let hidden = model.extend(ids, &mut cache);
    let mut last = next(model.next_logits(hidden.narrow(0, ids.len() - 1, 1)));
    let prompt_s = begin.elapsed().as_secs_f64();
    let times = (0..tokens).map(|_| {
        let begin = Instant::now();
        last = next(model.decode(&[last], &mut [&mut cache]));
        begin.elapsed().as_secs_f64()
    });
    let times = times.collect();
    (prompt_s, times)
}
