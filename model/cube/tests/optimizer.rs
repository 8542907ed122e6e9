//! The kernels over many tensors at once against the tensor operations that they stand for, on Vulkan, whose software driver will do.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Distribution, Tensor, TensorPrimitive};
use burn_wgpu::{Vulkan, WgpuDevice};
use gpas_cube::{AdamStep, adam, sums_and_squares};

type B = Vulkan;

fn device() -> WgpuDevice {
    WgpuDevice::DefaultDevice
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<B, D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device())
}

/// A matrix whose rows are the beginnings of longer ones.
fn pitched(rows: usize, width: usize, stride: usize) -> Tensor<B, 2> {
    random([rows, stride]).narrow(1, 0, width)
}

fn erased<const D: usize>(tensor: &Tensor<B, D>) -> FloatTensor<B> {
    tensor.clone().into_primitive().tensor()
}

fn numbers<const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().expect("they are f32")
}

fn vector(tensor: FloatTensor<B>) -> Tensor<B, 1> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// More tensors than one launch takes, of sizes that no vector divides and of ones that are cut among many cubes.
fn matrices() -> Vec<Tensor<B, 2>> {
    let sizes = [1, 3, 255, 4097, 768, 64, 8, 30_000, 2_200_001];
    let flat = sizes.iter().map(|size| random([1, *size]));
    let gapless = (0..30).map(|index| random([index + 1, 24]));
    let gaps = [(50, 37, 64), (50, 36, 64), (7, 24, 30), (1, 5, 9)];
    let gaps = gaps.map(|(rows, width, stride)| pitched(rows, width, stride));
    let turned = random([40, 12]).transpose();
    flat.chain(gapless).chain(gaps).chain([turned]).collect()
}

#[test]
fn sums_of_squares_of_many_tensors() {
    let tensors = matrices();
    let single: Vec<Tensor<B, 1>> = (0..31).map(|_| random([1])).collect();
    let found = sums_and_squares::<B>(
        single.iter().map(erased).collect(),
        tensors.iter().map(erased).collect(),
    );
    let found = numbers(found.unwrap());
    assert_eq!(found.len(), single.len() + tensors.len());
    let expected: Vec<f32> = single.into_iter().flat_map(numbers).collect();
    assert_eq!(found[..31], expected, "a single number stays as it is");
    for (found, tensor) in found[31..].iter().zip(tensors) {
        let shape = tensor.dims();
        let expected: f64 = numbers(tensor).into_iter().map(|x| f64::from(x).powi(2)).sum();
        assert!(
            (f64::from(*found) / expected - 1.0).abs() < 1e-5,
            "{shape:?}: {found} against {expected}"
        );
    }
}

#[test]
fn sums_of_squares_are_the_same_every_time() {
    let tensors = matrices();
    let sums = || numbers(sums_and_squares::<B>(Vec::new(), tensors.iter().map(erased).collect()).unwrap());
    assert_eq!(sums(), sums());
}

#[test]
fn what_is_not_finite_shows_in_its_own_sum_alone() {
    let with = |value: f32| {
        let mut values = vec![1.0f32; 40_000];
        values[39_999] = value;
        Tensor::<B, 1>::from_floats(&values[..], &device())
    };
    let tensors = [
        with(1.0),
        with(f32::NAN),
        with(f32::NEG_INFINITY),
        with(3e19),
        with(2.0),
    ];
    let loss = Tensor::<B, 1>::from_floats([f32::NAN], &device());
    let found = sums_and_squares::<B>(vec![erased(&loss)], tensors.iter().map(erased).collect());
    let found = numbers(found.unwrap());
    assert!(found[0].is_nan() && found[2].is_nan(), "{found:?}");
    assert_eq!(found[1], 40_000.0);
    assert_eq!(found[3..], [f32::INFINITY, f32::INFINITY, 40_003.0]);
}

fn step(factor: f32, decay: f32, keep: f32) -> AdamStep {
    AdamStep {
        factor,
        decay,
        keep,
        betas: [0.9, 0.999],
        rest: [0.1, 0.001],
        step_size: 0.01,
        epsilon: 1e-8,
    }
}

