//! Checkpoints: weights, optimizer and place in the run after a step, in full precision.
//!
//! ```text
//! checkpoints/step-N/model.safetensors       weights by their released names, f32
//! checkpoints/step-N/optimizer.safetensors   Adam's moments by module path, f32
//! checkpoints/step-N/state.json              step, tokens, evaluations, recipe
//! checkpoints/step-N/manifest.json           length and SHA-256 of each of them
//! ```
//!
//! A checkpoint is written aside, synced and renamed when it is complete, so a folder of that name was whole once; its manifest tells
//! whether it still is. Training waits for the copy off the device alone: a thread of its own writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use gpas_data::aside::AsideDirectory;
use gpas_data::has_lfs_pointer;
use gpas_model::weights::{NamedTensors, SafetensorsFile, WeightsError, write_safetensors};
use gpas_model::{Llama, LlamaConfig, Progress};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::metrics::EvalRecord;
use crate::recipe::Recipe;
use crate::trainer::Trainer;

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps done; the place in the schedule and in the data.
    pub step: u64,
    /// Updates made: steps less those that were skipped.
    pub updates: u64,
    /// Tokens scored so far.
    pub tokens: u64,
    /// Skipped steps in a row up to now.
    pub bad_steps: u64,
    /// What was not finite at the first of them.
    pub first_bad: Option<String>,
    /// Gates, by their number, that have been reported as past the zero of the scale.
    pub reported_gates: Vec<usize>,
    /// The evaluation after this step, if there was one.
    pub evaluation: Option<EvalRecord>,
    /// The best evaluation of all checkpoints so far.
    pub best: Option<EvalRecord>,
    /// The recipe.
    pub recipe: Recipe,
}

impl RunState {
    /// Before the first step.
    pub fn new(recipe: Recipe) -> Self {
        Self {
            step: 0,
            updates: 0,
            tokens: 0,
            bad_steps: 0,
            first_bad: None,
            reported_gates: Vec::new(),
            evaluation: None,
            best: None,
            recipe,
        }
    }
}

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum CheckpointError {
    #[error("{0} has no checkpoint")]
    None(PathBuf),
    #[error("no checkpoint in {folder} is valid: {}", damages.join("; "))]
    NoneValid { folder: PathBuf, damages: Vec<String> },
    #[error("{checkpoint} is damaged: {file} {what}")]
    Damaged {
        checkpoint: PathBuf,
        file: String,
        what: String,
    },
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("cannot write the checkpoint {path}: {cause}")]
    Write { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("the thread that writes checkpoints ended with a panic")]
    Thread,
}

impl CheckpointError {
    /// The error where a run directory is not made because its first checkpoint cannot be written: nothing of either stays.
    #[must_use]
    pub fn of_the_first(self, run: &Path) -> Self {
        match self {
            CheckpointError::Write { cause, .. } => CheckpointError::File {
                path: run.to_path_buf(),
                cause,
            },
            other => other,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            CheckpointError::None(_) => Some("a run writes one every `checkpoint.every` steps and at its end".into()),
            CheckpointError::NoneValid { .. } => Some("nothing was changed; put one back from a copy".into()),
            CheckpointError::Write { .. } => Some(
                "make room; the checkpoint before this one is whole, and `gpas train RUN --resume` goes on from it"
                    .into(),
            ),
            _ => None,
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_path_buf();
    move |cause| CheckpointError::File { path, cause }
}

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";

/// What a manifest says of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

impl FileRecord {
    fn of(path: &Path) -> io::Result<Self> {
        let mut digest = Sha256::new();
        let bytes = io::copy(&mut File::open(path)?, &mut digest)?;
        let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { bytes, sha256 })
    }
}

/// A checkpoint that has left the device and is not yet on the disk.
#[derive(Clone, Debug)]
pub struct Snapshot {
    weights: NamedTensors,
    moments: NamedTensors,
    state: RunState,
}

impl Snapshot {
    /// Copies weights and moments to the host.
    ///
    /// # Errors
    /// If the parameters of the model are not those of the configuration.
    pub fn of<B: AutodiffBackend>(
        trainer: &Trainer<B>,
        config: &LlamaConfig,
        state: RunState,
    ) -> Result<Self, CheckpointError> {
        Ok(Self {
            weights: trainer.model().valid().to_tensors(config)?,
            moments: trainer.moments()?,
            state,
        })
    }

