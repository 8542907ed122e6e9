//! Products of a CUDA device by NVIDIA's library, against CubeCL's kernels and against a processor, and their times. Without a card, every
//! test says that it was skipped. On a machine with a card:
//! `cargo test --release -p gpas-cube --features cuda,cublas --test products -- --nocapture --test-threads 1`.

use std::time::Instant;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Tensor, TensorPrimitive};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use gpas_cube::{Products, product, product_into, products};

type Plain = CubeBackend<CudaRuntime, f32, i32, u8>;
type Primitive = CubeTensor<CudaRuntime>;

/// The card, if there is one. Where there is one, the library must be there too.
fn card() -> Option<CudaDevice> {
    let device = CudaDevice::default();
    match products(&device) {
        Products::CuBlasLt { .. } => Some(device),
        Products::CubeCl {
            why: gpas_cube::Why::NoDriver,
        } => {
            println!("skipped: no card");
            None
        }
        Products::CubeCl { why } => panic!("a card without the library: {why}"),
    }
}

/// Products that the library was given, and kinds that it refused.
fn counts(device: &CudaDevice) -> [usize; 2] {
    match products(device) {
        Products::CuBlasLt { done, refused, .. } => [done, refused],
        Products::CubeCl { why } => panic!("the library is gone: {why}"),
    }
}

fn random<const D: usize>(shape: [usize; D], format: DType, device: &CudaDevice) -> Tensor<Plain, D> {
    Tensor::<Plain, D>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(format)
}

fn primitive<const D: usize>(tensor: Tensor<Plain, D>) -> Primitive {
    tensor.into_primitive().tensor()
}

fn tensor<const D: usize>(primitive: Primitive) -> Tensor<Plain, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn numbers<const D: usize>(tensor: Tensor<Plain, D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().to_vec().expect("numbers")
}

/// The product on the processor.
fn expected<const D: usize>(a: &Tensor<Plain, D>, b: &Tensor<Plain, D>) -> Vec<f64> {
    let ([m, k], n) = ([a.dims()[D - 2], a.dims()[D - 1]], b.dims()[D - 1]);
    let batches = a.dims()[..D - 2].iter().product::<usize>();
    let (a, b) = (numbers(a.clone()), numbers(b.clone()));
    let is_shared = b.len() == k * n;
    let mut result = vec![0.0; batches * m * n];
    for (place, value) in result.iter_mut().enumerate() {
        let (batch, row, column) = (place / (m * n), place / n % m, place % n);
        let b_start = if is_shared { 0 } else { batch * k * n };
        *value = (0..k)
            .map(|inner| a[(batch * m + row) * k + inner] * b[b_start + inner * n + column])
            .sum();
    }
    result
}

/// The largest difference over the largest number; NaN if any number is.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let differences = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found - expected).abs());
    let worst = differences.fold(
        0.0f64,
        |worst, next| if next > worst || next.is_nan() { next } else { worst },
    );
    worst / scale
}

/// How far the rounding of a result in a format may be from it, over the largest number.
fn tolerance(result: DType) -> f64 {
    match result {
        DType::F32 => 3e-6,
        DType::F16 => 1e-3,
        _ => 8e-3,
    }
}

#[track_caller]
fn assert_right<const D: usize>(a: Tensor<Plain, D>, b: Tensor<Plain, D>, result: DType, name: &str) {
    let device = a.device();
    let before = counts(&device);
    let expected = expected(&a, &b);
    // Once to ask, once to put it into the queue.
    for _ in 0..2 {
        let found = numbers(tensor::<D>(product(primitive(a.clone()), primitive(b.clone()), result)));
        let difference = difference(&found, &expected);
        assert!(difference < tolerance(result), "{name} in {result:?}: {difference}");
    }
    let after = counts(&device);
    assert!(after[0] >= before[0] + 2, "{name} in {result:?} is not the library's");
}

#[test]
fn values_in_every_format_and_layout() {
    let Some(device) = card() else { return };
    let formats = [
        (DType::F32, DType::F32),
        (DType::BF16, DType::BF16),
        (DType::BF16, DType::F32),
        (DType::F16, DType::F16),
        (DType::F16, DType::F32),
    ];
    for (factors, result) in formats {
        let random2 = |rows, columns| random([rows, columns], factors, &device);
        for [m, n, k] in [
            [64, 96, 128],
            [37, 53, 61],
            [1, 96, 128],
            [300, 1, 40],
            [8, 16, 1],
            [256, 136, 2736],
        ] {
            assert_right(random2(m, k), random2(k, n), result, "by rows");
            assert_right(random2(k, m).transpose(), random2(k, n), result, "a transposed");
            assert_right(random2(m, k), random2(n, k).transpose(), result, "b transposed");
            assert_right(
                random2(k, m).transpose(),
                random2(n, k).transpose(),
                result,
                "both transposed",
            );
        }
        let cut = random2(80, 200).slice([8..72, 64..192]);
        assert_right(cut, random2(128, 40), result, "cut out");
        let random3 = |shape| random::<3>(shape, factors, &device);
        assert_right(random3([6, 33, 48]), random3([6, 48, 65]), result, "batches");
        assert_right(
            random3([6, 33, 48]),
            random3([6, 65, 48]).swap_dims(1, 2),
            result,
            "batches, b transposed",
        );
        assert_right(
            random3([6, 33, 48]),
            random3([1, 48, 65]),
            result,
            "one b for all batches",
        );
    }
}

