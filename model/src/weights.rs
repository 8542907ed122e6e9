//! Weights in and out: safetensors with the names of the released checkpoints.
//!
//! Names, shapes and orientation (`[out, in]`, gates of shape `[]`) are those of `transformers`' LLaMA and of the GPAS authors. One norm
//! name means different things in different layers:
//!
//! | layer | attention: before F / on the branch / on the sum | MLP: before F / on the branch / on the sum |
//! |---|---|---|
//! | pre-like | `input_layernorm` / – / – | `post_attention_layernorm` / – / – |
//! | post-like | – / – / `post_attention_layernorm` | – / – / `post_feedforward_layernorm` |
//! | sandwich, `peri` | `input_layernorm` / `post_attention_layernorm` / – | `pre_feedforward_layernorm` / `post_feedforward_layernorm` / – |
//! | `keel` | `input_layernorm` / – / `post_attention_layernorm` | `pre_feedforward_layernorm` / – / `post_feedforward_layernorm` |
//!
//! Nobody has released models of `peri`, `keel`, `layerscale` and `rezero` in this layout, so the names of what only they have are ours:
//! `model.embed_layernorm.weight`, the norm on the embedding; `branch_scale_attn.weight` and `branch_scale_mlp.weight` in each layer, the
//! trained branch scales, of shape `[hidden]` or `[1]`; and those of `keel`'s norms, which follow the sandwich's. The branch scale of
//! `prores` is no weight: it follows from the number of steps.

mod file;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use half::{bf16, f16};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::config::LlamaConfig;
use crate::llama::Llama;
use crate::scheme::Wiring;

pub use file::{SafetensorsFile, is_float};

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum WeightsError {
    #[error("{path}: {cause}")]
    File { path: String, cause: std::io::Error },
    #[error("{path}: {cause}")]
    Within { path: String, cause: Box<WeightsError> },
    #[error("not a safetensors file: {0}")]
    Format(#[from] SafeTensorError),
    #[error("{0}")]
    Damaged(String),
    #[error("weights do not fit the model: missing {missing:?}, not used {unused:?}, wrong {wrong:?}")]
    Mismatch {
        /// Names the model needs and the file lacks.
        missing: Vec<String>,
        /// Names the file has and the model does not.
        unused: Vec<String>,
        /// Names with another shape or a type that holds no floats.
        wrong: Vec<String>,
    },
}

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its numbers, row by row.
    pub values: Vec<f32>,
}

/// The parameters of a model by their released names.
pub type NamedTensors = BTreeMap<String, HostTensor>;

/// Reads the float tensors (f64, f32, f16, bf16) of a safetensors buffer whose names start with `prefix`, which is cut off.
///
/// # Errors
/// If the buffer is no safetensors file, or a tensor holds no floats.
pub fn read_safetensors(bytes: &[u8], prefix: &str) -> Result<NamedTensors, WeightsError> {
    let file = SafeTensors::deserialize(bytes)?;
    let mut tensors = NamedTensors::new();
    let mut wrong = Vec::new();
    for (name, view) in file.iter() {
        let Some(name) = name.strip_prefix(prefix) else {
            continue;
        };
        match floats(view.data(), view.dtype()) {
            Some(values) => {
                let shape = view.shape().to_vec();
                tensors.insert(name.to_string(), HostTensor { shape, values });
            }
            None => wrong.push(format!("{name} ({:?})", view.dtype())),
        }
    }
    if wrong.is_empty() {
        Ok(tensors)
    } else {
        Err(WeightsError::Mismatch {
            missing: Vec::new(),
            unused: Vec::new(),
            wrong,
        })
    }
}