    /// A snapshot of weights that no step has changed yet, so that there are no moments.
    pub fn initial(weights: NamedTensors, state: RunState) -> Self {
        Self::from_checkpoint(weights, NamedTensors::new(), state)
    }

    /// A snapshot of the weights and moments of another run, with which a run begins.
    pub fn from_checkpoint(weights: NamedTensors, moments: NamedTensors, state: RunState) -> Self {
        Self {
            weights,
            moments,
            state,
        }
    }

    /// Writes the checkpoint into a run's folder of checkpoints, and deletes those that need not be kept.
    ///
    /// # Errors
    /// If the disk does not take it; older checkpoints are then untouched.
    pub fn write(&self, folder: &Path, keep: Keep) -> Result<PathBuf, CheckpointError> {
        let done = folder.join(format!("step-{}", self.state.step));
        let write = || -> io::Result<()> {
            let aside = AsideDirectory::in_place_of(&done)?;
            self.write_into(aside.path())?;
            aside.publish()?;
            let all = newest_first(folder)?;
            let best = self.state.best.map(|best| best.step);
            let needed = keep.needed(all.iter().map(|(step, _)| *step), self.state.step, best);
            for (_, path) in all.iter().filter(|(step, _)| !needed.contains(step)) {
                fs::remove_dir_all(path)?;
            }
            Ok(())
        };
        write().map_err(|cause| CheckpointError::Write {
            path: done.clone(),
            cause,
        })?;
        Ok(done)
    }

    fn write_into(&self, directory: &Path) -> io::Result<()> {
        let into_io = |error: WeightsError| match error {
            WeightsError::File { cause, .. } => cause,
            other => io::Error::other(other),
        };
        write_safetensors(&self.weights, &directory.join(MODEL)).map_err(into_io)?;
        write_safetensors(&self.moments, &directory.join(OPTIMIZER)).map_err(into_io)?;
        fs::write(directory.join(STATE), serde_json::to_vec_pretty(&self.state)?)?;
        let files: BTreeMap<&str, FileRecord> = [MODEL, OPTIMIZER, STATE]
            .into_iter()
            .map(|name| Ok((name, FileRecord::of(&directory.join(name))?)))
            .collect::<io::Result<_>>()?;
        fs::write(directory.join(MANIFEST), serde_json::to_vec_pretty(&files)?)
    }
}

/// Which checkpoints are kept when one is written: that one, the newest, the best, and the newest that a run which diverges can be taken back
/// to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// How many of the newest, the one that is written included.
    pub newest: u64,
    /// Only those after a multiple of so many steps count as the newest, and one that ends a run: others were written for being the best.
    pub every: u64,
    /// The newest whose weights were found to be of use by the step after it.
    pub sound: Option<u64>,
}

impl Keep {
    /// What a recipe wants kept, before anything is known of the use of weights.
    pub fn of(recipe: &Recipe) -> Self {
        Self {
            newest: recipe.checkpoint.keep,
            every: if recipe.train.keep_best {
                recipe.checkpoint.every
            } else {
                1
            },
            sound: None,
        }
    }

    /// Those to keep of the steps of all checkpoints, newest first, when that of step `written` has been written.
    fn needed(&self, all: impl Iterator<Item = u64>, written: u64, best: Option<u64>) -> BTreeSet<u64> {
        let counts = |step: &u64| step.is_multiple_of(self.every) || (*step == written && best != Some(written));
        let newest = all.filter(counts).take(self.newest.max(1) as usize);
        newest.chain([written]).chain(best).chain(self.sound).collect()
    }
}

/// Writes checkpoints on a thread, one at a time.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    running: Option<JoinHandle<Result<PathBuf, CheckpointError>>>,
}

