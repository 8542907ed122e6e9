//! Goldens: a small model in numbers, what it computes on one batch, and a short training of it, written by an independent PyTorch
//! implementation of the schemes.
//!
//! A golden is a safetensors file whose metadata holds every setting of the model and of its training. Its tensors:
//!
//! | name | what it is |
//! |---|---|
//! | `param/NAME`, `grad/NAME`, `trained/NAME` | weights at the start, their gradients on the batch, weights after the training |
//! | `ids`, `labels` | the batch, `[batch, seq]`; position t is scored against `labels[t + 1]`, −100 and the last position are not |
//! | `hidden/I`, `logits`, `loss` | the stream before layer I (the last after the final norm), and what comes out |
//! | `train/ids`, `train/labels` | the training, `[micro-batches, batch, seq]`, deliberately unequal in what they score |
//! | `train/loss` | f64, one per optimizer step, before its update |

use std::collections::HashMap;
use std::str::FromStr;

use burn::tensor::backend::Backend;
use gpas_model::weights::{HostTensor, NamedTensors, WeightsError, read_safetensors};
use gpas_model::{GateConfig, IGNORE_INDEX, LlamaConfig, TokenBatch};
use safetensors::tensor::Dtype;
use safetensors::{SafeTensorError, SafeTensors};
use serde::de::DeserializeOwned;

use gpas_train::optimizer::{OptimizerConfig, OptimizerKind};
use gpas_train::schedule::Schedule;

/// The goldens that are part of the program, by name.
const EMBEDDED: [(&str, &[u8]); 4] = [
    ("pre_gpas", include_bytes!("../../golden/pre_gpas.safetensors")),
    (
        "deeppost_gpas",
        include_bytes!("../../golden/deeppost_gpas.safetensors"),
    ),
    (
        "post_pre_gpas",
        include_bytes!("../../golden/post_pre_gpas.safetensors"),
    ),
    (
        "sandwich_gpas",
        include_bytes!("../../golden/sandwich_gpas.safetensors"),
    ),
];

/// One golden.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Its name: the scheme, and what is special about it.
    pub name: String,
    /// The model.
    pub config: LlamaConfig,
    /// The optimizer of the training.
    pub optimizer: OptimizerConfig,
    /// The learning rate of the training.
    pub schedule: Schedule,
    /// How the steps of the training are cut.
    pub cut: Cut,
    /// The weights.
    pub parameters: NamedTensors,
    /// The batch that the outputs belong to.
    pub batch: HostBatch,
    /// The stream before each layer, then after the final norm, `[batch, seq, hidden]` each.
    pub hidden: Vec<HostTensor>,
    /// `[batch, seq, vocab]`.
    pub logits: HostTensor,
    /// Mean loss over the scored tokens.
    pub loss: f64,
    /// Gradients of the loss.
    pub gradients: NamedTensors,
    /// Loss of each step of the training.
    pub training_losses: Vec<f64>,
    /// The weights after it.
    pub trained: NamedTensors,
    training: HostIds,
    training_labels: Vec<i64>,
    accum: usize,
}

/// How the rows of an optimizer step are cut into micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// As in the file.
    AsGiven,
    /// One micro-batch with all rows.
    Whole,
    /// One micro-batch per row.
    Rows,
}

/// Ids on the host.
#[derive(Clone, Debug)]
struct HostIds {
    shape: Vec<usize>,
    /// Row by row.
    values: Vec<i64>,
}

/// A batch on the host: ids and targets of one shape `[batch, seq]`.
#[derive(Clone, Debug)]
pub struct HostBatch {
    seq: usize,
    ids: Vec<u32>,
    targets: Vec<i32>,
}

/// Why a file is no golden.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum GoldenError {
    #[error(transparent)]
    Format(#[from] SafeTensorError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("the golden has no setting `{0}`")]
    MissingSetting(String),
    #[error("the golden's setting `{key}` is `{value}`")]
    WrongSetting { key: String, value: String },
    #[error("the golden's tensor `{0}` is missing, or has another shape or type")]
    Tensor(String),
}

impl HostBatch {
    /// Ids and, for each, the id that follows it or [`IGNORE_INDEX`], row by row; none if they are not `batch · seq` each.
    pub fn new(shape: [usize; 2], ids: Vec<u32>, targets: Vec<i32>) -> Option<Self> {
        let count = shape[0] * shape[1];
        let is_batch = count > 0 && ids.len() == count && targets.len() == count;
        is_batch.then_some(Self {
            seq: shape[1],
            ids,
            targets,
        })
    }

