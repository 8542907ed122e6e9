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
//! gates are not pulled to zero. Burn's own clipping is per tensor, and its Adam rounds the bias corrections to f32; hence this one.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{GradientsParams, LearningRate, Optimizer, SimpleOptimizer};
use burn::record::Record;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// Which rule applies weight decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// Gradient norms of a step before clipping, on the device.
#[derive(Clone, Debug)]
pub struct GradientNorms<B: Backend> {
    /// Of all parameters together, `[1]`.
    pub global: Tensor<B, 1>,
    /// Of all gates together, `[1]`; 0 without gates.
    pub gates: Tensor<B, 1>,
}

/// Saved state of the optimizer: the moments by parameter id.
pub type OptimizerRecord<M, B> = <OptimizerAdaptor<AdamRule, M, B> as Optimizer<M, B>>::Record;

/// Clipping, then Adam, over a whole model.
#[derive(Clone)]
pub struct ClippedAdam<M: AutodiffModule<B>, B: AutodiffBackend> {
    config: OptimizerConfig,
    adam: OptimizerAdaptor<AdamRule, M, B>,
}

impl<M: AutodiffModule<B>, B: AutodiffBackend> ClippedAdam<M, B> {
    /// An optimizer without moments.
    pub fn new(config: OptimizerConfig) -> Self {
        Self {
            config,
            adam: OptimizerAdaptor::from(AdamRule { config }),
        }
    }

    /// Clips the gradients and updates the model with them.
    pub fn step(
        &mut self,
        rate: LearningRate,
        model: M,
        mut gradients: GradientsParams,
    ) -> (M, GradientNorms<B::InnerBackend>) {
        let global = group_norm(&model, &gradients, Group::All);
        let gates = group_norm(&model, &gradients, Group::Gates);
        clip(&model, &mut gradients, &self.config, &global, &gates);
        let model = self.adam.step(rate, model, gradients);
        (model, GradientNorms { global, gates })
    }

    /// The moments, to be saved.
    pub fn to_record(&self) -> OptimizerRecord<M, B> {
        self.adam.to_record()
    }

    /// Takes up saved moments.
    pub fn load_record(self, record: OptimizerRecord<M, B>) -> Self {
        Self {
            adam: self.adam.load_record(record),
            ..self
        }
    }
}

/// A set of parameters whose gradients have one norm.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    All,
    Gates,
}

/// The norm of a group's gradients, summed row by row and then in module order, so that it is the same in every run: gradients are kept
/// in a hash map, and a sum over a large tensor may be cut among threads in any way.
fn group_norm<M: AutodiffModule<B>, B: AutodiffBackend>(
    model: &M,
    gradients: &GradientsParams,
    group: Group,
) -> Tensor<B::InnerBackend, 1> {
    struct Squares<'a, B: AutodiffBackend> {
        gradients: &'a GradientsParams,
        group: Group,
        name: Vec<String>,
        sums: Vec<Tensor<B::InnerBackend, 1>>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Squares<'_, B> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.name.push(name.to_string());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.name.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if contains(self.group, &self.name)
                && let Some(gradient) = self.gradients.get::<B::InnerBackend, D>(param.id)
            {
                let rows = gradient.square().sum_dim(D - 1);
                self.sums.push(rows.sum());
            }
        }
    }
    let mut squares = Squares::<B> {
        gradients,
        group,
        name: Vec::new(),
        sums: Vec::new(),
    };
    model.visit(&mut squares);
    if squares.sums.is_empty() {
        let device = model.devices().into_iter().next().unwrap_or_default();
        return Tensor::zeros([1], &device);
    }
    Tensor::cat(squares.sums, 0).sum().sqrt()
}

/// Whether the parameter at a module path belongs to a group. A GPAS gate is the parameter `gate` of its module.
fn contains(group: Group, path: &[String]) -> bool {
    group == Group::All || path.last().is_some_and(|name| name == "gate")
}

