//! Where the records of a run go: `metrics.jsonl`, and whoever observes it.

use std::io;
use std::path::PathBuf;

use crate::checkpoint::RunState;
use crate::metrics::{EvalRecord, LayersRecord, MetricsFile, NoticeRecord, Record, TrainRecord};
use crate::run::RunDirectory;
use crate::training::{Observer, TrainingError};

/// The records of a run in progress.
pub(super) struct Records {
    path: PathBuf,
    file: MetricsFile,
    observers: Vec<Box<dyn Observer>>,
    /// Steps done before the run's first.
    begin: u64,
    /// The evaluation before the first step.
    pub first: Option<EvalRecord>,
    /// The newest evaluation.
    pub last: Option<EvalRecord>,
}

impl Records {
    /// Goes on with the records of a run that began after `begin` steps and stands where `state` says; they are given back.
    pub fn open(
        run: &RunDirectory,
        mut observers: Vec<Box<dyn Observer>>,
        begin: u64,
        state: &RunState,
    ) -> Result<(Self, Vec<Record>), TrainingError> {
        let path = run.metrics_path();
        let failed = |path: PathBuf| move |cause| TrainingError::Metrics { path, cause };
        let (file, history) =
            MetricsFile::resume(&path, begin, state.step, state.evaluation.is_some()).map_err(failed(path.clone()))?;
        let mut evaluations = history.records.iter().filter_map(|record| match record {
            Record::Eval(record) => Some(*record),
            _ => None,
        });
        let (first, last) = (
            evaluations.clone().find(|record| record.step == begin),
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
            begin,
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
        Ok((records, history.records))
    }

    fn write(&mut self, record: &Record) -> Result<(), TrainingError> {
        let mut observers = self.observers.iter_mut();
        let written = self
            .file
            .write(record)
            .and_then(|()| observers.try_for_each(|observer| observer.record(record)));
        written.map_err(|cause| self.failed(cause))
    }

    pub fn sync(&self) -> Result<(), TrainingError> {
        self.file.sync().map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: io::Error) -> TrainingError {
        TrainingError::Metrics {
            path: self.path.clone(),
            cause,
        }
    }

    pub fn step(&mut self, record: &TrainRecord) -> Result<(), TrainingError> {
        self.write(&Record::Train(record.clone()))
    }

    pub fn evaluation(&mut self, record: &EvalRecord) -> Result<(), TrainingError> {
        self.write(&Record::Eval(*record))?;
        self.first = self.first.or(Some(*record).filter(|record| record.step == self.begin));
        self.last = Some(*record);
        Ok(())
    }

    pub fn layers(&mut self, record: &LayersRecord) -> Result<(), TrainingError> {
        self.write(&Record::Layers(record.clone()))
    }

    pub fn notice(&mut self, step: u64, message: String) -> Result<(), TrainingError> {
        self.write(&Record::Notice(NoticeRecord { step, message }))
    }
}
