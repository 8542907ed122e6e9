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
//! | on branch and sum | as sandwich, and `attention_sum_layernorm` | as sandwich, and `feedforward_sum_layernorm` |
//!
//! Nobody has released models of `peri`, `keel`, `layerscale` and `rezero` in this layout, so the names of what only they have are ours:
//! `model.embed_layernorm.weight`, the norm on the embedding; `branch_scale_attn.weight` and `branch_scale_mlp.weight` in each layer, the
//! trained branch scales, of shape `[hidden]` or `[1]`; those of `keel`'s norms, which follow the sandwich's; and those of a norm on the sum
//! that comes after one on the branch, which no scheme of the table has. The branch scale of `prores` is no weight: it follows from the
//! number of steps.

mod file;
mod tensor;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors};

use crate::config::LlamaConfig;
use crate::init::parameter_id;
use crate::llama::Llama;
use crate::params::{NormPlace, Parameter, ParameterKind, ParameterValue, Projection, SubLayer};
use crate::progress::Progress;

pub use file::SafetensorsFile;
use tensor::floats;
pub use tensor::{HostTensor, NamedTensors, WeightsError, is_float};

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
    /// The released name of a parameter; none of one that the model of this configuration does not have.
    pub fn released_name(&self, kind: ParameterKind) -> Option<String> {
        let name = match kind {
            ParameterKind::Embedding => "model.embed_tokens.weight",
            ParameterKind::EmbeddingNorm => {
                self.scheme.norm.embedding_norm()?;
                "model.embed_layernorm.weight"
            }
            ParameterKind::FinalNorm => "model.norm.weight",
            ParameterKind::Head if self.tied_head => return None,
            ParameterKind::Head => "lm_head.weight",
            ParameterKind::HeadBias | ParameterKind::ProjectionBias { .. } => return None,
            ParameterKind::Projection { layer, projection } => {
                return self.in_layer(layer, projection_name(projection));
            }
            ParameterKind::Norm {
                layer,
                sub_layer,
                place,
            } => return self.in_layer(layer, &format!("{}.weight", self.norm_name(layer, sub_layer, place)?)),
            ParameterKind::BranchScale { layer, sub_layer } => {
                self.wiring(layer).branch_scale?.trained(self.hidden)?;
                let name = match sub_layer {
                    SubLayer::Attention => "branch_scale_attn.weight",
                    SubLayer::Mlp => "branch_scale_mlp.weight",
                };
                return self.in_layer(layer, name);
            }
            ParameterKind::Gate { layer, index } => return self.in_layer(layer, self.gate_name(index)?),
        };
        Some(name.to_string())
    }

    fn in_layer(&self, layer: usize, name: &str) -> Option<String> {
        (layer < self.layers).then(|| format!("model.layers.{layer}.{name}"))
    }

    fn gate_name(&self, index: usize) -> Option<&'static str> {
        match (self.gates_per_layer(), index) {
            (1, 0) => Some("gpas_block.gate"),
            (2, 0) => Some("gpas_block_attn.gate"),
            (2, 1) => Some("gpas_block_mlp.gate"),
            _ => None,
        }
    }

    /// The table of this module's documentation.
    fn norm_name(&self, layer: usize, sub_layer: SubLayer, place: NormPlace) -> Option<&'static str> {
        let wiring = self.wiring(layer);
        wiring.norm(place)?;
        let after_branch = wiring.branch_norm.is_some();
        let two_norms = after_branch || wiring.post_norm.is_some();
        Some(match (sub_layer, place) {
            (SubLayer::Attention, NormPlace::Pre) => "input_layernorm",
            (SubLayer::Attention, NormPlace::Post) if after_branch => "attention_sum_layernorm",
            (SubLayer::Attention, NormPlace::Branch | NormPlace::Post) => "post_attention_layernorm",
            (SubLayer::Mlp, NormPlace::Pre) if two_norms => "pre_feedforward_layernorm",
            (SubLayer::Mlp, NormPlace::Pre) => "post_attention_layernorm",
            (SubLayer::Mlp, NormPlace::Post) if after_branch => "feedforward_sum_layernorm",
            (SubLayer::Mlp, NormPlace::Branch | NormPlace::Post) => "post_feedforward_layernorm",
        })
    }

    /// Released name and shape of every parameter; no weights are made for it.
    pub fn released_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shapes = self.parameter_shapes();
        let named = shapes.filter_map(|(kind, shape)| Some((self.released_name(kind)?, released_shape(kind, &shape))));
        named.collect()
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

