//! The table of backends, from another crate: a backend that gpas-host knows nothing of joins by one line, and runs the fast operations.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use burn_ndarray::{NdArray, NdArrayTensor};
use gpas_host::HostMemory;
use gpas_host::check::assert_close;

/// NdArray has a row with integers of 64 bits only.
type Third = NdArray<f32, i32>;

#[derive(Debug)]
struct ThirdMemory;

impl HostMemory for ThirdMemory {
    type Backend = Third;

    fn floats(tensor: &FloatTensor<Third>) -> Option<&[f32]> {
        match tensor {
            NdArrayTensor::F32(array) => array.view().to_slice(),
            _ => None,
        }
    }

    fn floats_mut(tensor: &mut FloatTensor<Third>) -> Option<&mut [f32]> {
        match tensor {
            NdArrayTensor::F32(array) => array.ensure_owned().as_slice_mut(),
            _ => None,
        }
    }
}

gpas_host::backend!(ThirdMemory);

/// A backend that nobody has opted in.
type Fourth = NdArray<f32, i16>;

#[test]
fn a_backend_runs_if_it_has_a_row() {
    assert!(gpas_host::runs::<Flex>() && gpas_host::runs::<Autodiff<Flex>>());
    assert!(gpas_host::runs::<Third>() && gpas_host::runs::<Autodiff<Third>>());
    assert!(!gpas_host::runs::<Fourth>() && !gpas_host::runs::<Autodiff<Fourth>>());
    let x = Tensor::<Fourth, 2>::ones([2, 3], &Default::default());
    assert!(gpas_host::sum(&x, &x).is_none());
}

/// Burn computes some operations again under this strategy. The fused ones keep their inputs, so they leave it to the tensor operations.
#[test]
fn balanced_checkpointing_is_left_to_tensor_operations() {
    type Balanced = Autodiff<Flex, BalancedCheckpointing>;
    assert!(!gpas_host::runs::<Balanced>());
    let x = Tensor::<Balanced, 2>::ones([2, 3], &Default::default()).require_grad();
    assert!(gpas_host::sum(&x, &x).is_none());
}

/// The sum and the gradients of a norm's input and weight.
fn norm<B: AutodiffBackend>(
    compute: impl Fn(&Tensor<B, 2>, &Tensor<B, 1>) -> Tensor<B, 2>,
) -> [Tensor<B::InnerBackend, 2>; 3] {
    let numbers = |count: usize| {
        (0..count)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0)
            .collect::<Vec<_>>()
    };
    let device = B::Device::default();
    let x = Tensor::<B, 2>::from_data(TensorData::new(numbers(70 * 33), [70, 33]), &device).require_grad();
    let weight = Tensor::<B, 1>::from_data(TensorData::new(numbers(33), [33]), &device).require_grad();
    let upstream = Tensor::<B, 2>::from_data(TensorData::new(numbers(70 * 33), [70, 33]), &device).flip([0, 1]);
    let y = compute(&x, &weight);
    let gradients = (y.clone() * upstream).sum().backward();
    let of_x = x.grad(&gradients).expect("a gradient of the input");
    let of_weight = weight.grad(&gradients).expect("a gradient of the weight");
    [y.inner(), of_x, of_weight.unsqueeze()]
}

#[test]
fn a_third_backend_computes_forward_and_backward() {
    let fused = norm::<Autodiff<Third>>(|x, weight| gpas_host::norm(x, weight, 1e-6, 0.5).unwrap());
    let plain = norm::<Autodiff<Third>>(|x, weight| {
        let mean_square = x.clone().powf_scalar(2.0).mean_dim(1);
        x.clone() / (mean_square + 1e-6).sqrt() * weight.clone().unsqueeze::<2>() * 0.5
    });
    for ((fused, plain), what) in fused.into_iter().zip(plain).zip(["y", "x", "weight"]) {
        assert_close(fused, plain, what);
    }
}

/// In the memory of a third backend, by its functions alone: the default `matrix` reads only what lies row by row.
#[test]
fn a_third_backend_has_products_and_sums() {
    let ones = |shape: [usize; 2]| Tensor::<Third, 2>::ones(shape, &Default::default());
    let product = gpas_host::product(&ones([3, 40]), &ones([40, 5])).unwrap();
    assert_close(product, ones([3, 5]) * 40.0, "product");
    let few = gpas_host::few_rows(&ones([3, 40]), &ones([40, 5])).unwrap();
    assert_close(few, ones([3, 5]) * 40.0, "few rows");
    assert_eq!(gpas_host::sum_of_squares(&(ones([3, 5]) * 2.0)), Some(60.0));
}

/// What is not f32 is left to the backend.
#[test]
fn other_numbers_are_left_to_tensor_operations() {
    fn is_left<B: Backend>() {
        let x = Tensor::<B, 2>::ones([2, 3], &Default::default()).cast(burn::tensor::DType::F64);
        assert!(gpas_host::sum(&x, &x).is_none());
        assert!(gpas_host::sum_of_squares(&x).is_none());
    }
    is_left::<Flex>();
    is_left::<Third>();
}