/// Numbers of one of the types that [`is_float`] knows, in f32.
fn floats(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| number(*chunk)).collect()
    }
    match dtype {
        Dtype::F64 => Some(each(bytes, |b| f64::from_le_bytes(b) as f32)),
        Dtype::F32 => Some(each(bytes, f32::from_le_bytes)),
        Dtype::F16 => Some(each(bytes, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Some(each(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

impl View for &HostTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values.as_slice())
    }
}

/// Writes tensors in f32 to a safetensors file, with one tensor at a time as bytes.
///
/// # Errors
/// If the file cannot be written.
pub fn write_safetensors(tensors: &NamedTensors, path: &Path) -> Result<(), WeightsError> {
    safetensors::serialize_to_file(tensors, None, path).map_err(|cause| match cause {
        SafeTensorError::IoError(cause) => file_error(path, cause),
        cause => WeightsError::Format(cause),
    })
}

impl LlamaConfig {
    /// The released name of the parameter at a module path such as `layers.3.mlp.up.weight`, if it is one.
    pub fn released_name(&self, path: &str) -> Option<String> {
        let parts: Vec<&str> = path.split('.').collect();
        let name = match parts.as_slice() {
            ["embedding", "weight"] => "model.embed_tokens.weight".into(),
            ["embedding_norm", "weight"] => "model.embed_layernorm.weight".into(),
            ["norm", "weight"] => "model.norm.weight".into(),
            ["head", "weight"] => "lm_head.weight".into(),
            ["layers", index, rest @ ..] => {
                let wiring = self.wiring(index.parse().ok()?);
                let leaf = match rest {
                    ["attention", projection, "weight"] => {
                        let letter = match *projection {
                            "query" => "q",
                            "key" => "k",
                            "value" => "v",
                            "output" => "o",
                            _ => return None,
                        };
                        format!("self_attn.{letter}_proj.weight")
                    }
                    ["mlp", projection, "weight"] => format!("mlp.{projection}_proj.weight"),
                    [residual, place, "weight"] => format!("{}.weight", residual_name(wiring, residual, place)?),
                    ["gates", _, "gate"] if !self.gate.per_sublayer => "gpas_block.gate".into(),
                    ["gates", "0", "gate"] => "gpas_block_attn.gate".into(),
                    ["gates", "1", "gate"] => "gpas_block_mlp.gate".into(),
                    _ => return None,
                };
                format!("model.layers.{index}.{leaf}")
            }
            _ => return None,
        };
        Some(name)
    }
}

impl LlamaConfig {
    /// Released name and shape of every parameter; no weights are made for it.
    ///
    /// # Panics
    /// If the configuration is not [valid](LlamaConfig::validate).
    pub fn released_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        struct Shapes<'a> {
            config: &'a LlamaConfig,
            path: Vec<String>,
            shapes: BTreeMap<String, Vec<usize>>,
        }
        impl<B: Backend> ModuleVisitor<B> for Shapes<'_> {
            fn enter_module(&mut self, name: &str, _container_type: &str) {
                self.path.push(name.to_string());
            }
            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
                let path = self.path.join(".");
                if let Some(name) = self.config.released_name(&path) {
                    // That of a parameter which Burn has not drawn yet; asking for its value would draw it.
                    let shape = param.lazy_shape();
                    self.shapes.insert(name, released_shape(&path, shape.as_slice()));
                }
            }
        }
        // Rotary tables are no parameters.
        let bare = self.clone().with_max_positions(1);
        let mut shapes = Shapes {
            config: self,
            path: Vec::new(),
            shapes: BTreeMap::new(),
        };
        bare.skeleton::<Flex>(&FlexDevice).visit(&mut shapes);
        shapes.shapes
    }

    /// Compares names, types and shapes of some tensors with those of the model's parameters.
    ///
    /// # Errors
    /// All that is missing, left over, or of another shape or type. A head beside a tied one is not used and not an error.
    pub fn check_released<'a>(
        &self,
        tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize])>,
    ) -> Result<(), WeightsError> {
        let mut expected = self.released_shapes();
        let (mut unused, mut wrong) = (Vec::new(), Vec::new());
        for (name, dtype, shape) in tensors {
            match expected.remove(name) {
                None if self.tied_head && name == "lm_head.weight" => {}
                None => unused.push(name.to_string()),
                Some(_) if !is_float(dtype) => wrong.push(format!("{name} ({dtype:?})")),
                // Some released checkpoints keep gates as `[1]`.
                Some(known) if known != shape && !(known.is_empty() && shape == [1]) => {
                    wrong.push(format!("{name} ({shape:?}, expected {known:?})"));
                }
                Some(_) => {}
            }
        }
        let missing: Vec<String> = expected.into_keys().collect();
        if missing.is_empty() && unused.is_empty() && wrong.is_empty() {
            Ok(())
        } else {
            Err(WeightsError::Mismatch { missing, unused, wrong })
        }
    }
}

/// The table of this module's documentation.
fn residual_name(wiring: Wiring, residual: &str, place: &str) -> Option<&'static str> {
    let two_norms = wiring.branch_norm.or(wiring.post_norm).is_some();
    Some(match (residual, place) {
        ("attention_residual", "pre_norm") => "input_layernorm",
        ("attention_residual", "branch_norm" | "post_norm") => "post_attention_layernorm",
        ("mlp_residual", "pre_norm") if two_norms => "pre_feedforward_layernorm",
        ("mlp_residual", "pre_norm") => "post_attention_layernorm",
        ("mlp_residual", "branch_norm" | "post_norm") => "post_feedforward_layernorm",
        ("attention_residual", "branch_scale") => "branch_scale_attn",
        ("mlp_residual", "branch_scale") => "branch_scale_mlp",
        _ => return None,
    })
}

