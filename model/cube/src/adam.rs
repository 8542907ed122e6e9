//! Adam's update of many parameters:
//!
//! ```text
//! g ← factor·g + decay·w        m ← β₁·m + (1 − β₁)·g        v ← β₂·v + (1 − β₂)·g²
//! w ← keep·w − step_size·m / (√v + ε)
//! ```
//!
//! One launch for each [group](crate::group) of up to 6 parameters, 22 for 123 of them, with one walk over memory: w, m, v and g are read,
//! and w, m and v are written in their own places where nobody else holds them. In tensor operations it is some 10 launches for each
//! parameter, fused where the rows of a matrix lie without gaps.

use burn::tensor::TensorMetadata;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::group::{Rows, first_cubes, groups, in_rows, place_in_rows};
use crate::kernel::Kernel;
use crate::table::{is_number, run, runs};
use crate::tensor::{Form, cubes};

/// An update of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// The factor that clips the gradient.
    pub factor: f32,
    /// Weight decay as a part of the gradient; 0 for none.
    pub decay: f32,
    /// The factor of decoupled weight decay on a weight; 1 for none.
    pub keep: f32,
    /// β₁ and β₂.
    pub betas: [f32; 2],
    /// 1 − β₁ and 1 − β₂, taken before rounding to f32.
    pub rest: [f32; 2],
    /// Learning rate with both bias corrections.
    pub step_size: f32,
    /// ε with its bias correction.
    pub epsilon: f32,
}

/// Updates parameters: of each its step with w, m, v and g, which are as many numbers. The moments may be flat.
///
/// Returns the next w, m and v of each, in the shapes and the number formats of those before.
pub fn adam<B: Backend>(parameters: Vec<(AdamStep, [FloatTensor<B>; 4])>) -> Option<Vec<[FloatTensor<B>; 3]>> {
    let (steps, inputs): (Vec<_>, Vec<_>) = parameters.into_iter().unzip();
    let inputs: Vec<_> = inputs.into_iter().flatten().collect();
    if inputs.is_empty() || !runs::<B>() || !inputs.iter().all(|input| is_number(input.dtype())) {
        return None;
    }
    let mut outputs = run::<B>(Adam { steps }.into(), inputs)?.into_iter();
    let next = || Some([outputs.next()?, outputs.next()?, outputs.next()?]);
    Some(std::iter::from_fn(next).collect())
}

/// `w, m, v, g` of each parameter `↦ w, m, v` of each.
#[derive(Clone, Debug)]
pub(crate) struct Adam {
    steps: Vec<AdamStep>,
}

/// Units of a cube.
const UNITS: usize = 256;
/// Vectors that a unit updates.
const VECTORS: usize = 4;

impl Kernel for Adam {
    const NAME: &'static str = "gpas_adam";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        inputs.chunks_exact(4).flat_map(|own| own[..3].to_vec()).collect()
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let mut places = Vec::new();
        let mut inputs = inputs.into_iter();
        while let (Some(weight), Some(first), Some(second), Some(gradient)) =
            (inputs.next(), inputs.next(), inputs.next(), inputs.next())
        {
            let [first, second] = [first, second].map(|moment| into_contiguous(writable(moment)));
            places.push([in_rows(writable(weight)), first, second, in_rows(gradient)]);
        }
        let layouts = places.iter().map(|[weight, first, second, gradient]| {
            let tensors = [weight, first, second, gradient];
            (Rows::of(tensors), tensors.map(|tensor| tensor.dtype))
        });
        let layouts: Vec<_> = layouts.collect();
        for group in groups(&places[0][0].client, &layouts, 0) {
            let members = group.iter().map(|index| Member {
                places: &places[*index],
                rows: layouts[*index].0,
                step: self.steps[*index],
            });
            update_together(&members.collect::<Vec<_>>());
        }
        places
            .into_iter()
            .flat_map(|[weight, first, second, _]| [weight, first, second])
            .collect()
    }
}

/// The tensor itself where nobody else holds its numbers, and else a copy.
fn writable<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    match tensor.can_mut() && tensor.is_nonoverlapping() {
        true => tensor,
        false => tensor.copy(),
    }
}

/// A parameter of a launch.
struct Member<'a, R: CubeRuntime> {
    /// w, m, v, g.
    places: &'a [CubeTensor<R>; 4],
    rows: Rows<4>,
    step: AdamStep,
}

