//! The records of a run, each with the declarations of its numbers.
//!
//! A new number is a field of its record, which is its key in `metrics.jsonl`, and beside it a [`Quantity`], by which everything that shows
//! numbers knows it. A test compares the two.

use serde::{Deserialize, Deserializer, Serialize};

use super::quantity::{Curve, Format, LayerFigure, LayerQuantity, Quantity};

/// An optimizer step. But for `step`, `tokens` and `tokens_per_s`, everything is as it was before the update.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean over the step's scored tokens, in nats; `null` of a skipped step.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Tokens scored so far.
    pub tokens: u64,
    /// Positions (batch × seq) per second of this step.
    pub tokens_per_s: f64,
    /// Norm of all gradients before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Norm of all gates' gradients before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub gate_grad_norm: f64,
    /// The gates; absent without GPAS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<GateRange>,
    /// Whether no update was made because the loss or a gradient was not finite; absent if one was.
    #[serde(default, skip_serializing_if = "is_false")]
    pub skipped: bool,
}

impl TrainRecord {
    /// The numbers of a step, in the order in which they are shown.
    pub const QUANTITIES: &'static [Quantity<Self>] = &[
        Quantity {
            unit: "nats",
            in_a_line: "  loss {}",
            tag: "train/loss",
            curve: Some(Curve {
                title: "Training loss",
                method: "Mean loss in nats per scored token, before each update, against the tokens trained on.",
                reading: "",
                axis: "loss (nats)",
                is_logarithmic: false,
            }),
            ..Quantity::new("loss", "Loss", |record| Some(record.loss))
        },
        Quantity {
            higher_is_better: true,
            format: Format::Scientific(3),
            in_a_line: "  lr {}",
            tag: "train/learning rate",
            ..Quantity::new("lr", "Learning rate", |record| Some(record.lr))
        },
        Quantity {
            higher_is_better: true,
            format: Format::Fixed(0),
            on_dashboard: false,
            tag: "train/tokens",
            ..Quantity::new("tokens", "Tokens", |record| Some(record.tokens as f64))
        },
        Quantity {
            higher_is_better: true,
            format: Format::Fixed(0),
            in_a_line: "  {} tokens/s",
            tag: "train/tokens per second",
            ..Quantity::new("tokens_per_s", "Tokens per second", |record| Some(record.tokens_per_s))
        },
        Quantity {
            in_a_line: "  gradient norm {}",
            tag: "train/gradient norm",
            ..Quantity::new("grad_norm", "Gradient norm", |record| Some(record.grad_norm))
        },
        // Without gates, the norm of their gradients is a zero that says nothing.
        Quantity {
            tag: "train/gate gradient norm",
            ..Quantity::new("gate_grad_norm", "Gate gradient norm", |record| {
                record.gates.and(Some(record.gate_grad_norm))
            })
        },
        Quantity {
            higher_is_better: true,
            format: Format::Signed(4),
            in_a_line: "  gates {}",
            tag: "gates/smallest",
            ..Quantity::new("gates.min", "Gate, smallest", |record| Some(record.gates?.min))
        },
        Quantity {
            higher_is_better: true,
            format: Format::Signed(4),
            in_a_line: " … {}",
            tag: "gates/mean",
            ..Quantity::new("gates.mean", "Gate, mean", |record| Some(record.gates?.mean))
        },
        Quantity {
            higher_is_better: true,
            format: Format::Signed(4),
            in_a_line: " … {}",
            tag: "gates/largest",
            ..Quantity::new("gates.max", "Gate, largest", |record| Some(record.gates?.max))
        },
    ];
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Reads a number; `null` stands for one that is not finite.
///
/// # Errors
/// If it is neither.
pub fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Smallest, mean and largest gate of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateRange {
    /// Smallest.
    #[serde(deserialize_with = "null_is_nan")]
    pub min: f64,
    /// Mean.
    #[serde(deserialize_with = "null_is_nan")]
    pub mean: f64,
    /// Largest.
    #[serde(deserialize_with = "null_is_nan")]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean over the scored tokens, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// `exp(loss)`.
    #[serde(deserialize_with = "null_is_nan")]
    pub perplexity: f64,
    /// The loss in bits, of all tokens over the bytes that they stand for; absent where the tokenizer does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Tokens scored.
    pub tokens: u64,
}

impl EvalRecord {
    /// The numbers of an evaluation, in the order in which they are shown.
    pub const QUANTITIES: &'static [Quantity<Self>] = &[
        Quantity {
            unit: "nats",
            in_a_line: "  validation loss {}",
            tag: "validation/loss",
            ..Quantity::new("loss", "Loss", |record| Some(record.loss))
        },
        Quantity {
            format: Format::Fixed(3),
            in_a_line: "  perplexity {}",
            tag: "validation/perplexity",
            curve: Some(Curve {
                title: "Validation perplexity",
                method: "exp of the mean loss over the validation tokens, at every evaluation, against the tokens trained on.",
                reading: "The scale is logarithmic, so that equal distances are equal differences of loss.",
                axis: "perplexity",
                is_logarithmic: true,
            }),
            ..Quantity::new("perplexity", "Perplexity", |record| Some(record.perplexity))
        },
        Quantity {
            tag: "validation/bits per byte",
            curve: Some(Curve {
                title: "Validation bits per byte",
                method: "The loss in bits of all validation tokens over the bytes of text that they stand for, at every evaluation, against \
                         the tokens trained on.",
                reading: "Unlike the perplexity, it does not depend on the tokenizer.",
                axis: "bits per byte",
                is_logarithmic: false,
            }),
            ..Quantity::new("bits_per_byte", "Bits per byte", |record| record.bits_per_byte)
        },
    ];
}

