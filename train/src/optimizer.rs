//! Adam and AdamW with PyTorch's semantics, after clipping by the global norm and then by the gates' own norm.
//!
//! ```text
//! g ← g · min(1, clip / (‖g‖ + 1e-6))                      all parameters together
//! g ← g · min(1, clip_gate / (‖g_gates‖ + 1e-6))           then all gates together
//! m ← β₁·m + (1 − β₁)·g        v ← β₂·v + (1 − β₂)·g²
//! w ← w − lr · m / (1 − β₁ᵗ) / ( √v / √(1 − β₂ᵗ) + ε )
//! ```
//!
//! `adam` adds `weight_decay · w` to the gradient; `adamw` takes `lr · weight_decay · w` off the weight, of matrices alone: norms and
//! gates are not pulled to zero. t counts the updates that were made. Burn's own clipping is per tensor, and its Adam rounds the bias
//! corrections to f32; hence this one. The norms are on the host when an update is made, so the clipping is a factor in Adam's own
//! multiplications and takes no pass of its own over the gradients.

use std::collections::HashMap;

use burn::module::{AutodiffModule, ModuleMapper, Param, ParamId};
use burn::optim::{GradientsParams, LearningRate};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive};
use gpas_model::fast::{self, AdamStep, sum_of_squares};
use gpas_model::params::{Parameter, ParameterKind, ParameterValue, SharedParameter, kinds_by_id};
use gpas_model::weights::{HostTensor, NamedTensors, WeightsError};
use serde::{Deserialize, Serialize};
use strum::VariantNames;

/// Which rule applies weight decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam (arXiv 1412.6980): decay is part of the gradient.
    #[default]
    Adam,
    /// Adam with decoupled decay (arXiv 1711.05101): it is apart from the gradient, on matrices only.
    AdamW,
}

/// Settings of the optimizer; a limit of 0 does not clip.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Which rule applies weight decay.
    pub kind: OptimizerKind,
    /// β₁ and β₂.
    pub betas: (f64, f64),
    /// ε.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Limit of the global gradient norm.
    pub clip: f64,
    /// Limit of the norm of all gates' gradients, after the global clip.
    pub clip_gate: f64,
}

impl OptimizerConfig {
    /// Adam with PyTorch's defaults, without decay and without clipping.
    pub const ADAM: OptimizerConfig = OptimizerConfig {
        kind: OptimizerKind::Adam,
        betas: (0.9, 0.999),
        eps: 1e-8,
        weight_decay: 0.0,
        clip: 0.0,
        clip_gate: 0.0,
    };
}

/// What a step reads from the device before its update, in one transfer.
#[derive(Clone, Debug)]
pub(crate) struct Readings {
    /// Single numbers that were asked for.
    pub numbers: Vec<f64>,
    /// The squared gradient norm before clipping of every parameter that has a gradient, in module order.
    pub squares: Vec<(ParameterKind, f64)>,
}

