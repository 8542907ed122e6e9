//! Which checkpoint of a run is meant: `RUN` is its newest, `RUN@STEP` the one after that step, `RUN@best` the best of those that are kept.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, CheckpointError, Found, first_valid, kept, newest_valid};
use crate::metrics::Metrics;
use crate::run::{RunDirectory, RunError};

/// A checkpoint of a run, as a command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenCheckpoint {
    /// The directory of the run.
    pub directory: PathBuf,
    /// Which of its checkpoints.
    pub choice: Choice,
}

/// Which of a run's checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The newest valid one.
    Newest,
    /// The one after so many steps.
    Step(u64),
    /// The valid one whose evaluation, as the run's metrics have it, has the lowest loss; of several with that loss the first.
    Best,
}

impl ChosenCheckpoint {
    /// What is meant by a path. Where there is a directory of that very name, it is that run's newest checkpoint, whatever the name.
    pub fn of(path: &Path) -> Self {
        let whole = Self {
            directory: path.to_path_buf(),
            choice: Choice::Newest,
        };
        // A name need not be UTF-8; what stands behind the `@` is.
        let name = path.file_name().unwrap_or_default();
        let text = name.to_string_lossy();
        let Some((_, which)) = text.rsplit_once('@') else {
            return whole;
        };
        let choice = match which {
            "best" => Choice::Best,
            step => match step.parse() {
                Ok(step) => Choice::Step(step),
                Err(_) => return whole,
            },
        };
        if path.is_dir() {
            return whole;
        }
        Self {
            directory: path.with_file_name(without_end(name, which.len() + 1)),
            choice,
        }
    }

    /// Opens the run and the checkpoint; of the newest and the best, with the damaged ones that were passed over.
    ///
    /// # Errors
    /// If there is no such run, or no such checkpoint, or it is damaged.
    pub fn open(&self) -> Result<(RunDirectory, Found), ChoiceError> {
        let run = RunDirectory::open(&self.directory)?;
        let found = match self.choice {
            Choice::Newest => newest_valid(&run.checkpoints_path())?,
            Choice::Step(step) => of_step(&run, step)?,
            Choice::Best => best(&run)?,
        };
        Ok((run, found))
    }
}

/// A name without so many bytes at its end, which are ASCII.
#[cfg(unix)]
fn without_end(name: &OsStr, bytes: usize) -> OsString {
    use std::os::unix::ffi::OsStrExt;
    let name = name.as_bytes();
    OsStr::from_bytes(&name[..name.len().saturating_sub(bytes)]).to_os_string()
}

/// A name without so many bytes at its end, which are ASCII.
#[cfg(not(unix))]
fn without_end(name: &OsStr, bytes: usize) -> OsString {
    let name = name.to_string_lossy();
    name[..name.len().saturating_sub(bytes)].into()
}

impl fmt::Display for ChosenCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.directory.display();
        match self.choice {
            Choice::Newest => write!(f, "{run}"),
            Choice::Step(step) => write!(f, "{run}@{step}"),
            Choice::Best => write!(f, "{run}@best"),
        }
    }
}

/// Why the checkpoint that was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ChoiceError {
    #[error("{run} has no checkpoint of step {step}")]
    NoStep { run: PathBuf, step: u64, kept: Vec<u64> },
    #[error("no checkpoint of {run} was evaluated")]
    NoEvaluation { run: PathBuf, kept: Vec<u64> },
    #[error("{path}: {cause}")]
    Metrics { path: PathBuf, cause: std::io::Error },
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl ChoiceError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ChoiceError::NoStep { run, kept, .. } | ChoiceError::NoEvaluation { run, kept } => {
                let mut kept = kept.clone();
                kept.sort_unstable();
                let names: Vec<_> = kept.iter().map(|step| format!("{}@{step}", run.display())).collect();
                (!names.is_empty()).then(|| format!("it has {}", names.join(", ")))
            }
            ChoiceError::Metrics { .. } => None,
            ChoiceError::Run(error) => error.hint(),
            ChoiceError::Checkpoint(error) => error.hint(),
        }
    }
}

/// The steps of the checkpoints that a run has, newest first, each with its path.
fn steps(run: &RunDirectory) -> Result<Vec<(u64, PathBuf)>, ChoiceError> {
    Ok(kept(&run.checkpoints_path())?)
}

fn of_step(run: &RunDirectory, step: u64) -> Result<Found, ChoiceError> {
    let all = steps(run)?;
    match all.iter().find(|(at, _)| *at == step) {
        Some((_, path)) => Ok(Found {
            checkpoint: Checkpoint::open(path)?,
            passed_over: Vec::new(),
        }),
        None => Err(ChoiceError::NoStep {
            run: run.path().to_path_buf(),
            step,
            kept: all.into_iter().map(|(step, _)| step).collect(),
        }),
    }
}

fn best(run: &RunDirectory) -> Result<Found, ChoiceError> {
    let path = run.metrics_path();
    let metrics = Metrics::read(&path).map_err(|cause| ChoiceError::Metrics { path, cause })?;
    let finite = metrics.eval.iter().filter(|record| record.loss.is_finite());
    let losses: BTreeMap<u64, f64> = finite.map(|record| (record.step, record.loss)).collect();
    let all = steps(run)?;
    let evaluated = all
        .iter()
        .filter_map(|(step, path)| Some((losses.get(step)?, step, path)));
    let mut evaluated: Vec<_> = evaluated.collect();
    evaluated.sort_by(|(one, at, _), (other, than, _)| one.total_cmp(other).then(at.cmp(than)));
    if evaluated.is_empty() {
        return Err(ChoiceError::NoEvaluation {
            run: run.path().to_path_buf(),
            kept: all.iter().map(|(step, _)| *step).collect(),
        });
    }
    let paths = evaluated.into_iter().map(|(_, _, path)| path.clone());
    Ok(first_valid(run.checkpoints_path(), paths)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_the_run_and_the_checkpoint() {
        let place = tempfile::tempdir().unwrap();
        let of = |name: &str| ChosenCheckpoint::of(&place.path().join(name));
        let chosen = |run: &str, choice| ChosenCheckpoint {
            directory: place.path().join(run),
            choice,
        };
        assert_eq!(of("run"), chosen("run", Choice::Newest));
        assert_eq!(of("run@300"), chosen("run", Choice::Step(300)));
        assert_eq!(of("a@b@best"), chosen("a@b", Choice::Best));
        for other in ["run@", "run@bset", "run@-1", "run@1e3", "me@home"] {
            assert_eq!(of(other), chosen(other, Choice::Newest));
        }
        std::fs::create_dir(place.path().join("run@7")).unwrap();
        assert_eq!(of("run@7"), chosen("run@7", Choice::Newest));
        assert_eq!(of("run@7@8"), chosen("run@7", Choice::Step(8)));
        let shown = ChosenCheckpoint::of(Path::new("runs/a@best")).to_string();
        assert_eq!(shown, "runs/a@best");
    }
}
