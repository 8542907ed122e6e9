//! A training run from its first step to its last: batches, steps, evaluations, records, checkpoints.
//!
//! The loop is our own and drives burn-train's dashboard: burn-train's learner counts micro-batches as iterations, keeps its optimizer to
//! itself and cannot be told at which token to go on, all of which an exact run needs.
//!
//! Everything that a step depends on is in the [`RunState`], the weights and the moments, so a run that goes on from a checkpoint computes
//! what it would have computed without the stop, bit for bit.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use gpas_data::{DataError, EvaluationBatches, PreparedData, TrainBatches, WindowMode, Windows};
use gpas_model::params::SharedParameter;
use gpas_model::{LlamaConfig, Precision, Progress};

use crate::backend::BackendTask;
use crate::checkpoint::{Checkpoint, CheckpointError, RunState, Snapshot, Writer};
use crate::evaluate::{ValidationText, evaluate};
use crate::metrics::{EvalRecord, GateRange, LayersRecord, MetricsFile, NoticeRecord, Record, TrainRecord};
use crate::recipe::Recipe;
use crate::run::{RunDirectory, RunError, RunInfo, RunLock};
use crate::signals::{Stop, StopRequest};
use crate::telemetry::Layers;
use crate::trainer::{StepReport, Trainer};

/// Everything a run needs to begin or to go on.
pub struct TrainingRun {
    /// The recipe, its vocabulary decided.
    pub recipe: Recipe,
    /// The model.
    pub config: LlamaConfig,
    /// The prepared data.
    pub data: PreparedData,
    /// Where it begins.
    pub start: Start,
    /// Who is told of its records while it goes on.
    pub observers: Vec<Box<dyn Observer>>,
    /// Who may ask it to stop.
    pub stop: StopRequest,
}

/// Who is told of a run's records while it goes on: a dashboard, an event file, a test.
pub trait Observer {
    /// The run begins, or goes on after these records.
    ///
    /// # Errors
    /// If what the observer writes cannot be written; the run does not begin.
    fn begin(&mut self, run: &RunDirectory, recipe: &Recipe, records: &[Record]) -> io::Result<()>;

    /// The run has made this record.
    ///
    /// # Errors
    /// If what the observer writes cannot be written; the run stops.
    fn record(&mut self, record: &Record) -> io::Result<()>;
}

/// Where a run begins.
pub enum Start {
    /// At its first step; nothing has been written yet.
    New {
        /// The run directory to be made.
        out: PathBuf,
        /// The facts to be recorded.
        info: Box<RunInfo>,
    },
    /// In a run directory.
    Resume {
        /// It.
        run: RunDirectory,
        /// The right to write into it.
        lock: RunLock,
        /// The checkpoint to go on from; none if the run was killed before its first.
        checkpoint: Option<Box<Checkpoint>>,
    },
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run directory.
    pub run: RunDirectory,
    /// Steps done.
    pub step: u64,
    /// Before the first step, unless it was stopped before that.
    pub first: Option<EvalRecord>,
    /// The newest one.
    pub last: Option<EvalRecord>,
    /// What ended it.
    pub end: End,
}

