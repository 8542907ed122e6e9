//! Every kernel against the tensor operations that it stands for, in values and gradients, on Vulkan, whose software driver will do.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Tensor};
use burn_wgpu::{Vulkan, WgpuDevice};

type Plain = Vulkan;
type Tracked = Autodiff<Plain>;

fn device() -> WgpuDevice {
    WgpuDevice::DefaultDevice
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<Tracked, D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device()).require_grad()
}

/// The largest difference of two tensors over the largest number of the second; NaN if any number is.
fn difference<const D: usize>(found: Tensor<Plain, D>, expected: Tensor<Plain, D>) -> f32 {
    let [found, expected] =
        [found, expected].map(|tensor| tensor.into_data().convert::<f32>().to_vec::<f32>().expect("f32"));
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let worst = |worst: f32, difference: f32| {
        if difference > worst || difference.is_nan() {
            difference
        } else {
            worst
        }
    };
    found
        .iter()
        .zip(&expected)
        .map(|(found, expected)| (found - expected).abs())
        .fold(0.0, worst)
        / scale
}

#[track_caller]
fn assert_close<const D: usize>(found: Tensor<Plain, D>, expected: Tensor<Plain, D>, name: &str) {
    let difference = difference(found, expected);
    assert!(difference < 1e-5, "{name}: {difference}");
}

/// The largest difference that rounding to half precision makes, over the largest number.
const ROUNDED: f32 = 4e-3;

fn narrow<const D: usize>(x: &Tensor<Tracked, D>) -> Tensor<Tracked, D> {
    x.clone().cast(DType::F16)
}

#[track_caller]
fn assert_rounded<const D: usize>(found: Tensor<Plain, D>, expected: Tensor<Plain, D>, name: &str) {
    let difference = difference(found, expected);
    assert!(difference < ROUNDED, "{name}: {difference}");
    assert!(difference > 0.0, "{name}: nothing was rounded");
}

/// The number formats of a step whose products are narrow: the stream and the weights in f32, what lies between products as narrow as they
/// are. Half precision stands for bfloat16, which the software driver lacks.
#[test]
fn narrow_formats() {
    if !<Plain as Backend>::supports_dtype(&device(), DType::F16) {
        return println!("skipped: the device has no half precision");
    }
    let (rows, width) = (40, 48);
    let x = random([1, rows, width]);
    let (weight, branch, upstream) = (
        random([width]),
        random([1, rows, width]),
        random([1, rows, width]).detach(),
    );

    // A norm that writes what the next product reads.
    let plain = {
        let mean = x.clone().square().mean_dim(2);
        x.clone() * (mean + 1e-6).sqrt().recip() * weight.clone().reshape([1, 1, width])
    };
    let fused = gpas_cube::norm(&x, &weight, 1e-6, 1.0, DType::F16).expect("it runs here");
    assert_eq!(fused.dtype(), DType::F16);
    let fused = fused.cast(DType::F32);
    assert_rounded(fused.clone().inner(), plain.clone().inner(), "norm");
    let [fused, plain] = [fused, plain].map(|y| (y * upstream.clone()).sum().backward());
    for (found, expected, name) in [(x.grad(&fused), x.grad(&plain), "x of the norm")] {
        assert_rounded(found.expect("a gradient"), expected.expect("a gradient"), name);
    }

    // A stream in f32 with a narrow branch.
    let amount = Tensor::<Tracked, 1>::from_floats([0.3], &device()).require_grad();
    let plain = (x.clone() + branch.clone()) * 0.7;
    let fused = gpas_cube::gated_sum(&x, &narrow(&branch), &amount).expect("it runs here");
    assert_eq!(fused.dtype(), DType::F32);
    assert_rounded(fused.clone().inner(), plain.inner(), "gated sum");
    let found = (fused * upstream.clone()).sum().backward();
    let of_branch = branch.grad(&found).expect("a gradient");
    assert_rounded(of_branch, upstream.clone().inner(), "branch of the gated sum");

    // A narrow input, weights in f32; and SwiGLU of what comes out.
    let weights = [24, 24].map(|outputs| random([width, outputs]));
    let input = random([rows, width]);
    let plain = {
        let [a, b] = weights.each_ref().map(|weight| input.clone().matmul(weight.clone()));
        burn::tensor::activation::silu(a) * b
    };
    let both = gpas_cube::linear(&narrow(&input), &weights).expect("it runs here");
    let fused = gpas_cube::swiglu(&both).expect("it runs here").cast(DType::F32);
    assert_rounded(fused.clone().inner(), plain.clone().inner(), "projections and SwiGLU");
    let upstream = random([rows, 24]).detach();
    let [fused, plain] = [fused, plain].map(|y| (y * upstream.clone()).sum().backward());
    for (leaf, name) in [
        (&input, "input"),
        (&weights[0], "weight"),
        (&weights[1], "other weight"),
    ] {
        let [found, expected] = [&fused, &plain].map(|gradients| leaf.grad(gradients).expect("a gradient"));
        assert_rounded(found, expected, name);
    }
}

