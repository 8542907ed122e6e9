//! How fast a model trains here: timed optimizer steps on random tokens, through the step function of training.

use std::time::Instant;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use gpas_model::{Llama, LlamaConfig, Precision, TokenBatch};
use serde::Serialize;

use crate::backend::{BackendTask, Selected};
use crate::memory::peak_memory;
use crate::recipe::Recipe;
use crate::trainer::Trainer;
use crate::training::{TrainingError, check_precision};

/// What to time.
pub struct Benchmark {
    /// The recipe, for the sizes of model and batch and for the optimizer.
    pub recipe: Recipe,
    /// The model.
    pub config: LlamaConfig,
    /// Steps that are timed.
    pub steps: usize,
    /// Steps before them.
    pub warmup: usize,
    /// Where it runs, for the report.
    pub selected: Selected,
}

/// The result, with the keys of the PyTorch peer.
#[derive(Clone, Debug, Serialize)]
pub struct BenchmarkReport {
    /// This program and its backend.
    pub peer: String,
    /// Name of the size.
    pub preset: String,
    /// Normalisation scheme.
    pub scheme: String,
    /// Sequences in a step.
    pub batch: usize,
    /// Tokens in a sequence.
    pub seq: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Number format.
    pub dtype: String,
    /// Positions per second at the median step.
    pub tokens_per_s: f64,
    /// Median time of a step in seconds.
    pub step_s: f64,
    /// Largest resident memory of the process in bytes on a CPU; none on a GPU, whose memory is not the process's.
    pub peak_bytes: Option<u64>,
}

impl BackendTask for Benchmark {
    type Output = Result<BenchmarkReport, TrainingError>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let Self {
            recipe,
            config,
            steps,
            warmup,
            selected,
        } = self;
        check_precision::<B>(&config, &device)?;
        let (batch, seq) = (recipe.train.batch, recipe.data.seq_len);
        let model: Llama<B> = config.init(recipe.train.seed, &device);
        let mut trainer = Trainer::new(model, recipe.optimizer(), recipe.schedule());
        let mut ids = RandomIds {
            state: recipe.train.seed,
            vocab: config.vocab as u64,
        };
        let mut times = Vec::with_capacity(steps);
        for index in 0..warmup + steps {
            let micro_batches: Vec<TokenBatch<B>> = (0..batch)
                .step_by(recipe.train.micro_batch)
                .map(|start| ids.batch(recipe.train.micro_batch.min(batch - start), seq, &device))
                .collect();
            let begin = Instant::now();
            let (next, report) = trainer.step(micro_batches, batch * seq);
            trainer = next;
            std::hint::black_box(report);
            // The update is still on its way on a device that works by itself.
            if let Err(error) = B::sync(&device) {
                panic!("the device failed: {error:?}");
            }
            if index >= warmup {
                times.push(begin.elapsed().as_secs_f64());
            }
        }
        times.sort_by(f64::total_cmp);
        let step_s = times[times.len() / 2];
        Ok(BenchmarkReport {
            peer: format!("gpas-{selected}"),
            preset: recipe.model.preset,
            scheme: recipe.model.scheme.to_string(),
            batch,
            seq,
            vocab: config.vocab,
            dtype: peer_name(recipe.train.precision).into(),
            tokens_per_s: ((batch * seq) as f64 / step_s * 10.0).round() / 10.0,
            step_s: (step_s * 1e4).round() / 1e4,
            peak_bytes: selected.is_cpu().then(peak_memory),
        })
    }
}

/// What the PyTorch peer calls a number format.
fn peer_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "float32",
        Precision::Bf16 => "mixed",
        Precision::Bf16Pure => "bfloat16",
    }
}

/// Token ids from a linear congruential generator: their values do not matter, and drawing them must cost nothing.
struct RandomIds {
    state: u64,
    vocab: u64,
}

impl RandomIds {
    fn next(&mut self) -> i64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) % self.vocab) as i64
    }

    /// `[batch, seq]` ids, each position scored against the next one.
    fn batch<B: AutodiffBackend>(&mut self, batch: usize, seq: usize, device: &B::Device) -> TokenBatch<B> {
        let ids: Vec<i64> = (0..batch * seq + 1).map(|_| self.next()).collect();
        let tensor =
            |part: &[i64]| Tensor::<B, 2, Int>::from_data(TensorData::new(part.to_vec(), [batch, seq]), device);
        TokenBatch {
            ids: tensor(&ids[..batch * seq]),
            targets: tensor(&ids[1..]),
        }
    }
}
