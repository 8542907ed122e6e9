//! Products with weights: `y = [x·W₁ | x·W₂ | …]`, each result beside the other, with every product in the number format of x.
//!
//! `∂L/∂x = ∂L/∂y · [W₁ | W₂ | …]ᵀ` and `[∂L/∂W₁ | ∂L/∂W₂ | …] = xᵀ·∂L/∂y`. The weights are put side by side, and rounded to the format of
//! x, in one launch, so that all of them are one product in each direction: nothing is left to add up for x. The gradients of the weights
//! are summed in f32 and have the format of the weights, and each is added to what has come back to its weight already.

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::autodiff::{Differentiable, Gradient, Kept};
use crate::kernel::Kernel;
use crate::product::{product, transposed};
use crate::table::{apply, input};
use crate::tensor::{Form, cubes, empty, form, in_order, vector_size};

/// `[x·W₁ | x·W₂ | …]` of one to three weights.
///
/// # Shapes
/// - x: `[tokens, inputs]`
/// - weights: `[inputs, outputsᵢ]`
/// - output: `[tokens, outputs₁ + outputs₂ + …]`
pub fn linear<B: Backend, const N: usize>(
    x: &burn::Tensor<B, 2>,
    weights: &[burn::Tensor<B, 2>; N],
) -> Option<burn::Tensor<B, 2>> {
    let mut inputs = vec![input(x)?];
    for weight in weights {
        inputs.push(input(weight)?);
    }
    let gradients: &[Gradient] = match N {
        1 => &[Gradient::Found(0), Gradient::Found(1)],
        2 => &[Gradient::Found(0), Gradient::Found(1), Gradient::Found(2)],
        3 => &[
            Gradient::Found(0),
            Gradient::Found(1),
            Gradient::Found(2),
            Gradient::Found(3),
        ],
        _ => return None,
    };
    let widths = weights.each_ref().map(|weight| weight.dims()[1]).to_vec();
    let format = weights[0].dtype();
    let operation = Differentiable {
        forward: Linear.into(),
        backward: LinearBackward { widths, format }.into(),
        kept: &[Kept::Input(0), Kept::Output(1)],
        gradients,
    };
    apply(operation, inputs)
}

/// `x, W₁, W₂, … ↦ y, [W₁ | W₂ | …]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear;

impl Kernel for Linear {
    const NAME: &'static str = "gpas_linear";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        let (x, weights) = (&inputs[0], &inputs[1..]);
        let columns: usize = weights.iter().map(Form::width).sum();
        vec![
            Form::new([x.rows(), columns], x.dtype),
            Form::new([x.width(), columns], x.dtype),
        ]
    }

    fn run<R: CubeRuntime>(&self, mut inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let x = inputs.remove(0);
        let weight = side_by_side(inputs, x.dtype);
        let format = x.dtype;
        vec![product(x, weight.clone(), format), weight]
    }
}

/// `x, [W₁ | W₂ | …], ∂L/∂y ↦ ∂L/∂x, ∂L/∂W₁, ∂L/∂W₂, …`.
#[derive(Clone, Debug)]
pub(crate) struct LinearBackward {
    /// Outputs of each weight.
    widths: Vec<usize>,
    /// Number format of the weights.
    format: DType,
}

impl Kernel for LinearBackward {
    const NAME: &'static str = "gpas_linear_backward";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        let x = inputs[0].clone();
        let rows = x.width();
        let of_weights = self.widths.iter().map(|width| Form::new([rows, *width], self.format));
        [x].into_iter().chain(of_weights).collect()
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let [x, weight, upstream]: [_; 3] = inputs.try_into().expect("three tensors");
        let of_x = product(upstream.clone(), transposed(weight), x.dtype);
        let of_weight = product(transposed(x), upstream, self.format);
        let mut outputs = vec![of_x];
        outputs.extend(apart(of_weight, &self.widths));
        outputs
    }
}

/// Most weights of one input: queries, keys and values.
const MOST: usize = 3;

/// Matrices of one number of rows beside each other, in a number format.
fn side_by_side<R: CubeRuntime>(mut matrices: Vec<CubeTensor<R>>, format: DType) -> CubeTensor<R> {
    if let [_] = matrices.as_slice() {
        return burn_cubecl::kernel::cast(matrices.swap_remove(0), format);
    }
    let widths: Vec<usize> = matrices.iter().map(|matrix| form(matrix).width()).collect();
    // A kernel has all of its inputs: the ones that are missing are not read.
    matrices.resize(MOST, matrices[0].clone());
    let matrices: [_; MOST] = in_order(matrices);
    let rows = form(&matrices[0]).rows();
    let together = empty(&matrices[0], Form::new([rows, widths.iter().sum()], format));
    copy::<R>(&matrices, &together, &widths, Direction::Together);
    together
}

