//! The parameters of a model: what each one is, where it lies, and which ones a configuration has.
//!
//! [`Llama::parameters`] is the one walk over a model. It takes the modules apart field by field, so a field that is renamed, added or
//! removed fails to compile here, and each parameter gets a [`ParameterKind`]. Initial weights, released names, orientation, shapes,
//! clipping, the names of saved moments, norms and counts are matches on the kind: no other code compares the paths of modules.
//!
//! [`LlamaConfig::parameter_shapes`] lists the same parameters with their shapes from the configuration alone.

use core::fmt;
use core::str::FromStr;
use std::collections::HashMap;

use burn::module::{Param, ParamId};
use burn::nn::{Embedding, Linear};
use burn::tensor::{Shape, Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::attention::Attention;
use crate::block::{Block, Residual};
use crate::branch::BranchScale;
use crate::config::LlamaConfig;
use crate::gpas::Gpas;
use crate::llama::Llama;
use crate::mlp::Mlp;
use crate::norm::RmsNorm;

pub use crate::scheme::NormPlace;

/// What a parameter is. [`Display`](fmt::Display) gives its path, such as `layers.3.mlp.up.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParameterKind {
    /// The token embedding, `[vocab, hidden]`.
    Embedding,
    /// Weight of the norm on the embedding, `[hidden]`.
    EmbeddingNorm,
    /// A matrix of a sub-layer, `[inputs, outputs]`.
    Projection {
        /// Index of the layer, from 0.
        layer: usize,
        /// Which of its matrices.
        projection: Projection,
    },
    /// Weight of a norm around a sub-layer, `[hidden]`.
    Norm {
        /// Index of the layer, from 0.
        layer: usize,
        /// The sub-layer that it is wired around.
        sub_layer: SubLayer,
        /// Where it stands.
        place: NormPlace,
    },
    /// Trained scale of a branch, `[hidden]` or `[1]`.
    BranchScale {
        /// Index of the layer, from 0.
        layer: usize,
        /// The sub-layer whose branch it scales.
        sub_layer: SubLayer,
    },
    /// α of a GPAS gate, `[1]`.
    Gate {
        /// Index of the layer, from 0.
        layer: usize,
        /// Index among the layer's gates: 0 where there is one for both sub-layers, else that of the sub-layer.
        index: usize,
    },
    /// Weight of the norm after the last layer, `[hidden]`.
    FinalNorm,
    /// The projection to the vocabulary, `[hidden, vocab]`.
    Head,
    /// A bias that somebody has given to the matrix of a sub-layer. No configuration has one.
    ProjectionBias {
        /// Index of the layer, from 0.
        layer: usize,
        /// Which of its matrices.
        projection: Projection,
    },
    /// A bias that somebody has given to the head. No configuration has one.
    HeadBias,
}

/// A sub-layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum SubLayer {
    Attention,
    Mlp,
}

impl SubLayer {
    /// Both, in the order in which a layer computes them.
    pub const BOTH: [SubLayer; 2] = [SubLayer::Attention, SubLayer::Mlp];

    /// The matrix that writes to the residual stream.
    pub fn output(self) -> Projection {
        match self {
            SubLayer::Attention => Projection::Output,
            SubLayer::Mlp => Projection::Down,
        }
    }

    /// Name of the field of [`Block`] that holds the sub-layer.
    fn field(self) -> &'static str {
        match self {
            SubLayer::Attention => "attention",
            SubLayer::Mlp => "mlp",
        }
    }
}

/// Name of the field of [`Residual`] that holds the norm at a place.
fn norm_field(place: NormPlace) -> &'static str {
    match place {
        NormPlace::Pre => "pre_norm",
        NormPlace::Branch => "branch_norm",
        NormPlace::Post => "post_norm",
    }
}

/// A matrix of a sub-layer. [`Display`](fmt::Display), [`FromStr`] and serde use its path in the layer, such as `attention.query`; the
/// order is that of the paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Projection {
    /// Keys of attention.
    Key,
    /// What attention adds to the stream.
    Output,
    /// Queries of attention.
    Query,
    /// Values of attention.
    Value,
    /// What the MLP adds to the stream.
    Down,
    /// The matrix of the MLP whose SiLU multiplies that of [`Up`](Self::Up).
    Gate,
    /// The matrix of the MLP that is multiplied.
    Up,
}

impl Projection {
    /// All of them, in the order of the modules.
    pub const ALL: [Projection; 7] = [
        Projection::Query,
        Projection::Key,
        Projection::Value,
        Projection::Output,
        Projection::Gate,
        Projection::Up,
        Projection::Down,
    ];

