//! A training run from its first step to its last: batches, steps, evaluations, records, checkpoints.
//!
//! The loop is our own and drives burn-train's dashboard: burn-train's learner counts micro-batches as iterations, keeps its optimizer to
//! itself and cannot be told at which token to go on, all of which an exact run needs.

use std::path::PathBuf;
use std::time::Instant;

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use gpas_data::DataError;
use gpas_data::batch::{TrainBatches, Window, WindowMode, Windows};
use gpas_data::store::PreparedData;
use gpas_model::{Llama, LlamaConfig};

use crate::backend::BackendTask;
use crate::checkpoint::{self, CheckpointError, RunState};
use crate::dashboard::Dashboard;
use crate::evaluate::{evaluate, to_device};
use crate::metrics::{EvalRecord, GateRange, MetricsFile, Record, TrainRecord};
use crate::recipe::Recipe;
use crate::run::{RunDirectory, RunError, RunInfo};
use crate::trainer::{StepReport, Trainer};

/// Everything a run needs to begin; nothing has been written yet.
pub struct TrainingRun {
    /// The recipe, its vocabulary decided.
    pub recipe: Recipe,
    /// The model.
    pub config: LlamaConfig,
    /// The prepared data.
    pub data: PreparedData,
    /// The facts to be recorded.
    pub info: RunInfo,
    /// Where the run goes.
    pub out: PathBuf,
    /// Lines instead of the dashboard.
    pub plain: bool,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run directory.
    pub run: RunDirectory,
    /// Before the first step.
    pub first: EvalRecord,
    /// After the last step.
    pub last: EvalRecord,
    /// Whether all steps of the recipe were done.
    pub complete: bool,
}

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum TrainingError {
    #[error("the data holds id {largest}, and model.vocab = {vocab}")]
    Vocabulary { largest: u32, vocab: usize },
    #[error("the data in {data} was prepared with another tokenizer than the run's")]
    Tokenizer { data: PathBuf, run: PathBuf },
    #[error("the data in {0} is not what the run was trained on")]
    DataChanged(PathBuf),
    #[error("{path}: {cause}")]
    Metrics { path: PathBuf, cause: std::io::Error },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl TrainingError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            TrainingError::Vocabulary { largest, .. } => Some(format!(
                "`--set model.vocab={}` is enough; without it, the tokenizer decides",
                u64::from(*largest) + 1
            )),
            TrainingError::Tokenizer { run, .. } => Some(format!("prepare it with `--tokenizer {}`", run.display())),
            TrainingError::DataChanged(path) => {
                Some(format!("`--data {}` evaluates on it all the same", path.display()))
            }
            TrainingError::Data(error) => error.hint(),
            TrainingError::Run(error) => error.hint(),
            TrainingError::Checkpoint(error) => error.hint(),
            TrainingError::Metrics { .. } => None,
        }
    }
}

/// Checks that the model has an embedding for every id of the windows, the padding included. The tokenizer's size is not the measure: some have ids that no text
/// uses, and some data was prepared with another.
///
/// # Errors
/// If an id is beyond the vocabulary.
pub fn check_vocabulary(recipe: &Recipe, data: &PreparedData, config: &LlamaConfig) -> Result<(), TrainingError> {
    let padding = match recipe.data.mode {
        WindowMode::Packed => 0,
        WindowMode::Padded => data.pad(),
    };
    let (largest, vocab) = (data.max_id().max(padding), config.vocab);
    if largest as usize >= vocab {
        return Err(TrainingError::Vocabulary { largest, vocab });
    }
    Ok(())
}

/// The validation windows of some data as a recipe cuts them.
///
/// # Errors
/// If the sequence length leaves nothing to score, or the data is damaged.
pub fn validation_windows(recipe: &Recipe, data: &PreparedData) -> Result<Windows, DataError> {
    Windows::new(
        data.validation().clone(),
        recipe.data.mode,
        recipe.data.seq_len,
        data.pad(),
    )
}

impl BackendTask for TrainingRun {
    type Output = Result<Outcome, TrainingError>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let Self {
            recipe,
            config,
            data,
            info,
            out,
            plain,
        } = self;
        check_vocabulary(&recipe, &data, &config)?;
        let windows = Windows::new(data.train().clone(), recipe.data.mode, recipe.data.seq_len, data.pad())?;
        let batches = TrainBatches::<B>::new(
            windows,
            recipe.train.seed,
            recipe.train.batch,
            0..recipe.train.steps as usize,
            device.clone(),
        )?;
        // Damage that only reading shows is found before anything is written.
        batches.windows_of_step(0)?;
        let validation = validation_windows(&recipe, &data)?;
        let evaluation = |model: &Llama<B>, step| {
            let tokens = Some(recipe.eval.tokens as usize);
            let batch = recipe.train.micro_batch;
            evaluate(&model.valid(), validation.clone(), batch, tokens, step, &device)
        };