impl Readings {
    /// Some numbers, `[1]` each, and the squared norms of the gradients of some parameters.
    ///
    /// A norm is the same in every run: each gradient is summed in an order that depends on its shape alone, where a sum over a large tensor
    /// may be cut among threads in any way; and the norms are added up in module order, where gradients are kept in a hash map.
    pub(crate) fn of<B: AutodiffBackend>(
        numbers: Vec<Tensor<B::InnerBackend, 1>>,
        parameters: &[Parameter<'_, B>],
        gradients: &GradientsParams,
    ) -> Self {
        let found = parameters
            .iter()
            .filter_map(|parameter| Some((parameter.kind, Gradient::of(parameter, gradients)?)));
        let (kinds, found): (Vec<_>, Vec<_>) = found.unzip();
        let count = numbers.len();
        let values: Vec<f64> = match on_device(numbers, found) {
            Some(values) => values.into_data().iter::<f64>().collect(),
            None => Vec::new(),
        };
        let (numbers, squares) = values.split_at(count);
        Self {
            numbers: numbers.to_vec(),
            squares: kinds.into_iter().zip(squares.iter().copied()).collect(),
        }
    }
}

/// Some numbers and then the squared norms of some gradients; none if there is neither.
fn on_device<B: Backend>(numbers: Vec<Tensor<B, 1>>, gradients: Vec<Gradient<B>>) -> Option<Tensor<B, 1>> {
    if fast::updates_together::<B>() {
        let numbers = numbers.into_iter().map(|number| number.into_primitive().tensor());
        let gradients = gradients.into_iter().map(Gradient::into_primitive);
        return fast::sums_and_squares::<B>(numbers.collect(), gradients.collect());
    }
    let numbers = numbers.into_iter().map(|number| number.cast(DType::F32));
    let scalars: Vec<_> = numbers
        .chain(gradients.into_iter().map(Gradient::squared_norm))
        .collect();
    (!scalars.is_empty()).then(|| Tensor::cat(scalars, 0))
}

/// The gradient of a parameter.
enum Gradient<B: Backend> {
    Vector(Tensor<B, 1>),
    Matrix(Tensor<B, 2>),
}

impl<B: Backend> Gradient<B> {
    fn of<A>(parameter: &Parameter<'_, A>, gradients: &GradientsParams) -> Option<Self>
    where
        A: AutodiffBackend<InnerBackend = B>,
    {
        match parameter.value {
            ParameterValue::Vector(param) => gradients.get(param.id).map(Self::Vector),
            ParameterValue::Matrix(param) => gradients.get(param.id).map(Self::Matrix),
        }
    }

    fn squared_norm(self) -> Tensor<B, 1> {
        match self {
            Self::Vector(gradient) => squared_norm(gradient),
            Self::Matrix(gradient) => squared_norm(gradient),
        }
    }

    fn into_primitive(self) -> FloatTensor<B> {
        match self {
            Self::Vector(gradient) => gradient.into_primitive().tensor(),
            Self::Matrix(gradient) => gradient.into_primitive().tensor(),
        }
    }
}

fn squared_norm<B: Backend, const D: usize>(gradient: Tensor<B, D>) -> Tensor<B, 1> {
    match sum_of_squares(&gradient) {
        Some(sum) => Tensor::from_data(TensorData::from([sum as f32]), &gradient.device()),
        None => gradient.cast(DType::F32).square().sum_dim(D - 1).sum(),
    }
}

/// Gradient norms of a step before clipping.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientNorms {
    /// Norm of the gradients of all parameters together.
    pub global: f64,
    /// Norm of the gradients of all gates together; 0 without gates.
    pub gates: f64,
}

impl GradientNorms {
    /// The norms of the gradients of some parameters, read from the device.
    pub fn of<B: AutodiffBackend>(parameters: &[Parameter<'_, B>], gradients: &GradientsParams) -> Self {
        Self::from_squares(&Readings::of(Vec::new(), parameters, gradients).squares)
    }

    /// From the squared norm of each parameter.
    pub fn from_squares(squares: &[(ParameterKind, f64)]) -> Self {
        let gates = squares.iter().filter(|(kind, _)| kind.is_gate());
        Self {
            global: squares.iter().map(|(_, square)| square).sum::<f64>().sqrt(),
            gates: gates.map(|(_, square)| square).sum::<f64>().sqrt(),
        }
    }
}

/// Adam's moments of one parameter, flat, in the parameter's number format.
#[derive(Clone, Debug)]
struct Moments<B: Backend> {
    /// m.
    first: Tensor<B, 1>,
    /// v.
    second: Tensor<B, 1>,
}

/// Clipping, then Adam, over a whole model.
#[derive(Clone, Debug)]
pub struct ClippedAdam<B: AutodiffBackend> {
    config: OptimizerConfig,
    updates: u64,
    kinds: HashMap<ParamId, ParameterKind>,
    moments: MomentsById<B::InnerBackend>,
}

impl<B: AutodiffBackend> ClippedAdam<B> {
    /// An optimizer of some parameters without moments.
    ///
    /// # Errors
    /// If two of the parameters have one id, by which their moments would be one too.
    pub fn new(config: OptimizerConfig, parameters: &[Parameter<'_, B>]) -> Result<Self, SharedParameter> {
        Ok(Self {
            config,
            updates: 0,
            kinds: kinds_by_id(parameters)?,
            moments: HashMap::new(),
        })
    }

    /// Updates made, t.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Clips the gradients, whose norms are given, and updates the model with them.
    ///
    /// # Panics
    /// If there is a gradient of a parameter that the optimizer was not made for.
    pub fn step<M: AutodiffModule<B>>(
        &mut self,
        rate: LearningRate,
        model: M,
        gradients: GradientsParams,
        norms: &GradientNorms,
    ) -> M {
        self.updates += 1;
        let factor = limiting_factor(norms.global, self.config.clip);
        let update = Update {
            rule: AdamRule::new(&self.config, rate, self.updates),
            factor,
            gate_factor: factor * limiting_factor(norms.gates * factor, self.config.clip_gate),
            kinds: &self.kinds,
        };
        let moments = &mut self.moments;
        match fast::updates_together::<B::InnerBackend>() {
            true => update.together(model, gradients, moments),
            false => model.map(&mut OneByOne::<B> {
                update,
                gradients,
                moments,
            }),
        }
    }

    /// The moments on the host, named by the path of their parameter: `PATH.first`, `PATH.second`, each flat.
    ///
    /// # Errors
    /// If a device gives no numbers.
    pub fn to_tensors(&self) -> Result<NamedTensors, WeightsError> {
        let mut tensors = NamedTensors::new();
        for (id, kind) in &self.kinds {
            if let Some(Moments { first, second }) = self.moments.get(id) {
                tensors.insert(format!("{kind}.first"), HostTensor::of(first.clone())?);
                tensors.insert(format!("{kind}.second"), HostTensor::of(second.clone())?);
            }
        }
        Ok(tensors)
    }

    /// Takes up the moments that [`to_tensors`](Self::to_tensors) gave of the same parameters after `updates` updates.
    ///
    /// # Errors
    /// If a moment is missing, left over, or not as long as its parameter.
    pub fn with_tensors(
        self,
        parameters: &[Parameter<'_, B>],
        tensors: NamedTensors,
        updates: u64,
    ) -> Result<Self, WeightsError> {
        // Before the first update there are none.
        if tensors.is_empty() && updates == 0 {
            return Ok(self);
        }
        let mut reader = MomentReader {
            tensors,
            missing: Vec::new(),
            wrong: Vec::new(),
        };
        let mut moments = HashMap::new();
        for parameter in parameters.iter().filter(|parameter| parameter.is_trained()) {
            let like = parameter.flat().inner();
            let [first, second] =
                ["first", "second"].map(|which| reader.take(format!("{}.{which}", parameter.kind), &like));
            if let (Some(first), Some(second)) = (first, second) {
                moments.insert(parameter.id(), Moments { first, second });
            }
        }
        let MomentReader {
            tensors,
            missing,
            wrong,
        } = reader;
        let unused: Vec<String> = tensors.into_keys().collect();
        if missing.is_empty() && wrong.is_empty() && unused.is_empty() {
            Ok(Self {
                updates,
                moments,
                ..self
            })
        } else {
            Err(WeightsError::Mismatch { missing, unused, wrong })
        }
    }
}

/// Adam's moments by parameter.
type MomentsById<B> = HashMap<ParamId, Moments<B>>;

/// One update of a model.
struct Update<'a> {
    rule: AdamRule,
    factor: f64,
    gate_factor: f64,
    kinds: &'a HashMap<ParamId, ParameterKind>,
}

impl Update<'_> {
    /// What the parameter of that id is, and by which factor its gradient is clipped.
    fn of(&self, id: ParamId) -> (ParameterKind, f64) {
        let kind = *self.kinds.get(&id).expect("the optimizer is that of this model");
        (kind, if kind.is_gate() { self.gate_factor } else { self.factor })
    }

