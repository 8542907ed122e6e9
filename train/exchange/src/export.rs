//! A run's newest checkpoint as a directory that `transformers` loads.
//!
//! ```text
//! OUT/config.json               sizes; for an architecture of our own, the wiring of every layer
//! OUT/model.safetensors         weights by their released names; above the largest size of a file, shards and an index
//! OUT/modeling_gpas.py          for an architecture of our own: the model, in one small file
//! OUT/tokenizer.json            the run's tokenizer, with tokenizer_config.json, which holds the chat template if there is one
//! OUT/generation_config.json    the ids that begin a text, end it, and pad
//! OUT/README.md                 the model card
//! ```
//!
//! The directory is written aside and renamed when it has been checked: what was written reads back bit for bit, and the logits of the
//! weights in it are those of the run on real tokens.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use gpas_data::aside::AsideDirectory;
use gpas_data::{PreparedData, Tokenizer};
use gpas_model::compare::largest_difference;
use gpas_model::weights::{HostTensor, NamedTensors, WeightsError};
use gpas_model::{Llama, LlamaConfig, Precision, Progress};
use half::bf16;
use safetensors::tensor::{Dtype, View};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ExchangeError;
use crate::card::Card;
use crate::config::{self, Own};
use crate::files::WeightFiles;
use crate::fold::{fold, not_stock};
use crate::tokens::{generation_config, tokenizer_config};
use gpas_train::backend::BackendTask;
use gpas_train::checkpoint::Checkpoint;
use gpas_train::run::RunInfo;

/// The Python of our own architecture.
const MODELING: &str = include_str!("modeling_gpas.py");

/// Largest file of weights unless asked otherwise, in bytes.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// Largest difference of a logit between a folded model and its run: RMSNorm's ε does not scale with the stream.
const FOLDED_LIMIT: f64 = 1e-3;
/// The same of any other export.
const LIMIT: f64 = 1e-4;
/// What the check looks at, as pairs of the number of windows and the tokens in each: one long text, and the beginnings of many. Folding
/// changes most where a text begins: the stream is small there, so the ε of the norms weighs most.
const WINDOWS: [[usize; 2]; 2] = [[1, 512], [256, 8]];

/// Number format of exported weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NumberFormat {
    /// As they were trained.
    #[default]
    F32,
    /// Rounded to the nearest bf16.
    Bf16,
}

impl NumberFormat {
    fn name(self) -> &'static str {
        match self {
            NumberFormat::F32 => "float32",
            NumberFormat::Bf16 => "bfloat16",
        }
    }

    fn rounded(self, value: f32) -> f32 {
        match self {
            NumberFormat::F32 => value,
            NumberFormat::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}

/// An export that can be made.
pub struct Export {
    /// The run's model.
    pub config: LlamaConfig,
    /// Its facts.
    pub info: RunInfo,
    /// Its newest checkpoint.
    pub checkpoint: Checkpoint,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its data, if it was found: the check reads validation tokens.
    pub data: Option<PreparedData>,
    /// The directory to be made.
    pub out: PathBuf,
    /// Whether gates are folded away.
    pub fold: bool,
    /// Number format of the weights.
    pub format: NumberFormat,
    /// Largest file of weights.
    pub shard_bytes: u64,
}

/// What was exported and how well.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exported {
    /// `LlamaForCausalLM` or `GpasForCausalLM`.
    pub architecture: String,
    /// Whether gates or factors were folded into other weights.
    pub folded: bool,
    /// Files of weights.
    pub files: usize,
    /// Largest difference of a logit between the run's weights and the exported ones before they are rounded.
    pub largest_difference: f64,
    /// The same on windows of 8 tokens each, if gates or factors were folded: where a text begins, ε of the norms weighs most.
    pub difference_at_starts: Option<f64>,
    /// Largest difference of a logit that rounding to bf16 makes; none in f32.
    pub rounding_difference: Option<f64>,
    /// Tokens that both saw.
    pub tokens: usize,
    /// Whether they are validation tokens of the run's data; else they are random ids.
    pub real_tokens: bool,
    /// Smallest size of the running product of the stream's scales, if gates were folded.
    pub smallest_scale: Option<f64>,
    /// What the export leaves out, for people.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = if self.real_tokens {
            "validation tokens"
        } else {
            "random ids, the run's data not being found"
        };
        write!(
            f,
            "largest difference of a logit {:.1e} on {} {tokens}",
            self.largest_difference, self.tokens
        )?;
        if let Some(starts) = self.difference_at_starts {
            write!(f, ", and where a text begins {starts:.1e}")?;
        }
        match self.rounding_difference {
            Some(rounding) => write!(f, "; rounding to bf16 moves a logit by up to {rounding:.1e}"),
            None => Ok(()),
        }
    }
}

