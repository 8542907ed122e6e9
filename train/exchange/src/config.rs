//! `config.json`: what `transformers` calls the sizes of a model, and, for an architecture of our own, the wiring of every layer as data.

use std::path::Path;

use gpas_data::SpecialTokens;
use gpas_model::params::{NormPlace, ParameterKind, SubLayer};
use gpas_model::scheme::{BranchScaling, GatePlace};
use gpas_model::{GateConfig, LlamaConfig, NormScheme, Progress, Scheme};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ExchangeError;
use crate::files::read_text;
use crate::rope::{self, Rope, RopeKeys};
use crate::tokens::one_or_several;

/// The architecture of every LLaMA runtime.
const STOCK: &str = "LlamaForCausalLM";
/// The same in the configurations that the code of GaLore, LayerNorm Scaling and GPAS starts from.
const PRETRAINING: &str = "LLaMAForCausalLM";
/// The architecture of `modeling_gpas.py`.
const OWN: &str = "GpasForCausalLM";

/// What our own architecture adds to a configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Own {
    /// The scheme that was trained, for people and for `gpas import`; the Python file reads the wiring alone.
    pub(super) scheme: Scheme,
    pub(super) post_num: usize,
    pub(super) gate: GateConfig,
    /// Name of the norm on the embedding.
    embedding_norm: Option<String>,
    /// Attention and MLP of each layer.
    pub(super) wiring: Vec<[WiringRow; 2]>,
    /// The rotary frequencies, if they are not those of `rope_theta`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope: Option<RopeRow>,
}

/// Rotary frequencies as numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct RopeRow {
    /// Radians from one position to the next, of each pair of a head.
    frequencies: Vec<f64>,
    /// What cosines and sines are multiplied by.
    attention_factor: f64,
    /// Present if a sequence of more than so many tokens has a base of its own.
    by_length: Option<ByLength>,
}

/// A base that grows with the sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ByLength {
    factor: f64,
    positions: usize,
}

impl RopeRow {
    fn is_near(&self, other: &Self) -> bool {
        let near = |(one, other): (&f64, &f64)| (one / other - 1.0).abs() < 1e-9;
        self.frequencies.len() == other.frequencies.len()
            && self.frequencies.iter().zip(&other.frequencies).all(near)
            && near((&self.attention_factor, &other.attention_factor))
            && self.by_length == other.by_length
    }

    fn of(config: &LlamaConfig) -> Option<Self> {
        let scaling = config.rope_scaling;
        (!scaling.is_default()).then(|| Self {
            frequencies: scaling.frequencies(config.rope_base, config.hidden / config.heads, 1),
            attention_factor: scaling.attention_factor(),
            by_length: scaling.constant_up_to().map(|positions| ByLength {
                factor: scaling.factor(),
                positions,
            }),
        })
    }
}

/// What stands around one sub-layer, in the names of its tensors: a row of the scheme table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct WiringRow {
    pre_norm: Option<String>,
    branch_norm: Option<String>,
    post_norm: Option<String>,
    /// Fixed factor on what `pre_norm` returns.
    norm_factor: f64,
    /// Trained factor on the branch.
    branch_scale: Option<BranchScaleRow>,
    /// Fixed factor on the branch.
    branch_factor: f64,
    /// α.
    residual_scale: f64,
    gate: Option<String>,
    gate_place: Option<String>,
}

/// A trained factor on a branch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct BranchScaleRow {
    name: String,
    /// The stream's width, or 1.
    size: usize,
}

impl Own {
    /// That of a model as it is at some progress of its run.
    pub(super) fn of(config: &LlamaConfig, progress: Progress) -> Self {
        let embedding_norm = config.released_name(ParameterKind::EmbeddingNorm);
        Self {
            scheme: config.scheme,
            post_num: config.post_num(),
            gate: config.gate,
            embedding_norm: embedding_norm.and_then(|name| Some(name.split('.').nth(1)?.to_string())),
            wiring: (0..config.layers).map(|index| rows(config, index, progress)).collect(),
            rope: RopeRow::of(config),
        }
    }

    /// Whether another one has the same wiring and the same rotary frequencies, as far as decimals tell.
    pub(super) fn wires_as(&self, other: &Self) -> bool {
        let same_rope = match (&self.rope, &other.rope) {
            (None, None) => true,
            (Some(one), Some(other)) => one.is_near(other),
            _ => false,
        };
        self.wiring == other.wiring && same_rope
    }
}

