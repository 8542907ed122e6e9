//! How fast a model trains here: timed optimizer steps on random tokens, through the step function of training.
//!
//! The floating-point operations of a step are set against what the same backend makes of bare matrix products, the best of the step's own
//! shapes and, on a processor, of a cube, so that the share says how much of a step is lost between them. Two schemes are compared within one
//! process, a step of one and a step of the other in turn, since a machine's speed drifts by more than schemes differ.

pub mod generation;
pub mod launches;

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Distribution, Tensor};
use gpas_model::fast::product;
use gpas_model::{Llama, LlamaConfig, Precision, TokenBatch};
use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::memory::peak_memory;
use crate::profile::{ProfileError, Profiler, Share};
use gpas_train::backend::{BackendTask, Selected};
use gpas_train::recipe::{Recipe, RecipeError, RecipeOptions, resolve};
use gpas_train::trainer::Trainer;
use gpas_train::training::{TrainingError, check_precision};

/// What to time.
pub struct Benchmark {
    /// The model.
    pub model: Candidate,
    /// Another one, of which a step is made after each step of the first.
    pub versus: Option<Candidate>,
    /// Steps that are timed.
    pub steps: usize,
    /// Steps before them.
    pub warmup: usize,
    /// Whether to tell where the time of the steps goes.
    pub profile: bool,
    /// Where it runs, for the report.
    pub selected: Selected,
}

/// A model to be timed.
pub struct Candidate {
    /// The recipe, for the sizes of model and batch and for the optimizer.
    pub recipe: Recipe,
    /// The model.
    pub config: LlamaConfig,
}

impl Candidate {
    /// The model of a command line, whose vocabulary is the recipe's or else `vocab`.
    ///
    /// # Errors
    /// If an option is wrong, or the sizes do not fit together.
    pub fn new(options: &RecipeOptions, vocab: usize) -> Result<Self, RecipeError> {
        let recipe = resolve(None, options)?;
        let config = recipe.llama(vocab)?;
        Ok(Self { recipe, config })
    }
}

/// The result, with the keys of the PyTorch peer and more.
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
    /// Time of the first step of all in seconds, in which a card's kernels are compiled and chosen.
    pub first_step_s: f64,
    /// Time of the fastest step in seconds: what other programs on the machine touch least.
    pub fastest_step_s: f64,
    /// Bytes: on a CPU the largest resident memory of the process, on a GPU what its allocator has taken from the card, which it does not
    /// give back while it works.
    pub peak_bytes: Option<u64>,
    /// Floating-point operations per second of the median step: [`LlamaConfig::flops_per_token`] times `tokens_per_s`.
    pub flops_per_s: f64,
    /// Floating-point operations per second of the fastest matrix product.
    pub matmul_flops_per_s: f64,
    /// `flops_per_s` over `matmul_flops_per_s`.
    pub matmul_share: f64,
    /// Against another scheme, if asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versus: Option<Versus>,
    /// Where the time of the timed steps goes, if asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<Share>,
}

/// The time of a step over that of another scheme.
#[derive(Clone, Debug, Serialize)]
pub struct Versus {
    /// The other scheme.
    pub scheme: String,
    /// Geometric mean of the ratios of neighbouring steps.
    pub ratio: f64,
    /// Lower end of its 95 % interval, by Student's t on the logarithms.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Versus {
    /// From the times of neighbouring steps; the interval is unbounded for a single pair.
    fn of(scheme: String, times: &[f64], others: &[f64]) -> Self {
        let logs: Vec<f64> = times
            .iter()
            .zip(others)
            .map(|(time, other)| (time / other).ln())
            .collect();
        let count = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / count;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let half = match StudentsT::new(0.0, 1.0, count - 1.0) {
            Ok(student) => student.inverse_cdf(0.975) * (variance / count).sqrt(),
            Err(_) => f64::INFINITY,
        };
        Self {
            scheme,
            ratio: mean.exp(),
            low: (mean - half).exp(),
            high: (mean + half).exp(),
        }
    }
}

/// Why nothing was timed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum BenchmarkError {
    #[error(transparent)]
    Training(#[from] TrainingError),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error("launches cannot be noted: this process has a logger already")]
    LoggerIsTaken,
    #[error("the device's runtime tells of no kernel that it launches")]
    NoLaunches,
    #[error("{0} computes on the processor, which launches no kernels")]
    NoKernels(Selected),
}

