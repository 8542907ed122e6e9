//! Products by a card and a library that are pretended on the processor (`pretended/card.c`): every call that the code for NVIDIA's library
//! makes, with CubeCL's own server, its memory and its thread, and the order of it all. What a real card makes of the calls is for `products.rs`.
//!
//! A test runs itself once more with the pretended libraries where the system looks for libraries. No kernel runs there, so tensors are
//! uploaded and read as they are. Where the system has NVIDIA's compiler of kernels, NVRTC, and CUDA's headers (`CUDA_PATH`), every kernel of
//! this crate is compiled by it, in all number formats of a training.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::zspace::metadata::Metadata;
use cubecl::zspace::strides;
use gpas_cube::{Products, Why, product, product_into, products};

type Plain = CubeBackend<CudaRuntime, f32, i32, u8>;
type Primitive = CubeTensor<CudaRuntime>;

/// The directory with the pretended libraries; none without a compiler for C.
fn libraries() -> Option<&'static Path> {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = DIRECTORY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pretended");
        std::fs::create_dir_all(&directory).expect("a directory for the libraries");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pretended/card.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", "-o"]);
        let status = compiler
            .arg(directory.join("libcuda.so"))
            .args([source, "-lpthread"])
            .status()
            .ok()?;
        assert!(status.success(), "the pretended card does not compile");
        let library = directory.join("libcublasLt.so");
        let _ = std::fs::remove_file(&library);
        // One file by two names is loaded once.
        std::os::unix::fs::symlink("libcuda.so", &library).expect("a second name");
        Some(directory)
    });
    built.as_deref()
}

/// Runs a test of this file with the pretended card, which has a fault; says whether it passed.
#[track_caller]
fn passes(test: &str, fault: &str) -> bool {
    let Some(libraries) = libraries() else {
        println!("skipped: no compiler for C");
        return true;
    };
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([test, "--exact", "--ignored", "--nocapture"]);
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths = [libraries.to_path_buf()]
        .into_iter()
        .chain(std::env::split_paths(&others));
    let output = command
        .env("LD_LIBRARY_PATH", std::env::join_paths(paths).expect("paths"))
        .env("PRETEND", fault)
        .output()
        .expect("this program runs");
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(said.contains("running 1 test"), "{said}");
    println!("{said}{errors}");
    output.status.success()
}

#[test]
fn values_are_right() {
    assert!(passes("pretended_layouts", ""));
}

#[test]
fn order_is_kept() {
    assert!(passes("pretended_chain", ""));
    assert!(passes("pretended_threads", ""));
}

#[test]
fn order_is_kept_if_the_driver_cannot_wait() {
    assert!(passes("pretended_chain", "waits fail"));
}

#[test]
fn the_pretended_card_sees_an_order_that_is_not_kept() {
    if libraries().is_some() {
        assert!(!passes("pretended_chain", "no waits"));
    }
}

#[test]
fn a_refusal_is_counted() {
    assert!(passes("pretended_refusal", "refuses"));
}

#[test]
fn a_late_failure_is_nan() {
    assert!(passes("pretended_failure", "fails late"));
}

#[test]
fn an_old_driver_is_said() {
    assert!(passes("pretended_old_driver", "old driver"));
}

/// Whether kernels can be compiled here for NVIDIA's cards.
fn has_compiler() -> bool {
    // SAFETY: the library is looked for, and nothing of it is called.
    let is_there = unsafe { cudarc::nvrtc::sys::is_culib_present() };
    is_there && std::env::var_os("CUDA_PATH").is_some()
}

#[test]
fn kernels_compile_for_cards_of_nvidia() {
    if !has_compiler() {
        return println!("skipped: no NVRTC, or no CUDA_PATH");
    }
    assert!(passes("pretended_kernels", ""));
}

/// Numbers that all formats have.
fn wave(count: usize, start: f64) -> Vec<f32> {
    let number = |place: usize| ((place as f64 * 0.713 + start).sin() * 8.0).round() as f32 / 8.0;
    (0..count).map(number).collect()
}

fn upload<const D: usize>(shape: [usize; D], values: &[f32], format: DType) -> Primitive {
    let data = TensorData::new(values.to_vec(), Shape::new(shape)).convert_dtype(format);
    let tensor = Tensor::<Plain, D>::from_data(data, (&CudaDevice::default(), format));
    tensor.into_primitive().tensor()
}

