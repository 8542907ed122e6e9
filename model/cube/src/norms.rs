//! Sums of squares of many tensors, which are what clipping asks for, beside single numbers such as the loss, for one transfer to the host.
//!
//! Each tensor is read once. Two launches of few cubes beside one for each [group](crate::group) of some 26 tensors: for 123 parameters and 25
//! single numbers that is 8. In tensor operations it is three for each parameter, one for each single number, and as many again to put
//! them together.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::group::{Rows, first_cubes, groups, in_rows, place_in_rows};
use crate::kernel::Kernel;
use crate::reduce::{sum_of_units, sum_of_vector};
use crate::table::{float, is_number, run, runs};
use crate::tensor::{Form, cubes, empty};

/// The sum of all numbers of each of `sums`, then the sum of all squares of each of `squares`, in f32. A tensor of one number is its own sum.
///
/// # Shapes
/// - inputs: any
/// - output: `[sums + squares]`
pub fn sums_and_squares<B: Backend>(
    sums: Vec<FloatTensor<B>>,
    squares: Vec<FloatTensor<B>>,
) -> Option<burn::Tensor<B, 1>> {
    let kernel = Sums { plain: sums.len() };
    let inputs: Vec<_> = sums.into_iter().chain(squares).collect();
    if inputs.is_empty() || !runs::<B>() || !inputs.iter().all(|input| is_number(input.dtype())) {
        return None;
    }
    Some(float(run::<B>(kernel.into(), inputs)?.swap_remove(0)))
}

/// Tensors ↦ the sums of the first `plain` of them and of the squares of the others.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    plain: usize,
}

/// The most parts in which a tensor is summed, each the work of one cube.
const PARTS: usize = 512;
/// Units of a cube.
const UNITS: usize = 256;
/// Loads of a unit before its tensor gets more cubes.
const LOADS: usize = 8;

impl Kernel for Sums {
    const NAME: &'static str = "gpas_sums";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        vec![Form::new([inputs.len()], DType::F32)]
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let inputs: Vec<_> = inputs.into_iter().map(in_rows).collect();
        let sums = empty(&inputs[0], Form::new([inputs.len()], DType::F32));
        let parts = empty(&inputs[0], Form::new([inputs.len(), PARTS], DType::F32));
        for (begin, end, are_squared) in [(0, self.plain, false), (self.plain, inputs.len(), true)] {
            sum_in_parts(&inputs[begin..end], begin, &parts, are_squared);
        }
        add_parts::launch::<R>(
            &sums.client.clone(),
            cubes(inputs.len()),
            CubeDim::new_1d(UNITS as u32),
            parts.into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            inputs.len(),
            UNITS,
        );
        vec![sums]
    }
}

/// Sums tensors to the rows of `parts` from the row `begin` on.
fn sum_in_parts<R: CubeRuntime>(tensors: &[CubeTensor<R>], begin: usize, parts: &CubeTensor<R>, are_squared: bool) {
    let layouts = tensors.iter().map(|tensor| (Rows::of([tensor]), [tensor.dtype]));
    let layouts: Vec<_> = layouts.collect();
    for group in groups(&parts.client, &layouts, 1) {
        let rows = |index: &usize| layouts[*index].0;
        let of_each = |index: &usize| rows(index).count.div_ceil(UNITS * LOADS).clamp(1, PARTS);
        let (firsts, all) = first_cubes(group.iter().map(of_each));
        sum_to_parts::launch::<R>(
            &parts.client.clone(),
            cubes(all),
            CubeDim::new_1d(UNITS as u32),
            rows(&group[0]).vector,
            group
                .iter()
                .map(|index| tensors[*index].clone().into_tensor_arg())
                .collect(),
            parts.clone().into_tensor_arg(),
            firsts.into_iter().collect(),
            group.iter().map(of_each).collect(),
            group.iter().map(|index| begin + index).collect(),
            group.iter().map(|index| rows(index).count).collect(),
            group.iter().map(|index| rows(index).width).collect(),
            group.iter().map(|index| rows(index).strides[0]).collect(),
            are_squared,
            UNITS,
            PARTS,
            tensors[group[0]].dtype.into(),
        );
    }
}

/// A tensor is the work of some cubes, each of which leaves one part of its sum; the first parts of a row are those, and the others are 0.
#[cube(launch)]
fn sum_to_parts<F: Float, N: Size>(
    tensors: &Sequence<Tensor<Vector<F, N>>>,
    parts: &mut Tensor<f32>,
    first_cubes: &Sequence<usize>,
    cube_counts: &Sequence<usize>,
    part_rows: &Sequence<usize>,
    vector_counts: &Sequence<usize>,
    widths: &Sequence<usize>,
    strides: &Sequence<usize>,
    #[comptime] are_squared: bool,
    #[comptime] units: usize,
    #[comptime] most_parts: usize,
    #[define(F)] _format: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let cube = CUBE_POS;
    let unit = UNIT_POS as usize;
    let mut sum = Vector::<f32, N>::new(0.0);
    let mut part = 0usize;
    let mut cubes = 0usize;
    let mut part_row = 0usize;
    #[unroll]
    for i in 0..tensors.len() {
        let tensor = tensors.index(i);
        let first = *first_cubes.index(i);
        if cube >= first && cube < first + *cube_counts.index(i) {
            part = cube - first;
            cubes = *cube_counts.index(i);
            part_row = *part_rows.index(i);
            let count = *vector_counts.index(i);
            let stride = *strides.index(i);
            let width = *widths.index(i);
            for turn in 0..count.div_ceil(cubes * units) {
                let index = (turn * cubes + part) * units + unit;
                if index < count {
                    let numbers = Vector::<f32, N>::cast_from(tensor[place_in_rows(index, width, stride)]);
                    if are_squared {
                        sum += numbers * numbers;
                    } else {
                        sum += numbers;
                    }
                }
            }
        }
    }
    let sum = sum_of_units(sum_of_vector(sum), &mut shared, units);
    // A cube beyond the last tensor's has no part.
    if cubes > 0 {
        let turns = comptime!(most_parts.div_ceil(units));
        for turn in 0..turns {
            let slot = part + (turn * units + unit) * cubes;
            if slot < most_parts {
                parts[part_row * most_parts + slot] = select(slot == part, sum, 0.0f32);
            }
        }
    }
}

/// The parts of a tensor are the work of one cube.
#[cube(launch)]
fn add_parts(parts: &Tensor<f32>, sums: &mut Tensor<f32>, count: usize, #[comptime] units: usize) {
    let mut shared = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    let unit = UNIT_POS as usize;
    if row < count {
        let width = parts.len() / count;
        let mut sum = 0.0f32;
        for turn in 0..width.div_ceil(units) {
            let slot = turn * units + unit;
            if slot < width {
                sum += parts[row * width + slot];
            }
        }
        let all = sum_of_units(sum, &mut shared, units);
        if unit == 0 {
            sums[row] = all;
        }
    }
}