/// Whether a parameter is stored transposed: Burn's linear weights are `[in, out]`, released ones `[out, in]`.
fn is_transposed(path: &str) -> bool {
    let projection = path.contains(".attention.") || path.contains(".mlp.");
    (projection || path.starts_with("head.")) && path.ends_with(".weight")
}

impl<B: Backend> Llama<B> {
    /// Every parameter, on the host, by its released name.
    pub fn to_tensors(&self, config: &LlamaConfig) -> NamedTensors {
        struct Reader<'a> {
            config: &'a LlamaConfig,
            path: Vec<String>,
            tensors: NamedTensors,
        }
        impl<B: Backend> ModuleVisitor<B> for Reader<'_> {
            fn enter_module(&mut self, name: &str, _container_type: &str) {
                self.path.push(name.to_string());
            }
            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
                let path = self.path.join(".");
                if let Some(name) = self.config.released_name(&path) {
                    self.tensors.insert(name, to_host(&path, param.val()));
                }
            }
        }
        let mut reader = Reader {
            config,
            path: Vec::new(),
            tensors: NamedTensors::new(),
        };
        self.visit(&mut reader);
        reader.tensors
    }

    /// Replaces every parameter by the tensor of its released name. The model's [progress](Llama::progress) is then complete.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or is left over. A released head beside a tied one is not used and not an error.
    pub fn with_tensors(self, config: &LlamaConfig, tensors: &NamedTensors) -> Result<Self, WeightsError> {
        struct Writer<'a> {
            config: &'a LlamaConfig,
            tensors: &'a NamedTensors,
            path: Vec<String>,
            used: BTreeSet<String>,
            missing: Vec<String>,
            wrong: Vec<String>,
        }
        impl<B: Backend> ModuleMapper<B> for Writer<'_> {
            fn enter_module(&mut self, name: &str, _container_type: &str) {
                self.path.push(name.to_string());
            }
            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.pop();
            }
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
                let path = self.path.join(".");
                let Some(name) = self.config.released_name(&path) else {
                    return param;
                };
                let Some(tensor) = self.tensors.get(&name) else {
                    self.missing.push(name);
                    return param;
                };
                self.used.insert(name.clone());
                let (id, old, mapper) = param.consume();
                match from_host(&path, tensor, &old) {
                    Some(new) => Param::from_mapped_value(id, new, mapper),
                    None => {
                        let expected = to_host(&path, old.clone()).shape;
                        self.wrong
                            .push(format!("{name} ({:?}, expected {expected:?})", tensor.shape));
                        Param::from_mapped_value(id, old, mapper)
                    }
                }
            }
        }
        let mut writer = Writer {
            config,
            tensors,
            path: Vec::new(),
            used: BTreeSet::new(),
            missing: Vec::new(),
            wrong: Vec::new(),
        };
        let model = self.map(&mut writer);
        if config.tied_head {
            writer.used.insert("lm_head.weight".into());
        }
        let unused: Vec<String> = tensors
            .keys()
            .filter(|name| !writer.used.contains(*name))
            .cloned()
            .collect();
        let Writer { missing, wrong, .. } = writer;
        if missing.is_empty() && wrong.is_empty() && unused.is_empty() {
            Ok(model.with_loaded_weights())
        } else {
            Err(WeightsError::Mismatch { missing, unused, wrong })
        }
    }

    /// Replaces every parameter by those of a safetensors file. The model's [progress](Llama::progress) is then complete.
    ///
    /// # Errors
    /// If the file cannot be read or does not fit the model, which is known before its tensors are read.
    pub fn load(self, config: &LlamaConfig, path: &Path) -> Result<Self, WeightsError> {
        let mut file = SafetensorsFile::open(path)?;
        let within = |cause| WeightsError::Within {
            path: path.display().to_string(),
            cause: Box::new(cause),
        };
        config.check_released(file.tensors()).map_err(within)?;
        self.with_tensors(config, &file.read_all()?).map_err(within)
    }
}

fn file_error(path: &Path, cause: std::io::Error) -> WeightsError {
    WeightsError::File {
        path: path.display().to_string(),
        cause,
    }
}

/// The shape under which a parameter is released.
fn released_shape(path: &str, shape: &[usize]) -> Vec<usize> {
    match shape {
        [inputs, outputs] if is_transposed(path) => vec![*outputs, *inputs],
        _ if path.ends_with(".gate") => Vec::new(),
        _ => shape.to_vec(),
    }
}

