//! RMSNorm: `y = w·f·x·r` with `r = 1/√(mean(x²) + ε)` of each row.
//!
//! With `g = ∂L/∂y · w·f`: `∂L/∂x = r·(g − x·r²·mean(g·x))` and `∂L/∂w = f·Σ_rows ∂L/∂y · x·r`.
//!
//! Forward one launch that reads x twice (the second time from a cache) and writes y; backward two, the first of which reads x and ∂L/∂y and
//! writes ∂L/∂x, to which it adds what has come back to x along the residual. In tensor operations these are 4 launches forward and 10
//! backward, counted on Vulkan.

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::autodiff::{Differentiable, Gradient, Kept};
use crate::kernel::Kernel;
use crate::reduce::{sum_of_units, sum_of_vector, sum_parts};
use crate::table::{apply, input};
use crate::tensor::{Form, cubes, empty, form, in_order, units_for, vector_size};

/// RMSNorm over the last dimension, with ε and the fixed factor f on the output, which has the number format `output`.
///
/// # Shapes
/// - x and output: `[…, hidden]`
/// - weight: `[hidden]`
pub fn norm<B: Backend, const D: usize>(
    x: &burn::Tensor<B, D>,
    weight: &burn::Tensor<B, 1>,
    epsilon: f64,
    factor: f64,
    output: DType,
) -> Option<burn::Tensor<B, D>> {
    let (epsilon, factor) = (epsilon as f32, factor as f32);
    let operation = Differentiable {
        forward: Norm {
            epsilon,
            factor,
            output,
        }
        .into(),
        backward: NormBackward { factor }.into(),
        kept: &[Kept::Input(0), Kept::Input(1), Kept::Output(1)],
        gradients: &[Gradient::Added(0), Gradient::Found(1)],
    };
    apply(operation, vec![input(x)?, input(weight)?])
}

/// `x, w ↦ y, r`.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    epsilon: f32,
    factor: f32,
    output: DType,
}

impl Kernel for Norm {
    const NAME: &'static str = "gpas_norm";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        let x = &inputs[0];
        vec![
            Form::new(x.shape.clone(), self.output),
            Form::new([x.rows()], DType::F32),
        ]
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, weight] = in_order(inputs);
        let [y, scales] = [0, 1].map(|index| empty(&x, self.outputs(&[form(&x)]).swap_remove(index)));
        let (rows, width) = (form(&x).rows(), form(&x).width());
        let vector = vector_size(&[&x, &weight, &y], width);
        let vectors = width / vector;
        let units = units_for(vectors);
        normalise::launch::<R>(
            &x.client.clone(),
            cubes(rows),
            CubeDim::new_1d(units as u32),
            vector,
            x.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            scales.clone().into_tensor_arg(),
            self.epsilon,
            self.factor,
            rows,
            vectors,
            units,
            [x.dtype.into(), weight.dtype.into(), y.dtype.into()],
        );
        vec![y, scales]
    }
}

/// One row is the work of one cube.
#[cube(launch)]
fn normalise<X: Float, W: Float, Y: Float, N: Size>(
    x: &Tensor<Vector<X, N>>,
    weight: &Tensor<Vector<W, N>>,
    y: &mut Tensor<Vector<Y, N>>,
    scales: &mut Tensor<f32>,
    epsilon: f32,
    factor: f32,
    rows: usize,
    #[comptime] vectors: usize,
    #[comptime] units: usize,
    #[define(X, W, Y)] _formats: [StorageType; 3],
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    if row < rows {
        let unit = UNIT_POS as usize;
        let start = row * vectors;
        let turns = comptime!(vectors.div_ceil(units));
        let mut squares = Vector::<f32, N>::new(0.0);
        for turn in 0..turns {
            let index = turn * units + unit;
            if index < vectors {
                let x = Vector::<f32, N>::cast_from(x[start + index]);
                squares += x * x;
            }
        }
        let sum = sum_of_units(sum_of_vector(squares), &mut shared, units);
        let numbers = comptime!(vectors as f32) * x.vector_size() as f32;
        let scale = (sum / numbers + epsilon).inverse_sqrt();
        if unit == 0 {
            scales[row] = scale;
        }
        let scale = Vector::<f32, N>::new(scale);
        let factor = Vector::<f32, N>::new(factor);
        for turn in 0..turns {
            let index = turn * units + unit;
            if index < vectors {
                let x = Vector::<f32, N>::cast_from(x[start + index]);
                let weight = Vector::<f32, N>::cast_from(weight[index]) * factor;
                y[start + index] = Vector::cast_from(x * scale * weight);
            }
        }
    }
}

