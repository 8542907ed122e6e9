//! A run that begins with a checkpoint of another run: its weights, its moments and its place, by a recipe that may differ in all that
//! leaves the parameters what they are.
//!
//! | of the checkpoint | in the new run |
//! |---|---|
//! | weights, moments, updates made, steps done, tokens seen, gates reported | as they were |
//! | its evaluation, and the best one | forgotten: the new run evaluates before its first step, on its own data |
//! | skipped steps in a row | none: nothing has failed by the new recipe yet |
//!
//! The new run gets a copy of the checkpoint as its own first one before anybody sees its directory, so that it goes on exactly however early
//! it is killed. The other run is only read.

use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use gpas_data::{PreparedData, Tokenizer};
use gpas_model::LlamaConfig;
use gpas_model::weights::{HostTensor, NamedTensors, WeightsError};

use crate::backend::Selected;
use crate::checkpoint::{Checkpoint, CheckpointError, Found, Keep, RunState, Snapshot};
use crate::recipe::{Recipe, RecipeError};
use crate::run::{Parent, RunDirectory, RunError, RunInfo, RunLock, data_sha256};
use crate::training::TrainingError;

/// A run that will begin with a checkpoint of another; nothing has been written yet.
pub(super) struct Inheritance {
    pub out: PathBuf,
    pub parent: Parent,
    pub passed_over: Vec<CheckpointError>,
    /// Whether the data is other than that of the other run, be it under the same path.
    pub has_other_data: bool,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    /// The facts of the other run that are those of its weights.
    info: RunInfo,
}

impl Inheritance {
    /// Compares everything with the checkpoint that can be compared before it is read whole.
    pub fn new(
        run: &RunDirectory,
        Found {
            checkpoint,
            passed_over,
        }: Found,
        recipe: &Recipe,
        data: &PreparedData,
        out: PathBuf,
    ) -> Result<Self, TrainingError> {
        let (info, begin) = (run.info()?, checkpoint.state.step);
        let schedule_from = recipe.train.schedule_from;
        if schedule_from > begin {
            return Err(RunError::from(RecipeError::ScheduleAfterBegin { schedule_from, begin }).into());
        }
        if recipe.train.steps <= begin {
            let steps = recipe.train.steps;
            return Err(RunError::from(RecipeError::NoStepsLeft { steps, step: begin }).into());
        }
        if data.tokenizer().sha256() != info.tokenizer_sha256 {
            return Err(TrainingError::Tokenizer {
                data: data.directory().to_path_buf(),
                run: run.tokenizer_path(),
            });
        }
        let path = run.path();
        if lies_in(&out, path) {
            let run = path.to_path_buf();
            return Err(RunError::Inside { out, run }.into());
        }
        let parent = Parent {
            run: path.to_path_buf(),
            path: path.canonicalize().unwrap_or_else(|_| path.to_path_buf()),
            step: begin,
            commit: info.commit.clone(),
            weights_sha256: checkpoint.weights_sha256.clone(),
            data_sha256: info.data_sha256.clone(),
            changes: checkpoint.state.recipe.changes(recipe),
        };
        let config = recipe.llama(data.tokenizer().vocab_size())?;
        checkpoint.check_fits(&config).map_err(|error| match error {
            WeightsError::Mismatch { missing, unused, wrong } => TrainingError::Misfit {
                checkpoint: parent.to_string(),
                missing,
                unused,
                wrong,
            },
            other => CheckpointError::from(other).into(),
        })?;
        Ok(Self {
            has_other_data: !parent.data_sha256.is_empty() && parent.data_sha256 != data_sha256(data)?,
            out,
            parent,
            passed_over,
            checkpoint,
            tokenizer: tokenizer(run, data)?,
            info,
        })
    }

    /// Whether the optimizer has moments to go on with.
    pub fn has_moments(&self) -> bool {
        self.checkpoint.state.updates > 0
    }