/// What ended a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps of the recipe are done.
    Complete,
    /// It was asked to stop, and wrote a checkpoint.
    Stopped(Stop),
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
    #[error("backend `{backend}` cannot compute in train.precision = {}", precision.name())]
    Precision {
        backend: String,
        precision: Precision,
        supported: Vec<Precision>,
    },
    #[error("{path}: {cause}")]
    Metrics { path: PathBuf, cause: io::Error },
    #[error(
        "{count} steps in a row up to step {step} were not finite, beginning with {first}; the run is saved and stops"
    )]
    NotFinite { step: u64, count: u64, first: String },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Parameters(#[from] SharedParameter),
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
            TrainingError::DataChanged(path) => Some(format!(
                "`--data` names the data where it is now; `gpas eval --data {}` evaluates on this all the same",
                path.display()
            )),
            TrainingError::Precision { supported, .. } => {
                let names: Vec<_> = supported.iter().map(|precision| precision.name()).collect();
                Some(format!("it computes in {}: `--set train.precision={}`", names.join(", "), names[0]))
            }
            TrainingError::Metrics { .. } => {
                Some("make room; `gpas train RUN --resume` goes on from the last checkpoint".into())
            }
            TrainingError::NotFinite { .. } => Some(
                "a lower `train.lr`, a longer `train.warmup` or `train.clip = 1.0`, in a new run; the checkpoints before it are whole"
                    .into(),
            ),
            TrainingError::Data(error) => error.hint(),
            TrainingError::Run(error) => error.hint(),
            TrainingError::Checkpoint(error) => error.hint(),
            TrainingError::Parameters(_) => None,
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

/// Checks that a device computes in the recipe's number format.
///
/// # Errors
/// If it does not, with the formats in which it does.
pub fn check_precision<B: AutodiffBackend>(config: &LlamaConfig, device: &B::Device) -> Result<(), TrainingError> {
    let supported: Vec<_> = Precision::ALL
        .iter()
        .copied()
        .filter(|precision| precision.is_supported::<B>(device))
        .collect();
    if supported.contains(&config.precision) {
        return Ok(());
    }
    Err(TrainingError::Precision {
        backend: B::InnerBackend::name(device),
        precision: config.precision,
        supported,
    })
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
            start,
            observers,
            stop,
        } = self;
        check_vocabulary(&recipe, &data, &config)?;
        check_precision::<B>(&config, &device)?;
        let steps = recipe.train.steps;
        let windows = Windows::new(data.train().clone(), recipe.data.mode, recipe.data.seq_len, data.pad())?;
        let (seed, batch, micro_batch) = (recipe.train.seed, recipe.train.batch, recipe.train.micro_batch);
        let batches = TrainBatches::<B>::new(windows, seed, batch, 0..steps as usize, device.clone())?
            .with_micro_batch(micro_batch)?;
        let validation = ValidationText {
            windows: validation_windows(&recipe, &data)?,
            bytes: data.tokenizer().byte_lengths(),
        };
        let tokens = Some(recipe.eval.tokens as usize);
        // Damage that only reading shows is found before anything is written.
        batches.windows_of_step(0)?;
        let evaluation =
            EvaluationBatches::<B::InnerBackend>::new(validation.windows.clone(), micro_batch, tokens, device.clone())?;
        for index in 0..evaluation.batches() {
            evaluation.windows_of_batch(index)?;
        }

        let (run, lock, checkpoint) = match start {
            Start::New { out, info } => {
                let (run, lock) = RunDirectory::create(
                    &out,
                    &recipe,
                    &info,
                    data.tokenizer().bytes(),
                    data.tokenizer().chat_template(),
                )?;
                (run, lock, None)
            }
            Start::Resume { run, lock, checkpoint } => (run, lock, checkpoint),
        };
        let (mut trainer, mut state) = match &checkpoint {
            None => {
                let model = config.init(seed, &device);
                let trainer = Trainer::<B>::new(model, recipe.optimizer(), recipe.schedule())?;
                (trainer, RunState::new(recipe.clone()))
            }
            Some(checkpoint) => {
                let state = RunState {
                    recipe: recipe.clone(),
                    ..checkpoint.state.clone()
                };
                let model = checkpoint.model(&config, &device)?;
                let trainer = Trainer::new(model, recipe.optimizer(), recipe.schedule())?
                    .resume(checkpoint.moments()?, state.updates, state.step)
                    .map_err(CheckpointError::from)?;
                (trainer, state)
            }
        };
        let mut records = Records::open(&run, observers, &state)?;
        let mut writer = Writer::new(run.checkpoints_path(), recipe.checkpoint.keep as usize);
        let mut saved = checkpoint.map(|checkpoint| checkpoint.state.step);

        let end = loop {
            let is_due = state.step == 0 || state.step == steps || state.step.is_multiple_of(recipe.eval.every);
            if is_due && state.evaluation.is_none() {
                let model = trainer.model().valid();
                let stops = || stop.requested().is_some();
                state.evaluation = evaluate(&model, &validation, micro_batch, tokens, state.step, &device, stops)?;
                if let Some(record) = state.evaluation {
                    records.evaluation(&record)?;
                }
                // What evaluation allocated in other sizes than training goes back to the device.
                B::memory_cleanup(&device);
            }

            let is_bad = state.bad_steps >= recipe.train.max_bad_steps;
            // A stop that comes after this is seen after the next step.
            let requested = stop.requested();
            let is_complete = state.step == steps && state.evaluation.is_some();
            let ends = is_complete || is_bad || requested.is_some();
            let is_due = state.step == 0 || state.step.is_multiple_of(recipe.checkpoint.every);
            if (ends || is_due) && saved != Some(state.step) {
                let better =
                    |new: &EvalRecord| new.loss.is_finite() && state.best.is_none_or(|best| new.loss < best.loss);
                state.best = state.evaluation.filter(better).or(state.best);
                // A checkpoint on the disk has the lines up to it on the disk.
                records.sync()?;
                writer.submit(Snapshot::of(&trainer, &config, state.clone())?)?;
                saved = Some(state.step);
            }
            // The first one is whole before the first step is made, so that there is always one to go on from.
            if ends || state.step == 0 {
                writer.finish()?;
            } else {
                writer.poll()?;
            }
            if is_complete {
                break End::Complete;
            }
            if let Some(stop) = requested {
                break End::Stopped(stop);
            }
            if is_bad {
                return Err(TrainingError::NotFinite {
                    step: state.step,
                    count: state.bad_steps,
                    first: state.first_bad.unwrap_or_default(),
                });
            }

            let begin = Instant::now();
            let micro_batches = batches.micro_batches_of_step(state.step as usize)?;
            let scored = micro_batches.iter().map(|batch| batch.scored).sum();
            let looks = (state.step + 1).is_multiple_of(recipe.train.inspect_every);
            let layers = micro_batches
                .first()
                .filter(|_| looks)
                .map(|first| Layers::of(trainer.model(), first.ids.clone(), Progress::after(trainer.steps())));
            let (next, report) = trainer.step(micro_batches, scored);
            trainer = next;
            let positions = batch * recipe.data.seq_len;
            let speed = positions as f64 / begin.elapsed().as_secs_f64();
            state = after(state, &report, scored, trainer.updates());
            records.step(&train_record(&state, &report, speed))?;
            if let Some(layers) = layers {
                records.layers(&layers_record(state.step, &report, layers))?;
            }
            for message in notices(&mut state, &report) {
                records.notice(state.step, message)?;
            }
        };
        let Records { first, last, .. } = records;
        drop(lock);
        Ok(Outcome {
            run,
            step: state.step,
            first,
            last,
            end,
        })
    }
}