/// `x, w, r, ∂L/∂y (, what came back to x already) ↦ ∂L/∂x, ∂L/∂w`.
#[derive(Clone, Debug)]
pub(crate) struct NormBackward {
    factor: f32,
}

/// The most parts in which the gradient of the weight is summed.
const PARTS: usize = 256;

impl Kernel for NormBackward {
    const NAME: &'static str = "gpas_norm_backward";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        vec![inputs[0].clone(), inputs[1].clone()]
    }

    fn run<R: CubeRuntime>(&self, mut inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let before = (inputs.len() == 5).then(|| inputs.pop()).flatten();
        let [x, weight, scales, upstream] = in_order(inputs);
        let has_before = before.is_some();
        // A kernel has all of its inputs: where nothing is to be added, the tensor that stands here is not read.
        let [before] = in_order(vec![before.unwrap_or_else(|| x.clone())]);
        let of_x = empty(&x, form(&x));
        let of_weight = empty(&x, form(&weight));
        let (rows, width) = (form(&x).rows(), form(&x).width());
        let vector = vector_size(&[&x, &weight, &upstream, &before], width);
        let vectors = width / vector;
        let units = units_for(vectors);
        let rows_of_part = rows.div_ceil(PARTS);
        let parts = empty(&x, Form::new([rows.div_ceil(rows_of_part), width], DType::F32));
        pull_back::launch::<R>(
            &x.client.clone(),
            cubes(form(&parts).rows()),
            CubeDim::new_1d(units as u32),
            vector,
            x.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            scales.clone().into_tensor_arg(),
            upstream.clone().into_tensor_arg(),
            before.clone().into_tensor_arg(),
            of_x.clone().into_tensor_arg(),
            parts.clone().into_tensor_arg(),
            self.factor,
            rows,
            rows_of_part,
            has_before,
            vectors,
            units,
            [x.dtype.into(), weight.dtype.into(), upstream.dtype.into()],
        );
        sum_parts(&parts, &of_weight, self.factor);
        vec![of_x, of_weight]
    }
}

/// Some rows are the work of one cube; a unit has the same columns of all of them.
#[cube(launch)]
fn pull_back<X: Float, W: Float, U: Float, N: Size>(
    x: &Tensor<Vector<X, N>>,
    weight: &Tensor<Vector<W, N>>,
    scales: &Tensor<f32>,
    upstream: &Tensor<Vector<U, N>>,
    before: &Tensor<Vector<X, N>>,
    of_x: &mut Tensor<Vector<X, N>>,
    parts: &mut Tensor<Vector<f32, N>>,
    factor: f32,
    rows: usize,
    rows_of_part: usize,
    #[comptime] has_before: bool,
    #[comptime] vectors: usize,
    #[comptime] units: usize,
    #[define(X, W, U)] _formats: [StorageType; 3],
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let unit = UNIT_POS as usize;
    let part = CUBE_POS;
    let turns = comptime!(vectors.div_ceil(units));
    let mut of_weight = Array::<Vector<f32, N>>::new(turns);
    for turn in 0..turns {
        of_weight[turn] = Vector::new(0.0);
    }
    let first = part * rows_of_part;
    let numbers = comptime!(vectors as f32) * x.vector_size() as f32;
    let factor = Vector::<f32, N>::new(factor);
    for row in first..min(first + rows_of_part, rows) {
        let start = row * vectors;
        let mut products = Vector::<f32, N>::new(0.0);
        for turn in 0..turns {
            let index = turn * units + unit;
            if index < vectors {
                let x = Vector::<f32, N>::cast_from(x[start + index]);
                let weight = Vector::<f32, N>::cast_from(weight[index]) * factor;
                products += Vector::<f32, N>::cast_from(upstream[start + index]) * weight * x;
            }
        }
        let sum = sum_of_units(sum_of_vector(products), &mut shared, units);
        let scale = scales[row];
        let mean = Vector::<f32, N>::new(sum / numbers * scale * scale);
        let scale = Vector::<f32, N>::new(scale);
        for turn in 0..turns {
            let index = turn * units + unit;
            if index < vectors {
                let x = Vector::<f32, N>::cast_from(x[start + index]);
                let weight = Vector::<f32, N>::cast_from(weight[index]) * factor;
                let upstream = Vector::<f32, N>::cast_from(upstream[start + index]);
                let mut of_x_here = (upstream * weight - x * mean) * scale;
                if has_before {
                    of_x_here += Vector::<f32, N>::cast_from(before[start + index]);
                }
                of_x[start + index] = Vector::cast_from(of_x_here);
                of_weight[turn] += upstream * x * scale;
            }
        }
    }
    if first < rows {
        for turn in 0..turns {
            let index = turn * units + unit;
            if index < vectors {
                parts[part * vectors + index] = of_weight[turn];
            }
        }
    }
}