    /// From labels that are aligned with the ids.
    fn aligned(shape: [usize; 2], ids: &[i64], labels: &[i64]) -> Option<Self> {
        let id = |id: &i64| i32::try_from(*id).ok().filter(|id| *id >= 0);
        let target = |label: &i64| match *label == i64::from(IGNORE_INDEX) {
            true => Some(IGNORE_INDEX),
            false => id(label),
        };
        let rows = labels.chunks(shape[1].max(1));
        let targets = rows.flat_map(|row| row.iter().skip(1).map(target).chain([Some(IGNORE_INDEX)]));
        let ids = ids.iter().map(|given| id(given).map(i32::cast_unsigned));
        Self::new(shape, ids.collect::<Option<_>>()?, targets.collect::<Option<_>>()?)
    }

    /// Number of positions that are scored.
    pub fn scored(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORE_INDEX).count()
    }

    /// The batch on a device.
    pub fn on<B: Backend>(&self, device: &B::Device) -> TokenBatch<B> {
        let rows = self.ids.chunks(self.seq).zip(self.targets.chunks(self.seq));
        TokenBatch::from_rows(rows, device).expect("as many ids as targets, which are ids or not scored")
    }
}

impl Golden {
    /// The goldens that are part of the program.
    ///
    /// # Errors
    /// A golden that is part of the program is always read; a test reads them all.
    pub fn embedded() -> Result<Vec<Self>, GoldenError> {
        EMBEDDED.iter().map(|(name, bytes)| Self::read(name, bytes)).collect()
    }

    /// Reads a golden.
    ///
    /// # Errors
    /// If the bytes are not a golden.
    pub fn read(name: &str, bytes: &[u8]) -> Result<Self, GoldenError> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let settings = Settings(header.metadata().clone().unwrap_or_default());
        let file = SafeTensors::deserialize(bytes)?;
        let tensors = |prefix| read_safetensors(bytes, prefix);
        let missing = |name: &str| GoldenError::Tensor(name.to_string());

        let config = settings.model()?;
        let (ids, labels) = (integers(&file, "ids")?, integers(&file, "labels")?);
        let [batch, seq] = ids.shape[..] else {
            return Err(missing("ids"));
        };
        let batch = HostBatch::aligned([batch, seq], &ids.values, &labels.values).ok_or_else(|| missing("labels"))?;
        let mut hidden = tensors("hidden/")?;
        let hidden = (0..=config.layers).map(|index| hidden.remove(&index.to_string()));
        let hidden = hidden.collect::<Option<_>>().ok_or_else(|| missing("hidden/"))?;
        let mut outputs = tensors("lo")?;
        let logits = outputs.remove("gits").ok_or_else(|| missing("logits"))?;
        let loss = outputs.remove("ss").and_then(|loss| loss.values.first().copied());
        let (training, labels) = (integers(&file, "train/ids")?, integers(&file, "train/labels")?);
        if training.shape.len() != 3 || training.shape != labels.shape || training.values.is_empty() {
            return Err(missing("train/ids"));
        }
        Ok(Self {
            name: name.to_string(),
            config,
            optimizer: settings.optimizer()?,
            schedule: Schedule::cosine(
                settings.parse("lr")?,
                settings.parse("warmup")?,
                settings.parse("total")?,
                settings.parse("min_lr_ratio")?,
            ),
            cut: Cut::AsGiven,
            parameters: tensors("param/")?,
            batch,
            hidden,
            logits,
            loss: f64::from(loss.ok_or_else(|| missing("loss"))?),
            gradients: tensors("grad/")?,
            training_losses: numbers(&file, "train/loss", Dtype::F64, f64::from_le_bytes)?.1,
            trained: tensors("trained/")?,
            training,
            training_labels: labels.values,
            accum: settings.parse("accum")?,
        })
    }

    /// The micro-batches of the training, grouped by optimizer step, as [`cut`](Self::cut) says.
    pub fn steps(&self) -> Vec<Vec<HostBatch>> {
        let [_, batch, seq] = self.training.shape[..] else {
            return Vec::new();
        };
        let (rows, accum) = match self.cut {
            Cut::AsGiven => (batch, self.accum),
            Cut::Whole => (batch * self.accum, 1),
            Cut::Rows => (1, batch * self.accum),
        };
        let size = rows * seq;
        let micro_batches: Vec<HostBatch> = self
            .training
            .values
            .chunks(size)
            .zip(self.training_labels.chunks(size))
            .filter_map(|(ids, labels)| HostBatch::aligned([rows, seq], ids, labels))
            .collect();
        micro_batches.chunks(accum.max(1)).map(<[_]>::to_vec).collect()
    }
}