fn download(tensor: &Primitive) -> Vec<f64> {
    let (shape, size) = (tensor.meta.shape(), tensor.dtype.size());
    let (width, pitch) = (shape[shape.len() - 1], tensor.meta.strides()[shape.len() - 2]);
    let bytes = tensor.client.read_one(tensor.handle.clone()).expect("memory");
    let row = |row: usize| {
        let bytes = bytes[row * pitch * size..][..width * size].to_vec();
        let data = TensorData::from_bytes_vec(bytes, Shape::new([width]), tensor.dtype);
        data.convert::<f64>().to_vec::<f64>().expect("numbers")
    };
    (0..shape.num_elements() / width).flat_map(row).collect()
}

fn swapped(mut tensor: Primitive, swaps: bool) -> Primitive {
    if swaps {
        let rank = tensor.meta.num_dims();
        tensor.meta.swap(rank - 2, rank - 1);
    }
    tensor
}

/// The products of matrices `[m, k]` and `[k, n]`, either of which may be stored as its transpose.
fn expected(a: &[f32], b: &[f32], transposed: [bool; 2], [m, n, k]: [usize; 3]) -> Vec<f64> {
    let batches = a.len() / (m * k);
    let mut result = vec![0.0; batches * m * n];
    for (place, value) in result.iter_mut().enumerate() {
        let (batch, row, column) = (place / (m * n), place / n % m, place % n);
        let term = |inner: usize| {
            let in_a = if transposed[0] {
                inner * m + row
            } else {
                row * k + inner
            };
            let in_b = if transposed[1] {
                column * k + inner
            } else {
                inner * n + column
            };
            f64::from(a[batch * m * k + in_a]) * f64::from(b[batch * k * n + in_b])
        };
        *value = (0..k).map(term).sum();
    }
    result
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1e-9f64, |most, value| most.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs() / scale;
        assert!(difference < tolerance, "{found} for {expected}");
    }
}

/// Products that the library was given, and kinds that it refused.
#[track_caller]
fn counts() -> [usize; 2] {
    match products(&CudaDevice::default()) {
        Products::CuBlasLt { done, refused, .. } => [done, refused],
        other => panic!("{other}"),
    }
}

#[test]
#[ignore = "run by others, with the pretended card"]
fn pretended_layouts() {
    let formats = [
        (DType::F32, DType::F32),
        (DType::BF16, DType::BF16),
        (DType::BF16, DType::F32),
        (DType::F16, DType::F16),
        (DType::F16, DType::F32),
    ];
    let mut asked = 0;
    for (factors, result) in formats {
        let tolerance = if result == DType::F32 { 1e-6 } else { 8e-3 };
        for [m, n, k] in [[3, 5, 4], [37, 53, 61], [1, 9, 7], [9, 1, 7], [5, 6, 1], [1, 1, 1]] {
            for case in 0..8 {
                let (transposed, batches) = ([case & 1 > 0, case & 2 > 0], if case & 4 > 0 { 3 } else { 1 });
                let (a, b) = (wave(batches * m * k, 1.0), wave(batches * k * n, 2.0));
                let a_shape = if transposed[0] {
                    [batches, k, m]
                } else {
                    [batches, m, k]
                };
                let b_shape = if transposed[1] {
                    [batches, n, k]
                } else {
                    [batches, k, n]
                };
                let expected = expected(&a, &b, transposed, [m, n, k]);
                // Once to ask, once to put it into the queue.
                for _ in 0..2 {
                    let factor = |shape, values, swaps| swapped(upload(shape, values, factors), swaps);
                    let (a, b) = (factor(a_shape, &a, transposed[0]), factor(b_shape, &b, transposed[1]));
                    let found = download(&product(a, b, result));
                    asked += 1;
                    assert_close(&found, &expected, tolerance);
                }
            }
        }
    }
    let values = wave(80 * 200, 1.0);
    let mut cut = upload([80, 200], &values, DType::BF16);
    let pitch = cut.meta.strides()[0];
    cut.handle = cut.handle.offset_start((8 * pitch as u64 + 3) * 2);
    *cut.meta = Metadata::new(Shape::new([64, 128]), strides![pitch, 1]);
    let found = download(&product(
        cut,
        upload([128, 40], &wave(128 * 40, 2.0), DType::BF16),
        DType::F32,
    ));
    let cut: Vec<f32> = (8..72)
        .flat_map(|row| values[row * 200 + 3..][..128].to_vec())
        .collect();
    assert_close(
        &found,
        &expected(&cut, &wave(128 * 40, 2.0), [false; 2], [64, 40, 128]),
        1e-6,
    );
    assert_eq!(counts(), [asked + 1, 0], "all of them are the library's");
}