fn projection_name(projection: Projection) -> &'static str {
    match projection {
        Projection::Query => "self_attn.q_proj.weight",
        Projection::Key => "self_attn.k_proj.weight",
        Projection::Value => "self_attn.v_proj.weight",
        Projection::Output => "self_attn.o_proj.weight",
        Projection::Gate => "mlp.gate_proj.weight",
        Projection::Up => "mlp.up_proj.weight",
        Projection::Down => "mlp.down_proj.weight",
    }
}

impl<B: Backend> Llama<B> {
    /// Every parameter, on the host, by its released name.
    ///
    /// # Errors
    /// If the parameters are not those of the configuration: none is left out or written over another.
    pub fn to_tensors(&self, config: &LlamaConfig) -> Result<NamedTensors, WeightsError> {
        let mut tensors = NamedTensors::new();
        for Parameter { kind, value } in self.parameters() {
            let name = config.released_name(kind).ok_or(WeightsError::Unnamed(kind))?;
            let tensor = match value {
                ParameterValue::Vector(param) => to_host(kind, param.val())?,
                ParameterValue::Matrix(param) => to_host(kind, param.val())?,
            };
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(WeightsError::SameName { name, parameter: kind });
            }
        }
        let found = tensors.iter();
        config.check_released(found.map(|(name, tensor)| (name.as_str(), Dtype::F32, tensor.shape.as_slice())))?;
        Ok(tensors)
    }

    /// The model of a configuration with the tensors of its parameters' released names. No weights are drawn for it, and its
    /// [progress](Self::progress) is complete.
    ///
    /// # Errors
    /// If the configuration is not [valid](LlamaConfig::validate), or a tensor is missing, has another shape, or is left over. A released
    /// head beside a tied one is not used and not an error.
    pub fn from_tensors(
        config: &LlamaConfig,
        tensors: &NamedTensors,
        device: &B::Device,
    ) -> Result<Self, WeightsError> {
        let shapes = tensors.iter();
        config.validate()?;
        config.check_released(shapes.map(|(name, tensor)| (name.as_str(), Dtype::F32, tensor.shape.as_slice())))?;
        let model = config.skeleton::<B>(device)?;
        let mut reader = Reader {
            config,
            tensors,
            kinds: model.parameter_kinds()?,
            failed: None,
        };
        let model = model.map(&mut reader);
        match reader.failed {
            Some(error) => Err(error),
            None => Ok(model.with_progress(Progress::COMPLETE)),
        }
    }

    /// Writes every parameter to a safetensors file, in f32 and by its released name.
    ///
    /// # Errors
    /// If the parameters are not those of the configuration, or the file cannot be written.
    pub fn save(&self, config: &LlamaConfig, path: &Path) -> Result<(), WeightsError> {
        write_safetensors(&self.to_tensors(config)?, path)
    }

    /// The model of a configuration with the weights of a safetensors file. No weights are drawn for it, and its
    /// [progress](Self::progress) is complete.
    ///
    /// # Errors
    /// If the file cannot be read or does not fit the model, which is known before its tensors are read.
    pub fn load(config: &LlamaConfig, path: &Path, device: &B::Device) -> Result<Self, WeightsError> {
        config.validate()?;
        let mut file = SafetensorsFile::open(path)?;
        let within = |cause| WeightsError::Within {
            path: path.display().to_string(),
            cause: Box::new(cause),
        };
        config.check_released(file.tensors()).map_err(within)?;
        Self::from_tensors(config, &file.read_all()?, device).map_err(within)
    }
}