    /// Updates all parameters at once: the weights are taken out of the model, so that they can be written over, and put back.
    fn together<B: AutodiffBackend, M: AutodiffModule<B>>(
        &self,
        model: M,
        gradients: GradientsParams,
        moments: &mut MomentsById<B::InnerBackend>,
    ) -> M {
        let mut taking = Taking::<B> {
            gradients,
            moments,
            ids: Vec::new(),
            tensors: Vec::new(),
        };
        let model = model.map(&mut taking);
        let Taking { ids, tensors, .. } = taking;
        let steps = ids.iter().map(|id| {
            let (kind, factor) = self.of(*id);
            self.rule.fused(kind.is_matrix(), factor)
        });
        let updated = fast::adam::<B::InnerBackend>(steps.zip(tensors).collect());
        let updated = updated.expect("the parameters of a model are f32 or bf16");
        let mut weights = HashMap::new();
        for (id, [weight, first, second]) in ids.into_iter().zip(updated) {
            weights.insert(id, weight);
            let [first, second] = [first, second].map(of_primitive);
            moments.insert(id, Moments { first, second });
        }
        model.map(&mut Putting::<B> { weights })
    }
}

fn of_primitive<B: Backend, const D: usize>(tensor: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// Updates each parameter where it is.
struct OneByOne<'a, B: AutodiffBackend> {
    update: Update<'a>,
    gradients: GradientsParams,
    moments: &'a mut MomentsById<B::InnerBackend>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for OneByOne<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) else {
            return param;
        };
        let (id, weight, mapper) = param.consume();
        let (kind, factor) = self.update.of(id);
        let (shape, trained) = (weight.dims(), weight.is_require_grad());
        let length: usize = shape.iter().product();
        let weight = weight.inner().reshape([length]);
        let moments = self.moments.remove(&id).unwrap_or_else(|| Moments {
            first: weight.zeros_like(),
            second: weight.zeros_like(),
        });
        let (weight, moments) =
            self.update
                .rule
                .step(kind.is_matrix(), weight, gradient.reshape([length]), factor, moments);
        self.moments.insert(id, moments);
        let weight = Tensor::from_inner(weight.reshape(shape)).set_require_grad(trained);
        Param::from_mapped_value(id, weight, mapper)
    }
}