/// Tokens that the check looks at, in windows of the same length.
struct Text {
    ids: Vec<i64>,
    windows: usize,
    /// Whether they are validation tokens; else they are random ids.
    real: bool,
}

/// What is to be written.
struct Model {
    config: LlamaConfig,
    tensors: NamedTensors,
    own: Option<Own>,
    /// Smallest running scale, if anything was folded.
    folded: Option<f64>,
}

impl BackendTask for Export {
    type Output = Result<Exported, ExchangeError>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        if self.out.symlink_metadata().is_ok() {
            return Err(ExchangeError::Exists(self.out));
        }
        // A checkpoint computes in f32 wherever it was trained in another format.
        let config = self.config.clone().with_precision(Precision::F32).with_recompute(false);
        let tensors = self.checkpoint.weights(&config)?;
        let model = self.model(&config, &tensors)?;

        let windows = match model.folded {
            None => &WINDOWS[..1],
            Some(_) => &WINDOWS[..],
        };
        let texts = windows
            .iter()
            .map(|window| self.text(&config, *window))
            .collect::<Result<Vec<_>, _>>()?;
        let logits = |config: &LlamaConfig, tensors: &NamedTensors| {
            logits::<B::InnerBackend>(config, tensors, self.progress(), &texts, &device)
        };
        let expected = logits(&config, &tensors)?;
        drop(tensors);
        let found = logits(&model.config, &model.tensors)?;
        let mut differences = expected
            .iter()
            .zip(&found)
            .map(|(expected, found)| largest_difference(expected, found));
        let largest = differences.next().unwrap_or(f64::NAN);
        let difference_at_starts = differences.next();
        let limit = if model.folded.is_some() { FOLDED_LIMIT } else { LIMIT };
        // NaN exceeds every limit.
        if largest.is_nan() || largest > limit {
            let because = match model.folded {
                Some(scale) if scale < 1.0 => {
                    format!(": the stream is scaled down to {scale:.1e}, where ε of the norms is no longer small")
                }
                _ => String::new(),
            };
            return Err(ExchangeError::Differs {
                largest,
                limit,
                because,
            });
        }
        let rounding = match self.format {
            NumberFormat::F32 => None,
            NumberFormat::Bf16 => {
                let rounded = logits(&model.config, &rounded(&model.tensors, self.format))?;
                Some(largest_difference(&found[0], &rounded[0]))
            }
        };
        let mut exported = Exported {
            architecture: if model.own.is_some() {
                "GpasForCausalLM"
            } else {
                "LlamaForCausalLM"
            }
            .into(),
            folded: model.folded.is_some(),
            files: 0,
            largest_difference: largest,
            difference_at_starts,
            rounding_difference: rounding,
            tokens: texts[0].ids.len(),
            real_tokens: texts[0].real,
            smallest_scale: model.folded,
            notes: Vec::new(),
        };
        self.write(&model, &mut exported)?;
        Ok(exported)
    }
}

impl Export {
    /// How far the run's training has come, on which the function of some schemes depends.
    fn progress(&self) -> Progress {
        Progress::after(self.checkpoint.state.step)
    }

