//! What the workspace-level tests share: goldens, read into the terms of the library.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use gpas_model::weights::{NamedTensors, read_safetensors};
use gpas_model::{GpasConfig, IGNORE_INDEX, LlamaConfig, TokenBatch};
use gpas_train::optimizer::{OptimizerConfig, OptimizerKind};
use gpas_train::schedule::{Schedule, ScheduleKind};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

/// One golden file: a model, its outputs and gradients on one batch, and a short training run.
pub struct Golden {
    /// The file's name without its ending.
    pub name: String,
    /// The model, from the file's metadata alone.
    pub config: LlamaConfig,
    /// The optimizer of the training run.
    pub optimizer: OptimizerConfig,
    /// The learning rate of the training run.
    pub schedule: Schedule,
    /// Micro-batches per optimizer step.
    pub accum: usize,
    /// How the steps of the training run are cut.
    pub cut: Cut,
    bytes: Vec<u8>,
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

/// Ids on the host with their shape.
pub struct HostIds {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Row by row.
    pub values: Vec<i64>,
}

/// A micro-batch of a golden on the host: ids and targets of one shape `[batch, seq]`.
#[derive(Clone)]
pub struct HostBatch {
    shape: [usize; 2],
    ids: Vec<i64>,
    targets: Vec<i64>,
}

impl HostBatch {
    /// From labels that are aligned with the ids: position `t` is scored against `labels[t + 1]`, the last one is not scored.
    fn new(shape: [usize; 2], ids: &[i64], labels: &[i64]) -> Self {
        let targets = labels
            .chunks(shape[1])
            .flat_map(|row| row[1..].iter().copied().chain([IGNORE_INDEX]))
            .collect();
        Self {
            shape,
            ids: ids.to_vec(),
            targets,
        }
    }

    /// Number of positions that are scored.
    pub fn scored(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORE_INDEX).count()
    }

    /// The batch on a device.
    pub fn on<B: Backend>(&self, device: &B::Device) -> TokenBatch<B> {
        let tensor =
            |values: &Vec<i64>| Tensor::<B, 2, Int>::from_data(TensorData::new(values.clone(), self.shape), device);
        TokenBatch {
            ids: tensor(&self.ids),
            targets: tensor(&self.targets),
        }
    }
}

/// Every golden of `$GPAS_GOLDEN_DIR`, or of our own copies.
///
/// # Panics
/// If the folder is missing or holds none, or a file is not a golden.
pub fn goldens() -> Vec<Golden> {
    std::env::var_os("GPAS_GOLDEN_DIR").map_or_else(committed_goldens, |folder| goldens_in(Path::new(&folder)))
}

/// Every golden of our own copies, whatever the environment: what they cover is known.
///
/// # Panics
/// If they are missing.
pub fn committed_goldens() -> Vec<Golden> {
    goldens_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"))
}

fn goldens_in(folder: &Path) -> Vec<Golden> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{}: no *.safetensors", folder.display());
    files.iter().map(|path| Golden::read(path)).collect()
}