/// Multiplies all gradients by `min(1, clip / (‖g‖ + 1e-6))`, and those of the gates by the same of what that leaves of their norm.
fn clip<M: AutodiffModule<B>, B: AutodiffBackend>(
    model: &M,
    gradients: &mut GradientsParams,
    config: &OptimizerConfig,
    global: &Tensor<B::InnerBackend, 1>,
    gates: &Tensor<B::InnerBackend, 1>,
) {
    struct Scale<'a, B: AutodiffBackend> {
        gradients: &'a mut GradientsParams,
        name: Vec<String>,
        factor: Tensor<B::InnerBackend, 1>,
        gate_factor: Tensor<B::InnerBackend, 1>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Scale<'_, B> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.name.push(name.to_string());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.name.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) {
                let is_gate = contains(Group::Gates, &self.name);
                let factor = if is_gate { &self.gate_factor } else { &self.factor };
                self.gradients
                    .register(param.id, gradient * factor.clone().reshape([1; D]));
            }
        }
    }
    if config.clip <= 0.0 && config.clip_gate <= 0.0 {
        return;
    }
    let factor = limiting_factor(global.clone(), config.clip);
    let gate_factor = factor.clone() * limiting_factor(gates.clone() * factor.clone(), config.clip_gate);
    let name = Vec::new();
    model.visit(&mut Scale::<B> {
        gradients,
        name,
        factor,
        gate_factor,
    });
}

/// `min(1, limit / (norm + 1e-6))`, `[1]`; 1 where there is no limit.
fn limiting_factor<B: Backend>(norm: Tensor<B, 1>, limit: f64) -> Tensor<B, 1> {
    if limit <= 0.0 {
        return norm.ones_like();
    }
    norm.add_scalar(1e-6).recip().mul_scalar(limit).clamp_max(1.0)
}

/// Adam's rule for one tensor.
#[derive(Clone, Copy, Debug)]
pub struct AdamRule {
    config: OptimizerConfig,
}

/// Adam's moments of one tensor.
#[derive(Record, Clone)]
pub struct Moments<B: Backend, const D: usize> {
    /// Updates so far, t.
    pub updates: usize,
    /// m.
    pub first: Tensor<B, D>,
    /// v.
    pub second: Tensor<B, D>,
}