/// A parameter on the host in its released shape and orientation.
fn to_host<B: Backend, const D: usize>(path: &str, tensor: Tensor<B, D>) -> HostTensor {
    let shape = released_shape(path, &tensor.dims());
    let tensor = if is_transposed(path) {
        tensor.swap_dims(0, 1)
    } else {
        tensor
    };
    let data = tensor.into_data().convert_dtype(DType::F32);
    let values = data.into_vec().unwrap_or_default();
    HostTensor { shape, values }
}

/// A tensor in the shape, orientation and precision of the parameter it replaces; none if the shapes differ.
fn from_host<B: Backend, const D: usize>(path: &str, tensor: &HostTensor, old: &Tensor<B, D>) -> Option<Tensor<B, D>> {
    let shape = old.dims();
    let values = if is_transposed(path) {
        let [outputs, inputs] = <[usize; 2]>::try_from(tensor.shape.as_slice()).ok()?;
        if shape.as_slice() != [inputs, outputs] {
            return None;
        }
        transposed(&tensor.values, outputs, inputs)
    } else {
        // Some released checkpoints keep gates as `[1]`.
        let is_gate = path.ends_with(".gate") && tensor.values.len() == 1;
        if tensor.shape != shape && !is_gate {
            return None;
        }
        tensor.values.clone()
    };
    let new = Tensor::<B, D>::from_data(TensorData::new(values, shape), &old.device()).cast(old.dtype());
    Some(new.set_require_grad(old.is_require_grad()))
}

/// The rows of a matrix as columns. A transposed view would hold the same numbers, but a product with it adds them up in another order,
/// and a run that goes on from a checkpoint would differ in the last bits.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|column| (0..rows).map(move |row| values[row * columns + column]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scheme;

    /// The names that are ours, and the shapes that go with them.
    #[test]
    fn the_newer_schemes_have_names_of_their_own() {
        let shape = |scheme: &str, name: &str| {
            let config = LlamaConfig::new(10, 4, 6, 2, 2).with_scheme(scheme.parse().unwrap());
            let tensors = config.init::<Flex>(1, &FlexDevice).to_tensors(&config);
            tensors.get(name).map(|tensor| tensor.shape.clone())
        };
        assert_eq!(shape("peri", "model.embed_layernorm.weight"), Some(vec![4]));
        assert_eq!(shape("sandwich", "model.embed_layernorm.weight"), None);
        for (name, size) in [("layerscale", 4), ("rezero_gpas", 1)] {
            for sub_layer in ["attn", "mlp"] {
                let found = shape(name, &format!("model.layers.1.branch_scale_{sub_layer}.weight"));
                assert_eq!(found, Some(vec![size]), "{name} {sub_layer}");
            }
        }
        for norm in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
            assert_eq!(
                shape("keel", &format!("model.layers.0.{norm}_layernorm.weight")),
                Some(vec![4]),
                "{norm}"
            );
        }
    }

    /// What is known without weights is what a model with weights has, in every scheme.
    #[test]
    fn released_shapes_are_those_of_the_weights() {
        for scheme in Scheme::all() {
            for tied in [false, true] {
                let config = LlamaConfig::new(24, 16, 40, 4, 3)
                    .with_kv_heads(Some(2))
                    .with_scheme(scheme)
                    .with_tied_head(tied);
                let tensors = config.init::<Flex>(1, &FlexDevice).to_tensors(&config);
                let shapes = tensors
                    .iter()
                    .map(|(name, tensor)| (name.clone(), tensor.shape.clone()));
                assert_eq!(config.released_shapes(), shapes.collect(), "{scheme}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named_before_it_is_read() {
        let config = LlamaConfig::new(24, 16, 40, 4, 1).with_scheme("pre".parse().unwrap());
        let mut shapes = config.released_shapes();
        shapes.remove("model.norm.weight");
        shapes.insert("model.extra".into(), vec![1]);
        shapes.insert("lm_head.weight".into(), vec![16, 24]);
        let tensors = shapes.iter().map(|(name, shape)| {
            let integer = name.ends_with("q_proj.weight");
            let dtype = if integer { Dtype::I32 } else { Dtype::BF16 };
            (name.as_str(), dtype, shape.as_slice())
        });
        assert_eq!(
            config.check_released(tensors).unwrap_err().to_string(),
            "weights do not fit the model: missing [\"model.norm.weight\"], not used [\"model.extra\"], \
             wrong [\"lm_head.weight ([16, 24], expected [24, 16])\", \"model.layers.0.self_attn.q_proj.weight (I32)\"]"
        );
    }
}
