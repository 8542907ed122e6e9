//! What a run records: one JSON object a line in `metrics.jsonl`, each with its `kind` and `step` (optimizer steps done, from 1).
//!
//! | `kind` | when |
//! |---|---|
//! | `train` | every step, exactly once |
//! | `eval` | every `eval.every` steps; step 0 is before training |
//! | `layers` | every `train.inspect_every` steps: one array per quantity |
//! | `notice` | when something happened that its owner should know |
//!
//! A number that is not finite stands as `null`. What each number is called, how it is read, shown, tagged and drawn stands beside its record
//! in `record.rs`, once: the dashboard, TensorBoard and the report go by those declarations.

mod quantity;
mod record;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use gpas_data::aside::AsideFile;
use serde::{Deserialize, Serialize};

pub use quantity::{Curve, Format, LayerFigure, LayerQuantity, Quantity};
pub use record::{EvalRecord, GateRange, LayersRecord, NoticeRecord, TrainRecord, null_is_nan};

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// An optimizer step; exactly one per step.
    Train(TrainRecord),
    /// An evaluation on the validation split; step 0 is before training.
    Eval(EvalRecord),
    /// A look at every layer.
    Layers(LayersRecord),
    /// Something that the run's owner should know.
    Notice(NoticeRecord),
}

impl Record {
    /// Optimizer steps done.
    pub fn step(&self) -> u64 {
        match self {
            Record::Train(record) => record.step,
            Record::Eval(record) => record.step,
            Record::Layers(record) => record.step,
            Record::Notice(record) => record.step,
        }
    }
}

/// The whole lines of a run's `metrics.jsonl`; none if it has no such file.
///
/// # Errors
/// If the file cannot be read.
pub fn read_records(path: &Path) -> io::Result<Vec<Record>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut records = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        // What a killed process was writing is no line.
        records.extend(serde_json::from_slice(&line?).ok());
    }
    Ok(records)
}

/// The lines of a `metrics.jsonl` by their kind, each in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// The steps.
    pub train: Vec<TrainRecord>,
    /// The evaluations.
    pub eval: Vec<EvalRecord>,
    /// The looks at every layer.
    pub layers: Vec<LayersRecord>,
    /// What happened that its owner should know.
    pub notices: Vec<NoticeRecord>,
}

impl Metrics {
    /// Reads a run's `metrics.jsonl` as [`read_records`] does.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut metrics = Self::default();
        for record in read_records(path)? {
            match record {
                Record::Train(record) => metrics.train.push(record),
                Record::Eval(record) => metrics.eval.push(record),
                Record::Layers(record) => metrics.layers.push(record),
                Record::Notice(record) => metrics.notices.push(record),
            }
        }
        Ok(metrics)
    }
}

/// The open `metrics.jsonl` of a run.
#[derive(Debug)]
pub struct MetricsFile(File);

/// What a run that goes on finds in its `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The lines that are kept.
    pub records: Vec<Record>,
    /// Steps that have no line though they were done, because somebody changed the file.
    pub missing: BTreeSet<u64>,
}

