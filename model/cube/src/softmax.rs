//! Causal softmax of scores in place, row by row, and the gradient of the scores.
//!
//! A row of scores `s` of a position `i` becomes `p_j = exp(s_j − max)/Σ exp(s − max)` over the columns `j ≤ i`, and 0 after them. With
//! `g = ∂L/∂p`, the gradient is `∂L/∂s = p ⊙ (g − Σ p ⊙ g)`, which takes the place of g.
//!
//! # Bytes moved
//! One launch each way, and a row lies in registers from its only load to its only store. What is above the diagonal is never read, but its
//! zeros are written, since the products after it read whole rows. With numbers of two bytes that is, for a score of the whole square, 3
//! bytes forward, and backward 4, or 6 where the weights are computed again from the scores.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::reduce::{max_of_units, sum_of_units, sum_of_vector};
use crate::rows::Rows;
use crate::tensor::cubes;

/// Units of a cube.
const UNITS: usize = 256;

/// Numbers of a row that a unit holds where rows are short enough for that: few enough for registers, enough for one wide load after
/// another.
const NUMBERS: usize = 16;

/// How the work on rows of scores is divided.
struct Division {
    vector: usize,
    /// Vectors of a row that hold its numbers.
    vectors: usize,
    /// Units that share a row: a power of two.
    units: usize,
    /// Vectors of a row that a unit holds.
    turns: usize,
    cube_count: CubeCount,
    cube_dim: CubeDim,
}

impl Division {
    /// For rows in vectors of some size. The last vector of a row may reach into the gap after it, which may be overwritten.
    fn new<R: CubeRuntime>(rows: &Rows<R>, vector: usize) -> Self {
        let vectors = rows.width.div_ceil(vector);
        let units = rows.width.div_ceil(NUMBERS).next_power_of_two().clamp(8, UNITS);
        Self {
            vector,
            vectors,
            units,
            turns: vectors.div_ceil(units),
            cube_count: cubes(rows.count.div_ceil(UNITS / units)),
            cube_dim: CubeDim::new_2d(units as u32, (UNITS / units) as u32),
        }
    }
}

/// Puts the weights in the place of scores `[…, seq]`, of which row `r` is that of position `r mod seq`.
pub(crate) fn causal_softmax<R: CubeRuntime>(scores: CubeTensor<R>) -> CubeTensor<R> {
    let scores = Rows::new(scores);
    let division = Division::new(&scores, scores.vector_size(scores.pitch));
    weigh::launch::<R>(
        &scores.tensor.client.clone(),
        division.cube_count,
        division.cube_dim,
        scores.tensor.required_address_type(),
        division.vector,
        scores.tensor.clone().into_tensor_arg(),
        scores.count,
        scores.width,
        scores.pitch / division.vector,
        division.vectors,
        f32::NEG_INFINITY,
        division.turns,
        division.units,
        scores.tensor.dtype.into(),
    );
    scores.tensor
}

/// What [`causal_softmax_backward`] is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Given {
    /// Scores, in whose place it puts the weights.
    Scores,
    /// Weights, which it leaves as they are.
    Weights,
}

/// Puts the gradient of the scores in the place of that of the weights; both and `rows_given` are `[…, seq]`. Returns the weights and the
/// gradient.
pub(crate) fn causal_softmax_backward<R: CubeRuntime>(
    rows_given: CubeTensor<R>,
    given: Given,
    of_weights: CubeTensor<R>,
) -> [CubeTensor<R>; 2] {
    let (weights, of_weights) = (Rows::new(rows_given), Rows::new(of_weights));
    let division = Division::new(&weights, weights.vector_size(of_weights.pitch));
    pull_back::launch::<R>(
        &weights.tensor.client.clone(),
        division.cube_count,
        division.cube_dim,
        std::cmp::max(
            weights.tensor.required_address_type(),
            of_weights.tensor.required_address_type(),
        ),
        division.vector,
        weights.tensor.clone().into_tensor_arg(),
        of_weights.tensor.clone().into_tensor_arg(),
        weights.count,
        weights.width,
        weights.pitch / division.vector,
        of_weights.pitch / division.vector,
        division.vectors,
        f32::NEG_INFINITY,
        given == Given::Scores,
        division.turns,
        division.units,
        weights.tensor.dtype.into(),
    );
    [weights.tensor, of_weights.tensor]
}

/// A vector of a row, with `hidden` in the place of columns that the row does not see.
#[cube]
fn seen_part<F: Float, N: Size>(vector: Vector<F, N>, first_column: usize, seen: usize, hidden: f32) -> Vector<f32, N> {
    let mut numbers = Vector::<f32, N>::cast_from(vector);
    if first_column + N::value() > seen {
        #[unroll]
        for lane in 0..N::value() {
            if first_column + lane >= seen {
                numbers[lane] = hidden;
            }
        }
    }
    numbers
}

#[cube]
fn largest_of_vector<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut largest = vector[0];
    #[unroll]
    for lane in 1..N::value() {
        largest = max(largest, vector[lane]);
    }
    largest
}