impl Golden {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("a readable golden");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let metadata = header.metadata().clone().expect("a golden's metadata");
        let gate = GpasConfig {
            act: serde_json::from_value(metadata["act"].clone().into()).expect("a known act"),
            site: serde_json::from_value(metadata["site"].clone().into()).expect("a known site"),
            learnable: parse(&metadata, "learnable"),
            per_sublayer: parse(&metadata, "per_sublayer"),
            stop_gradient: parse(&metadata, "stop_gradient"),
            init: 0.0,
        };
        let size = |key| parse(&metadata, key);
        let config = LlamaConfig::new(
            size("vocab"),
            size("hidden"),
            size("intermediate"),
            size("heads"),
            size("layers"),
        )
        .with_kv_heads(Some(size("kv_heads")))
        .with_scheme(parse(&metadata, "scheme"))
        .with_post_num(Some(size("post_num")))
        .with_tied_head(parse(&metadata, "tied"))
        .with_gate(gate)
        .with_norm_epsilon(parse(&metadata, "eps"))
        .with_rope_base(parse(&metadata, "rope_base"));
        let optimizer = OptimizerConfig {
            kind: OptimizerKind::Adam,
            betas: (parse(&metadata, "beta1"), parse(&metadata, "beta2")),
            eps: parse(&metadata, "adam_eps"),
            weight_decay: 0.0,
            clip: parse(&metadata, "clip"),
            clip_gate: parse(&metadata, "clip_gate"),
        };
        let (peak, floor) = (parse(&metadata, "lr"), parse(&metadata, "min_lr_ratio"));
        let schedule = cosine(peak, parse(&metadata, "warmup"), parse(&metadata, "total"), floor);
        Self {
            name: path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default(),
            config,
            optimizer,
            schedule,
            accum: size("accum"),
            cut: Cut::AsGiven,
            bytes,
        }
    }

    fn view(&self, name: &str) -> Option<(Vec<usize>, Vec<u8>, Dtype)> {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let view: TensorView<'_> = file.tensor(name).ok()?;
        Some((view.shape().to_vec(), view.data().to_vec(), view.dtype()))
    }

    /// The float tensors whose names start with `prefix`, without it.
    pub fn tensors(&self, prefix: &str) -> NamedTensors {
        read_safetensors(&self.bytes, prefix).expect("float tensors")
    }

    /// An integer tensor.
    pub fn ids(&self, name: &str) -> HostIds {
        let (shape, bytes, dtype) = self.view(name).expect("a golden's ids");
        assert_eq!(dtype, Dtype::I64, "{name}");
        let values = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| i64::from_le_bytes(*b))
            .collect();
        HostIds { shape, values }
    }

    /// The losses of the training run, in f64.
    pub fn training_losses(&self) -> Vec<f64> {
        let (_, bytes, dtype) = self.view("train/loss").expect("a golden's training losses");
        assert_eq!(dtype, Dtype::F64);
        bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| f64::from_le_bytes(*b))
            .collect()
    }

    /// The batch that logits, loss and gradients belong to.
    pub fn batch(&self) -> HostBatch {
        let (ids, labels) = (self.ids("ids"), self.ids("labels"));
        HostBatch::new([ids.shape[0], ids.shape[1]], &ids.values, &labels.values)
    }

    /// The micro-batches of the training run, grouped by optimizer step, as [`cut`](Self::cut) says.
    pub fn steps(&self) -> Vec<Vec<HostBatch>> {
        let (ids, labels) = (self.ids("train/ids"), self.ids("train/labels"));
        let (rows, accum) = match self.cut {
            Cut::AsGiven => (ids.shape[1], self.accum),
            Cut::Whole => (ids.shape[1] * self.accum, 1),
            Cut::Rows => (1, ids.shape[1] * self.accum),
        };
        let shape = [rows, ids.shape[2]];
        let size = shape[0] * shape[1];
        let micro: Vec<HostBatch> = ids
            .values
            .chunks(size)
            .zip(labels.values.chunks(size))
            .map(|(ids, labels)| HostBatch::new(shape, ids, labels))
            .collect();
        micro.chunks(accum).map(<[_]>::to_vec).collect()
    }
}

/// Linear warm-up, then half a cosine down to `floor · peak`.
pub fn cosine(peak: f64, warmup: u64, total: u64, floor: f64) -> Schedule {
    Schedule {
        kind: ScheduleKind::Cosine,
        peak,
        warmup,
        total,
        min_lr_ratio: floor,
        cycles: 1,
        decay_fraction: 0.0,
    }
}

fn parse<T: FromStr>(metadata: &HashMap<String, String>, key: &str) -> T {
    let value = metadata
        .get(key)
        .unwrap_or_else(|| panic!("no `{key}` in the golden's metadata"));
    value
        .parse()
        .unwrap_or_else(|_| panic!("`{key}` = {value} in the golden's metadata"))
}