    /// The sub-layer that it belongs to.
    pub fn sub_layer(self) -> SubLayer {
        match self {
            Projection::Query | Projection::Key | Projection::Value | Projection::Output => SubLayer::Attention,
            Projection::Gate | Projection::Up | Projection::Down => SubLayer::Mlp,
        }
    }

    /// Name of the field of [`Attention`] or [`Mlp`] that holds it.
    pub fn field(self) -> &'static str {
        match self {
            Projection::Query => "query",
            Projection::Key => "key",
            Projection::Value => "value",
            Projection::Output => "output",
            Projection::Gate => "gate",
            Projection::Up => "up",
            Projection::Down => "down",
        }
    }

    /// `[inputs, outputs]` in the model of a configuration.
    fn shape(self, config: &LlamaConfig) -> [usize; 2] {
        let (hidden, intermediate) = (config.hidden, config.intermediate);
        let key_value = hidden / config.heads * config.kv_heads();
        match self {
            Projection::Query | Projection::Output => [hidden, hidden],
            Projection::Key | Projection::Value => [hidden, key_value],
            Projection::Gate | Projection::Up => [hidden, intermediate],
            Projection::Down => [intermediate, hidden],
        }
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.sub_layer().field(), self.field())
    }
}

/// A path that is no projection's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no projection of a layer")]
pub struct UnknownProjection(pub String);

impl FromStr for Projection {
    type Err = UnknownProjection;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|projection| projection.to_string() == path)
            .ok_or_else(|| UnknownProjection(path.into()))
    }
}

impl TryFrom<String> for Projection {
    type Error = UnknownProjection;

    fn try_from(path: String) -> Result<Self, Self::Error> {
        path.parse()
    }
}

impl From<Projection> for String {
    fn from(projection: Projection) -> Self {
        projection.to_string()
    }
}

impl fmt::Display for ParameterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ParameterKind::Embedding => write!(f, "embedding.weight"),
            ParameterKind::EmbeddingNorm => write!(f, "embedding_norm.weight"),
            ParameterKind::Projection { layer, projection } => write!(f, "layers.{layer}.{projection}.weight"),
            ParameterKind::ProjectionBias { layer, projection } => write!(f, "layers.{layer}.{projection}.bias"),
            ParameterKind::Norm {
                layer,
                sub_layer,
                place,
            } => {
                let (sub_layer, norm) = (sub_layer.field(), norm_field(place));
                write!(f, "layers.{layer}.{sub_layer}_residual.{norm}.weight")
            }
            ParameterKind::BranchScale { layer, sub_layer } => {
                write!(f, "layers.{layer}.{}_residual.branch_scale.weight", sub_layer.field())
            }
            ParameterKind::Gate { layer, index } => write!(f, "layers.{layer}.gates.{index}.gate"),
            ParameterKind::FinalNorm => write!(f, "norm.weight"),
            ParameterKind::Head => write!(f, "head.weight"),
            ParameterKind::HeadBias => write!(f, "head.bias"),
        }
    }
}

impl ParameterKind {
    /// Index of its layer, from 0, if it is in one.
    pub fn layer(self) -> Option<usize> {
        match self {
            ParameterKind::Projection { layer, .. }
            | ParameterKind::ProjectionBias { layer, .. }
            | ParameterKind::Norm { layer, .. }
            | ParameterKind::BranchScale { layer, .. }
            | ParameterKind::Gate { layer, .. } => Some(layer),
            ParameterKind::Embedding
            | ParameterKind::EmbeddingNorm
            | ParameterKind::FinalNorm
            | ParameterKind::Head
            | ParameterKind::HeadBias => None,
        }
    }

    /// Whether it is a GPAS gate.
    pub fn is_gate(self) -> bool {
        matches!(self, ParameterKind::Gate { .. })
    }

    /// Whether it is a matrix, on which decoupled weight decay acts.
    pub fn is_matrix(self) -> bool {
        self.is_linear() || self == ParameterKind::Embedding
    }

    /// Whether it is the matrix of a linear layer, which Burn keeps as `[inputs, outputs]` and released checkpoints as
    /// `[outputs, inputs]`.
    pub fn is_linear(self) -> bool {
        matches!(self, ParameterKind::Projection { .. } | ParameterKind::Head)
    }
}

/// A parameter of a model.
#[derive(Clone, Copy, Debug)]
pub struct Parameter<'a, B: Backend> {
    /// What it is.
    pub kind: ParameterKind,
    /// Where it is.
    pub value: ParameterValue<'a, B>,
}