/// Puts tensors in the place of the parameters that a model without weights has.
struct Reader<'a> {
    config: &'a LlamaConfig,
    tensors: &'a NamedTensors,
    kinds: HashMap<ParamId, ParameterKind>,
    /// What is wrong with the first tensor that fits no parameter.
    failed: Option<WeightsError>,
}

impl<B: Backend> ModuleMapper<B> for Reader<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let kind = *self.kinds.get(&param.id).expect("the walk has every parameter");
        let name = self.config.released_name(kind);
        let tensor = name.and_then(|name| self.tensors.get(&name));
        // A parameter that Burn has not drawn yet is trained; asking for its value would draw it.
        let trained = !param.is_initialized() || param.val().is_require_grad();
        let (shape, device) = (param.lazy_shape(), param.lazy_device());
        let Some(values) = tensor.and_then(|tensor| from_host(kind, tensor, shape.as_slice())) else {
            self.failed.get_or_insert_with(|| {
                WeightsError::Damaged(format!(
                    "the tensor of `{kind}` has not as many numbers as its shape says"
                ))
            });
            return param;
        };
        let new = Tensor::<B, D>::from_data(TensorData::new(values, shape), &device);
        let new = new.cast(self.config.precision.parameters());
        Param::initialized(parameter_id(kind), new.set_require_grad(trained))
    }
}

fn file_error(path: &Path, cause: std::io::Error) -> WeightsError {
    WeightsError::File {
        path: path.display().to_string(),
        cause,
    }
}

/// The shape under which a parameter is released.
fn released_shape(kind: ParameterKind, shape: &[usize]) -> Vec<usize> {
    match shape {
        [inputs, outputs] if kind.is_linear() => vec![*outputs, *inputs],
        _ if kind.is_gate() => Vec::new(),
        _ => shape.to_vec(),
    }
}

/// A parameter on the host in its released shape and orientation.
fn to_host<B: Backend, const D: usize>(kind: ParameterKind, tensor: Tensor<B, D>) -> Result<HostTensor, WeightsError> {
    let shape = released_shape(kind, &tensor.dims());
    let tensor = if kind.is_linear() {
        tensor.swap_dims(0, 1)
    } else {
        tensor
    };
    let HostTensor { values, .. } = HostTensor::of(tensor)?;
    Ok(HostTensor { shape, values })
}

