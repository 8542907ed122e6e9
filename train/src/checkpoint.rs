//! Checkpoints: weights, optimizer and place in the run after a step, in full precision.
//!
//! ```text
//! checkpoints/step-N/model.safetensors    weights by their released names, f32
//! checkpoints/step-N/optimizer.bin        moments by parameter id, f32
//! checkpoints/step-N/state.json           step, scored tokens
//! ```
//!
//! A checkpoint is written aside and renamed when it is complete, so a folder of that name is a whole one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::module::AutodiffModule;
use burn::record::{BinFileRecorder, FullPrecisionSettings, Recorder, RecorderError};
use burn::tensor::backend::{AutodiffBackend, Backend};
use gpas_model::weights::WeightsError;
use gpas_model::{Llama, LlamaConfig};
use serde::{Deserialize, Serialize};

use crate::trainer::Trainer;

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens scored so far.
    pub tokens: u64,
}

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum CheckpointError {
    #[error("{0} has no checkpoint")]
    None(PathBuf),
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("{path}: {cause}")]
    State { path: PathBuf, cause: serde_json::Error },
    #[error("{path}: {cause}")]
    Optimizer { path: PathBuf, cause: RecorderError },
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl CheckpointError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            CheckpointError::None(_) => Some("a run writes one every `checkpoint.every` steps and at its end".into()),
            _ => Some("delete the checkpoint, and the one before it is used".into()),
        }
    }
}

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.bin";
const STATE: &str = "state.json";

/// Writes a checkpoint into a run's folder of checkpoints and deletes all but the newest `keep`.
///
/// # Errors
/// If the disk does not take it; older checkpoints are then untouched.
pub fn write<B: AutodiffBackend>(
    folder: &Path,
    trainer: &Trainer<B>,
    config: &LlamaConfig,
    state: RunState,
    keep: usize,
) -> Result<PathBuf, CheckpointError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |cause| CheckpointError::File { path, cause }
    };
    let aside = folder.join(format!(".step-{}", state.step));
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(failed(&aside))?;
    }
    fs::create_dir_all(&aside).map_err(failed(&aside))?;
    trainer.model().valid().save(config, &aside.join(MODEL))?;
    let path = aside.join(OPTIMIZER);
    BinFileRecorder::<FullPrecisionSettings>::default()
        .record(trainer.optimizer_record(), path.clone())
        .map_err(|cause| CheckpointError::Optimizer { path, cause })?;
    let path = aside.join(STATE);
    let json = serde_json::to_vec_pretty(&state).map_err(|cause| CheckpointError::State {
        path: path.clone(),
        cause,
    })?;
    fs::write(&path, json).map_err(failed(&path))?;
    let done = folder.join(format!("step-{}", state.step));
    if done.exists() {
        fs::remove_dir_all(&done).map_err(failed(&done))?;
    }
    fs::rename(&aside, &done).map_err(failed(&done))?;
    for (_, old) in newest_first(folder)
        .map_err(failed(folder))?
        .into_iter()
        .skip(keep.max(1))
    {
        fs::remove_dir_all(&old).map_err(failed(&old))?;
    }
    Ok(done)
}

/// The newest checkpoint of a run's folder of checkpoints.
///
/// # Errors
/// If there is none, or the folder cannot be read.
pub fn newest(folder: &Path) -> Result<PathBuf, CheckpointError> {
    let found = newest_first(folder).map_err(|cause| CheckpointError::File {
        path: folder.to_path_buf(),
        cause,
    })?;
    let newest = found.into_iter().next();
    newest
        .map(|(_, path)| path)
        .ok_or_else(|| CheckpointError::None(folder.to_path_buf()))
}