#[test]
fn sums() {
    let Some(device) = card() else { return };
    for factors in [DType::F32, DType::BF16, DType::F16] {
        let (a, b) = (
            random([500, 72], factors, &device),
            random([500, 104], factors, &device),
        );
        let part = expected(&a.clone().transpose(), &b);
        let sum = primitive(Tensor::<Plain, 2>::ones([72, 104], &device));
        let before = counts(&device);
        for _ in 0..3 {
            product_into(primitive(a.clone().transpose()), primitive(b.clone()), &sum);
        }
        assert!(counts(&device)[0] >= before[0] + 3, "sums are not the library's");
        let expected: Vec<f64> = part.iter().map(|part| 1.0 + 3.0 * part).collect();
        let difference = difference(&numbers(tensor::<2>(sum)), &expected);
        assert!(difference < 1e-5, "{factors:?}: {difference}");
    }
}

/// Products between kernels, with memory that is dropped and used again at once: the same numbers every time, and CubeCL's.
#[test]
fn order() {
    let Some(device) = card() else { return };
    let start = random([512, 256], DType::F32, &device);
    let weights: Vec<_> = (0..8).map(|_| random([256, 256], DType::F32, &device) / 16.0).collect();
    let run = |multiply: &dyn Fn(Primitive, Primitive) -> Primitive| {
        let mut x = start.clone();
        for step in 0..200 {
            let weight = weights[step % weights.len()].clone();
            let weight = if step % 2 == 0 { weight } else { weight.transpose() };
            // A kernel before, whose result dies with the product, and one after.
            let before = x.clone() * 0.9 + 0.01;
            let product: Tensor<Plain, 2> = tensor(multiply(primitive(before), primitive(weight)));
            let waste = product.clone().exp() * 3.0;
            x = (product * 0.5).tanh() + x * 0.5;
            drop(waste);
        }
        numbers(x)
    };
    let library = || run(&|a, b| product(a, b, DType::F32));
    let first = library();
    for _ in 0..5 {
        assert_eq!(
            library(),
            first,
            "another order of additions, or another order of launches"
        );
    }
    let cubecl = run(&|a, b| matmul(a, b, None, MatmulStrategy::default(), DType::F32).unwrap());
    // CubeCL may round factors to TF32.
    let difference = difference(&first, &cubecl);
    assert!(difference < 2e-2, "{difference}");
}

/// Products of several threads, which may be on several streams.
#[test]
fn threads() {
    let Some(device) = card() else { return };
    let (a, b) = (
        random([200, 300], DType::F32, &device),
        random([300, 100], DType::F32, &device),
    );
    let expected = expected(&a, &b);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let x = a.clone() * 2.0;
                    let found = numbers(tensor::<2>(product(primitive(x), primitive(b.clone()), DType::F32)) * 0.5);
                    let difference = difference(&found, &expected);
                    assert!(difference < 3e-6, "{difference}");
                }
            });
        }
    });
}

/// Numbers that are none go through.
#[test]
fn nan_and_infinity() {
    let Some(device) = card() else { return };
    for format in [DType::F32, DType::BF16] {
        let ones = Tensor::<Plain, 2>::ones([32, 32], &device);
        let a = ones
            .clone()
            .slice_fill([0..1, 0..1], f32::NAN)
            .slice_fill([1..2, 0..1], f32::INFINITY);
        let (a, b) = (a.cast(format), ones.cast(format));
        let found = numbers(tensor::<2>(product(primitive(a), primitive(b), format)));
        assert!(found[..32].iter().all(|value| value.is_nan()));
        assert!(found[32..64].iter().all(|value| *value == f64::INFINITY));
        assert!(found[64..].iter().all(|value| *value == 32.0));
    }
}

/// The products of 130m at 64 × 256 tokens in bf16, each with what PyTorch's call of the same library took on an H100.
#[test]
fn times() {
    let Some(device) = card() else { return };
    println!("{}", products(&device));
    println!("m × n × k | library µs | TFLOP/s | CubeCL, not tuned µs | through PyTorch on an H100 µs");
    let shapes = [
        ([16384, 768, 768], Some(33)),
        ([16384, 2048, 768], Some(76)),
        ([16384, 768, 2048], Some(71)),
        ([768, 2048, 16384], Some(101)),
        ([262, 32000, 768], Some(30)),
        ([768, 32000, 262], Some(76)),
        ([2048, 32000, 768], Some(156)),
        ([2048, 768, 32000], None),
        ([8192, 8192, 8192], Some(1439)),
    ];
    for ([m, n, k], known) in shapes {
        let (a, b) = (
            random([m, k], DType::BF16, &device),
            random([k, n], DType::BF16, &device),
        );
        let (a, b) = (primitive(a), primitive(b));
        let time = |multiply: &dyn Fn() -> Primitive, times: u32| {
            // The first ones choose, compile and warm up.
            (0..3).for_each(|_| drop(multiply()));
            Plain::sync(&device).unwrap();
            let start = Instant::now();
            (0..times).for_each(|_| drop(multiply()));
            Plain::sync(&device).unwrap();
            start.elapsed().as_secs_f64() * 1e6 / f64::from(times)
        };
        let library = time(&|| product(a.clone(), b.clone(), DType::BF16), 100);
        let cubecl = || matmul(a.clone(), b.clone(), None, MatmulStrategy::default(), DType::BF16).unwrap();
        let cubecl = time(&cubecl, 10);
        let rate = 2.0 * (m * n * k) as f64 / library / 1e6;
        let known = known.map_or("–".to_owned(), |known| known.to_string());
        println!("{m} × {n} × {k} | {library:.0} | {rate:.0} | {cubecl:.0} | {known}");
    }
    let [_, refused] = counts(&device);
    println!("{refused} kinds refused");
}