/// The numbers of a released tensor in the orientation of a parameter of this shape; none if there is another number of them.
fn from_host(kind: ParameterKind, tensor: &HostTensor, shape: &[usize]) -> Option<Vec<f32>> {
    if tensor.values.len() != shape.iter().product::<usize>() {
        return None;
    }
    Some(match shape {
        [inputs, outputs] if kind.is_linear() => transposed(&tensor.values, *outputs, *inputs),
        _ => tensor.values.clone(),
    })
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
    use crate::scheme::{BranchScaling, NormStart, SchemeRow, Wiring};
    use crate::{NormScheme, Scheme};
    use burn_flex::{Flex, FlexDevice};

    /// The names that are ours, and the shapes that go with them.
    #[test]
    fn the_newer_schemes_have_names_of_their_own() {
        let shape = |scheme: &str, name: &str| {
            let config = LlamaConfig::new(10, 4, 6, 2, 2).with_scheme(scheme.parse().unwrap());
            let tensors = config.init::<Flex>(1, &FlexDevice).to_tensors(&config).unwrap();
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
                let tensors = config.init::<Flex>(1, &FlexDevice).to_tensors(&config).unwrap();
                let shapes = tensors
                    .iter()
                    .map(|(name, tensor)| (name.clone(), tensor.shape.clone()));
                assert_eq!(config.released_shapes(), shapes.collect(), "{scheme}");
            }
        }
    }

    /// What a model has beyond its configuration is named, and nothing is written without it.
    #[test]
    fn parameters_that_nobody_has_named_are_errors() {
        let config = LlamaConfig::new(24, 16, 40, 4, 2);
        let model = || config.init::<Flex>(1, &FlexDevice);
        let refused = |model: Llama<Flex>| model.to_tensors(&config).unwrap_err().to_string();
        let mut biased = model();
        biased.layers[1].mlp.down.bias = Some(Param::from_data([0.5; 16], &FlexDevice));
        assert_eq!(
            refused(biased),
            "the model has a parameter `layers.1.mlp.down.bias` that its configuration has no name for"
        );
        let mut gated = model();
        let gate = gated.layers[0].gates[0].clone();
        gated.layers[0].gates.push(gate);
        assert_eq!(
            refused(gated),
            "the model has a parameter `layers.0.gates.1.gate` that its configuration has no name for"
        );
        let mut normed = model();
        normed.layers[1].mlp_residual.post_norm = Some(normed.norm.clone());
        assert!(refused(normed).contains("`layers.1.mlp_residual.post_norm.weight`"));
        let mut shorter = model();
        shorter.layers.pop();
        assert!(
            refused(shorter).starts_with("weights do not fit the model: missing [\"model.layers.1.gpas_block.gate\"")
        );
        let deeper = LlamaConfig {
            layers: 3,
            ..config.clone()
        }
        .init::<Flex>(1, &FlexDevice);
        assert!(refused(deeper).contains("`layers.2.attention.query.weight`"));
        let wider = LlamaConfig {
            intermediate: 44,
            ..config.clone()
        }
        .init::<Flex>(1, &FlexDevice);
        assert!(refused(wider).contains("model.layers.0.mlp.down_proj.weight ([16, 44], expected [16, 40])"));
    }

    /// Whatever a scheme of one's own is wired of: no two of its parameters have one name.
    #[test]
    fn every_wiring_has_a_name_for_each_of_its_parameters() {
        fn wiring(index: usize) -> Wiring {
            let norm = |bit: usize| (index & bit != 0).then_some(NormStart::PLAIN);
            Wiring {
                pre_norm: norm(1),
                branch_norm: norm(2),
                post_norm: norm(4),
                branch_scale: (index & 8 != 0).then_some(BranchScaling::Scalar { start: 1.0 }),
                ..Wiring::BARE
            }
        }
        static ALL: SchemeRow = SchemeRow::new("all_wirings", "a layer of each wiring", &|layer| wiring(layer.index));
        let norm = NormScheme::own(&ALL).unwrap();
        let config = LlamaConfig::new(10, 4, 6, 2, 16).with_scheme(Scheme { norm, gpas: true });
        let model = config.init::<Flex>(1, &FlexDevice);
        let tensors = model.to_tensors(&config).unwrap();
        assert_eq!(tensors.len(), model.parameters().len());
        assert_eq!(tensors.len(), config.released_shapes().len());
        let saved: usize = tensors.values().map(|tensor| tensor.values.len()).sum();
        assert_eq!(saved, model.num_params());
        let read = Llama::<Flex>::from_tensors(&config, &tensors, &FlexDevice).unwrap();
        assert_eq!(read.to_tensors(&config).unwrap(), tensors);
    }

    #[test]
    fn a_saved_model_is_loaded_with_its_ids() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("w.safetensors");
        let config = LlamaConfig::new(24, 16, 40, 4, 2);
        let model = config.init::<Flex>(1, &FlexDevice);
        model.save(&config, &path).unwrap();
        let read = Llama::<Flex>::load(&config, &path, &FlexDevice).unwrap();
        assert_eq!(read.to_tensors(&config).unwrap(), model.to_tensors(&config).unwrap());
        assert_eq!(read.parameter_kinds(), model.parameter_kinds());
        let wrong = LlamaConfig { heads: 3, ..config };
        let error = Llama::<Flex>::load(&wrong, &path, &FlexDevice).unwrap_err();
        assert_eq!(error.to_string(), "model.heads = 3 does not divide model.hidden = 16");
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
