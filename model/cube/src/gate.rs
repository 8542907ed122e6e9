//! GPAS of a sum: `y = (x + z)·(1 − a)` with a = act(α), whose scaling is hidden from the gradient of the stream:
//! `∂L/∂x = ∂L/∂z = ∂L/∂y` and `∂L/∂a = −Σ ∂L/∂y·(x + z)`.
//!
//! One launch forward; backward one that reads x, z and ∂L/∂y once, and a small one. The terms of the gate's gradient nearly cancel: they
//! are summed row by row, and the rows in order.

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::autodiff::{Differentiable, Gradient, Kept};
use crate::kernel::Kernel;
use crate::reduce::{sum_all, sum_of_units, sum_of_vector};
use crate::table::{apply, input};
use crate::tensor::{Form, cubes, empty, form, in_order, units_for, vector_size};

/// `(x + branch)·(1 − amount)`; the number format of the output is that of x.
///
/// # Shapes
/// - x, branch and output: the same
/// - amount: `[1]`, act(α), which autodiff knows as a function of α
pub fn gated_sum<B: Backend, const D: usize>(
    x: &burn::Tensor<B, D>,
    branch: &burn::Tensor<B, D>,
    amount: &burn::Tensor<B, 1>,
) -> Option<burn::Tensor<B, D>> {
    let is_one_format = x.dtype() == branch.dtype();
    let operation = Differentiable {
        forward: GatedSum.into(),
        backward: GatedSumBackward.into(),
        kept: &[Kept::Input(0), Kept::Input(1), Kept::Input(2)],
        gradients: if is_one_format {
            &[Gradient::Upstream, Gradient::Upstream, Gradient::Found(0)]
        } else {
            &[Gradient::Upstream, Gradient::Found(1), Gradient::Found(0)]
        },
    };
    apply(operation, vec![input(x)?, input(branch)?, input(amount)?])
}

/// `x, z, a ↦ y`.
#[derive(Clone, Debug)]
pub(crate) struct GatedSum;

/// Units of a cube.
const UNITS: usize = 256;

impl Kernel for GatedSum {
    const NAME: &'static str = "gpas_gated_sum";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        vec![inputs[0].clone()]
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, branch, amount] = in_order(inputs);
        let y = empty(&x, form(&x));
        let numbers = form(&x).shape.num_elements();
        let vector = vector_size(&[&x, &branch], numbers);
        let count = numbers / vector;
        scale_sum::launch::<R>(
            &x.client.clone(),
            cubes(count.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            vector,
            x.clone().into_tensor_arg(),
            branch.clone().into_tensor_arg(),
            amount.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            count,
            [x.dtype.into(), branch.dtype.into(), amount.dtype.into()],
        );
        vec![y]
    }
}

#[cube(launch)]
fn scale_sum<X: Float, Z: Float, A: Float, N: Size>(
    x: &Tensor<Vector<X, N>>,
    branch: &Tensor<Vector<Z, N>>,
    amount: &Tensor<A>,
    y: &mut Tensor<Vector<X, N>>,
    count: usize,
    #[define(X, Z, A)] _formats: [StorageType; 3],
) {
    let place = ABSOLUTE_POS;
    if place < count {
        let kept = Vector::<f32, N>::new(1.0 - f32::cast_from(amount[0]));
        let sum = Vector::<f32, N>::cast_from(x[place]) + Vector::<f32, N>::cast_from(branch[place]);
        y[place] = Vector::cast_from(sum * kept);
    }
}

/// `x, z, a, ∂L/∂y ↦ ∂L/∂a (, ∂L/∂z where its number format is not that of x)`.
#[derive(Clone, Debug)]
pub(crate) struct GatedSumBackward;

impl Kernel for GatedSumBackward {
    const NAME: &'static str = "gpas_gated_sum_backward";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        let [x, branch, amount] = [&inputs[0], &inputs[1], &inputs[2]];
        let mut outputs = vec![amount.clone()];
        if x.dtype != branch.dtype {
            outputs.push(branch.clone());
        }
        outputs
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, branch, amount, upstream] = in_order(inputs);
        let is_one_format = x.dtype == branch.dtype;
        let of_branch = if is_one_format {
            None
        } else {
            Some(empty(&branch, form(&branch)))
        };
        let of_amount = empty(&amount, form(&amount));
        let (rows, width) = (form(&x).rows(), form(&x).width());
        let vector = vector_size(&[&x, &branch, &upstream], width);
        let vectors = width / vector;
        let units = units_for(vectors);
        let sums = empty(&x, Form::new([rows, 1], DType::F32));
        sum_rows::launch::<R>(
            &x.client.clone(),
            cubes(rows),
            CubeDim::new_1d(units as u32),
            vector,
            x.clone().into_tensor_arg(),
            branch.clone().into_tensor_arg(),
            upstream.clone().into_tensor_arg(),
            // Not written where the two have one format.
            of_branch.clone().unwrap_or_else(|| branch.clone()).into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            rows,
            !is_one_format,
            vectors,
            units,
            [x.dtype.into(), branch.dtype.into()],
        );
        sum_all(&sums, &of_amount, -1.0);
        [of_amount].into_iter().chain(of_branch).collect()
    }
}

/// One row is the work of one cube.
#[cube(launch)]
fn sum_rows<X: Float, Z: Float, N: Size>(
    x: &Tensor<Vector<X, N>>,
    branch: &Tensor<Vector<Z, N>>,
    upstream: &Tensor<Vector<X, N>>,
    of_branch: &mut Tensor<Vector<Z, N>>,
    sums: &mut Tensor<f32>,
    rows: usize,
    #[comptime] writes_branch: bool,
    #[comptime] vectors: usize,
    #[comptime] units: usize,
    #[define(X, Z)] _formats: [StorageType; 2],
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    if row < rows {
        let unit = UNIT_POS as usize;
        let mut products = Vector::<f32, N>::new(0.0);
        for turn in 0..comptime!(vectors.div_ceil(units)) {
            let index = turn * units + unit;
            if index < vectors {
                let place = row * vectors + index;
                let upstream = Vector::<f32, N>::cast_from(upstream[place]);
                let sum = Vector::<f32, N>::cast_from(x[place]) + Vector::<f32, N>::cast_from(branch[place]);
                products += upstream * sum;
                if writes_branch {
                    of_branch[place] = Vector::cast_from(upstream);
                }
            }
        }
        let sum = sum_of_units(sum_of_vector(products), &mut shared, units);
        if unit == 0 {
            sums[row] = sum;
        }
    }
}