impl Writer {
    /// A writer into a run's folder of checkpoints.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, running: None }
    }

    /// Begins to write, after what is being written, and then to delete what need not be kept.
    ///
    /// # Errors
    /// If the checkpoint before it could not be written.
    pub fn submit(&mut self, snapshot: Snapshot, keep: Keep) -> Result<(), CheckpointError> {
        self.finish()?;
        let folder = self.folder.clone();
        let thread = std::thread::Builder::new().name("checkpoint".into());
        let spawned = thread.spawn(move || snapshot.write(&folder, keep));
        self.running = Some(spawned.map_err(|cause| CheckpointError::Write {
            path: self.folder.clone(),
            cause,
        })?);
        Ok(())
    }

    /// Says so if a checkpoint has failed meanwhile.
    ///
    /// # Errors
    /// If it has.
    pub fn poll(&mut self) -> Result<(), CheckpointError> {
        match &self.running {
            Some(thread) if thread.is_finished() => self.finish(),
            _ => Ok(()),
        }
    }

    /// Waits for what is being written.
    ///
    /// # Errors
    /// If it could not be.
    pub fn finish(&mut self) -> Result<(), CheckpointError> {
        match self.running.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(_))) => Ok(()),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(_)) => Err(CheckpointError::Thread),
        }
    }
}

impl Drop for Writer {
    /// A run that ends with another error keeps what it was writing.
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// A checkpoint on the disk, whole as far as its manifest tells.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Where it is.
    pub path: PathBuf,
    /// Where the run stood.
    pub state: RunState,
    /// SHA-256 of the file of weights, as the manifest has it.
    pub weights_sha256: String,
}

impl Checkpoint {
    /// Opens a checkpoint after comparing every file with the manifest.
    ///
    /// # Errors
    /// The first file that is missing or not as it was written.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let damaged = |file: &str, what: String| CheckpointError::Damaged {
            checkpoint: path.to_path_buf(),
            file: file.to_string(),
            what,
        };
        let unreadable = |file: &str, cause: io::Error| match cause.kind() {
            io::ErrorKind::NotFound => damaged(file, "is missing".into()),
            _ => damaged(file, format!("cannot be read: {cause}")),
        };
        let manifest = fs::read(path.join(MANIFEST)).map_err(|cause| unreadable(MANIFEST, cause))?;
        let files: BTreeMap<String, FileRecord> =
            serde_json::from_slice(&manifest).map_err(|cause| damaged(MANIFEST, format!("is no manifest: {cause}")))?;
        for name in [MODEL, OPTIMIZER, STATE] {
            let expected = files
                .get(name)
                .ok_or_else(|| damaged(MANIFEST, format!("does not name {name}")))?;
            if has_lfs_pointer(&path.join(name)) {
                let what = "is a Git LFS pointer, for which `git lfs pull` fetches the file itself";
                return Err(damaged(name, what.into()));
            }
            let found = FileRecord::of(&path.join(name)).map_err(|cause| unreadable(name, cause))?;
            if found.bytes != expected.bytes {
                let what = format!("has {} bytes, not {}", found.bytes, expected.bytes);
                return Err(damaged(name, what));
            }
            if found.sha256 != expected.sha256 {
                return Err(damaged(name, "has another SHA-256 than when it was written".into()));
            }
        }
        let state = fs::read(path.join(STATE)).map_err(|cause| unreadable(STATE, cause))?;
        let state = serde_json::from_slice(&state).map_err(|cause| damaged(STATE, format!("is no state: {cause}")))?;
        Ok(Self {
            path: path.to_path_buf(),
            state,
            weights_sha256: files.get(MODEL).map(|record| record.sha256.clone()).unwrap_or_default(),
        })
    }

    /// Compares the names and shapes of the weights with the parameters of a model, without reading them.
    ///
    /// # Errors
    /// If they are not the same.
    pub fn check_fits(&self, config: &LlamaConfig) -> Result<(), WeightsError> {
        let file = SafetensorsFile::open(&self.path.join(MODEL))?;
        config.check_released(file.tensors())
    }

    /// The model, as far as its training had come.
    ///
    /// # Errors
    /// If the weights cannot be read or do not fit.
    pub fn model<B: Backend>(&self, config: &LlamaConfig, device: &B::Device) -> Result<Llama<B>, CheckpointError> {
        let model = Llama::load(config, &self.path.join(MODEL), device)?;
        Ok(model.with_progress(Progress::after(self.state.step)))
    }

    /// The weights, whole on the host.
    ///
    /// # Errors
    /// If they cannot be read or do not fit.
    pub fn weights(&self, config: &LlamaConfig) -> Result<NamedTensors, CheckpointError> {
        let mut file = SafetensorsFile::open(&self.path.join(MODEL))?;
        config.check_released(file.tensors())?;
        Ok(file.read_all()?)
    }

    /// The optimizer's moments.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn moments(&self) -> Result<NamedTensors, CheckpointError> {
        Ok(SafetensorsFile::open(&self.path.join(OPTIMIZER))?.read_all()?)
    }
}