/// Softmax of the first `seen` numbers of the row that begins at `start`, into the vectors that this unit holds.
#[cube]
fn softmax_of_row<F: Float, N: Size>(
    scores: &Tensor<Vector<F, N>>,
    weights: &mut Array<Vector<f32, N>>,
    start: usize,
    seen: usize,
    shared: &mut SharedMemory<f32>,
    minus_infinity: f32,
    #[comptime] turns: usize,
    #[comptime] units: usize,
) {
    let unit = UNIT_POS_X as usize;
    let mut largest = minus_infinity;
    #[unroll(turns <= 8)]
    for turn in 0..turns {
        let index = turn * units + unit;
        let first_column = index * N::value();
        if first_column < seen {
            let numbers = seen_part::<F, N>(scores[start + index], first_column, seen, minus_infinity);
            weights[turn] = numbers;
            largest = max(largest, largest_of_vector::<N>(numbers));
        } else {
            weights[turn] = Vector::new(0.0);
        }
    }
    let largest = Vector::<f32, N>::new(max_of_units(largest, shared, units));
    let mut sum = 0.0f32;
    #[unroll(turns <= 8)]
    for turn in 0..turns {
        if (turn * units + unit) * N::value() < seen {
            let exponentials = (weights[turn] - largest).exp();
            weights[turn] = exponentials;
            sum += sum_of_vector::<N>(exponentials);
        }
    }
    let reciprocal = Vector::<f32, N>::new(1.0 / sum_of_units(sum, shared, units));
    #[unroll(turns <= 8)]
    for turn in 0..turns {
        weights[turn] *= reciprocal;
    }
}

/// One row is the work of the units of one row of a cube.
#[cube(launch, address_type = "dynamic")]
fn weigh<F: Float, N: Size>(
    scores: &mut Tensor<Vector<F, N>>,
    rows: usize,
    seq: usize,
    pitch: usize,
    vectors: usize,
    // Not each device's compiler knows how to spell this number.
    minus_infinity: f32,
    #[comptime] turns: usize,
    #[comptime] units: usize,
    #[define(F)] _format: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let unit = UNIT_POS_X as usize;
    let row = CUBE_POS * (UNITS / units) + UNIT_POS_Y as usize;
    // A row after the last one sees nothing and stores nothing, but meets the others.
    let mut seen = 0;
    if row < rows {
        seen = row % seq + 1;
    }
    let start = row * pitch;
    let mut weights = Array::<Vector<f32, N>>::new(turns);
    softmax_of_row::<F, N>(
        scores,
        &mut weights,
        start,
        seen,
        &mut shared,
        minus_infinity,
        turns,
        units,
    );
    #[unroll(turns <= 8)]
    for turn in 0..turns {
        let index = turn * units + unit;
        if row < rows && index < vectors {
            scores[start + index] = Vector::cast_from(weights[turn]);
        }
    }
}

/// One row is the work of the units of one row of a cube.
#[cube(launch, address_type = "dynamic")]
fn pull_back<F: Float, N: Size>(
    given: &mut Tensor<Vector<F, N>>,
    gradient: &mut Tensor<Vector<F, N>>,
    rows: usize,
    seq: usize,
    pitch: usize,
    gradient_pitch: usize,
    vectors: usize,
    minus_infinity: f32,
    #[comptime] is_scores: bool,
    #[comptime] turns: usize,
    #[comptime] units: usize,
    #[define(F)] _format: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let unit = UNIT_POS_X as usize;
    let row = CUBE_POS * (UNITS / units) + UNIT_POS_Y as usize;
    let mut seen = 0;
    if row < rows {
        seen = row % seq + 1;
    }
    let start = row * pitch;
    let gradient_start = row * gradient_pitch;
    let mut weights = Array::<Vector<f32, N>>::new(turns);
    let mut of_weights = Array::<Vector<f32, N>>::new(turns);
    if is_scores {
        softmax_of_row::<F, N>(
            given,
            &mut weights,
            start,
            seen,
            &mut shared,
            minus_infinity,
            turns,
            units,
        );
    }
    let mut products = 0.0f32;
    #[unroll(turns <= 8)]
    for turn in 0..turns {
        let index = turn * units + unit;
        let first_column = index * N::value();
        if first_column < seen {
            if !is_scores {
                weights[turn] = Vector::cast_from(given[start + index]);
            }
            let numbers = seen_part::<F, N>(gradient[gradient_start + index], first_column, seen, 0.0f32);
            of_weights[turn] = numbers;
            products += sum_of_vector::<N>(weights[turn] * numbers);
        }
    }
    let sum = Vector::<f32, N>::new(sum_of_units(products, &mut shared, units));
    #[unroll(turns <= 8)]
    for turn in 0..turns {
        let index = turn * units + unit;
        if row < rows && index < vectors {
            let mut of_scores = Vector::<f32, N>::new(0.0);
            if index * N::value() < seen {
                of_scores = weights[turn] * (of_weights[turn] - sum);
            }
            gradient[gradient_start + index] = Vector::cast_from(of_scores);
            if is_scores {
                given[start + index] = Vector::cast_from(weights[turn]);
            }
        }
    }
}