/// Matrices of these widths that are beside each other.
fn apart<R: CubeRuntime>(together: CubeTensor<R>, widths: &[usize]) -> Vec<CubeTensor<R>> {
    if let [_] = widths {
        return vec![together];
    }
    let [together] = in_order(vec![together]);
    let rows = form(&together).rows();
    let matrices = widths
        .iter()
        .map(|width| empty(&together, Form::new([rows, *width], together.dtype)));
    let matrices: Vec<_> = matrices.collect();
    let mut places = matrices.clone();
    places.resize(MOST, places[0].clone());
    let [a, b, c]: [_; MOST] = places.try_into().expect("no more than three");
    copy::<R>(&[a, b, c], &together, widths, Direction::Apart);
    matrices
}

/// Which way [`copy`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Direction {
    Together,
    Apart,
}

fn copy<R: CubeRuntime>(
    matrices: &[CubeTensor<R>; MOST],
    together: &CubeTensor<R>,
    widths: &[usize],
    direction: Direction,
) {
    let [a, b, c] = matrices;
    // A vector is of one matrix: its size divides the width of each.
    let common = widths.iter().copied().fold(0, greatest_common_divisor);
    let vector = vector_size(&[a, b, c, together], common);
    let mut ends = [0; MOST];
    let mut end = 0;
    for (index, place) in ends.iter_mut().enumerate() {
        end += widths.get(index).copied().unwrap_or(0) / vector;
        *place = end;
    }
    let count = form(together).rows() * end;
    const UNITS: usize = 256;
    let (cube_count, cube_dim) = (cubes(count.div_ceil(UNITS)), CubeDim::new_1d(UNITS as u32));
    let client = &together.client;
    let [a, b, c, whole] = [a, b, c, together].map(|tensor| tensor.clone().into_tensor_arg());
    let formats = [matrices[0].dtype.into(), together.dtype.into()];
    match direction {
        Direction::Together => {
            put_together::launch::<R>(
                client, cube_count, cube_dim, vector, a, b, c, whole, count, ends[0], ends[1], end, formats,
            );
        }
        Direction::Apart => {
            take_apart::launch::<R>(
                client, cube_count, cube_dim, vector, a, b, c, whole, count, ends[0], ends[1], end, formats,
            );
        }
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        b => greatest_common_divisor(b, a % b),
    }
}

/// One vector is the work of one unit.
#[cube(launch)]
fn put_together<F: Float, O: Float, N: Size>(
    a: &Tensor<Vector<F, N>>,
    b: &Tensor<Vector<F, N>>,
    c: &Tensor<Vector<F, N>>,
    whole: &mut Tensor<Vector<O, N>>,
    count: usize,
    #[comptime] first_end: usize,
    #[comptime] second_end: usize,
    #[comptime] end: usize,
    #[define(F, O)] _formats: [StorageType; 2],
) {
    let place = ABSOLUTE_POS;
    if place < count {
        let row = place / end;
        let column = place % end;
        if column < first_end {
            whole[place] = Vector::cast_from(a[row * first_end + column]);
        } else if column < second_end {
            let width = comptime!(second_end - first_end);
            whole[place] = Vector::cast_from(b[row * width + column - first_end]);
        } else {
            let width = comptime!(end - second_end);
            whole[place] = Vector::cast_from(c[row * width + column - second_end]);
        }
    }
}

/// One vector is the work of one unit.
#[cube(launch)]
fn take_apart<F: Float, O: Float, N: Size>(
    a: &mut Tensor<Vector<F, N>>,
    b: &mut Tensor<Vector<F, N>>,
    c: &mut Tensor<Vector<F, N>>,
    whole: &Tensor<Vector<O, N>>,
    count: usize,
    #[comptime] first_end: usize,
    #[comptime] second_end: usize,
    #[comptime] end: usize,
    #[define(F, O)] _formats: [StorageType; 2],
) {
    let place = ABSOLUTE_POS;
    if place < count {
        let row = place / end;
        let column = place % end;
        if column < first_end {
            a[row * first_end + column] = Vector::cast_from(whole[place]);
        } else if column < second_end {
            let width = comptime!(second_end - first_end);
            b[row * width + column - first_end] = Vector::cast_from(whole[place]);
        } else {
            let width = comptime!(end - second_end);
            c[row * width + column - second_end] = Vector::cast_from(whole[place]);
        }
    }
}
