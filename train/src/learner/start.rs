//! Where a run begins: at its first step, with a checkpoint of another run, or at a checkpoint of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gpas_data::{PreparedData, SpecialTokens};
use gpas_model::LlamaConfig;
use toml::Value;

use super::from::Inheritance;
use crate::backend::Selected;
use crate::checkpoint::{self, Checkpoint, CheckpointError, newest_valid};
use crate::metrics::{Record, read_records};
use crate::recipe::{Recipe, RecipeError};
use crate::run::{Parent, Resume, RunDirectory, RunError, RunInfo, RunLock, data_sha256};
use crate::training::TrainingError;

/// Where a run begins.
pub(super) enum Start {
    /// At its first step; nothing has been written yet.
    New { out: PathBuf },
    /// With a checkpoint of another run; nothing has been written yet.
    From(Box<Inheritance>),
    /// In a run directory.
    Resume(Box<Resumption>),
}

/// A run that goes on.
pub(super) struct Resumption {
    run: RunDirectory,
    lock: RunLock,
    info: RunInfo,
    /// None if the run was killed before its first.
    checkpoint: Option<Checkpoint>,
    passed_over: Vec<CheckpointError>,
    changes: BTreeMap<String, [Value; 2]>,
    /// Where the data of a model from elsewhere is now known: its documents may end otherwise than the model ended its texts.
    special_tokens: Option<SpecialTokens>,
}

/// A run directory that is ready to be written to.
pub(super) struct Opened {
    pub run: RunDirectory,
    pub lock: RunLock,
    pub checkpoint: Option<Checkpoint>,
    /// Steps done before its first: those of another run.
    pub begin: u64,
}

impl Start {
    /// A new run, whose schedule begins with it.
    pub fn new(out: PathBuf, recipe: &Recipe) -> Result<Self, RunError> {
        let (schedule_from, begin) = (recipe.train.schedule_from, 0);
        if schedule_from > begin {
            return Err(RecipeError::ScheduleAfterBegin { schedule_from, begin }.into());
        }
        Ok(Start::New { out })
    }