impl BenchmarkError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            BenchmarkError::Training(error) => error.hint(),
            BenchmarkError::Profile(error) => error.hint(),
            BenchmarkError::NoKernels(_) => Some("`--profile` tells where the time goes there".into()),
            BenchmarkError::LoggerIsTaken | BenchmarkError::NoLaunches => None,
        }
    }
}

/// One of the models being timed.
struct Runner<B: AutodiffBackend> {
    trainer: Trainer<B>,
    ids: RandomIds,
    batch: usize,
    micro_batch: usize,
    seq: usize,
    times: Vec<f64>,
}

impl<B: AutodiffBackend> Runner<B> {
    fn new(candidate: &Candidate, device: &B::Device) -> Result<Self, TrainingError> {
        let Candidate { recipe, config } = candidate;
        let model: Llama<B> = config.init(recipe.train.seed, device);
        Ok(Self {
            trainer: Trainer::new(model, recipe.optimizer(), recipe.schedule().rates())?,
            ids: RandomIds {
                state: recipe.train.seed,
                vocab: config.vocab as u64,
            },
            batch: recipe.train.batch,
            micro_batch: recipe.train.micro_batch,
            seq: recipe.data.seq_len,
            times: Vec::new(),
        })
    }

    /// Makes one step and notes its time.
    fn step(mut self, device: &B::Device) -> Self {
        let micro_batches: Vec<TokenBatch<B>> = (0..self.batch)
            .step_by(self.micro_batch)
            .map(|start| {
                self.ids
                    .batch(self.micro_batch.min(self.batch - start), self.seq, device)
            })
            .collect();
        let begin = Instant::now();
        let (trainer, report) = self.trainer.step(micro_batches, self.batch * self.seq);
        self.trainer = trainer;
        black_box(report);
        wait_for::<B>(device);
        self.times.push(begin.elapsed().as_secs_f64());
        self
    }
}

/// Waits until the device has done everything that it was given.
fn wait_for<B: Backend>(device: &B::Device) {
    if let Err(error) = B::sync(device) {
        panic!("the device failed: {error:?}");
    }
}

impl BackendTask for Benchmark {
    type Output = Result<BenchmarkReport, BenchmarkError>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let Self {
            model,
            versus,
            steps,
            warmup,
            profile,
            selected,
        } = self;
        check_precision::<B>(&model.config, &device)?;
        let mut runner = Runner::<B>::new(&model, &device)?;
        let other = versus.as_ref().map(|versus| Runner::<B>::new(versus, &device));
        let mut other = other.transpose()?;
        let mut profiler = None;
        for index in 0..warmup + steps {
            if profile && index == warmup {
                profiler = Some(Profiler::start()?);
            }
            // The second of a pair runs with the caches that the first left behind, so the two take turns at going second.
            if index % 2 == 1 {
                other = other.map(|other| other.step(&device));
            }
            runner = runner.step(&device);
            if index % 2 == 0 {
                other = other.map(|other| other.step(&device));
            }
        }
        let profile = match profiler {
            Some(profiler) => profiler.shares()?,
            None => Vec::new(),
        };
        // Read before the matrix products below, which take memory of their own.
        let peak_bytes = match selected.is_cpu() {
            true => Some(peak_memory()),
            false => selected.device_memory().map(|memory| memory.reserved),
        };
        let first_step_s = runner.times[0];
        let times = runner.times.split_off(warmup);
        let versus = other.zip(versus).map(|(mut other, versus)| {
            let others = other.times.split_off(warmup);
            Versus::of(versus.recipe.model.scheme.to_string(), &times, &others)
        });
        let Candidate { recipe, config } = model;
        let (batch, seq) = (recipe.train.batch, recipe.data.seq_len);
        let fastest_step_s = times.iter().copied().fold(f64::INFINITY, f64::min);
        let step_s = median(times);
        let tokens_per_s = (batch * seq) as f64 / step_s;
        let flops_per_s = config.flops_per_token(seq) * tokens_per_s;
        let tokens = recipe.train.micro_batch.min(batch) * seq;
        let matmul_flops_per_s = fastest_product::<B::InnerBackend>(&config, tokens, selected, &device);
        Ok(BenchmarkReport {
            peer: format!("gpas-{selected}"),
            preset: recipe.model.preset,
            scheme: recipe.model.scheme.to_string(),
            batch,
            seq,
            vocab: config.vocab,
            dtype: peer_name(recipe.train.precision).into(),
            tokens_per_s: (tokens_per_s * 10.0).round() / 10.0,
            step_s: (step_s * 1e4).round() / 1e4,
            first_step_s: (first_step_s * 1e4).round() / 1e4,
            fastest_step_s: (fastest_step_s * 1e4).round() / 1e4,
            peak_bytes,
            flops_per_s: flops_per_s.round(),
            matmul_flops_per_s: matmul_flops_per_s.round(),
            matmul_share: (flops_per_s / matmul_flops_per_s * 1e4).round() / 1e4,
            versus,
            profile,
        })
    }
}