/// The next w, m and v, and g is taken as it is; all flat.
fn expected(step: AdamStep, [w, m, v, g]: [Tensor<B, 1>; 4]) -> [Vec<f32>; 3] {
    let g = g * step.factor + w.clone() * step.decay;
    let m = m * step.betas[0] + g.clone() * step.rest[0];
    let v = v * step.betas[1] + g.square() * step.rest[1];
    let w = w * step.keep - m.clone() * step.step_size / (v.clone().sqrt() + step.epsilon);
    [w, m, v].map(numbers)
}

/// Clipped, with either kind of decay, over several updates, in place or not.
#[test]
fn adam_of_many_parameters() {
    let steps = [step(0.3, 0.0, 1.0), step(1.0, 0.1, 1.0), step(0.5, 0.0, 0.99)];
    let start = matrices();
    let flat = |tensor: &Tensor<B, 2>| tensor.clone().flatten::<1>(0, 1);
    let mut states: Vec<[FloatTensor<B>; 3]> = start
        .iter()
        .map(|weight| {
            let length = weight.shape().num_elements();
            let moments = [random([length]) * 0.1, random([length]).abs() * 0.2];
            let [first, second] = moments.map(|moment| moment.into_primitive().tensor());
            [erased(weight), first, second]
        })
        .collect();
    let kept = numbers(flat(&start[7]));
    for update in 0..3 {
        let gradients: Vec<_> = matrices();
        let mut parameters = Vec::new();
        let mut wanted = Vec::new();
        for (index, ([w, m, v], g)) in states.into_iter().zip(gradients).enumerate() {
            let step = steps[(index + update) % 3];
            let matrix = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(w));
            let (first, second) = (vector(m), vector(v));
            // Numbers that were copied to the host and back are nobody else's.
            let own = |tensor: Tensor<B, 1>| Tensor::<B, 1>::from_data(tensor.into_data(), &device());
            wanted.push(expected(
                step,
                [flat(&matrix), first.clone(), second.clone(), flat(&g)].map(own),
            ));
            let [m, v] = [first, second].map(|moment| moment.into_primitive().tensor());
            parameters.push((step, [matrix.into_primitive().tensor(), m, v, erased(&g)]));
        }
        states = adam::<B>(parameters).unwrap();
        let found = states.iter().map(|[w, m, v]| {
            let w = flat(&Tensor::from_primitive(TensorPrimitive::Float(w.clone())));
            [w, vector(m.clone()), vector(v.clone())].map(numbers)
        });
        for (index, (found, wanted)) in found.zip(wanted).enumerate() {
            for (found, wanted) in found.into_iter().zip(wanted) {
                assert_eq!(found.len(), wanted.len());
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
                assert!(found.iter().zip(&wanted).all(near), "tensor {index}, update {update}");
            }
        }
    }
    assert_eq!(
        numbers(flat(&start[7])),
        kept,
        "whoever holds a weight besides finds it as it was"
    );
}

#[test]
fn what_is_not_finite_reaches_its_own_weight_alone() {
    let gradient = Tensor::<B, 1>::from_floats([1.0, f32::NAN, 1.0, f32::INFINITY, 1.0], &device());
    let own = [random([5]), random([5]), random([5]).abs(), gradient].map(|tensor| tensor.into_primitive().tensor());
    let [[w, m, v]] = adam::<B>(vec![(step(1.0, 0.0, 1.0), own)]).unwrap().try_into().unwrap();
    for (moment, is_finite) in [
        (m, [true, false, true, false, true]),
        (v, [true, false, true, false, true]),
    ] {
        assert_eq!(
            numbers(vector(moment))
                .iter()
                .map(|x| x.is_finite())
                .collect::<Vec<_>>(),
            is_finite
        );
    }
    assert_eq!(
        numbers(vector(w)).iter().map(|x| x.is_nan()).collect::<Vec<_>>(),
        [false, true, false, true, false]
    );
}

#[test]
fn without_a_tensor_there_is_nothing_to_run() {
    assert!(sums_and_squares::<B>(Vec::new(), Vec::new()).is_none());
    assert!(adam::<B>(Vec::new()).is_none());
}