    /// A run that goes on by a recipe, with some data. Nothing is changed before everything has been found in order.
    pub fn resume(
        run: RunDirectory,
        lock: RunLock,
        recipe: &Recipe,
        data: &PreparedData,
    ) -> Result<Self, TrainingError> {
        let (written, mut info) = (run.recipe()?, run.info()?);
        let has_steps = has_steps(&run)?;
        let (checkpoint, passed_over) = match newest_valid(&run.checkpoints_path()) {
            Ok(found) => (Some(found.checkpoint), found.passed_over),
            // Killed before the first one was complete; unless steps were made after it, or the weights came from elsewhere.
            Err(CheckpointError::None(_)) if !has_steps && info.imported.is_none() && info.parent.is_none() => {
                (None, Vec::new())
            }
            Err(error) => return Err(error.into()),
        };
        // The recipe that the checkpoint was computed by: the file beside it may have been edited.
        let computed = checkpoint
            .as_ref()
            .map_or(&written, |checkpoint| &checkpoint.state.recipe);
        let changes = computed.changes(recipe);
        let step = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.step);
        // Nothing has been computed by its recipe yet but the model, which it did not decide.
        let unstarted = info.imported.is_some() && info.parent.is_none() && step == 0 && !has_steps;
        let may_change = |key: &str| Recipe::may_change(key) || (unstarted && !key.starts_with("model."));
        if let Some((key, [before, after])) = changes.iter().find(|(key, _)| !may_change(key)) {
            return Err(RunError::from(RecipeError::Mathematics {
                key: key.clone(),
                before: before.to_string(),
                after: after.to_string(),
                from: worth_going_on_from(&run, checkpoint.as_ref(), key),
            })
            .into());
        }
        if unstarted && data.tokenizer().sha256() == info.tokenizer_sha256 {
            info = info.with_data(data)?;
        } else if unstarted {
            return Err(TrainingError::Tokenizer {
                data: data.directory().to_path_buf(),
                run: run.tokenizer_path(),
            });
        } else if data_sha256(data)? != info.data_sha256 {
            return Err(TrainingError::DataChanged(data.directory().to_path_buf()));
        }
        let special_tokens = match data.tokenizer().end_of_document() {
            Some(end) if unstarted => {
                let special = run.tokenizer()?.special_tokens().clone();
                Some(special.trained_on_documents_with(end))
            }
            _ => None,
        };
        Ok(Start::Resume(Box::new(Resumption {
            run,
            lock,
            info,
            checkpoint,
            passed_over,
            changes,
            special_tokens,
        })))
    }

    /// The run directory.
    pub fn path(&self) -> &Path {
        match self {
            Start::New { out } => out,
            Start::From(inheritance) => &inheritance.out,
            Start::Resume(resumption) => resumption.run.path(),
        }
    }

    /// The checkpoint of another run that the run begins with, or began with.
    pub fn parent(&self) -> Option<&Parent> {
        match self {
            Start::New { .. } => None,
            Start::From(inheritance) => Some(&inheritance.parent),
            Start::Resume(resumption) => resumption.info.parent.as_ref(),
        }
    }

    /// Whether the moments begin at zero though the weights come from another run.
    pub fn lacks_moments(&self) -> bool {
        matches!(self, Start::From(inheritance) if !inheritance.has_moments())
    }

    /// Whether the data is other than that of the run whose checkpoint it begins with.
    pub fn has_other_data(&self) -> bool {
        matches!(self, Start::From(inheritance) if inheritance.has_other_data)
    }

    /// Steps done where it goes on; none of a new run.
    pub fn resumed_at(&self) -> Option<u64> {
        match self {
            Start::New { .. } | Start::From(_) => None,
            Start::Resume(resumption) => Some(resumption.step()),
        }
    }

    /// What is wrong with the checkpoints that were passed over.
    pub fn passed_over(&self) -> &[CheckpointError] {
        match self {
            Start::New { .. } => &[],
            Start::From(inheritance) => &inheritance.passed_over,
            Start::Resume(resumption) => &resumption.passed_over,
        }
    }

    /// Makes the run directory, or records in it that the run goes on.
    pub fn open(
        self,
        recipe: &Recipe,
        config: &LlamaConfig,
        data: &PreparedData,
        selected: Selected,
    ) -> Result<Opened, TrainingError> {
        match self {
            Start::New { out } => {
                let info = RunInfo::new(recipe, config, selected).with_data(data)?;
                let (run, lock) = RunDirectory::create(&out, recipe, &info, data.tokenizer())?;
                Ok(Opened {
                    run,
                    lock,
                    checkpoint: None,
                    begin: 0,
                })
            }
            Start::From(inheritance) => {
                let (run, lock, checkpoint) = inheritance.open(recipe, config, data, selected)?;
                Ok(Opened {
                    run,
                    lock,
                    begin: checkpoint.state.step,
                    checkpoint: Some(checkpoint),
                })
            }
            Start::Resume(resumption) => resumption.open(recipe, selected),
        }
    }
}

impl Resumption {
    fn step(&self) -> u64 {
        self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.step)
    }

    fn open(self, recipe: &Recipe, selected: Selected) -> Result<Opened, TrainingError> {
        let step = self.step();
        let Self {
            run,
            lock,
            mut info,
            checkpoint,
            passed_over,
            changes,
            special_tokens,
        } = self;
        checkpoint::clear(&run.checkpoints_path(), step)?;
        info.resumes.push(Resume::new(
            step,
            selected,
            changes,
            passed_over.iter().map(ToString::to_string).collect(),
        ));
        if let Some(special) = &special_tokens {
            run.write_special_tokens(special)?;
        }
        run.write(recipe, &info)?;
        Ok(Opened {
            run,
            lock,
            checkpoint,
            begin: info.begin(),
        })
    }
}

/// What a new run with another value of a key would begin with, as it stands behind `--from`: the newest checkpoint, or where that is of a run
/// that diverges, the best; with more steps where all are done.
fn worth_going_on_from(run: &RunDirectory, newest: Option<&Checkpoint>, key: &str) -> String {
    let run = run.path().display();
    let Some(Checkpoint { state, .. }) = newest else {
        return run.to_string();
    };
    let steps = state.recipe.train.steps;
    if state.bad_steps > 0 && state.best.is_some() {
        format!("{run}@best")
    } else if state.step == steps && key != "train.steps" {
        format!("{run} --set train.steps={}", steps.saturating_mul(2))
    } else {
        run.to_string()
    }
}

/// Whether a run's metrics have a step.
fn has_steps(run: &RunDirectory) -> Result<bool, TrainingError> {
    let path = run.metrics_path();
    let records = read_records(&path).map_err(|cause| TrainingError::Metrics { path, cause })?;
    Ok(records.iter().any(|record| matches!(record, Record::Train(_))))
}