impl MetricsFile {
    /// Opens the file to write after its end.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn append_to(path: &Path) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path).map(Self)
    }

    /// Opens the file of a run that began after `begin` steps and goes on after `step`, without the lines of what was done after them and is
    /// done again: later steps, a line that was being written, and the evaluation of this very step unless it is `evaluated`.
    ///
    /// # Errors
    /// If it cannot be read or replaced.
    pub fn resume(path: &Path, begin: u64, step: u64, evaluated: bool) -> io::Result<(Self, History)> {
        let mut history = History {
            records: Vec::new(),
            missing: (begin + 1..=step).collect(),
        };
        let mut kept = BufWriter::new(AsideFile::beside(path)?);
        match File::open(path) {
            Ok(file) => {
                for line in BufReader::new(file).split(b'\n') {
                    let line = line?;
                    let Ok(record) = serde_json::from_slice::<Record>(&line) else {
                        continue;
                    };
                    let is_done_again = match record {
                        Record::Eval(EvalRecord { step: at, .. }) if at == step => !evaluated,
                        _ => record.step() > step,
                    };
                    if is_done_again {
                        continue;
                    }
                    if let Record::Train(TrainRecord { step, .. }) = record {
                        history.missing.remove(&step);
                    }
                    history.records.push(record);
                    kept.write_all(&line)?;
                    kept.write_all(b"\n")?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        kept.into_inner()?.replace()?;
        Ok((Self::append_to(path)?, history))
    }

    /// Writes one line, in one piece.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        self.0.write_all(line.as_bytes())
    }

    /// Waits until everything written is on the disk.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_line_is_flat_and_reads_back() {
        let record = Record::Eval(EvalRecord {
            step: 3,
            loss: 1.5,
            perplexity: 4.5,
            tokens: 7,
            ..EvalRecord::default()
        });
        let line = serde_json::to_string(&record).unwrap();
        assert_eq!(
            line,
            r#"{"kind":"eval","step":3,"loss":1.5,"perplexity":4.5,"tokens":7}"#
        );
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }

    #[test]
    fn the_range_of_gates() {
        assert_eq!(
            GateRange::of(&[0.5, -0.5, 0.3]),
            Some(GateRange {
                min: -0.5,
                mean: 0.3 / 3.0,
                max: 0.5
            })
        );
        assert_eq!(GateRange::of(&[]), None);
    }

    fn train(step: u64) -> Record {
        Record::Train(TrainRecord {
            step,
            loss: 2.0,
            tokens: step,
            tokens_per_s: 1.0,
            grad_norm: 1.0,
            ..TrainRecord::default()
        })
    }

    fn eval(step: u64) -> Record {
        Record::Eval(EvalRecord {
            step,
            loss: 1.0,
            perplexity: 1.0,
            tokens: 1,
            ..EvalRecord::default()
        })
    }

    #[test]
    fn numbers_that_are_not_finite_are_null_and_read_back() {
        let Record::Train(record) = train(3) else {
            unreachable!()
        };
        let bad = Record::Train(TrainRecord {
            loss: f64::NAN,
            grad_norm: f64::INFINITY,
            skipped: true,
            ..record
        });
        let line = serde_json::to_string(&bad).unwrap();
        assert_eq!(
            line,
            r#"{"kind":"train","step":3,"loss":null,"lr":0.0,"tokens":3,"tokens_per_s":1.0,"grad_norm":null,"gate_grad_norm":0.0,"skipped":true}"#
        );
        let Record::Train(read) = serde_json::from_str(&line).unwrap() else {
            unreachable!()
        };
        assert!(read.loss.is_nan() && read.grad_norm.is_nan() && read.skipped);
    }

    #[test]
    fn a_file_goes_on_without_what_is_done_again() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("metrics.jsonl");
        let lines = [eval(0), train(1), train(2), eval(2), train(3), train(4)];
        for (evaluated, expected) in [(true, 4), (false, 3)] {
            let mut file = MetricsFile::append_to(&path).unwrap();
            for line in &lines {
                file.write(line).unwrap();
            }
            // Killed in the middle of a line.
            file.0.write_all(br#"{"kind":"train","step":5,"lo"#).unwrap();
            let (mut file, history) = MetricsFile::resume(&path, 0, 2, evaluated).unwrap();
            assert_eq!(history.records, lines[..expected]);
            assert!(history.missing.is_empty());
            file.write(&train(3)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), expected + 1);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn whole_lines_are_read() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("metrics.jsonl");
        assert_eq!(read_records(&path).unwrap(), []);
        let mut file = MetricsFile::append_to(&path).unwrap();
        file.write(&eval(0)).unwrap();
        file.write(&train(1)).unwrap();
        file.0.write_all(br#"{"kind":"train","step":2,"lo"#).unwrap();
        assert_eq!(read_records(&path).unwrap(), [eval(0), train(1)]);
    }

    #[test]
    fn steps_without_a_line_are_named() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("metrics.jsonl");
        fs::write(
            &path,
            format!("{}\nnot json\n", serde_json::to_string(&train(1)).unwrap()),
        )
        .unwrap();
        let (_, history) = MetricsFile::resume(&path, 0, 3, true).unwrap();
        assert_eq!(history.missing, BTreeSet::from([2, 3]));
        // The steps before a run began are those of another.
        let (_, history) = MetricsFile::resume(&path, 2, 3, true).unwrap();
        assert_eq!(history.missing, BTreeSet::from([3]));
    }
}