/// The newest valid checkpoint, and the newer ones that are damaged.
#[derive(Debug)]
pub struct Found {
    /// The newest valid one.
    pub checkpoint: Checkpoint,
    /// What is wrong with those that would have come before it.
    pub passed_over: Vec<CheckpointError>,
}

/// The newest valid checkpoint of a run's folder of checkpoints.
///
/// # Errors
/// If there is none, or the folder cannot be read.
pub fn newest_valid(folder: &Path) -> Result<Found, CheckpointError> {
    let found = newest_first(folder).map_err(failed(folder))?;
    if found.is_empty() {
        return Err(CheckpointError::None(folder.to_path_buf()));
    }
    first_valid(folder.to_path_buf(), found.into_iter().map(|(_, path)| path))
}

/// The first valid one of some checkpoints of a run's folder of checkpoints, and what is wrong with those before it.
///
/// # Errors
/// If none is valid.
pub(crate) fn first_valid(folder: PathBuf, paths: impl IntoIterator<Item = PathBuf>) -> Result<Found, CheckpointError> {
    let mut passed_over = Vec::new();
    for path in paths {
        match Checkpoint::open(&path) {
            Ok(checkpoint) => {
                return Ok(Found {
                    checkpoint,
                    passed_over,
                });
            }
            Err(error) => passed_over.push(error),
        }
    }
    Err(CheckpointError::NoneValid {
        folder,
        damages: passed_over.iter().map(ToString::to_string).collect(),
    })
}

/// Before a run goes on: checkpoints after `step`, which were damaged, get names that say so, and what a killed process was writing is
/// deleted.
///
/// # Errors
/// If the folder cannot be changed.
pub fn clear(folder: &Path, step: u64) -> Result<(), CheckpointError> {
    let clear = || -> io::Result<()> {
        for (_, path) in newest_first(folder)?.into_iter().filter(|(at, _)| *at > step) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let aside = folder.join(format!("damaged-{name}"));
            if aside.exists() {
                fs::remove_dir_all(&aside)?;
            }
            fs::rename(&path, &aside)?;
        }
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(".step-") {
                fs::remove_dir_all(&path)?;
            }
        }
        Ok(())
    };
    clear().map_err(failed(folder))
}

/// The step of the newest checkpoint in a run's folder of checkpoints, whether or not it is whole.
pub fn newest_step(folder: &Path) -> Option<u64> {
    newest_first(folder).ok()?.first().map(|(step, _)| *step)
}

/// The steps of the checkpoints in a run's folder of checkpoints, newest first, each with its path.
///
/// # Errors
/// If the folder cannot be read.
pub(crate) fn kept(folder: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    newest_first(folder).map_err(failed(folder))
}

