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
            _ => None,
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