/// Takes every weight that has a gradient out of a model, and leaves one number in its place.
struct Taking<'a, B: AutodiffBackend> {
    gradients: GradientsParams,
    moments: &'a mut MomentsById<B::InnerBackend>,
    ids: Vec<ParamId>,
    /// Weight, m, v and gradient of each.
    tensors: Vec<[FloatTensor<B::InnerBackend>; 4]>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Taking<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) else {
            return param;
        };
        let (id, weight, mapper) = param.consume();
        let (trained, device) = (weight.is_require_grad(), weight.device());
        let weight = weight.inner();
        let moments = self.moments.remove(&id).unwrap_or_else(|| {
            let zeros = || Tensor::zeros([weight.shape().num_elements()], (&device, weight.dtype()));
            Moments {
                first: zeros(),
                second: zeros(),
            }
        });
        let moments = [moments.first, moments.second].map(|moment| moment.into_primitive().tensor());
        let [first, second] = moments;
        let [weight, gradient] = [weight, gradient].map(|tensor| tensor.into_primitive().tensor());
        self.ids.push(id);
        self.tensors.push([weight, first, second, gradient]);
        let place = Tensor::from_inner(Tensor::empty([1; D], &device)).set_require_grad(trained);
        Param::from_mapped_value(id, place, mapper)
    }
}

/// Puts weights into the places from which [`Taking`] took them.
struct Putting<B: AutodiffBackend> {
    weights: HashMap<ParamId, FloatTensor<B::InnerBackend>>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Putting<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(weight) = self.weights.remove(&param.id) else {
            return param;
        };
        let (id, place, mapper) = param.consume();
        let weight = Tensor::from_inner(of_primitive(weight)).set_require_grad(place.is_require_grad());
        Param::from_mapped_value(id, weight, mapper)
    }
}

/// Moments that are taken up one after the other, and what is wrong with them.
struct MomentReader {
    tensors: NamedTensors,
    missing: Vec<String>,
    wrong: Vec<String>,
}

impl MomentReader {
    /// The moment of that name, as long and in the format of a parameter.
    fn take<B: Backend>(&mut self, name: String, parameter: &Tensor<B, 1>) -> Option<Tensor<B, 1>> {
        let [length] = parameter.dims();
        let Some(tensor) = self.tensors.remove(&name) else {
            self.missing.push(name);
            return None;
        };
        if tensor.values.len() != length {
            self.wrong
                .push(format!("{name} ({:?}, expected [{length}])", tensor.shape));
            return None;
        }
        let data = TensorData::new(tensor.values, [length]);
        Some(Tensor::<B, 1>::from_data(data, (&parameter.device(), DType::F32)).cast(parameter.dtype()))
    }
}

/// `min(1, limit / (norm + 1e-6))`; 1 where there is no limit.
fn limiting_factor(norm: f64, limit: f64) -> f64 {
    if limit <= 0.0 {
        return 1.0;
    }
    (limit / (norm + 1e-6)).min(1.0)
}

/// Adam's rule at one step, for any tensor.
#[derive(Clone, Copy, Debug)]
struct AdamRule {
    config: OptimizerConfig,
    rate: f64,
    /// `lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ)`: both bias corrections, taken out of the tensors.
    step_size: f64,
    /// `ε · √(1 − β₂ᵗ)`.
    eps: f64,
}