/// Where a run stands after a step.
fn after(state: RunState, report: &StepReport, scored: usize, updates: u64) -> RunState {
    let (bad_steps, first_bad) = match &report.skipped {
        None => (0, None),
        Some(what) => (
            state.bad_steps + 1,
            state
                .first_bad
                .or_else(|| Some(format!("{what} at step {}", state.step + 1))),
        ),
    };
    RunState {
        step: state.step + 1,
        updates,
        tokens: state.tokens + scored as u64,
        bad_steps,
        first_bad,
        evaluation: None,
        ..state
    }
}

fn train_record(state: &RunState, report: &StepReport, tokens_per_s: f64) -> TrainRecord {
    let skipped = report.skipped.is_some();
    TrainRecord {
        step: state.step,
        loss: if skipped { f64::NAN } else { report.loss },
        lr: report.rate,
        tokens: state.tokens,
        tokens_per_s,
        grad_norm: report.norms.global,
        gate_grad_norm: report.norms.gates,
        gates: GateRange::of(&report.gates),
        skipped,
    }
}

fn layers_record(step: u64, report: &StepReport, layers: Layers) -> LayersRecord {
    let finite = |values: Vec<f64>| {
        values
            .into_iter()
            .map(|value| Some(value).filter(|v| v.is_finite()))
            .collect()
    };
    let mut squares = vec![0.0; layers.weight_norm.len()];
    for (kind, norm) in &report.parameter_norms {
        if let Some(sum) = kind.layer().and_then(|layer| squares.get_mut(layer)) {
            *sum += norm * norm;
        }
    }
    LayersRecord {
        step,
        variance: finite(layers.variance),
        grad_norm: finite(squares.into_iter().map(f64::sqrt).collect()),
        weight_norm: finite(layers.weight_norm),
        gate: finite(report.gates.clone()),
    }
}