fn rows(config: &LlamaConfig, index: usize, progress: Progress) -> [WiringRow; 2] {
    let wiring = config.wiring(index);
    // Without `model.layers.I.` and without the ending: none of what the layer does not have.
    let leaf = |kind: ParameterKind| {
        let name = config.released_name(kind)?;
        let inside = name.strip_prefix(&format!("model.layers.{index}."))?;
        let (leaf, _ending) = inside.rsplit_once('.')?;
        Some(leaf.to_string())
    };
    SubLayer::BOTH.map(|sub_layer| {
        let norm = |place: NormPlace| {
            leaf(ParameterKind::Norm {
                layer: index,
                sub_layer,
                place,
            })
        };
        let scale = wiring.branch_scale.and_then(|scaling| scaling.trained(config.hidden));
        let scale = scale.and_then(|(size, _)| {
            let name = leaf(ParameterKind::BranchScale {
                layer: index,
                sub_layer,
            })?;
            Some(BranchScaleRow { name, size })
        });
        WiringRow {
            pre_norm: norm(NormPlace::Pre),
            branch_norm: norm(NormPlace::Branch),
            post_norm: norm(NormPlace::Post),
            norm_factor: wiring.pre_norm.map_or(1.0, |start| start.factor),
            branch_scale: scale,
            branch_factor: branch_factor(wiring.branch_scale, progress),
            residual_scale: wiring.residual_scale,
            gate: config.gate_of(index, sub_layer).and_then(leaf),
            gate_place: config.gate_place(index).map(|place| place_name(place).to_string()),
        }
    })
}

/// The fixed factor on a branch at some progress of the run.
pub(super) fn branch_factor(scaling: Option<BranchScaling>, progress: Progress) -> f64 {
    match scaling {
        Some(BranchScaling::Warmup { steps }) => progress.warmup(steps),
        _ => 1.0,
    }
}

fn place_name(place: GatePlace) -> &'static str {
    match place {
        GatePlace::Before => "before",
        GatePlace::AfterNorm => "after_norm",
        GatePlace::AfterModule => "after_module",
        GatePlace::Residual => "residual",
        GatePlace::Stream => "stream",
    }
}

/// The configuration of a model, as an architecture of its own if `own` is given.
pub(super) fn write(config: &LlamaConfig, own: Option<&Own>, dtype: &str, special: &SpecialTokens) -> Value {
    let (scaling, positions) = rope::write(config);
    let mut value = json!({
        "architectures": [if own.is_some() { OWN } else { STOCK }],
        "model_type": if own.is_some() { "gpas" } else { "llama" },
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads(),
        "head_dim": config.hidden / config.heads,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "rope_scaling": scaling,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "tie_word_embeddings": config.tied_head,
        "initializer_range": 0.02,
        "use_cache": true,
        "torch_dtype": dtype,
        "bos_token_id": special.begin,
        "eos_token_id": one_or_several(&special.ends),
        "pad_token_id": special.pad,
    });
    if let (Some(own), Some(object)) = (own, value.as_object_mut()) {
        let file = |class: &str| Value::from(format!("modeling_gpas.{class}"));
        let map = json!({"AutoConfig": file("GpasConfig"), "AutoModelForCausalLM": file(OWN)});
        object.insert("auto_map".into(), map);
        object.insert("gpas".into(), json!(own));
    }
    value
}

/// A model that can be imported, as its configuration says.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Its sizes; the scheme is that of `own`, else plain `pre`, to be decided by the names of the tensors.
    pub(super) config: LlamaConfig,
    /// Present if it is an architecture of our own.
    pub(super) own: Option<Own>,
    /// Its name.
    pub(super) architecture: String,
    /// What of the configuration is left out, for people.
    pub(super) notes: Vec<String>,
}

/// The keys of `config.json` that are understood; what else there is says nothing about the function that the model computes.
#[derive(Deserialize)]
struct Keys {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    max_position_embeddings: Option<usize>,
    /// Its name in older configurations, the authors' among them.
    max_sequence_length: Option<usize>,
    rms_norm_eps: Option<f64>,
    #[serde(flatten)]
    rope: RopeKeys,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    sliding_window: Option<Value>,
    quantization_config: Option<Value>,
    gpas: Option<Own>,
}