/// Every layer at one step, before its update; the variance is over the step's first micro-batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayersRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// Variance of the residual stream's entries before each layer and after the last: one more than layers.
    pub variance: Vec<Option<f64>>,
    /// Norm of all gradients of a layer before clipping.
    pub grad_norm: Vec<Option<f64>>,
    /// Norm of all weights of a layer, gates included.
    pub weight_norm: Vec<Option<f64>>,
    /// The gates, one per layer, or two where attention and MLP have one each; empty without GPAS.
    pub gate: Vec<Option<f64>>,
}

impl LayersRecord {
    /// The numbers of every layer.
    pub const QUANTITIES: &'static [LayerQuantity<Self>] = &[
        LayerQuantity {
            key: "variance",
            tag: "variance",
            figure: Some(LayerFigure {
                title: "Variance of the residual stream",
                caption: "Variance of all entries of the residual stream before each layer, and after the last, over the first micro-batch \
                          of a step, at three moments of training: the first, the middle and the last look that was recorded \
                          (arXiv 2506.22049).",
                x: "before layer",
                y: "variance",
            }),
            read: |record| &record.variance,
        },
        LayerQuantity {
            key: "grad_norm",
            tag: "gradient norm",
            figure: Some(LayerFigure {
                title: "Gradient norm by layer",
                caption: "√Σ g² over all parameters of each layer, before clipping, at the same three moments.",
                x: "layer",
                y: "gradient norm",
            }),
            read: |record| &record.grad_norm,
        },
        LayerQuantity {
            key: "weight_norm",
            tag: "weight norm",
            figure: None,
            read: |record| &record.weight_norm,
        },
        // The report draws the gates over the whole training, in a figure of their own.
        LayerQuantity {
            key: "gate",
            tag: "gate",
            figure: None,
            read: |record| &record.gate,
        },
    ];
}

/// Something that the run's owner should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// One line.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;

    /// Every number of a record's line by its key, those of objects with a dot.
    fn numbers(line: &Value, before: &str) -> Vec<(String, f64)> {
        let entries = line.as_object().into_iter().flatten();
        let of_entry = |(key, value): (&String, &Value)| match value {
            Value::Object(_) => numbers(value, &format!("{before}{key}.")),
            _ => value
                .as_f64()
                .map(|number| (format!("{before}{key}"), number))
                .into_iter()
                .collect(),
        };
        entries.flat_map(of_entry).collect()
    }

    /// What is declared has a key in the file with that number in it, and a number in the file is declared unless it is `exempt`.
    fn assert_declared<R: Serialize>(record: &R, quantities: &[Quantity<R>], exempt: &[&str]) {
        let line = numbers(&json!(record), "");
        for quantity in quantities {
            let found = line
                .iter()
                .find(|(key, _)| key == quantity.key)
                .map(|(_, number)| *number);
            assert!(found.is_some(), "{} is no key", quantity.key);
            assert_eq!((quantity.read)(record), found, "{}", quantity.key);
            assert!(
                !quantity.tag.is_empty() && !quantity.name.is_empty(),
                "{}",
                quantity.key
            );
        }
        let declared: BTreeSet<&str> = quantities.iter().map(|quantity| quantity.key).collect();
        for (key, _) in &line {
            assert!(
                declared.contains(key.as_str()) != exempt.contains(&key.as_str()),
                "{key}"
            );
        }
        for of in [
            |quantity: &Quantity<R>| quantity.name,
            |quantity: &Quantity<R>| quantity.tag,
        ] {
            assert_eq!(
                quantities.iter().map(of).collect::<BTreeSet<_>>().len(),
                quantities.len()
            );
        }
    }

    #[test]
    fn every_number_of_the_file_is_declared() {
        let train = TrainRecord {
            step: 1,
            loss: 2.0,
            lr: 3.0,
            tokens: 4,
            tokens_per_s: 5.0,
            grad_norm: 6.0,
            gate_grad_norm: 7.0,
            gates: Some(GateRange {
                min: 8.0,
                mean: 9.0,
                max: 10.0,
            }),
            skipped: true,
        };
        assert_declared(&train, TrainRecord::QUANTITIES, &["step"]);
        let eval = EvalRecord {
            step: 1,
            loss: 2.0,
            perplexity: 3.0,
            bits_per_byte: Some(4.0),
            tokens: 5,
        };
        assert_declared(&eval, EvalRecord::QUANTITIES, &["step", "tokens"]);
        let layers = LayersRecord {
            step: 1,
            variance: vec![Some(2.0)],
            grad_norm: vec![Some(3.0)],
            weight_norm: vec![Some(4.0)],
            gate: vec![Some(5.0)],
        };
        let line = json!(layers);
        for quantity in LayersRecord::QUANTITIES {
            assert_eq!(json!((quantity.read)(&layers)), line[quantity.key], "{}", quantity.key);
        }
        assert_eq!(LayersRecord::QUANTITIES.len() + 1, line.as_object().unwrap().len());
    }

    #[test]
    fn a_model_without_gates_has_no_numbers_of_them() {
        let record = TrainRecord {
            step: 1,
            loss: 2.0,
            lr: 3.0,
            tokens: 4,
            tokens_per_s: 5.0,
            grad_norm: 6.0,
            ..TrainRecord::default()
        };
        let has = TrainRecord::QUANTITIES
            .iter()
            .filter(|quantity| (quantity.read)(&record).is_some());
        assert_eq!(has.count(), 5);
    }
}