/// The tensor of a parameter.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ParameterValue<'a, B: Backend> {
    Vector(&'a Param<Tensor<B, 1>>),
    Matrix(&'a Param<Tensor<B, 2>>),
}

impl<B: Backend> Parameter<'_, B> {
    /// By which gradients, moments and mappers know it.
    pub fn id(&self) -> ParamId {
        match self.value {
            ParameterValue::Vector(param) => param.id,
            ParameterValue::Matrix(param) => param.id,
        }
    }

    /// Its shape. A weight that Burn has not drawn yet is not drawn for it.
    pub fn shape(&self) -> Shape {
        match self.value {
            ParameterValue::Vector(param) => param.lazy_shape(),
            ParameterValue::Matrix(param) => param.lazy_shape(),
        }
    }

    /// Its numbers, flat.
    pub fn flat(&self) -> Tensor<B, 1> {
        match self.value {
            ParameterValue::Vector(param) => param.val(),
            ParameterValue::Matrix(param) => param.val().flatten(0, 1),
        }
    }

    /// Whether it is trained.
    pub fn is_trained(&self) -> bool {
        match self.value {
            ParameterValue::Vector(param) => param.val().is_require_grad(),
            ParameterValue::Matrix(param) => param.val().is_require_grad(),
        }
    }
}

/// Two parameters of a model are one in memory, such as those of a layer and of its clone. Gradients and moments go by a parameter's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` and `{1}` share the id of one parameter: a cloned module needs ids of its own")]
pub struct SharedParameter(pub ParameterKind, pub ParameterKind);

impl<B: Backend> Llama<B> {
    /// Every parameter, in the order in which Burn visits them.
    pub fn parameters(&self) -> Vec<Parameter<'_, B>> {
        // The other fields hold no parameters.
        let Self {
            embedding,
            embedding_norm,
            layers,
            norm,
            head,
            ..
        } = self;
        let Embedding { weight } = embedding;
        let mut all = vec![matrix(ParameterKind::Embedding, weight)];
        all.extend(
            embedding_norm
                .as_ref()
                .map(|norm| norm_weight(ParameterKind::EmbeddingNorm, norm)),
        );
        all.extend(
            layers
                .iter()
                .enumerate()
                .flat_map(|(index, layer)| layer.parameters(index)),
        );
        all.push(norm_weight(ParameterKind::FinalNorm, norm));
        let head = head
            .iter()
            .flat_map(|head| linear(head, ParameterKind::Head, ParameterKind::HeadBias));
        all.extend(head);
        all
    }

    /// What the parameter of each id is.
    ///
    /// # Errors
    /// If two parameters have one id.
    pub fn parameter_kinds(&self) -> Result<HashMap<ParamId, ParameterKind>, SharedParameter> {
        kinds_by_id(&self.parameters())
    }
}

/// What the parameter of each id is.
///
/// # Errors
/// If two parameters have one id.
pub fn kinds_by_id<B: Backend>(
    parameters: &[Parameter<'_, B>],
) -> Result<HashMap<ParamId, ParameterKind>, SharedParameter> {
    let mut kinds = HashMap::new();
    for parameter in parameters {
        if let Some(other) = kinds.insert(parameter.id(), parameter.kind) {
            return Err(SharedParameter(other, parameter.kind));
        }
    }
    Ok(kinds)
}

impl<B: Backend> Block<B> {
    /// Every parameter of what is layer `layer` (from 0) of a model, in the order in which Burn visits them.
    pub fn parameters(&self, layer: usize) -> Vec<Parameter<'_, B>> {
        let Self {
            attention,
            attention_residual,
            mlp,
            mlp_residual,
            gates,
        } = self;
        let mut all = Vec::new();
        all.extend(attention_parameters(attention, layer));
        all.extend(residual_parameters(attention_residual, layer, SubLayer::Attention));
        all.extend(mlp_parameters(mlp, layer));
        all.extend(residual_parameters(mlp_residual, layer, SubLayer::Mlp));
        let gates = gates.iter().enumerate();
        all.extend(gates.map(|(index, Gpas { gate, .. })| vector(ParameterKind::Gate { layer, index }, gate)));
        all
    }
}

