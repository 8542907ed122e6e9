//! What surrounds a training run: what is checked before it, who is told of its records, how it ends.

use std::io;
use std::path::PathBuf;

use burn::tensor::backend::{AutodiffBackend, Backend};
use gpas_data::{DataError, PreparedData, WindowMode, Windows};
use gpas_model::params::SharedParameter;
use gpas_model::{ConfigError, LlamaConfig, Precision};

use crate::backend::BackendError;
use crate::checkpoint::CheckpointError;
use crate::metrics::{EvalRecord, Record};
use crate::recipe::Recipe;
use crate::run::{RunDirectory, RunError};
use crate::signals::Stop;

/// Who is told of a run's records while it goes on: an event file, a test, or any closure over [`Record`]s.
pub trait Observer {
    /// The run begins, or goes on after these records.
    ///
    /// # Errors
    /// If what the observer writes cannot be written; the run does not begin.
    fn begin(&mut self, run: &RunDirectory, recipe: &Recipe, records: &[Record]) -> io::Result<()> {
        let _ = (run, recipe, records);
        Ok(())
    }

    /// The run has made this record.
    ///
    /// # Errors
    /// If what the observer writes cannot be written; the run stops.
    fn record(&mut self, record: &Record) -> io::Result<()>;
}

impl<F: FnMut(&Record)> Observer for F {
    fn record(&mut self, record: &Record) -> io::Result<()> {
        self(record);
        Ok(())
    }
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
    #[error(
        "the weights of {checkpoint} do not fit the recipe: {}",
        misfit(missing, unused, wrong)
    )]
    Misfit {
        checkpoint: String,
        missing: Vec<String>,
        unused: Vec<String>,
        wrong: Vec<String>,
    },
    #[error("{path}: {cause}")]
    Metrics { path: PathBuf, cause: io::Error },
    #[error(
        "{count} steps in a row up to step {step} were not finite, beginning with {first}; the run is saved and stops"
    )]
    NotFinite {
        step: u64,
        count: u64,
        first: String,
        /// The newest checkpoint before it whose weights are of use, as `--from` takes it.
        back: Option<String>,
    },
    #[error(transparent)]
    Model(#[from] ConfigError),
    #[error(transparent)]
    Backend(#[from] BackendError),
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
            TrainingError::Tokenizer { run, .. } => Some(format!(
                "`--data DIR` names data that was prepared with `--tokenizer {}`",
                run.display()
            )),
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
            TrainingError::Misfit { .. } => Some(
                "what decides the parameters is the other run's: its sizes, its vocabulary, `model.tied_head` and the parameters of its scheme"
                    .into(),
            ),
            TrainingError::NotFinite { back: None, .. } => {
                Some("a lower `train.lr`, a longer `train.warmup` or `train.clip = 1.0`, in a new run".into())
            }
            TrainingError::NotFinite { back: Some(back), .. } => Some(format!(
                "`gpas train --from {back} --set train.lr=RATE -o NEW` goes back to before it, with a lower rate; a longer `train.warmup` or \
                 `train.clip = 1.0` may help too"
            )),
            TrainingError::Model(_) => None,
            TrainingError::Backend(error) => Some(error.hint()),
            TrainingError::Data(error) => error.hint(),
            TrainingError::Run(error) => error.hint(),
            TrainingError::Checkpoint(error) => error.hint(),
            TrainingError::Parameters(_) => None,
        }
    }
}

/// What does not fit, with the first few names of each kind.
fn misfit(missing: &[String], unused: &[String], wrong: &[String]) -> String {
    const SHOWN: usize = 3;
    let parts = [("missing", missing), ("not used", unused), ("of another shape", wrong)];
    let part = |(what, names): (&str, &[String])| {
        let first = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        match names.len().saturating_sub(SHOWN) {
            0 => format!("{what}: {first}"),
            more => format!("{what}: {first} and {more} more"),
        }
    };
    let parts = parts.into_iter().filter(|(_, names)| !names.is_empty());
    parts.map(part).collect::<Vec<_>>().join("; ")
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