/// The median.
pub(crate) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Floating-point operations per second of the fastest matrix product, of the shapes that a step multiplies and, on a processor, of a cube,
/// each at its best of several. A card is asked for nothing but what a step has chosen kernels for: to choose them takes it seconds each.
fn fastest_product<B: Backend>(config: &LlamaConfig, tokens: usize, selected: Selected, device: &B::Device) -> f64 {
    const TRIES: usize = 7;
    let (hidden, intermediate) = (config.hidden, config.intermediate);
    // The loss computes the logits of at most so many tokens at a time.
    let rows = tokens.min(1024);
    let format = config.precision.products();
    let of_a_step = [
        [tokens, hidden, hidden],
        [tokens, hidden, intermediate],
        [tokens, intermediate, hidden],
    ];
    let of_a_processor = [[hidden, tokens, intermediate], [rows, hidden, config.vocab], [2048; 3]];
    // A card finishes a product in less time than it takes to wait for it, so it is given many in a row. A software driver takes seconds
    // for a product that a processor finishes at once.
    let (more, repeats): (&[[usize; 3]], _) = match selected {
        _ if selected.is_cpu() => (&of_a_processor, 1),
        _ if selected.is_software() => (&[], 1),
        _ => (&[], 20),
    };
    let rate = |[rows, inner, columns]: [usize; 3]| {
        // A card draws less current for numbers that are all alike, and is quicker with them than with those of a step.
        let random = |shape: [usize; 2]| {
            let format = (device, DType::F32);
            Tensor::<B, 2>::random(shape, Distribution::Normal(0.0, 1.0), format)
        };
        let (a, b) = (
            random([rows, inner]).cast(format),
            random([inner, columns]).cast(format),
        );
        let seconds = (0..TRIES).map(|_| {
            wait_for::<B>(device);
            let begin = Instant::now();
            for _ in 0..repeats {
                // The product that a training step uses; `None` means that it uses the backend's own.
                black_box(product(&a, &b).unwrap_or_else(|| a.clone().matmul(b.clone())));
            }
            wait_for::<B>(device);
            begin.elapsed().as_secs_f64() / repeats as f64
        });
        2.0 * (rows * inner * columns) as f64 / seconds.fold(f64::INFINITY, f64::min)
    };
    // A rate that is no number counts as the largest, so that it shows.
    let rates = of_a_step.into_iter().chain(more.iter().copied()).map(rate);
    rates.max_by(f64::total_cmp).unwrap_or(0.0)
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
    fn next(&mut self) -> u32 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) % self.vocab) as u32
    }

    /// `[batch, seq]` ids, each position scored against the next one.
    fn batch<B: AutodiffBackend>(&mut self, batch: usize, seq: usize, device: &B::Device) -> TokenBatch<B> {
        let ids: Vec<u32> = (0..batch * seq + 1).map(|_| self.next()).collect();
        let targets: Vec<i32> = ids[1..].iter().map(|id| id.cast_signed()).collect();
        let rows = ids[..batch * seq].chunks(seq).zip(targets.chunks(seq));
        TokenBatch::from_rows(rows, device).expect("rows of one length, whose ids have 31 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ratios e^0.1, e^0.2 and e^0.3: mean 0.2, standard error 0.1/√3, t of two degrees of freedom 4.3027.
    #[test]
    fn a_ratio_comes_with_its_interval() {
        let others = [1.0, 2.0, 4.0];
        let times: Vec<f64> = others
            .iter()
            .zip([0.1f64, 0.2, 0.3])
            .map(|(other, log)| other * log.exp())
            .collect();
        let versus = Versus::of("pre".into(), &times, &others);
        let half = 4.302_65 * 0.1 / 3f64.sqrt();
        assert!((versus.ratio.ln() - 0.2).abs() < 1e-12);
        assert!((versus.low.ln() - (0.2 - half)).abs() < 1e-5, "{versus:?}");
        assert!((versus.high.ln() - (0.2 + half)).abs() < 1e-5, "{versus:?}");
        assert_eq!(Versus::of("pre".into(), &times[..1], &others[..1]).high, f64::INFINITY);
    }
}