fn newest_first(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

/// Reads the weights and the place in the run of a checkpoint.
///
/// # Errors
/// If a file cannot be read or does not fit the model.
pub fn read_model<B: Backend>(
    checkpoint: &Path,
    config: &LlamaConfig,
    device: &B::Device,
) -> Result<(Llama<B>, RunState), CheckpointError> {
    let path = checkpoint.join(STATE);
    let json = fs::read(&path).map_err(|cause| CheckpointError::File {
        path: path.clone(),
        cause,
    })?;
    let state = serde_json::from_slice(&json).map_err(|cause| CheckpointError::State { path, cause })?;
    let model = config.init::<B>(0, device).load(config, &checkpoint.join(MODEL))?;
    Ok((model, state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn::tensor::{Int, Tensor};
    use burn_flex::{Flex, FlexDevice};
    use gpas_model::TokenBatch;
    use gpas_model::weights::NamedTensors;

    use crate::optimizer::{OptimizerConfig, OptimizerKind, OptimizerRecord};
    use crate::schedule::{Schedule, ScheduleKind};

    type B = Autodiff<Flex>;

    const TOKENS: usize = 16;

    fn config() -> LlamaConfig {
        LlamaConfig::new(24, 16, 32, 2, 2).with_scheme("sandwich_gpas".parse().unwrap())
    }

    /// The settings of a run whose rate differs from step to step.
    fn trainer(model: Llama<B>) -> Trainer<B> {
        let optimizer = OptimizerConfig {
            kind: OptimizerKind::AdamW,
            betas: (0.9, 0.95),
            eps: 1e-8,
            weight_decay: 0.1,
            clip: 1.0,
            clip_gate: 0.01,
        };
        let schedule = Schedule {
            kind: ScheduleKind::Cosine,
            peak: 1e-2,
            warmup: 0,
            total: 5,
            min_lr_ratio: 0.1,
            cycles: 1,
            decay_fraction: 0.0,
        };
        Trainer::new(model, optimizer, schedule)
    }

    fn step(trainer: Trainer<B>) -> Trainer<B> {
        let index = trainer.steps() as usize;
        let ids: Vec<i32> = (0..=TOKENS).map(|at| ((at * at + index * 5) % 24) as i32).collect();
        let tensor = |ids: &[i32]| Tensor::<B, 1, Int>::from_ints(ids, &FlexDevice).reshape([2, TOKENS / 2]);
        let batch = TokenBatch {
            ids: tensor(&ids[..TOKENS]),
            targets: tensor(&ids[1..]),
        };
        trainer.step([batch], TOKENS).0
    }

    fn state(step: u64) -> RunState {
        RunState {
            step,
            tokens: step * TOKENS as u64,
        }
    }

    /// 0 for the same bits; both have the same names and shapes.
    fn largest_difference(found: &NamedTensors, expected: &NamedTensors) -> f32 {
        let names = |tensors: &NamedTensors| tensors.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(found), names(expected));
        let pairs = found.values().zip(expected.values());
        let numbers = pairs.flat_map(|(found, expected)| found.values.iter().zip(&expected.values));
        numbers
            .map(|(found, expected)| (found - expected).abs())
            .fold(0.0, |largest, difference| {
                if difference.is_nan() {
                    f32::NAN
                } else {
                    difference.max(largest)
                }
            })
    }

    #[test]
    fn a_trainer_goes_on_from_a_checkpoint_as_if_undisturbed() {
        let place = tempfile::tempdir().unwrap();
        let config = config();
        let undisturbed = step(step(trainer(config.init(7, &FlexDevice))));
        let written = write(place.path(), &undisturbed, &config, state(2), 1).unwrap();
        assert_eq!(newest(place.path()).unwrap(), written);

        let (model, read) = read_model::<B>(&written, &config, &FlexDevice).unwrap();
        assert_eq!(read, state(2));
        let weights = |trainer: &Trainer<B>| trainer.model().to_tensors(&config);
        assert_eq!(model.to_tensors(&config), weights(&undisturbed));

        let record = || -> OptimizerRecord<Llama<B>, B> {
            let recorder = BinFileRecorder::<FullPrecisionSettings>::default();
            recorder.load(written.join(OPTIMIZER), &FlexDevice).unwrap()
        };
        let expected = weights(&step(undisturbed));
        let goes_on = |model: &Llama<B>, record, steps| {
            let resumed = trainer(model.clone()).resume(record, steps);
            assert_eq!(resumed.steps(), steps);
            largest_difference(&weights(&step(resumed)), &expected)
        };
        assert_eq!(goes_on(&model, record(), 2), 0.0);
        // The moments and the place in the schedule each have a part in it.
        let without_moments = goes_on(&model, trainer(model.clone()).optimizer_record(), 2);
        let at_another_rate = goes_on(&model, record(), 1);
        assert!(without_moments > 1e-4 && at_another_rate > 1e-4);
    }

    /// Step 10 is newer than step 9, which comes after it in the alphabet.
    #[test]
    fn the_newest_checkpoints_are_kept() {
        let place = tempfile::tempdir().unwrap();
        let config = config();
        let trainer = trainer(config.init(7, &FlexDevice));
        for done in 8..=10 {
            write(place.path(), &trainer, &config, state(done), 2).unwrap();
        }
        let mut names: Vec<String> = fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["step-10", "step-9"]);
        assert_eq!(newest(place.path()).unwrap(), place.path().join("step-10"));
    }

    #[test]
    fn a_folder_without_a_checkpoint_has_no_newest() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join(".step-3")).unwrap();
        assert!(matches!(newest(place.path()), Err(CheckpointError::None(_))));
    }
}