#[test]
#[ignore = "run by others, with the pretended card"]
fn pretended_chain() {
    const SIZES: [usize; 3] = [32; 3];
    let square = |values: &[f32]| upload([32, 32], values, DType::F32);
    let weights: Vec<f32> = wave(32 * 32, 3.0).iter().map(|value| value / 8.0).collect();
    let mut x_expected = wave(32 * 32, 4.0);
    let mut sum_expected = vec![1.0; 32 * 32];
    let (mut x, sum) = (square(&x_expected), square(&[1.0; 32 * 32]));
    for step in 0..200 {
        let weight: Vec<f32> = weights.iter().map(|value| value * (1 + step % 3) as f32).collect();
        x = product(x, square(&weight), DType::F32);
        let next = expected(&x_expected, &weight, [false; 2], SIZES);
        x_expected = next.iter().map(|value| *value as f32).collect();
        // The memory of these is used again at once.
        drop(square(&[f32::NAN; 32 * 32]));
        if step % 2 == 0 {
            assert!(sum.can_mut(), "products that wait in the queue are no handles of a sum");
            product_into(swapped(x.clone(), true), square(&weight), &sum);
            let parts = expected(&x_expected, &weight, [true, false], SIZES);
            sum_expected.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        }
    }
    assert_eq!(counts(), [300, 0]);
    let x_expected: Vec<f64> = x_expected.iter().map(|value| f64::from(*value)).collect();
    assert_close(&download(&x), &x_expected, 1e-4);
    assert_close(&download(&sum), &sum_expected, 1e-4);
}

type Fused = burn_cuda::Cuda;
type Tracked = burn::backend::Autodiff<Fused>;

fn leaf<const D: usize>(shape: [usize; D], format: DType) -> Tensor<Tracked, D> {
    let values = wave(shape.iter().product(), 0.0);
    Tensor::from_data(TensorData::new(values, shape), (&CudaDevice::default(), format)).require_grad()
}

/// Back to every leaf, and until the card has done it.
fn pull_back<const D: usize, const N: usize>(y: Tensor<Tracked, D>, leaves: [Tensor<Tracked, N>; 2]) {
    let gradients = y.sum().backward();
    for leaf in leaves {
        drop(leaf.grad(&gradients).expect("a gradient").into_data());
    }
}

/// Every operation, forward and backward, with rows of one number and of many to a load.
#[test]
#[ignore = "run by others, with the pretended card"]
fn pretended_kernels() {
    const FORMATS: [[DType; 2]; 3] = [[DType::F32; 2], [DType::F32, DType::BF16], [DType::BF16; 2]];
    for ([stream, narrow], width) in FORMATS
        .into_iter()
        .flat_map(|formats| [96, 66].map(|width| (formats, width)))
    {
        let (x, weight) = (leaf([2, 20, width], stream), leaf([width], stream));
        let y = gpas_cube::norm(&x, &weight, 1e-6, 1.0, narrow).expect("CUDA has the kernels");
        let more = y.cast(stream) + x.clone();
        let gradients = more.sum().backward();
        drop((
            x.grad(&gradients).map(Tensor::into_data),
            weight.grad(&gradients).map(Tensor::into_data),
        ));

        let (branch, amount) = (leaf([2, 20, width], narrow), leaf([1], stream));
        let y = gpas_cube::gated_sum(&x, &branch, &amount).expect("CUDA has the kernels");
        let gradients = y.sum().backward();
        drop((
            branch.grad(&gradients).map(Tensor::into_data),
            amount.grad(&gradients).map(Tensor::into_data),
        ));

        let weights = [3 * width, width, width].map(|outputs| leaf([width, outputs], stream));
        let input = leaf([40, width], narrow);
        let both = gpas_cube::linear(&input, &[weights[1].clone(), weights[2].clone()]).expect("CUDA has the kernels");
        let gated = gpas_cube::swiglu(&both).expect("CUDA has the kernels");
        pull_back(gated, [weights[1].clone(), weights[2].clone()]);
        let one = gpas_cube::linear(&input, std::array::from_ref(&weights[0])).expect("CUDA has the kernels");
        pull_back(one, [input.clone(), weights[0].clone()]);

        // Weights that are kept, and such as are computed again.
        for (heads, kv_heads, seq) in [(2, 2, 20), (2, 1, 20), (1, 1, 400)] {
            let head_dim = 2 * (width / 6);
            let projected = leaf([seq, (heads + 2 * kv_heads) * head_dim], narrow);
            let tables = [leaf([seq, head_dim], DType::F32), leaf([seq, head_dim], DType::F32)].map(Tensor::detach);
            let mixed =
                gpas_cube::causal_attention(&projected, &tables, heads, kv_heads).expect("CUDA has the kernels");
            pull_back(mixed, [projected.clone(), projected]);
        }

        let table = leaf([50, width], stream);
        let ids = Tensor::<Tracked, 2, burn::tensor::Int>::zeros([4, 10], &CudaDevice::default());
        let rows = gpas_cube::embed(&table, &ids).expect("CUDA has the kernels");
        pull_back(rows, [table.clone(), table]);

        let (hidden, head) = (
            leaf([40, width], DType::F32).inner(),
            leaf([width, 50], DType::F32).inner(),
        );
        let targets = ids.flatten::<1>(0, 1).inner();
        let losses = gpas_cube::token_losses(&hidden, &head, &targets, -100, narrow).expect("CUDA has the kernels");
        drop(losses.into_data());
        let sum = Some(leaf([width, 50], stream).inner());
        let found = gpas_cube::loss_with_gradients(&hidden, &head, &targets, -100, 40, narrow, sum);
        let found = found.expect("CUDA has the kernels");
        drop((
            found.loss.into_data(),
            found.hidden.into_data(),
            found.weight.into_data(),
        ));
        updates(stream);
    }
}