fn attention_parameters<B: Backend>(attention: &Attention<B>, layer: usize) -> impl Iterator<Item = Parameter<'_, B>> {
    let Attention {
        query,
        key,
        value,
        output,
        ..
    } = attention;
    let all = [
        (Projection::Query, query),
        (Projection::Key, key),
        (Projection::Value, value),
        (Projection::Output, output),
    ];
    all.into_iter()
        .flat_map(move |(projection, matrix)| projection_parameters(matrix, layer, projection))
}

fn mlp_parameters<B: Backend>(mlp: &Mlp<B>, layer: usize) -> impl Iterator<Item = Parameter<'_, B>> {
    let Mlp { gate, up, down } = mlp;
    let all = [(Projection::Gate, gate), (Projection::Up, up), (Projection::Down, down)];
    all.into_iter()
        .flat_map(move |(projection, matrix)| projection_parameters(matrix, layer, projection))
}

fn residual_parameters<B: Backend>(
    residual: &Residual<B>,
    layer: usize,
    sub_layer: SubLayer,
) -> impl Iterator<Item = Parameter<'_, B>> {
    let Residual {
        pre_norm,
        branch_norm,
        branch_scale,
        post_norm,
        ..
    } = residual;
    let scale = branch_scale
        .as_ref()
        .map(|BranchScale { weight }| vector(ParameterKind::BranchScale { layer, sub_layer }, weight));
    let norms = [
        (NormPlace::Pre, pre_norm),
        (NormPlace::Branch, branch_norm),
        (NormPlace::Post, post_norm),
    ];
    let [pre, branch, post] = norms.map(|(place, norm)| {
        let kind = ParameterKind::Norm {
            layer,
            sub_layer,
            place,
        };
        norm.as_ref().map(|norm| norm_weight(kind, norm))
    });
    [pre, branch, scale, post].into_iter().flatten()
}

fn projection_parameters<B: Backend>(
    matrix: &Linear<B>,
    layer: usize,
    projection: Projection,
) -> impl Iterator<Item = Parameter<'_, B>> {
    linear(
        matrix,
        ParameterKind::Projection { layer, projection },
        ParameterKind::ProjectionBias { layer, projection },
    )
}

fn linear<B: Backend>(
    linear: &Linear<B>,
    of_weight: ParameterKind,
    of_bias: ParameterKind,
) -> impl Iterator<Item = Parameter<'_, B>> {
    let Linear { weight, bias } = linear;
    let bias = bias.as_ref().map(|bias| vector(of_bias, bias));
    [matrix(of_weight, weight)].into_iter().chain(bias)
}

fn norm_weight<B: Backend>(kind: ParameterKind, norm: &RmsNorm<B>) -> Parameter<'_, B> {
    vector(kind, &norm.weight)
}

fn vector<B: Backend>(kind: ParameterKind, param: &Param<Tensor<B, 1>>) -> Parameter<'_, B> {
    let value = ParameterValue::Vector(param);
    Parameter { kind, value }
}

fn matrix<B: Backend>(kind: ParameterKind, param: &Param<Tensor<B, 2>>) -> Parameter<'_, B> {
    let value = ParameterValue::Matrix(param);
    Parameter { kind, value }
}

impl LlamaConfig {
    /// Every parameter of the model with its shape, in the order of [`Llama::parameters`]. No model is made for it.
    pub fn parameter_shapes(&self) -> impl Iterator<Item = (ParameterKind, Vec<usize>)> {
        let embedding = (ParameterKind::Embedding, vec![self.vocab, self.hidden]);
        let norm = |kind| (kind, vec![self.hidden]);
        let embedding_norm = self.scheme.norm.embedding_norm();
        let head = (ParameterKind::Head, vec![self.hidden, self.vocab]);
        [embedding]
            .into_iter()
            .chain(embedding_norm.map(|_| norm(ParameterKind::EmbeddingNorm)))
            .chain((0..self.layers).flat_map(|layer| self.layer_shapes(layer)))
            .chain([norm(ParameterKind::FinalNorm)])
            .chain((!self.tied_head).then_some(head))
    }