impl AdamRule {
    fn new(config: &OptimizerConfig, rate: f64, updates: u64) -> Self {
        let updates = updates as f64;
        let correction1 = 1.0 - config.betas.0.powf(updates);
        let correction2 = (1.0 - config.betas.1.powf(updates)).sqrt();
        Self {
            config: *config,
            rate,
            step_size: rate * correction2 / correction1,
            eps: config.eps * correction2,
        }
    }

    /// The same rule as kernels take it.
    fn fused(&self, is_matrix: bool, factor: f64) -> AdamStep {
        let OptimizerConfig {
            kind,
            betas,
            weight_decay,
            ..
        } = self.config;
        let (decay, keep) = match kind {
            OptimizerKind::Adam => (weight_decay, 1.0),
            OptimizerKind::AdamW if is_matrix => (0.0, 1.0 - self.rate * weight_decay),
            OptimizerKind::AdamW => (0.0, 1.0),
        };
        AdamStep {
            factor: factor as f32,
            decay: decay as f32,
            keep: keep as f32,
            betas: [betas.0 as f32, betas.1 as f32],
            rest: [(1.0 - betas.0) as f32, (1.0 - betas.1) as f32],
            step_size: self.step_size as f32,
            epsilon: self.eps as f32,
        }
    }

    /// The next weight and moments of one parameter; `factor` clips the gradient.
    fn step<B: Backend>(
        &self,
        is_matrix: bool,
        weight: Tensor<B, 1>,
        gradient: Tensor<B, 1>,
        factor: f64,
        Moments { first, second }: Moments<B>,
    ) -> (Tensor<B, 1>, Moments<B>) {
        match self.fused(is_matrix, factor).apply([weight, first, second], &gradient) {
            Ok([weight, first, second]) => (weight, Moments { first, second }),
            Err([weight, first, second]) => {
                self.in_tensor_operations(is_matrix, weight, gradient, factor, Moments { first, second })
            }
        }
    }