/// Reads a configuration, refusing by name what no model of ours computes.
pub(super) fn read(path: &Path) -> Result<Found, ExchangeError> {
    let bytes = read_text(path)?;
    let keys: Keys = serde_json::from_slice(&bytes)
        .map_err(|cause| ExchangeError::damaged(path, format!("it is no configuration: {cause}")))?;
    let not_supported = |what: String| ExchangeError::NotSupported {
        path: path.to_path_buf(),
        what,
    };
    let damaged = |what: String| ExchangeError::damaged(path, what);
    let architecture = keys.architecture().map_err(not_supported)?;
    let own = match (architecture == OWN, &keys.gpas) {
        (true, None) => return Err(damaged("it has no key `gpas`, which GpasForCausalLM needs".into())),
        (true, Some(own)) => Some(own.clone()),
        (false, _) => None,
    };
    keys.check_function().map_err(not_supported)?;
    if let Some(what) = keys.rope.not_supported() {
        return Err(not_supported(what));
    }
    let positions = keys
        .max_position_embeddings
        .or(keys.max_sequence_length)
        .unwrap_or(2048);
    let Rope { base, scaling, notes } = keys.rope.read(positions).map_err(|cause| ExchangeError::Rope {
        path: path.to_path_buf(),
        cause,
    })?;
    let [vocab, hidden, intermediate, heads, layers] = keys.sizes().map_err(damaged)?;
    if let Some(size) = keys.head_dim.filter(|size| size.checked_mul(heads) != Some(hidden)) {
        return Err(not_supported(format!(
            "head_dim {size}, which is not hidden_size / num_attention_heads,"
        )));
    }
    let plain = Scheme {
        norm: NormScheme::PRE,
        gpas: false,
    };
    let mut config = LlamaConfig::new(vocab, hidden, intermediate, heads, layers)
        .with_kv_heads(Some(keys.num_key_value_heads.unwrap_or(heads)))
        .with_scheme(plain)
        .with_tied_head(keys.tie_word_embeddings)
        // The defaults of transformers where a key is missing.
        .with_norm_epsilon(keys.rms_norm_eps.unwrap_or(1e-6))
        .with_rope_base(base)
        .with_rope_scaling(scaling)
        .with_max_positions(positions);
    if let Some(own) = &own {
        config = config
            .with_scheme(own.scheme)
            .with_post_num(Some(own.post_num))
            .with_gate(own.gate);
    }
    Ok(Found {
        config,
        own,
        architecture,
        notes,
    })
}

impl Keys {
    /// The architecture, or what of it is not supported.
    fn architecture(&self) -> Result<String, String> {
        let named = self.architectures.as_ref().and_then(|names| names.first());
        let architecture = match (named, self.model_type.as_deref()) {
            (Some(name), _) => name.clone(),
            (None, Some("llama")) => STOCK.into(),
            (None, other) => return Err(format!("model_type {other:?} without architectures")),
        };
        let is_llama = self.model_type.as_deref().is_none_or(|kind| kind == "llama");
        if architecture == OWN || ([STOCK, PRETRAINING].contains(&architecture.as_str()) && is_llama) {
            Ok(architecture)
        } else {
            Err(format!(
                "architecture {architecture} of model_type {}",
                self.model_type.as_deref().unwrap_or("llama")
            ))
        }
    }

    /// Whether the model computes nothing that ours do not, apart from its positions; else what it is.
    fn check_function(&self) -> Result<(), String> {
        for (is_there, what) in [
            (self.attention_bias, "attention_bias"),
            (self.mlp_bias, "mlp_bias"),
            (is_set(self.sliding_window.as_ref()), "sliding_window"),
            (is_set(self.quantization_config.as_ref()), "quantization_config"),
        ] {
            if is_there {
                return Err(what.into());
            }
        }
        match self.hidden_act.as_deref() {
            None | Some("silu" | "swish") => Ok(()),
            Some(act) => Err(format!("hidden_act {act}")),
        }
    }

    /// Vocabulary, width, width of the MLP, heads and layers; else which of them are missing.
    fn sizes(&self) -> Result<[usize; 5], String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_hidden_layers", self.num_hidden_layers),
        ];
        let missing = sizes.iter().filter(|(_, size)| size.is_none());
        let missing: Vec<&str> = missing.map(|(name, _)| *name).collect();
        if missing.is_empty() {
            Ok(sizes.map(|(_, size)| size.unwrap_or_default()))
        } else {
            Err(format!("it has no key {}", missing.join(", ")))
        }
    }
}