        let model: Llama<B> = config.init(recipe.train.seed, &device);
        let mut trainer = Trainer::new(model, recipe.optimizer(), recipe.schedule());
        let first = evaluation(trainer.model(), 0)?;
        let run = RunDirectory::create(&out, &recipe, &info, data.tokenizer().bytes())?;
        let mut records = Records::open(&run, Dashboard::open(plain, recipe.train.steps))?;
        records.evaluation(&first)?;

        let mut state = RunState { step: 0, tokens: 0 };
        let mut last = first;
        loop {
            let begin = Instant::now();
            let windows = batches.windows_of_step(state.step as usize)?;
            let (next, scored, report) = step(trainer, windows, &recipe, &device);
            trainer = next;
            state = RunState {
                step: state.step + 1,
                tokens: state.tokens + scored as u64,
            };
            let reading = Reading::of(trainer.model(), report);
            let positions = recipe.train.batch * recipe.data.seq_len;
            records.step(&TrainRecord {
                step: state.step,
                loss: reading.loss,
                lr: reading.rate,
                tokens: state.tokens,
                tokens_per_s: positions as f64 / begin.elapsed().as_secs_f64(),
                grad_norm: reading.grad_norm,
                gate_grad_norm: reading.gate_grad_norm,
                gates: GateRange::of(&reading.gates),
            })?;

            // Asked once a step: whoever stops the run after this gets the next step too, and its checkpoint.
            let ends = state.step == recipe.train.steps || records.dashboard.should_stop();
            if ends || state.step.is_multiple_of(recipe.eval.every) {
                last = evaluation(trainer.model(), state.step)?;
                records.evaluation(&last)?;
                // What evaluation allocated in other sizes than training goes back to the device.
                B::memory_cleanup(&device);
            }
            if ends || state.step.is_multiple_of(recipe.checkpoint.every) {
                let keep = recipe.checkpoint.keep as usize;
                checkpoint::write(&run.checkpoints_path(), &trainer, &config, state, keep)?;
            }
            if ends {
                break;
            }
        }
        let complete = state.step == recipe.train.steps;
        Ok(Outcome {
            run,
            first,
            last,
            complete,
        })
    }
}

/// One optimizer step on some windows, cut into the recipe's micro-batches; also the number of scored tokens.
fn step<B: AutodiffBackend>(
    trainer: Trainer<B>,
    windows: Vec<Window>,
    recipe: &Recipe,
    device: &B::Device,
) -> (Trainer<B>, usize, StepReport<B>) {
    let scored = windows.iter().map(Window::scored).sum();
    let micro_batches = windows
        .chunks(recipe.train.micro_batch)
        .map(|part| to_device(part.to_vec(), device));
    let (trainer, report) = trainer.step(micro_batches, scored);
    (trainer, scored, report)
}

/// What a step reported, on the host.
struct Reading {
    loss: f64,
    rate: f64,
    grad_norm: f64,
    gate_grad_norm: f64,
    gates: Vec<f64>,
}

impl Reading {
    /// Reads everything in one transfer, which waits for the step to finish.
    fn of<B: AutodiffBackend>(model: &Llama<B>, report: StepReport<B>) -> Self {
        let gates = model.layers.iter().flat_map(|layer| &layer.gates);
        let scalars: Vec<Tensor<B::InnerBackend, 1>> = [report.loss, report.norms.global, report.norms.gates]
            .into_iter()
            .chain(gates.map(|gate| gate.gate.val().inner()))
            .collect();
        let mut values = Tensor::cat(scalars, 0)
            .into_data()
            .iter::<f64>()
            .collect::<Vec<_>>()
            .into_iter();
        let mut next = || values.next().unwrap_or(f64::NAN);
        Self {
            loss: next(),
            rate: report.rate,
            grad_norm: next(),
            gate_grad_norm: next(),
            gates: values.collect(),
        }
    }
}

/// Where the records of a run go: the file and the person.
struct Records {
    path: PathBuf,
    file: MetricsFile,
    dashboard: Dashboard,
}

impl Records {
    fn open(run: &RunDirectory, dashboard: Dashboard) -> Result<Self, TrainingError> {
        let path = run.metrics_path();
        match MetricsFile::append_to(&path) {
            Ok(file) => Ok(Self { path, file, dashboard }),
            Err(cause) => Err(TrainingError::Metrics { path, cause }),
        }
    }

    fn write(&mut self, record: &Record) -> Result<(), TrainingError> {
        self.file.write(record).map_err(|cause| TrainingError::Metrics {
            path: self.path.clone(),
            cause,
        })
    }

    fn step(&mut self, record: &TrainRecord) -> Result<(), TrainingError> {
        self.dashboard.step(record);
        self.write(&Record::Train(record.clone()))
    }

    fn evaluation(&mut self, record: &EvalRecord) -> Result<(), TrainingError> {
        self.dashboard.evaluation(record);
        self.write(&Record::Eval(*record))
    }
}
