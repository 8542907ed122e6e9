//! A run that is to be asked rather than trained: its newest valid checkpoint or another that is named, its tokenizer, and the backend it runs on.

use std::path::{Path, PathBuf};

use burn::tensor::backend::{AutodiffBackend, Backend};
use clap::Args;
use gpas_data::tokenizer::ByteLengths;
use gpas_data::{PreparedData, Tokenizer, Windows};
use gpas_model::{Llama, LlamaConfig};

use super::provenance::data_directory;
use crate::failure::Result;
use crate::number::whole;
use crate::tuning;
use gpas_serve::generate::Generator;
use gpas_serve::inference::{Context, InferenceError};
use gpas_train::backend::{BackendChoice, Selected};
use gpas_train::checkpoint::Checkpoint;
use gpas_train::chosen::ChosenCheckpoint;
use gpas_train::recipe::Recipe;
use gpas_train::run::{RunDirectory, RunInfo, data_sha256};
use gpas_train::training::{TrainingError, check_precision, check_vocabulary, validation_windows};

/// A run, opened. Its data is not needed.
pub struct OpenedRun {
    /// Where it lies.
    pub run: RunDirectory,
    /// What was noted when it began.
    pub info: RunInfo,
    /// Its recipe.
    pub recipe: Recipe,
    /// Its model's sizes.
    pub config: LlamaConfig,
    /// The checkpoint that is meant.
    pub checkpoint: Checkpoint,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The backend asked for, or else its own.
    pub selected: Selected,
}

impl OpenedRun {
    /// Opens a run, or a checkpoint of one that is named, such as `RUN@best`, and warns of damaged checkpoints.
    ///
    /// # Errors
    /// If it is none, or something of it cannot be read.
    pub fn open(path: &Path, backend: Option<BackendChoice>) -> Result<Self> {
        let (run, found) = ChosenCheckpoint::of(path).open()?;
        let (recipe, info) = (run.recipe()?, run.info()?);
        let selected = tuning::select(backend.map_or_else(|| info.backend.parse(), Ok)?)?;
        let tokenizer = run.tokenizer()?;
        let config = recipe.llama(tokenizer.vocab_size())?;
        for damage in &found.passed_over {
            complain!("warning: {damage}; passed over");
        }
        Ok(Self {
            run,
            info,
            recipe,
            config,
            checkpoint: found.checkpoint,
            tokenizer,
            selected,
        })
    }

    /// Positions that may be used: `asked`; or else, of a model from elsewhere, all that it has, and of one that was trained here, as many as
    /// a sequence had in training.
    ///
    /// # Errors
    /// If the model has fewer.
    pub fn context(&self, asked: Option<usize>) -> Result<Context, InferenceError> {
        let positions = self.config.positions();
        let tokens = match asked {
            Some(asked) if asked > positions => {
                return Err(InferenceError::Context {
                    asked,
                    limit: positions,
                });
            }
            Some(asked) => asked,
            None if self.info.imported.is_some() => positions,
            None => self.recipe.data.seq_len.min(positions),
        };
        Ok(Context { tokens, positions })
    }

    /// The model on a device.
    ///
    /// # Errors
    /// If the weights do not fit, or the device does not compute in the run's number format.
    pub fn model<B: AutodiffBackend>(&self, device: &B::Device) -> Result<Llama<B::InnerBackend>> {
        check_precision::<B>(&self.config, device)?;
        Ok(self.checkpoint.model::<B::InnerBackend>(&self.config, device)?)
    }

    /// Its model as one that generates and scores, in these positions.
    pub fn generator<'a, B: Backend>(&'a self, model: &'a Llama<B>, context: Context) -> Generator<'a, B> {
        Generator {
            model,
            tokenizer: &self.tokenizer,
            context,
            vocab: self.config.vocab,
        }
    }
}

/// The options of a command that asks a run about validation text.
#[derive(Debug, Args)]
pub struct RunAndTextArgs {
    /// The run directory, for its newest checkpoint; with @STEP or @best, for another
    #[arg(value_name = "RUN[@STEP|@best]")]
    pub run: PathBuf,
    /// Prepared data whose validation split is used [default: the run's]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Tokens to use, at most [default: the recipe's eval.tokens]
    #[arg(long, value_name = "N", value_parser = whole(1..))]
    tokens: Option<u64>,
}

impl RunAndTextArgs {
    /// As [`RunAndText::open`].
    pub fn open(&self, backend: Option<BackendChoice>) -> Result<(Selected, RunAndText)> {
        RunAndText::open(&self.run, self.data.as_deref(), self.tokens, backend)
    }
}

/// A run that is to be asked, with the validation text to do it by.
pub struct RunAndText {
    /// The run.
    pub opened: OpenedRun,
    /// The text.
    pub windows: Windows,
    /// How many bytes of text each token stands for, where the tokenizer tells.
    pub bytes: Option<ByteLengths>,
    /// Tokens to score, at most.
    pub tokens: usize,
}

impl RunAndText {
    /// Opens a run and its validation text: on the run's own backend if none is asked for, so that figures are the run's to the last digit;
    /// with other data than the run's if that is named.
    ///
    /// # Errors
    /// If the run, its checkpoint or its data cannot be read or do not fit each other.
    pub fn open(
        run: &Path,
        data: Option<&Path>,
        tokens: Option<u64>,
        backend: Option<BackendChoice>,
    ) -> Result<(Selected, Self)> {
        let opened = OpenedRun::open(run, backend)?;
        let OpenedRun {
            run,
            info,
            recipe,
            config,
            ..
        } = &opened;
        let found = match data {
            Some(directory) => PreparedData::open(directory)?,
            None => PreparedData::open(&data_directory(recipe)?)?,
        };
        if found.tokenizer().sha256() != info.tokenizer_sha256 {
            return Err(TrainingError::Tokenizer {
                data: found.directory().to_path_buf(),
                run: run.tokenizer_path(),
            }
            .into());
        }
        if data.is_none() && data_sha256(&found)? != info.data_sha256 {
            return Err(TrainingError::DataChanged(found.directory().to_path_buf()).into());
        }
        check_vocabulary(recipe, &found, config)?;
        let text = Self {
            windows: validation_windows(recipe, &found)?,
            bytes: found.tokenizer().byte_lengths(),
            tokens: tokens.unwrap_or(recipe.eval.tokens) as usize,
            opened,
        };
        Ok((text.opened.selected, text))
    }
}