/// Adam, and the sums of a step, of parameters in a format.
fn updates(format: DType) {
    let step = gpas_cube::AdamStep {
        factor: 1.0,
        decay: 0.0,
        keep: 1.0,
        betas: [0.9, 0.999],
        rest: [0.1, 0.001],
        step_size: 0.1,
        epsilon: 1e-8,
    };
    let tensor = |count: usize| leaf([count], format).inner().into_primitive().tensor();
    let parameters = [7, 64, 1000].map(|count| (step, [(); 4].map(|()| tensor(count))));
    let next = gpas_cube::adam::<Fused>(parameters.into()).expect("CUDA has the kernels");
    for primitive in next.into_iter().flatten() {
        let updated = Tensor::<Fused, 1>::from_primitive(burn::tensor::TensorPrimitive::Float(primitive));
        drop(updated.into_data());
    }
    let sums = gpas_cube::sums_and_squares::<Fused>(vec![tensor(1)], vec![tensor(64), tensor(999)]);
    drop(sums.expect("CUDA has the kernels").into_data());
}

#[test]
#[ignore = "run by others, with the pretended card"]
fn pretended_threads() {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for step in 0..50 {
                    let (a, b) = (wave(20 * 30, f64::from(50 * thread + step)), wave(30 * 10, 2.0));
                    let expected = expected(&a, &b, [false; 2], [20, 10, 30]);
                    let [a, b] = [upload([20, 30], &a, DType::F32), upload([30, 10], &b, DType::F32)];
                    assert_close(&download(&product(a, b, DType::F32)), &expected, 1e-6);
                }
            });
        }
    });
    assert_eq!(counts(), [200, 0]);
}

#[test]
#[ignore = "run by others, with the pretended card"]
fn pretended_refusal() {
    let square = || upload([8, 8], &[1.0; 64], DType::F32);
    // CubeCL's kernel is asked for, which cannot be compiled here.
    drop(product(square(), square(), DType::F32));
    drop(product(square(), square(), DType::F32));
    assert_eq!(counts(), [0, 1]);
}

#[test]
#[ignore = "run by others, with the pretended card"]
fn pretended_failure() {
    let square = || upload([8, 8], &[1.0; 64], DType::F32);
    let found = [(); 3].map(|()| download(&product(square(), square(), DType::F32)));
    assert!(found[..2].iter().flatten().all(|value| *value == 8.0));
    assert!(found[2].iter().all(|value| value.is_nan()));
    assert_eq!(counts()[1], 1, "the library is not given that kind again");
}

#[test]
#[ignore = "run by others, with the pretended card"]
fn pretended_old_driver() {
    let why = Why::OldDriver { version: 12_040 };
    assert_eq!(products(&CudaDevice::default()), Products::CubeCl { why });
}