fn newest_first(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};
    use gpas_model::{Precision, TokenBatch, compare};

    use crate::optimizer::{OptimizerConfig, OptimizerKind};
    use crate::recipe::{RecipeOptions, resolve};
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
            begin: 0,
            total: 5,
            min_lr_ratio: 0.1,
            cycles: 1,
            decay_fraction: 0.0,
        };
        Trainer::new(model, optimizer, schedule.rates()).unwrap()
    }

    fn step(trainer: Trainer<B>) -> Trainer<B> {
        let index = trainer.steps() as usize;
        let ids: Vec<u32> = (0..=TOKENS).map(|at| ((at * at + index * 5) % 24) as u32).collect();
        let targets: Vec<i32> = ids[1..].iter().map(|id| id.cast_signed()).collect();
        let rows = ids[..TOKENS].chunks(TOKENS / 2).zip(targets.chunks(TOKENS / 2));
        let batch = TokenBatch::from_rows(rows, &FlexDevice).unwrap();
        trainer.step([batch], TOKENS).0
    }

    fn state(step: u64) -> RunState {
        RunState {
            step,
            updates: step,
            ..RunState::new(resolve(None, &RecipeOptions::default()).unwrap())
        }
    }

    fn newest(count: u64) -> Keep {
        Keep {
            newest: count,
            every: 1,
            sound: None,
        }
    }

    fn snapshot(trainer: &Trainer<B>, state: RunState) -> Snapshot {
        Snapshot::of(trainer, &config(), state).unwrap()
    }

    /// 0 for the same bits; both have the same names and shapes.
    fn largest_difference(found: &NamedTensors, expected: &NamedTensors) -> f64 {
        let names = |tensors: &NamedTensors| tensors.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(found), names(expected));
        let pairs = found.values().zip(expected.values());
        compare::largest(pairs.map(|(found, expected)| compare::largest_difference(&found.values, &expected.values)))
    }

    #[test]
    fn a_trainer_goes_on_from_a_checkpoint_as_if_undisturbed() {
        let schemes = ["sandwich_gpas", "peri", "keel_gpas", "layerscale", "rezero_gpas"];
        let in_f32 = schemes.map(|scheme| (scheme, Precision::F32));
        // The steps that are compared lie in the warm-up.
        let others = [
            ("sandwich_gpas", Precision::Bf16Pure),
            ("rezero_gpas", Precision::Bf16Pure),
            ("prores_gpas", Precision::F32),
        ];
        for (scheme, precision) in in_f32.into_iter().chain(others) {
            let place = tempfile::tempdir().unwrap();
            let config = LlamaConfig::new(24, 16, 32, 2, 2)
                .with_scheme(scheme.parse().unwrap())
                .with_residual_warmup(4)
                .with_precision(precision);
            let undisturbed = step(step(trainer(config.init(7, &FlexDevice))));
            let written = Snapshot::of(&undisturbed, &config, state(2))
                .unwrap()
                .write(place.path(), newest(1))
                .unwrap();
            let found = newest_valid(place.path()).unwrap().checkpoint;
            assert_eq!((&found.path, &found.state), (&written, &state(2)));

            let model = found.model::<B>(&config, &FlexDevice).unwrap();
            let weights = |trainer: &Trainer<B>| trainer.model().to_tensors(&config).unwrap();
            assert_eq!(model.to_tensors(&config).unwrap(), weights(&undisturbed));

            let expected = weights(&step(undisturbed));
            let goes_on = |moments, updates, steps| {
                let resumed = trainer(model.clone()).resume(moments, updates, steps).unwrap();
                assert_eq!(resumed.steps(), steps);
                largest_difference(&weights(&step(resumed)), &expected)
            };
            assert_eq!(goes_on(found.moments().unwrap(), 2, 2), 0.0, "{scheme} {precision:?}");
            // The moments and the place in the schedule each have a part in it.
            let without_moments = goes_on(NamedTensors::new(), 0, 2);
            let at_another_rate = goes_on(found.moments().unwrap(), 2, 1);
            assert!(
                without_moments > 1e-4 && at_another_rate > 1e-4,
                "{scheme} {precision:?}"
            );
            let mut broken = expected.clone();
            broken.last_entry().unwrap().get_mut().values[0] = f32::NAN;
            assert!(largest_difference(&broken, &expected).is_nan());
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Step 10 is newer than step 9, which comes after it in the alphabet.
    #[test]
    fn the_newest_checkpoints_and_the_best_are_kept() {
        let place = tempfile::tempdir().unwrap();
        let trainer = trainer(config().init(7, &FlexDevice));
        let best = |step| EvalRecord {
            step,
            loss: 1.0,
            perplexity: 1.0,
            bits_per_byte: None,
            tokens: 1,
        };
        for done in 6..=10 {
            let state = RunState {
                best: Some(best(7.min(done))),
                ..state(done)
            };
            snapshot(&trainer, state).write(place.path(), newest(2)).unwrap();
        }
        assert_eq!(names(place.path()), ["step-10", "step-7", "step-9"]);
        assert_eq!(newest_valid(place.path()).unwrap().checkpoint.state.step, 10);
    }

    #[test]
    fn one_that_is_only_the_best_or_sound_takes_no_place_of_the_newest() {
        let keep = Keep {
            newest: 2,
            every: 10,
            sound: Some(10),
        };
        let needed = |all: &[u64], written, best| {
            let needed = keep.needed(all.iter().copied(), written, best);
            needed.into_iter().collect::<Vec<_>>()
        };
        // Step 47 was the best until step 50 was better.
        assert_eq!(needed(&[50, 47, 40, 30, 10], 50, Some(50)), [10, 40, 50]);
        assert_eq!(needed(&[47, 43, 40, 30, 20, 10], 47, Some(47)), [10, 30, 40, 47]);
        assert_eq!(needed(&[53, 50, 47, 40, 30, 10], 53, Some(47)), [10, 47, 50, 53]);
        let all_count = Keep { every: 1, ..keep };
        let needed = all_count.needed([53, 50, 47, 40, 30, 10].into_iter(), 53, None);
        assert_eq!(needed.into_iter().collect::<Vec<_>>(), [10, 50, 53]);
    }

    #[test]
    fn a_folder_without_a_checkpoint_has_no_newest() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join(".step-3")).unwrap();
        assert!(matches!(newest_valid(place.path()), Err(CheckpointError::None(_))));
    }

    #[test]
    fn a_damaged_checkpoint_is_named_and_passed_over() {
        type Damage = fn(&Path);
        let flip: Damage = |path| {
            let file = path.join(OPTIMIZER);
            let mut bytes = fs::read(&file).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            fs::write(file, bytes).unwrap();
        };
        let truncate: Damage = |path| {
            File::options()
                .write(true)
                .open(path.join(MODEL))
                .unwrap()
                .set_len(99)
                .unwrap()
        };
        let remove: Damage = |path| fs::remove_file(path.join(STATE)).unwrap();
        let empty: Damage = |path| fs::write(path.join(MANIFEST), "").unwrap();
        let hollow: Damage = |path| fs::write(path.join(MANIFEST), "{}").unwrap();
        let trainer = trainer(config().init(7, &FlexDevice));
        for (damage, expected) in [
            (
                flip,
                "optimizer.safetensors has another SHA-256 than when it was written",
            ),
            (truncate, "model.safetensors has 99 bytes, not "),
            (remove, "state.json is missing"),
            (
                empty,
                "manifest.json is no manifest: EOF while parsing a value at line 1 column 0",
            ),
            (hollow, "manifest.json does not name model.safetensors"),
        ] {
            let place = tempfile::tempdir().unwrap();
            let write = |step| snapshot(&trainer, state(step)).write(place.path(), newest(9)).unwrap();
            write(1);
            let newest = write(2);
            damage(&newest);
            let found = newest_valid(place.path()).unwrap();
            assert_eq!(found.checkpoint.state.step, 1);
            let said = found.passed_over[0].to_string();
            assert!(
                said.starts_with(&format!("{} is damaged: {expected}", newest.display())),
                "{said}"
            );

            damage(&place.path().join("step-1"));
            let error = newest_valid(place.path()).unwrap_err().to_string();
            assert!(
                error.contains("is valid") && error.matches(expected).count() == 2,
                "{error}"
            );

            clear(place.path(), 1).unwrap();
            assert_eq!(names(place.path()), ["damaged-step-2", "step-1"]);
        }
    }
}