    /// The model as it will be written: stock where it is one, or is to become one.
    fn model(&self, config: &LlamaConfig, tensors: &NamedTensors) -> Result<Model, ExchangeError> {
        let is_stock = not_stock(config).is_none() && !config.scheme.gpas;
        if !is_stock && !self.fold {
            return Ok(Model {
                config: config.clone(),
                tensors: tensors.clone(),
                own: Some(Own::of(config, self.progress())),
                folded: None,
            });
        }
        let folded = fold(config, tensors.clone(), self.progress())?;
        let changed = folded.tensors != *tensors;
        Ok(Model {
            config: folded.config,
            tensors: folded.tensors,
            own: None,
            folded: changed.then_some(folded.smallest_scale),
        })
    }

    /// A word on fixed factors of norms that are folded into their weights: the same scheme given to `gpas import` would apply them twice.
    fn folded_factors(&self, model: &Model) -> Option<String> {
        let scales = |index: usize| {
            self.config
                .wiring(index)
                .pre_norm
                .is_some_and(|norm| norm.factor != 1.0)
        };
        let is_folded = model.own.is_none() && (0..self.config.layers).any(scales);
        is_folded.then(|| {
            format!(
                "the norm weights hold the factors of `{}` now: the export is a plain LLaMA, and comes in again as `pre`",
                self.config.scheme.norm.name()
            )
        })
    }

    /// The first validation tokens, or random ids, in at most so many windows of at most so many tokens.
    fn text(&self, config: &LlamaConfig, [windows, length]: [usize; 2]) -> Result<Text, ExchangeError> {
        let length = length.min(config.positions());
        let fits = |data: &&PreparedData| (data.max_id() as usize) < config.vocab && data.validation().tokens() > 0;
        if let Some(data) = self.data.as_ref().filter(fits) {
            let length = length.min(data.validation().tokens());
            let windows = windows.min(data.validation().tokens() / length);
            let mut ids = vec![0; windows * length];
            data.validation().range(0, &mut ids)?;
            let ids = ids.into_iter().map(i64::from).collect();
            return Ok(Text {
                ids,
                windows,
                real: true,
            });
        }
        // The numbers of Knuth's MMIX.
        let next = |state: &u64| {
            Some(
                state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407),
            )
        };
        let states = std::iter::successors(Some(1_u64), next);
        let ids = states.skip(1).map(|state| ((state >> 33) % config.vocab as u64) as i64);
        Ok(Text {
            ids: ids.take(windows * length).collect(),
            windows,
            real: false,
        })
    }

    /// Writes the directory aside, checks that the weights read back, and gives it its name.
    fn write(&self, model: &Model, exported: &mut Exported) -> Result<(), ExchangeError> {
        let failed = |cause: io::Error| match cause.kind() {
            io::ErrorKind::AlreadyExists => ExchangeError::Exists(self.out.clone()),
            _ => ExchangeError::io(&self.out)(cause),
        };
        let aside = AsideDirectory::beside(&self.out).map_err(failed)?;
        let place = aside.path();
        let put = |name: &str, bytes: &[u8]| {
            let path = place.join(name);
            fs::write(&path, bytes).map_err(ExchangeError::io(&path))
        };
        let put_json = |name: &str, value: &Value| put(name, format!("{value:#}\n").as_bytes());

        let vocab = model.config.vocab;
        let (special, lacking) = self.tokenizer.special_tokens().clone().within(vocab);
        exported.notes = lacking
            .iter()
            .map(|(name, id)| format!("the {name} token {id} is none of the model's {vocab} tokens; it is left out"))
            .collect();
        exported.notes.extend(self.folded_factors(model));
        let written = config::write(&model.config, model.own.as_ref(), self.format.name(), &special);
        put_json("config.json", &written)?;
        if model.own.is_some() {
            put("modeling_gpas.py", MODELING.as_bytes())?;
        }
        put("tokenizer.json", self.tokenizer.bytes())?;
        let config = tokenizer_config(&self.tokenizer, &special, model.config.positions());
        put_json("tokenizer_config.json", &config)?;
        put_json("generation_config.json", &generation_config(&special))?;
        exported.files = write_weights(place, &model.tensors, self.format, self.shard_bytes)?;
        let card = Card {
            config: &self.config,
            info: &self.info,
            state: &self.checkpoint.state,
            stock: model.own.is_none(),
            folded: model.folded.is_some(),
            dtype: self.format.name(),
            check: &exported.to_string(),
        };
        put("README.md", card.text().as_bytes())?;

        reads_back(place, &model.tensors, self.format)?;
        aside.publish().map_err(failed)
    }
}