impl<B: Backend> SimpleOptimizer<B> for AdamRule {
    type State<const D: usize> = Moments<B, D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        weight: Tensor<B, D>,
        gradient: Tensor<B, D>,
        state: Option<Moments<B, D>>,
    ) -> (Tensor<B, D>, Option<Moments<B, D>>) {
        let OptimizerConfig {
            kind,
            betas: (beta1, beta2),
            eps,
            weight_decay,
            ..
        } = self.config;
        let (weight, gradient) = match kind {
            _ if weight_decay == 0.0 => (weight, gradient),
            OptimizerKind::Adam => (weight.clone(), gradient + weight.mul_scalar(weight_decay)),
            OptimizerKind::AdamW if D >= 2 => (weight.mul_scalar(1.0 - rate * weight_decay), gradient),
            OptimizerKind::AdamW => (weight, gradient),
        };
        let first = gradient.clone().mul_scalar(1.0 - beta1);
        let second = gradient.square().mul_scalar(1.0 - beta2);
        let moments = match state {
            Some(old) => Moments {
                updates: old.updates + 1,
                first: old.first.mul_scalar(beta1) + first,
                second: old.second.mul_scalar(beta2) + second,
            },
            None => Moments {
                updates: 1,
                first,
                second,
            },
        };
        let updates = moments.updates as f64;
        let correction1 = 1.0 - beta1.powf(updates);
        let correction2 = (1.0 - beta2.powf(updates)).sqrt();
        // lr · m / c₁ / (√v / c₂ + ε), with both corrections taken out of the tensors.
        let denominator = moments.second.clone().sqrt().add_scalar(eps * correction2);
        let update = moments.first.clone().mul_scalar(rate * correction2 / correction1) / denominator;
        (weight - update, Some(moments))
    }

    fn to_device<const D: usize>(state: Moments<B, D>, device: &Device<B>) -> Moments<B, D> {
        Moments {
            updates: state.updates,
            first: state.first.to_device(device),
            second: state.second.to_device(device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn::module::Module;
    use burn::tensor::{TensorData, Tolerance};
    use burn_flex::{Flex, FlexDevice};

    type B = Autodiff<Flex>;

    /// A matrix, a vector and a gate.
    #[derive(Module, Debug)]
    struct Toy<B: Backend> {
        matrix: Param<Tensor<B, 2>>,
        norm: Param<Tensor<B, 1>>,
        gate: Param<Tensor<B, 1>>,
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

    fn clipped(limit: f64, gate_limit: f64) -> (Toy<B>, GradientsParams) {
        let model = toy();
        let mut limited = gradients(&model);
        let config = OptimizerConfig {
            clip: limit,
            clip_gate: gate_limit,
            ..config(OptimizerKind::Adam)
        };
        let norm = |group| group_norm(&model, &limited, group);
        let (global, gates) = (norm(Group::All), norm(Group::Gates));
        assert_eq!(
            (global.clone().into_scalar(), gates.clone().into_scalar()),
            (13.0, 12.0)
        );
        clip(&model, &mut limited, &config, &global, &gates);
        (model, limited)
    }

    #[test]
    fn the_global_norm_is_clipped_before_the_gates() {
        let (model, limited) = clipped(6.5, 1.5);
        let gate: f32 = limited.get::<Flex, 1>(model.gate.id).unwrap().into_scalar();
        assert!((gate - 1.5).abs() < 1e-5);
        limited
            .get::<Flex, 2>(model.matrix.id)
            .unwrap()
            .into_data()
            .assert_approx_eq::<f32>(
                &TensorData::from([[1.5f32, 0.0], [0.0, 2.0]]),
                Tolerance::absolute(1e-5),
            );
    }

    #[test]
    fn a_norm_below_its_limit_changes_nothing() {
        let (model, limited) = clipped(14.0, 12.5);
        assert_eq!(limited.get::<Flex, 1>(model.gate.id).unwrap().into_scalar(), 12.0);
    }

    /// The first update of Adam is lr · g / (|g| + ε), and the second with the same gradient too.
    #[test]
    fn the_first_updates_have_the_size_of_the_rate() {
        let mut model = toy();
        let mut adam = ClippedAdam::new(config(OptimizerKind::Adam));
        for _ in 0..2 {
            let gradients = gradients(&model);
            (model, _) = adam.step(0.1, model, gradients);
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
        let (model, _) = ClippedAdam::new(decay).step(0.1, model, gradients);
        let expected = TensorData::from([[0.95f32, -1.9], [0.475, 2.85]]);
        model
            .matrix
            .val()
            .into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
        assert_eq!(model.norm.val().into_data(), TensorData::from([1.0f32, 1.0]));
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
        let (model, _) = ClippedAdam::new(decay).step(0.1, model, gradients);
        model
            .norm
            .val()
            .into_data()
            .assert_approx_eq::<f32>(&TensorData::from([0.9f32, 0.9]), Tolerance::absolute(1e-6));
    }

    #[test]
    fn saved_moments_continue_the_same_path() {
        let mut straight = toy();
        let mut adam = ClippedAdam::new(config(OptimizerKind::Adam));
        let step = |model: Toy<B>, adam: &mut ClippedAdam<Toy<B>, B>| {
            let gradients = gradients(&model);
            adam.step(0.1, model, gradients).0
        };
        straight = step(straight, &mut adam);
        let mut resumed = ClippedAdam::new(config(OptimizerKind::Adam)).load_record(adam.to_record());
        let branched = step(straight.clone(), &mut resumed);
        straight = step(straight, &mut adam);
        assert_eq!(straight.matrix.val().into_data(), branched.matrix.val().into_data());
    }
}