#[test]
fn norm() {
    for [rows, width] in [[7, 24], [300, 768], [5, 37], [1, 4100]] {
        let (x, weight) = (random([1, rows, width]), random([width]));
        let upstream = random([1, rows, width]).detach();
        let plain = {
            let mean = x.clone().square().mean_dim(2);
            x.clone() * (mean + 1e-6).sqrt().recip() * weight.clone().reshape([1, 1, width]) * 0.5 + x.clone()
        };
        let fused = gpas_cube::norm(&x, &weight, 1e-6, 0.5, DType::F32).unwrap() + x.clone();
        assert_close(fused.clone().inner(), plain.clone().inner(), "y");
        let [fused, plain] = [fused, plain].map(|y| (y * upstream.clone()).sum().backward());
        assert_close(x.grad(&fused).unwrap(), x.grad(&plain).unwrap(), "x");
        assert_close(weight.grad(&fused).unwrap(), weight.grad(&plain).unwrap(), "weight");
    }
}

#[test]
fn gated_sum() {
    for shape in [[2, 9, 24], [1, 700, 37], [3, 5, 300]] {
        let (x, branch) = (random(shape), random(shape));
        let amount = Tensor::<Tracked, 1>::from_floats([0.3], &device()).require_grad();
        let upstream = random(shape).detach();
        let plain = {
            let sum = x.clone() + branch.clone();
            sum.clone() - sum.detach() * amount.clone().reshape([1, 1, 1]).expand([shape[0], shape[1], 1])
        };
        let fused = gpas_cube::gated_sum(&x, &branch, &amount).unwrap();
        assert_close(fused.clone().inner(), plain.clone().inner(), "y");
        let [fused, plain] = [fused, plain].map(|y| (y * upstream.clone()).sum().backward());
        assert_close(x.grad(&fused).unwrap(), x.grad(&plain).unwrap(), "x");
        assert_close(branch.grad(&fused).unwrap(), branch.grad(&plain).unwrap(), "branch");
        assert_close(amount.grad(&fused).unwrap(), amount.grad(&plain).unwrap(), "amount");
    }
}

#[test]
fn swiglu() {
    for [rows, width] in [[5, 24], [33, 37], [300, 100]] {
        let both = random([rows, 2 * width]);
        let upstream = random([rows, width]).detach();
        let halves = [0, width].map(|start| both.clone().narrow(1, start, width));
        let [a, b] = halves;
        let plain = burn::tensor::activation::silu(a) * b;
        let fused = gpas_cube::swiglu(&both).unwrap();
        assert_close(fused.clone().inner(), plain.clone().inner(), "y");
        let [fused, plain] = [fused, plain].map(|y| (y * upstream.clone()).sum().backward());
        assert_close(both.grad(&fused).unwrap(), both.grad(&plain).unwrap(), "both");
    }
}

#[test]
fn linear() {
    for widths in [[24, 24, 24], [48, 16, 16], [37, 11, 5]] {
        let x = random([50, 32]);
        let weights = widths.map(|width| random([32, width]));
        let all: usize = widths.iter().sum();
        let upstream = random([50, all]).detach();
        let plain = Tensor::cat(
            weights.iter().map(|weight| x.clone().matmul(weight.clone())).collect(),
            1,
        );
        let fused = gpas_cube::linear(&x, &weights).unwrap();
        assert_close(fused.clone().inner(), plain.clone().inner(), "y");
        let [fused, plain] = [fused, plain].map(|y| (y * upstream.clone()).sum().backward());
        assert_close(x.grad(&fused).unwrap(), x.grad(&plain).unwrap(), "x");
        for weight in &weights {
            assert_close(weight.grad(&fused).unwrap(), weight.grad(&plain).unwrap(), "weight");
        }
    }
}