    /// The parameters of layer `layer` (from 0) among [`parameter_shapes`](Self::parameter_shapes).
    fn layer_shapes(&self, layer: usize) -> Vec<(ParameterKind, Vec<usize>)> {
        let wiring = self.wiring(layer);
        let mut all = Vec::new();
        for sub_layer in SubLayer::BOTH {
            let projections = Projection::ALL.into_iter();
            let own = projections.filter(|projection| projection.sub_layer() == sub_layer);
            all.extend(own.map(|projection| {
                let shape = projection.shape(self).to_vec();
                (ParameterKind::Projection { layer, projection }, shape)
            }));
            let norm = |place: NormPlace| {
                let kind = ParameterKind::Norm {
                    layer,
                    sub_layer,
                    place,
                };
                wiring.norm(place).map(|_| (kind, vec![self.hidden]))
            };
            let scale = wiring.branch_scale.and_then(|scaling| scaling.trained(self.hidden));
            let scale = scale.map(|(size, _)| (ParameterKind::BranchScale { layer, sub_layer }, vec![size]));
            let [pre, branch, post] = NormPlace::ALL.map(norm);
            all.extend([pre, branch, scale, post].into_iter().flatten());
        }
        all.extend((0..self.gates_per_layer()).map(|index| (ParameterKind::Gate { layer, index }, vec![1])));
        all
    }

    /// The gate of a sub-layer of layer `layer`, from 0, if there are gates.
    pub fn gate_of(&self, layer: usize, sub_layer: SubLayer) -> Option<ParameterKind> {
        let last = self.gates_per_layer().checked_sub(1)?;
        let index = match sub_layer {
            SubLayer::Attention => 0,
            SubLayer::Mlp => last,
        };
        Some(ParameterKind::Gate { layer, index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scheme;
    use burn::module::{Module, ModuleVisitor};
    use burn_flex::{Flex, FlexDevice};

    /// The parameters as Burn finds them.
    fn visited(model: &Llama<Flex>) -> Vec<(ParamId, String, Vec<usize>)> {
        #[derive(Default)]
        struct Found {
            path: Vec<String>,
            all: Vec<(ParamId, String, Vec<usize>)>,
        }
        impl<B: Backend> ModuleVisitor<B> for Found {
            fn enter_module(&mut self, name: &str, _container_type: &str) {
                self.path.push(name.to_string());
            }
            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
                self.all
                    .push((param.id, self.path.join("."), param.lazy_shape().to_vec()));
            }
        }
        let mut found = Found::default();
        model.visit(&mut found);
        found.all
    }

    /// No parameter is left out, in any scheme: same order, same ids, same paths, same shapes, from a model and from its configuration.
    #[test]
    fn the_walk_is_the_one_of_burn() {
        for scheme in Scheme::all() {
            for (tied, per_sublayer) in [(false, false), (true, true)] {
                let gate = crate::GateConfig::new().with_per_sublayer(per_sublayer);
                let config = LlamaConfig::new(24, 16, 40, 4, 5)
                    .with_kv_heads(Some(2))
                    .with_scheme(scheme)
                    .with_gate(gate)
                    .with_tied_head(tied);
                let mut model = config.init::<Flex>(1, &FlexDevice);
                let shapes: Vec<_> = model
                    .parameters()
                    .iter()
                    .map(|parameter| (parameter.kind, parameter.shape().to_vec()))
                    .collect();
                assert_eq!(config.parameter_shapes().collect::<Vec<_>>(), shapes, "{scheme}");
                model.layers[1].mlp.up.bias = Some(Param::from_data([0.5; 40], &FlexDevice));
                if let Some(head) = &mut model.head {
                    head.bias = Some(Param::from_data([0.5; 24], &FlexDevice));
                }
                let walked: Vec<_> = model
                    .parameters()
                    .iter()
                    .map(|parameter| (parameter.id(), parameter.kind.to_string(), parameter.shape().to_vec()))
                    .collect();
                assert_eq!(walked, visited(&model), "{scheme}");
            }
        }
    }

    #[test]
    fn parameters_with_one_id_are_named() {
        let config = LlamaConfig::new(24, 16, 40, 4, 2);
        let mut model = config.init::<Flex>(1, &FlexDevice);
        assert_eq!(model.parameter_kinds().unwrap().len(), model.parameters().len());
        model.layers.push(model.layers[1].clone());
        assert_eq!(
            model.parameter_kinds().unwrap_err().to_string(),
            "`layers.1.attention.query.weight` and `layers.2.attention.query.weight` share the id of one parameter: \
             a cloned module needs ids of its own"
        );
    }

    #[test]
    fn projections_read_back_and_sort_by_their_paths() {
        let mut sorted = Projection::ALL;
        sorted.sort();
        let paths = sorted.map(|projection| projection.to_string());
        assert!(paths.is_sorted(), "{paths:?}");
        for (path, projection) in paths.into_iter().zip(sorted) {
            assert_eq!(path.parse(), Ok(projection));
        }
        let error = "attention.weight".parse::<Projection>().unwrap_err().to_string();
        assert_eq!(error, "`attention.weight` is no projection of a layer");
    }
}