    fn in_tensor_operations<B: Backend>(
        &self,
        is_matrix: bool,
        weight: Tensor<B, 1>,
        gradient: Tensor<B, 1>,
        factor: f64,
        moments: Moments<B>,
    ) -> (Tensor<B, 1>, Moments<B>) {
        let OptimizerConfig {
            kind,
            betas: (beta1, beta2),
            weight_decay,
            ..
        } = self.config;
        let (weight, gradient, factor) = match kind {
            _ if weight_decay == 0.0 => (weight, gradient, factor),
            OptimizerKind::Adam => {
                let decay = weight.clone().mul_scalar(weight_decay);
                (weight, gradient.mul_scalar(factor) + decay, 1.0)
            }
            OptimizerKind::AdamW if is_matrix => (weight.mul_scalar(1.0 - self.rate * weight_decay), gradient, factor),
            OptimizerKind::AdamW => (weight, gradient, factor),
        };
        let first = gradient.clone().mul_scalar((1.0 - beta1) * factor);
        let second = gradient.square().mul_scalar((1.0 - beta2) * factor * factor);
        let moments = Moments {
            first: moments.first.mul_scalar(beta1) + first,
            second: moments.second.mul_scalar(beta2) + second,
        };
        let denominator = moments.second.clone().sqrt().add_scalar(self.eps);
        let update = moments.first.clone().mul_scalar(self.step_size) / denominator;
        (weight - update, moments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn::module::Module;
    use burn::tensor::{TensorData, Tolerance};
    use burn_flex::{Flex, FlexDevice};
    use gpas_model::compare::largest_difference;

    type B = Autodiff<Flex>;

    /// A matrix, a vector and a gate.
    #[derive(Module, Debug)]
    struct Toy<B: Backend> {
        matrix: Param<Tensor<B, 2>>,
        norm: Param<Tensor<B, 1>>,
        gate: Param<Tensor<B, 1>>,
    }

    impl Toy<B> {
        fn parameters(&self) -> [Parameter<'_, B>; 3] {
            [
                (ParameterKind::Head, ParameterValue::Matrix(&self.matrix)),
                (ParameterKind::FinalNorm, ParameterValue::Vector(&self.norm)),
                (
                    ParameterKind::Gate { layer: 0, index: 0 },
                    ParameterValue::Vector(&self.gate),
                ),
            ]
            .map(|(kind, value)| Parameter { kind, value })
        }
    }

    fn toy() -> Toy<B> {
        Toy {
            matrix: Param::from_data([[1.0f32, -2.0], [0.5, 3.0]], &FlexDevice),
            norm: Param::from_data([1.0f32, 1.0], &FlexDevice),
            gate: Param::from_data([0.25f32], &FlexDevice),
        }
    }

    /// Gradients [[3, 0], [0, 4]], [0, 0] and 12: norm 13.
    fn gradients(model: &Toy<B>) -> GradientsParams {
        let mut gradients = GradientsParams::new();
        let tensor = |data: [[f32; 2]; 2]| Tensor::<Flex, 2>::from_data(data, &FlexDevice);
        gradients.register(model.matrix.id, tensor([[3.0, 0.0], [0.0, 4.0]]));
        gradients.register(model.norm.id, Tensor::<Flex, 1>::zeros([2], &FlexDevice));
        gradients.register(model.gate.id, Tensor::<Flex, 1>::from_floats([12.0], &FlexDevice));
        gradients
    }

    fn config(kind: OptimizerKind) -> OptimizerConfig {
        OptimizerConfig {
            kind,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
            clip: 0.0,
            clip_gate: 0.0,
        }
    }

    fn step(adam: &mut ClippedAdam<B>, model: Toy<B>, gradients: GradientsParams) -> Toy<B> {
        let norms = GradientNorms::of(&model.parameters(), &gradients);
        adam.step(0.1, model, gradients, &norms)
    }

    /// The clipped gradients of the matrix and of the gate: after the first update, m is a tenth of them.
    fn clipped(limit: f64, gate_limit: f64) -> (Vec<f32>, f32) {
        let model = toy();
        let config = OptimizerConfig {
            clip: limit,
            clip_gate: gate_limit,
            ..config(OptimizerKind::Adam)
        };
        let mut adam = ClippedAdam::new(config, &model.parameters()).unwrap();
        let gradients = gradients(&model);
        let expected = GradientNorms {
            global: 13.0,
            gates: 12.0,
        };
        assert_eq!(GradientNorms::of(&model.parameters(), &gradients), expected);
        step(&mut adam, model, gradients);
        let moments = adam.to_tensors().unwrap();
        let tenfold = |name: &str| -> Vec<f32> { moments[name].values.iter().map(|m| 10.0 * m).collect() };
        (tenfold("head.weight.first"), tenfold("layers.0.gates.0.gate.first")[0])
    }

    fn assert_near(found: &[f32], expected: &[f32]) {
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(near),
            "{found:?}, expected {expected:?}"
        );
    }

    #[test]
    fn the_global_norm_is_clipped_before_the_gates() {
        let (matrix, gate) = clipped(6.5, 1.5);
        assert_near(&matrix, &[1.5, 0.0, 0.0, 2.0]);
        assert_near(&[gate], &[1.5]);
    }

    #[test]
    fn a_norm_below_its_limit_changes_nothing() {
        let (matrix, gate) = clipped(14.0, 12.5);
        assert_near(&matrix, &[3.0, 0.0, 0.0, 4.0]);
        assert_near(&[gate], &[12.0]);
    }

    /// The first update of Adam is lr · g / (|g| + ε), and the second with the same gradient too.
    #[test]
    fn the_first_updates_have_the_size_of_the_rate() {
        let mut model = toy();
        let mut adam = ClippedAdam::new(config(OptimizerKind::Adam), &model.parameters()).unwrap();
        for _ in 0..2 {
            let gradients = gradients(&model);
            model = step(&mut adam, model, gradients);
        }
        let expected = TensorData::from([[0.8f32, -2.0], [0.5, 2.8]]);
        model
            .matrix
            .val()
            .into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
        assert!((model.gate.val().into_scalar() - 0.05).abs() < 1e-6);
    }

    #[test]
    fn adamw_decays_matrices_only() {
        let model = toy();
        let decay = OptimizerConfig {
            weight_decay: 0.5,
            ..config(OptimizerKind::AdamW)
        };
        let mut gradients = GradientsParams::new();
        gradients.register(model.matrix.id, Tensor::<Flex, 2>::zeros([2, 2], &FlexDevice));
        gradients.register(model.norm.id, Tensor::<Flex, 1>::zeros([2], &FlexDevice));
        let mut adam = ClippedAdam::new(decay, &model.parameters()).unwrap();
        let model = step(&mut adam, model, gradients);
        let expected = TensorData::from([[0.95f32, -1.9], [0.475, 2.85]]);
        model
            .matrix
            .val()
            .into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
        assert_eq!(model.norm.val().into_data(), TensorData::from([1.0f32, 1.0]));
    }

    /// Over more numbers than one task has, with every kind of decay.
    #[test]
    fn fused_and_plain_agree() {
        let random = |scale: f32| {
            let values = (0..40_000).map(|i| scale * ((i * 7919 % 10_007) as f32 / 5000.0 - 1.0));
            Tensor::<Flex, 1>::from_data(TensorData::new(values.collect::<Vec<f32>>(), [40_000]), &FlexDevice)
        };
        let moments = || Moments {
            first: random(0.1),
            second: random(0.2).abs(),
        };
        for (kind, is_matrix) in [
            (OptimizerKind::Adam, true),
            (OptimizerKind::AdamW, true),
            (OptimizerKind::AdamW, false),
        ] {
            for weight_decay in [0.0, 0.1] {
                let config = OptimizerConfig {
                    weight_decay,
                    ..config(kind)
                };
                let rule = AdamRule::new(&config, 0.01, 7);
                let (weight, gradient) = (random(1.0), random(3.0).neg());
                let fused = rule.step(is_matrix, weight.clone(), gradient.clone(), 0.3, moments());
                let plain = rule.in_tensor_operations(is_matrix, weight, gradient, 0.3, moments());
                for (found, expected) in [
                    (fused.0, plain.0),
                    (fused.1.first, plain.1.first),
                    (fused.1.second, plain.1.second),
                ] {
                    let [mut found, expected] = [found, expected].map(|tensor| tensor.into_data().to_vec().unwrap());
                    let difference = largest_difference::<f32>(&found, &expected);
                    assert!(difference < 3e-7, "{kind:?} {weight_decay}: {difference}");
                    found[39_999] = f32::NAN;
                    assert!(largest_difference(&found, &expected).is_nan());
                }
            }
        }
        let values = random(3.0);
        let expected = values.clone().square().sum().into_scalar();
        let found = sum_of_squares(&values).unwrap();
        assert!(
            (found / f64::from(expected) - 1.0).abs() < 1e-5,
            "{found} against {expected}"
        );
    }

    /// Adam's decay is part of the gradient, so its first update has the size of the rate whatever the decay.
    #[test]
    fn adam_adds_the_decay_to_the_gradient() {
        let model = toy();
        let decay = OptimizerConfig {
            weight_decay: 0.5,
            ..config(OptimizerKind::Adam)
        };
        let mut gradients = GradientsParams::new();
        gradients.register(model.norm.id, Tensor::<Flex, 1>::zeros([2], &FlexDevice));
        let mut adam = ClippedAdam::new(decay, &model.parameters()).unwrap();
        let model = step(&mut adam, model, gradients);
        model
            .norm
            .val()
            .into_data()
            .assert_approx_eq::<f32>(&TensorData::from([0.9f32, 0.9]), Tolerance::absolute(1e-6));
    }

    #[test]
    fn saved_moments_continue_the_same_path() {
        let mut straight = toy();
        let mut adam = ClippedAdam::new(config(OptimizerKind::Adam), &straight.parameters()).unwrap();
        // Another gradient than the first, after which moments matter.
        let next = |adam: &mut ClippedAdam<B>, model: Toy<B>| {
            let mut gradients = gradients(&model);
            gradients.register(model.matrix.id, Tensor::<Flex, 2>::ones([2, 2], &FlexDevice));
            step(adam, model, gradients)
        };
        let first = gradients(&straight);
        straight = step(&mut adam, straight, first);
        let moments = adam.to_tensors().unwrap();
        let fresh = |model: &Toy<B>| ClippedAdam::new(config(OptimizerKind::Adam), &model.parameters()).unwrap();
        let resumed = fresh(&straight).with_tensors(&straight.parameters(), moments.clone(), 1);
        let branched = next(&mut resumed.unwrap(), straight.clone());
        let unlike = next(&mut fresh(&straight), straight.clone());
        let expected = next(&mut adam, straight).matrix.val().into_data();
        assert_eq!(branched.matrix.val().into_data(), expected);
        assert_ne!(
            unlike.matrix.val().into_data(),
            expected,
            "without the moments it is another path"
        );

        let mut cut = moments;
        cut.remove("norm.weight.first");
        let refused = fresh(&branched).with_tensors(&branched.parameters(), cut, 1);
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(r#"missing ["norm.weight.first"]"#), "{error}");
    }
}