fn is_set(value: Option<&Value>) -> bool {
    value.is_some_and(|value| !value.is_null())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock() -> Value {
        let config = LlamaConfig::new(64, 32, 96, 4, 3).with_kv_heads(Some(2));
        write(&config, None, "float32", &SpecialTokens::default())
    }

    fn read_value(value: &Value) -> Result<Found, ExchangeError> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("config.json");
        std::fs::write(&path, value.to_string()).unwrap();
        read(&path)
    }

    #[test]
    fn what_is_written_is_read() {
        for scheme in Scheme::all() {
            let config = LlamaConfig::new(64, 32, 96, 4, 8)
                .with_kv_heads(Some(2))
                .with_scheme(scheme)
                .with_post_num(Some(3))
                .with_tied_head(true)
                .with_norm_epsilon(1e-5)
                .with_rope_base(500_000.0)
                .with_max_positions(99);
            let own = Own::of(&config, Progress::COMPLETE);
            let found = read_value(&write(&config, Some(&own), "float32", &SpecialTokens::default())).unwrap();
            assert_eq!((found.config, found.own), (config, Some(own)));
        }
    }

    #[test]
    fn a_scaling_leaves_as_frequencies_for_an_architecture_of_its_own() {
        let scaling = gpas_model::RopeScaling::Dynamic {
            factor: 2.0,
            original_max_position_embeddings: 99,
        };
        let config = LlamaConfig::new(64, 32, 96, 4, 2).with_max_positions(99);
        assert_eq!(Own::of(&config, Progress::COMPLETE).rope, None);
        let config = config.with_rope_scaling(scaling).with_scheme("peri".parse().unwrap());
        let own = Own::of(&config, Progress::COMPLETE);
        let row = own.rope.clone().unwrap();
        assert_eq!((row.frequencies.len(), row.frequencies[0]), (4, 1.0));
        let found = read_value(&write(&config, Some(&own), "float32", &SpecialTokens::default())).unwrap();
        assert_eq!((found.config.rope_scaling, found.own), (scaling, Some(own)));
    }

    #[test]
    fn a_row_names_what_stands_around_a_sub_layer() {
        let config = LlamaConfig::new(64, 32, 96, 4, 2).with_scheme("deeppost_gpas".parse().unwrap());
        let [attention, mlp] = rows(&config, 1, Progress::COMPLETE);
        assert_eq!(
            json!(attention),
            json!({"pre_norm": null, "branch_norm": null, "post_norm": "post_attention_layernorm", "norm_factor": 1.0,
                "branch_scale": null, "branch_factor": 1.0, "residual_scale": 2.0_f64.sqrt(), "gate": "gpas_block", "gate_place": "residual"})
        );
        assert_eq!(mlp.post_norm.as_deref(), Some("post_feedforward_layernorm"));
    }

    #[test]
    fn rows_hold_what_the_newer_schemes_add() {
        let own = |scheme: &str| {
            let config = LlamaConfig::new(64, 32, 96, 4, 2).with_residual_warmup(10);
            Own::of(&config.with_scheme(scheme.parse().unwrap()), Progress::after(5))
        };
        assert_eq!(own("peri").embedding_norm.as_deref(), Some("embed_layernorm"));
        assert_eq!(own("sandwich").embedding_norm, None);
        let factors = own("prores")
            .wiring
            .concat()
            .iter()
            .map(|row| row.branch_factor)
            .collect::<Vec<_>>();
        assert_eq!(factors, [0.5, 0.5, 0.25, 0.25]);
        for (scheme, size) in [("rezero", 1), ("layerscale", 32)] {
            let scales = own(scheme).wiring[1].clone().map(|row| json!(row.branch_scale));
            let names = ["branch_scale_attn", "branch_scale_mlp"];
            assert_eq!(scales, names.map(|name| json!({"name": name, "size": size})));
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (key, value, said) in [
            (
                "architectures",
                json!(["Qwen2ForCausalLM"]),
                "architecture Qwen2ForCausalLM of model_type llama is not supported",
            ),
            (
                "model_type",
                json!("mistral"),
                "architecture LlamaForCausalLM of model_type mistral is not supported",
            ),
            ("attention_bias", json!(true), "attention_bias is not supported"),
            ("mlp_bias", json!(true), "mlp_bias is not supported"),
            ("hidden_act", json!("gelu"), "hidden_act gelu is not supported"),
            (
                "head_dim",
                json!(16),
                "head_dim 16, which is not hidden_size / num_attention_heads, is not supported",
            ),
            (
                "rope_scaling",
                json!({"type": "linear"}),
                "config.json: rotary positions: rope_type `linear` needs `factor`",
            ),
            (
                "rope_parameters",
                json!({"rope_type": "longrope"}),
                "config.json: rotary positions: rope_type `longrope` is none that is computed here",
            ),
            ("sliding_window", json!(512), "sliding_window is not supported"),
            ("quantization_config", json!({}), "quantization_config is not supported"),
            ("hidden_size", json!(null), "it has no key hidden_size"),
            (
                "hidden_size",
                json!(-3),
                "it is no configuration: invalid value: integer `-3`",
            ),
        ] {
            let mut config = stock();
            config[key] = value;
            let error = read_value(&config).unwrap_err().to_string();
            assert!(error.contains(said), "{error}\nexpected {said}");
        }
    }

    #[test]
    fn old_and_new_places_of_the_rotary_base_are_known() {
        for (theta, parameters, expected) in [
            (json!(null), json!(null), 10000.0),
            (json!(5e5), json!(null), 5e5),
            (json!(null), json!({"rope_type": "default", "rope_theta": 5e5}), 5e5),
        ] {
            let mut config = stock();
            (config["rope_theta"], config["rope_parameters"]) = (theta, parameters);
            assert_eq!(read_value(&config).unwrap().config.rope_base, expected);
        }
    }
}