    /// Makes the run directory with its first checkpoint, which is given back.
    pub fn open(
        self,
        recipe: &Recipe,
        config: &LlamaConfig,
        data: &PreparedData,
        selected: Selected,
    ) -> Result<(RunDirectory, RunLock, Checkpoint), TrainingError> {
        let Self {
            out,
            parent,
            checkpoint,
            tokenizer,
            info,
            ..
        } = self;
        let info = RunInfo {
            parent: Some(parent),
            imported: info.imported,
            generation: info.generation,
            ..RunInfo::new(recipe, config, selected).with_data(data)?
        };
        let state = RunState {
            recipe: recipe.clone(),
            bad_steps: 0,
            first_bad: None,
            evaluation: None,
            best: None,
            ..checkpoint.state.clone()
        };
        let moments = moments_of_the_trained(checkpoint.moments()?, config);
        let snapshot = Snapshot::from_checkpoint(checkpoint.weights(config)?, moments, state);
        let fill = |run: &RunDirectory| -> Result<(), TrainingError> {
            let written = snapshot.write(&run.checkpoints_path(), Keep::of(recipe));
            written.map_err(|error| error.of_the_first(&out))?;
            Ok(())
        };
        let (run, lock) = RunDirectory::create_with(&out, recipe, &info, &tokenizer, fill)?;
        let first = run.checkpoints_path().join(format!("step-{}", checkpoint.state.step));
        Ok((run, lock, Checkpoint::open(&first)?))
    }
}

/// Whether a path that need not be there yet lies in a directory, whatever links lead to both.
fn lies_in(path: &Path, directory: &Path) -> bool {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let existing = absolute.ancestors().find_map(|path| path.canonicalize().ok());
    match (existing, directory.canonicalize()) {
        (Some(existing), Ok(directory)) => existing.starts_with(directory),
        _ => false,
    }
}

/// The tokenizer of the other run with its special tokens; where the data's documents end otherwise, texts may end so too.
fn tokenizer(run: &RunDirectory, data: &PreparedData) -> Result<Tokenizer, TrainingError> {
    let of_the_run = run.tokenizer()?;
    let of_the_data = data.tokenizer();
    let mut special = of_the_run.special_tokens().clone();
    if let Some(end) = of_the_data.end_of_document() {
        special = special.trained_on_documents_with(end);
    }
    let config = of_the_run.config().or(of_the_data.config()).cloned();
    Ok(of_the_run.with_special_tokens(special).with_config(config))
}

/// The moments of the parameters that are trained: those of gates that no longer are stay behind, and those of gates that were not begin at
/// zero.
fn moments_of_the_trained(mut moments: NamedTensors, config: &LlamaConfig) -> NamedTensors {
    // Before the first update, no parameter has any.
    if moments.is_empty() {
        return moments;
    }
    for (gate, shape) in config.parameter_shapes().filter(|(kind, _)| kind.is_gate()) {
        for which in ["first", "second"] {
            match moments.entry(format!("{gate}.{which}")) {
                Entry::Occupied(entry) if !config.gate.learnable => drop(entry.remove()),
                Entry::Vacant(entry) if config.gate.learnable => {
                    let length = shape.iter().product();
                    entry.insert(HostTensor {
                        shape: vec![length],
                        values: vec![0.0; length],
                    });
                }
                _ => {}
            }
        }
    }
    moments
}

#[cfg(test)]
mod tests {
    use gpas_model::GateConfig;

    use super::*;

    #[test]
    fn gates_that_are_trained_have_moments_and_others_have_none() {
        let config = |learnable| {
            LlamaConfig::new(24, 16, 32, 2, 2)
                .with_scheme("pre_gpas".parse().unwrap())
                .with_gate(GateConfig::new().with_learnable(learnable))
        };
        let tensor = HostTensor {
            shape: vec![1],
            values: vec![0.5],
        };
        let kinds: Vec<_> = config(true)
            .parameter_shapes()
            .filter(|(kind, _)| kind.is_gate())
            .collect();
        assert_eq!(kinds.len(), 2);
        let first = format!("{}.first", kinds[0].0);
        let moments = NamedTensors::from([
            ("head.weight.first".to_string(), tensor.clone()),
            (first.clone(), tensor.clone()),
        ]);
        let trained = moments_of_the_trained(moments.clone(), &config(true));
        assert_eq!(trained.len(), 5, "two moments of each gate: {:?}", trained.keys());
        assert_eq!(trained[&first], tensor);
        assert_eq!(trained[&format!("{}.second", kinds[1].0)].values, [0.0]);
        let frozen = moments_of_the_trained(moments, &config(false));
        assert_eq!(frozen.keys().collect::<Vec<_>>(), ["head.weight.first"]);
        assert!(moments_of_the_trained(NamedTensors::new(), &config(true)).is_empty());
    }
}
