//! What a run records: one JSON object a line in `metrics.jsonl`, each with its `kind` and `step` (optimizer steps done, from 1).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// An optimizer step; exactly one per step.
    Train(TrainRecord),
    /// An evaluation on the validation split; step 0 is before training.
    Eval(EvalRecord),
}

/// An optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean over the step's scored tokens, before the update; in nats.
    pub loss: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Tokens scored so far.
    pub tokens: u64,
    /// Positions (batch × seq) per second of this step.
    pub tokens_per_s: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Norm of all gates' gradients before clipping.
    pub gate_grad_norm: f64,
    /// The gates after the update; absent without GPAS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gates: Option<GateRange>,
}

/// Smallest, mean and largest gate of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateRange {
    /// Smallest.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Largest.
    pub max: f64,
}

impl GateRange {
    /// The range of some gates; none of no gates.
    pub fn of(gates: &[f64]) -> Option<Self> {
        let min = gates.iter().copied().reduce(f64::min)?;
        let max = gates.iter().copied().reduce(f64::max)?;
        let mean = gates.iter().sum::<f64>() / gates.len() as f64;
        Some(Self { min, mean, max })
    }
}

/// An evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean over the scored tokens, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Tokens scored.
    pub tokens: u64,
}

/// The open `metrics.jsonl` of a run.
#[derive(Debug)]
pub struct MetricsFile(File);

impl MetricsFile {
    /// Opens the file to write after its end.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn append_to(path: &Path) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path).map(Self)
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_flat_and_reads_back() {
        let record = Record::Eval(EvalRecord {
            step: 3,
            loss: 1.5,
            perplexity: 4.5,
            tokens: 7,
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
}