/// A tensor in the format in which it is written, as bytes only when it is.
struct Written<'a>(&'a HostTensor, NumberFormat);

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        match self.1 {
            NumberFormat::F32 => Dtype::F32,
            NumberFormat::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.0.values.iter();
        match self.1 {
            NumberFormat::F32 => values.flat_map(|value| value.to_le_bytes()).collect(),
            NumberFormat::Bf16 => values.flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        self.0.values.len() * self.dtype().bitsize() / 8
    }
}

/// Writes the weights in files of at most `most` bytes each, an index beside them if there are several; their number. A tensor larger than
/// that has a file of its own.
fn write_weights(
    place: &Path,
    tensors: &NamedTensors,
    format: NumberFormat,
    most: u64,
) -> Result<usize, ExchangeError> {
    let mut shards: Vec<Vec<(&String, Written<'_>)>> = vec![Vec::new()];
    let (mut size, mut total) = (0, 0);
    for (name, tensor) in tensors {
        let written = Written(tensor, format);
        let bytes = written.data_len() as u64;
        if size + bytes > most && size > 0 {
            shards.push(Vec::new());
            size = 0;
        }
        (size, total) = (size + bytes, total + bytes);
        if let Some(shard) = shards.last_mut() {
            shard.push((name, written));
        }
    }
    let count = shards.len();
    let mut map = BTreeMap::new();
    for (number, shard) in shards.into_iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        map.extend(shard.iter().map(|(tensor, _)| (tensor.to_string(), name.clone())));
        let path = place.join(&name);
        // Older releases of transformers refuse a file that does not say this.
        let facts = HashMap::from([("format".to_string(), "pt".to_string())]);
        safetensors::serialize_to_file(shard, Some(facts), &path).map_err(|cause| match cause {
            safetensors::SafeTensorError::IoError(cause) => ExchangeError::io(&path)(cause),
            cause => WeightsError::from(cause).into(),
        })?;
    }
    if count > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        let path = place.join("model.safetensors.index.json");
        fs::write(&path, format!("{index:#}\n")).map_err(ExchangeError::io(&path))?;
    }
    Ok(count)
}

/// Compares every number that was written with what was to be written.
fn reads_back(place: &Path, tensors: &NamedTensors, format: NumberFormat) -> Result<(), ExchangeError> {
    let files = WeightFiles::open(place)?;
    if !files.tensors().keys().eq(tensors.keys()) {
        return Err(ExchangeError::ReadBack("the list of tensors".into()));
    }
    for (name, tensor) in tensors {
        let found = files.read(name)?;
        let same = |(found, written): (&f32, &f32)| found.to_bits() == format.rounded(*written).to_bits();
        if found.shape != tensor.shape || !found.values.iter().zip(&tensor.values).all(same) {
            return Err(ExchangeError::ReadBack(name.clone()));
        }
    }
    Ok(())
}

fn rounded(tensors: &NamedTensors, format: NumberFormat) -> NamedTensors {
    let round = |tensor: &HostTensor| HostTensor {
        shape: tensor.shape.clone(),
        values: tensor.values.iter().map(|value| format.rounded(*value)).collect(),
    };
    tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), round(tensor)))
        .collect()
}

/// The logits of each text, `[windows, length, vocab]` in one row.
fn logits<B: Backend>(
    config: &LlamaConfig,
    tensors: &NamedTensors,
    progress: Progress,
    texts: &[Text],
    device: &B::Device,
) -> Result<Vec<Vec<f32>>, ExchangeError> {
    let model = Llama::<B>::from_tensors(config, tensors, device)?.with_progress(progress);
    let logits = |text: &Text| {
        let shape = [text.windows, text.ids.len() / text.windows];
        let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(text.ids.clone(), shape), device);
        model.logits(ids).into_data().iter::<f32>().collect()
    };
    Ok(texts.iter().map(logits).collect())
}