/// What a step has for its owner to know: that it was skipped, and, once for each gate, that the scale has changed its sign.
fn notices(state: &mut RunState, report: &StepReport) -> Vec<String> {
    let mut messages = Vec::new();
    if let Some(what) = &report.skipped {
        messages.push(format!("no update: {what} is not finite"));
    }
    let act = state.recipe.model.gate.act;
    for (index, gate) in report.gates.iter().enumerate() {
        if 1.0 - act.value(*gate) <= 0.0 && !state.reported_gates.contains(&index) {
            state.reported_gates.push(index);
            let per_layer = if state.recipe.model.gate.per_sublayer { 2 } else { 1 };
            messages.push(format!(
                "the gate {gate:.4} of layer {} is past the zero of 1 − act(α): the stream changes its sign there",
                index / per_layer
            ));
        }
    }
    messages
}

/// Where the records of a run go: the file, and whoever observes it.
struct Records {
    path: PathBuf,
    file: MetricsFile,
    observers: Vec<Box<dyn Observer>>,
    first: Option<EvalRecord>,
    last: Option<EvalRecord>,
}

impl Records {
    /// Goes on with the records of a run that stands where `state` says.
    fn open(
        run: &RunDirectory,
        mut observers: Vec<Box<dyn Observer>>,
        state: &RunState,
    ) -> Result<Self, TrainingError> {
        let path = run.metrics_path();
        let failed = |path: PathBuf| move |cause| TrainingError::Metrics { path, cause };
        let (file, history) =
            MetricsFile::resume(&path, state.step, state.evaluation.is_some()).map_err(failed(path.clone()))?;
        let mut evaluations = history.records.iter().filter_map(|record| match record {
            Record::Eval(record) => Some(*record),
            _ => None,
        });
        let (first, last) = (
            evaluations.clone().find(|record| record.step == 0),
            evaluations.next_back(),
        );
        for observer in &mut observers {
            let begun = observer.begin(run, &state.recipe, &history.records);
            begun.map_err(failed(run.path().to_path_buf()))?;
        }
        let mut records = Self {
            path,
            file,
            observers,
            first,
            last,
        };
        if let (Some(from), Some(to)) = (history.missing.first(), history.missing.last()) {
            let count = history.missing.len();
            records.notice(
                state.step,
                format!("metrics.jsonl has lost the lines of {count} steps between {from} and {to}"),
            )?;
        }
        Ok(records)
    }

    fn write(&mut self, record: &Record) -> Result<(), TrainingError> {
        let mut observers = self.observers.iter_mut();
        let written = self
            .file
            .write(record)
            .and_then(|()| observers.try_for_each(|observer| observer.record(record)));
        written.map_err(|cause| self.failed(cause))
    }

    fn sync(&self) -> Result<(), TrainingError> {
        self.file.sync().map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: io::Error) -> TrainingError {
        TrainingError::Metrics {
            path: self.path.clone(),
            cause,
        }
    }

    fn step(&mut self, record: &TrainRecord) -> Result<(), TrainingError> {
        self.write(&Record::Train(record.clone()))
    }

    fn evaluation(&mut self, record: &EvalRecord) -> Result<(), TrainingError> {
        self.write(&Record::Eval(*record))?;
        self.first = self.first.or(Some(*record).filter(|record| record.step == 0));
        self.last = Some(*record);
        Ok(())
    }

    fn layers(&mut self, record: &LayersRecord) -> Result<(), TrainingError> {
        self.write(&Record::Layers(record.clone()))
    }

    fn notice(&mut self, step: u64, message: String) -> Result<(), TrainingError> {
        self.write(&Record::Notice(NoticeRecord { step, message }))
    }
}