impl AdamStep {
    fn as_argument<R: CubeRuntime>(&self) -> StepLaunch<R> {
        let [beta1, beta2] = self.betas;
        let [rest1, rest2] = self.rest;
        let (step_size, epsilon) = (self.step_size, self.epsilon);
        StepLaunch::new(
            self.factor,
            self.decay,
            self.keep,
            beta1,
            beta2,
            rest1,
            rest2,
            step_size,
            epsilon,
        )
    }
}

/// Updates parameters whose loads are equally wide and whose number formats are the same.
fn update_together<R: CubeRuntime>(members: &[Member<'_, R>]) {
    let of_each = |member: &Member<'_, R>| member.rows.count.div_ceil(UNITS * VECTORS);
    let (first_cubes, all) = first_cubes(members.iter().map(of_each));
    let [weight, first, _, gradient] = members[0].places;
    let tensors = |which: usize| {
        let places = members.iter().map(move |member| &member.places[which]);
        places.map(|tensor| tensor.clone().into_tensor_arg())
    };
    let sizes = |size: fn(&Rows<4>) -> usize| members.iter().map(|member| size(&member.rows)).collect();
    update::launch::<R>(
        &weight.client.clone(),
        cubes(all),
        CubeDim::new_1d(UNITS as u32),
        members[0].rows.vector,
        tensors(0).collect(),
        tensors(1).collect(),
        tensors(2).collect(),
        tensors(3).collect(),
        members.iter().map(|member| member.step.as_argument()).collect(),
        first_cubes.into_iter().collect(),
        sizes(|rows| rows.count),
        sizes(|rows| rows.width),
        sizes(|rows| rows.strides[0]),
        sizes(|rows| rows.strides[3]),
        UNITS,
        VECTORS,
        [weight, first, gradient].map(|tensor| tensor.dtype.into()),
    );
}

/// An [`AdamStep`] as a kernel has it.
#[derive(CubeType, CubeLaunch)]
struct Step {
    factor: f32,
    decay: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    step_size: f32,
    epsilon: f32,
}

/// Some vectors of one parameter are the work of one cube. The moments lie without gaps.
#[cube(launch)]
fn update<W: Float, M: Float, G: Float, N: Size>(
    weights: &mut Sequence<Tensor<Vector<W, N>>>,
    firsts: &mut Sequence<Tensor<Vector<M, N>>>,
    seconds: &mut Sequence<Tensor<Vector<M, N>>>,
    gradients: &Sequence<Tensor<Vector<G, N>>>,
    steps: &Sequence<Step>,
    first_cubes: &Sequence<usize>,
    vector_counts: &Sequence<usize>,
    widths: &Sequence<usize>,
    weight_strides: &Sequence<usize>,
    gradient_strides: &Sequence<usize>,
    #[comptime] units: usize,
    #[comptime] vectors: usize,
    #[define(W, M, G)] _formats: [StorageType; 3],
) {
    let cube = CUBE_POS;
    let unit = UNIT_POS as usize;
    #[unroll]
    for i in 0..weights.len() {
        let count = *vector_counts.index(i);
        let first_cube = *first_cubes.index(i);
        if cube >= first_cube && (cube - first_cube) * units * vectors < count {
            let step = steps.index(i);
            let width = *widths.index(i);
            let weight = weights.index_mut(i);
            let first = firsts.index_mut(i);
            let second = seconds.index_mut(i);
            let gradient = gradients.index(i);
            for turn in 0..vectors {
                let index = ((cube - first_cube) * vectors + turn) * units + unit;
                if index < count {
                    let place = place_in_rows(index, width, *weight_strides.index(i));
                    let w = Vector::<f32, N>::cast_from(weight[place]);
                    let g = gradient[place_in_rows(index, width, *gradient_strides.index(i))];
                    let g = Vector::<f32, N>::cast_from(g) * Vector::new(step.factor) + w * Vector::new(step.decay);
                    let m = Vector::<f32, N>::cast_from(first[index]) * Vector::new(step.beta1)
                        + g * Vector::new(step.rest1);
                    let v = Vector::<f32, N>::cast_from(second[index]) * Vector::new(step.beta2)
                        + g * g * Vector::new(step.rest2);
                    let change = m * Vector::new(step.step_size) / (v.sqrt() + Vector::new(step.epsilon));
                    first[index] = Vector::cast_from(m);
                    second[index] = Vector::cast_from(v);
                    weight[place] = Vector::cast_from(w * Vector::new(step.keep) - change);
                }
            }
        }
    }
}
