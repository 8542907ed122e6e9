//! Sums and maxima, in an order that depends on shapes alone: over the units of a cube, and over what cubes have left in memory.
//!
//! Units meet in shared memory; nothing is assumed of how many of them run in step.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::tensor::{cubes, form};

/// The sum of one number of each unit of a row of the cube, which every unit of that row gets.
///
/// `units`, the units of a row, is a power of two; `shared` has room for a number of each unit of the cube. All units of the cube take part.
#[cube]
pub(crate) fn sum_of_units(value: f32, shared: &mut SharedMemory<f32>, #[comptime] units: usize) -> f32 {
    let (unit, place) = (UNIT_POS_X as usize, UNIT_POS as usize);
    // Whoever still reads the result of the sum before this one is waited for.
    sync_cube();
    shared[place] = value;
    sync_cube();
    let steps = comptime!(units.ilog2());
    #[unroll]
    for step in 0..steps {
        let stride = comptime!(units >> (step as usize + 1));
        if unit < stride {
            let other = shared[place + stride];
            shared[place] += other;
        }
        sync_cube();
    }
    shared[place - unit]
}

/// The largest of one number of each unit of a row of the cube, which every unit of that row gets, as [`sum_of_units`] does.
#[cube]
pub(crate) fn max_of_units(value: f32, shared: &mut SharedMemory<f32>, #[comptime] units: usize) -> f32 {
    let (unit, place) = (UNIT_POS_X as usize, UNIT_POS as usize);
    sync_cube();
    shared[place] = value;
    sync_cube();
    let steps = comptime!(units.ilog2());
    #[unroll]
    for step in 0..steps {
        let stride = comptime!(units >> (step as usize + 1));
        if unit < stride {
            let other = shared[place + stride];
            shared[place] = max(shared[place], other);
        }
        sync_cube();
    }
    shared[place - unit]
}

/// The sum of the numbers of a vector.
#[cube]
pub(crate) fn sum_of_vector<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for lane in 0..vector.vector_size() {
        sum += vector[lane];
    }
    sum
}

/// Sums parts `[parts, width]` in their order to a row `[width]`, times a factor.
pub(crate) fn sum_parts<R: CubeRuntime>(parts: &CubeTensor<R>, row: &CubeTensor<R>, factor: f32) {
    let (count, width) = (form(parts).rows(), form(parts).width());
    const UNITS: usize = 64;
    add_parts::launch::<R>(
        &parts.client.clone(),
        cubes(width.div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
        parts.clone().into_tensor_arg(),
        row.clone().into_tensor_arg(),
        factor,
        count,
        width,
        row.dtype.into(),
    );
}

/// One column is the work of one unit.
#[cube(launch)]
fn add_parts<O: Float>(
    parts: &Tensor<f32>,
    row: &mut Tensor<O>,
    factor: f32,
    count: usize,
    width: usize,
    #[define(O)] _format: StorageType,
) {
    let column = ABSOLUTE_POS;
    if column < width {
        let mut sum = 0.0f32;
        for part in 0..count {
            sum += parts[part * width + column];
        }
        row[column] = O::cast_from(sum * factor);
    }
}

/// Sums all numbers of a tensor in f32 to one number, times a factor.
pub(crate) fn sum_all<R: CubeRuntime>(numbers: &CubeTensor<R>, sum: &CubeTensor<R>, factor: f32) {
    const UNITS: usize = 256;
    add_all::launch::<R>(
        &numbers.client.clone(),
        cubes(1),
        CubeDim::new_1d(UNITS as u32),
        numbers.clone().into_tensor_arg(),
        sum.clone().into_tensor_arg(),
        factor,
        form(numbers).shape.num_elements(),
        UNITS,
        sum.dtype.into(),
    );
}

/// All numbers are the work of one cube.
#[cube(launch)]
fn add_all<O: Float>(
    numbers: &Tensor<f32>,
    sum: &mut Tensor<O>,
    factor: f32,
    count: usize,
    #[comptime] units: usize,
    #[define(O)] _format: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let unit = UNIT_POS as usize;
    let mut part = 0.0f32;
    for turn in 0..count.div_ceil(units) {
        let index = turn * units + unit;
        if index < count {
            part += numbers[index];
        }
    }
    let all = sum_of_units(part, &mut shared, units);
    if unit == 0 {
        sum[0] = O::cast_from(all * factor);
    }
}