/// The metadata of a golden.
struct Settings(HashMap<String, String>);

impl Settings {
    fn text(&self, key: &str) -> Result<&str, GoldenError> {
        self.0
            .get(key)
            .map(String::as_str)
            .ok_or_else(|| GoldenError::MissingSetting(key.to_string()))
    }

    fn wrong(&self, key: &str, value: &str) -> GoldenError {
        GoldenError::WrongSetting {
            key: key.to_string(),
            value: value.to_string(),
        }
    }

    fn parse<T: FromStr>(&self, key: &str) -> Result<T, GoldenError> {
        let value = self.text(key)?;
        value.parse().map_err(|_| self.wrong(key, value))
    }

    /// A setting that is the name of an enum's variant.
    fn named<T: DeserializeOwned>(&self, key: &str) -> Result<T, GoldenError> {
        let value = self.text(key)?;
        serde_json::from_value(value.into()).map_err(|_| self.wrong(key, value))
    }

    fn model(&self) -> Result<LlamaConfig, GoldenError> {
        let gate = GateConfig {
            act: self.named("act")?,
            site: self.named("site")?,
            learnable: self.parse("learnable")?,
            per_sublayer: self.parse("per_sublayer")?,
            stop_gradient: self.parse("stop_gradient")?,
            init: 0.0,
        };
        let config = LlamaConfig::new(
            self.parse("vocab")?,
            self.parse("hidden")?,
            self.parse("intermediate")?,
            self.parse("heads")?,
            self.parse("layers")?,
        )
        .with_kv_heads(Some(self.parse("kv_heads")?))
        .with_scheme(self.parse("scheme")?)
        .with_post_num(Some(self.parse("post_num")?))
        .with_tied_head(self.parse("tied")?)
        .with_gate(gate)
        .with_norm_epsilon(self.parse("eps")?)
        .with_rope_base(self.parse("rope_base")?);
        Ok(config)
    }

    fn optimizer(&self) -> Result<OptimizerConfig, GoldenError> {
        Ok(OptimizerConfig {
            kind: OptimizerKind::Adam,
            betas: (self.parse("beta1")?, self.parse("beta2")?),
            eps: self.parse("adam_eps")?,
            weight_decay: 0.0,
            clip: self.parse("clip")?,
            clip_gate: self.parse("clip_gate")?,
        })
    }
}

fn numbers<T, const N: usize>(
    file: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
    number: fn([u8; N]) -> T,
) -> Result<(Vec<usize>, Vec<T>), GoldenError> {
    let view = file.tensor(name).ok().filter(|view| view.dtype() == dtype);
    let view = view.ok_or_else(|| GoldenError::Tensor(name.to_string()))?;
    let values = view.data().as_chunks::<N>().0.iter().map(|bytes| number(*bytes));
    Ok((view.shape().to_vec(), values.collect()))
}

fn integers(file: &SafeTensors<'_>, name: &str) -> Result<HostIds, GoldenError> {
    let (shape, values) = numbers(file, name, Dtype::I64, i64::from_le_bytes)?;
    Ok(HostIds { shape, values })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_part_of_the_program_can_be_read() {
        let goldens = Golden::embedded().unwrap();
        assert_eq!(goldens.len(), EMBEDDED.len());
        for golden in goldens {
            assert_eq!(golden.name, golden.config.scheme.to_string());
            assert_eq!(golden.parameters.len(), golden.trained.len());
            let steps = golden.steps();
            assert_eq!(steps.len(), golden.training_losses.len());
            // Unequal micro-batches, or a mean of their means would be right too.
            assert!(steps.iter().any(|step| step[0].scored() != step[1].scored()));
        }
    }

    #[test]
    fn what_is_no_golden_says_so() {
        assert!(matches!(Golden::read("x", b"nothing"), Err(GoldenError::Format(_))));
        let empty = safetensors::serialize(&NamedTensors::new(), None).unwrap();
        let error = Golden::read("x", &empty).unwrap_err();
        assert_eq!(error.to_string(), "the golden has no setting `act`");
    }
}
