//! `y = silu(a) ⊙ b` of the halves `[a | b]` of each row.
//!
//! With σ = sigmoid(a): `∂L/∂a = ∂L/∂y · b · σ·(1 + a·(1 − σ))` and `∂L/∂b = ∂L/∂y · a·σ`. One launch in each direction, and nothing is kept
//! but the input.

use burn::tensor::backend::Backend;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::autodiff::{Differentiable, Gradient, Kept};
use crate::kernel::Kernel;
use crate::table::{apply, input};
use crate::tensor::{Form, cubes, empty, form, in_order, vector_size};

/// `silu(a) ⊙ b` of the halves of each row.
///
/// # Shapes
/// - both: `[tokens, 2 · width]`
/// - output: `[tokens, width]`
pub fn swiglu<B: Backend>(both: &burn::Tensor<B, 2>) -> Option<burn::Tensor<B, 2>> {
    let operation = Differentiable {
        forward: SwiGlu.into(),
        backward: SwiGluBackward.into(),
        kept: &[Kept::Input(0)],
        gradients: &[Gradient::Found(0)],
    };
    apply(operation, vec![input(both)?])
}

/// Units of a cube.
const UNITS: usize = 256;

/// `[a | b] ↦ y`.
#[derive(Clone, Debug)]
pub(crate) struct SwiGlu;

impl Kernel for SwiGlu {
    const NAME: &'static str = "gpas_swiglu";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        let both = &inputs[0];
        vec![Form::new([both.rows(), both.width() / 2], both.dtype)]
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [both] = in_order(inputs);
        let y = empty(&both, self.outputs(&[form(&both)]).swap_remove(0));
        let vector = vector_size(&[&both, &y], form(&y).width());
        let (width, count) = (form(&y).width() / vector, form(&y).shape.num_elements() / vector);
        gate_up::launch::<R>(
            &both.client.clone(),
            cubes(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            vector,
            both.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            count,
            width,
            both.dtype.into(),
        );
        vec![y]
    }
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0);
    // CubeCL negates no vector on NVIDIA's cards.
    one / (one + (Vector::<f32, N>::new(0.0) - x).exp())
}

#[cube(launch)]
fn gate_up<F: Float, N: Size>(
    both: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    count: usize,
    #[comptime] width: usize,
    #[define(F)] _format: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place < count {
        let first = place + place / width * width;
        let a = Vector::<f32, N>::cast_from(both[first]);
        let b = Vector::<f32, N>::cast_from(both[first + width]);
        y[place] = Vector::cast_from(a * sigmoid(a) * b);
    }
}

/// `[a | b], ∂L/∂y ↦ [∂L/∂a | ∂L/∂b]`.
#[derive(Clone, Debug)]
pub(crate) struct SwiGluBackward;

impl Kernel for SwiGluBackward {
    const NAME: &'static str = "gpas_swiglu_backward";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        vec![inputs[0].clone()]
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [both, upstream] = in_order(inputs);
        let of_both = empty(&both, form(&both));
        let vector = vector_size(&[&both, &upstream], form(&upstream).width());
        let (width, count) = (
            form(&upstream).width() / vector,
            form(&upstream).shape.num_elements() / vector,
        );
        gate_up_backward::launch::<R>(
            &both.client.clone(),
            cubes(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            vector,
            both.clone().into_tensor_arg(),
            upstream.clone().into_tensor_arg(),
            of_both.clone().into_tensor_arg(),
            count,
            width,
            both.dtype.into(),
        );
        vec![of_both]
    }
}

#[cube(launch)]
fn gate_up_backward<F: Float, N: Size>(
    both: &Tensor<Vector<F, N>>,
    upstream: &Tensor<Vector<F, N>>,
    of_both: &mut Tensor<Vector<F, N>>,
    count: usize,
    #[comptime] width: usize,
    #[define(F)] _format: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place < count {
        let first = place + place / width * width;
        let a = Vector::<f32, N>::cast_from(both[first]);
        let b = Vector::<f32, N>::cast_from(both[first + width]);
        let upstream = Vector::<f32, N>::cast_from(upstream[place]);
        let one = Vector::<f32, N>::new(1.0);
        let sigmoid = sigmoid(a);
        of_both[first] = Vector::cast_from(upstream * b * sigmoid * (one + a * (one - sigmoid)));
        of_both[first + width] = Vector::cast_from(upstream * a * sigmoid);
    }
}
