//! Matrix products of a device: the one place from which kernels ask for them.
//!
//! NVIDIA's library computes them where it can (`cublas`), and CubeCL's kernels elsewhere.

use std::any::Any;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

#[cfg(feature = "cublas")]
use crate::cublas;
use crate::products::Products;
use crate::tensor::{Form, cubes, empty, form, vector_size};

/// `a·b`, batch by batch, summed in f32; `a` and `b` have one number format, and the result has the format `output`.
///
/// Transposed, padded and cut out factors are read in place. NVIDIA's library leaves no gaps between the rows of its results; CubeCL's kernels
/// may, where a row's length asks for it.
///
/// # Shapes
/// - a: `[…, rows, inner]`
/// - b: `[…, inner, columns]`
/// - output: `[…, rows, columns]`
///
/// # Panics
/// If the shapes do not fit.
pub fn product<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, output: DType) -> CubeTensor<R> {
    #[cfg(feature = "cublas")]
    if let Some(output) = cublas::product(&a, &b, output) {
        return output;
    }
    multiply(a, b, None, output)
}

/// [`product`] of two matrices, written into a tensor that is there already.
pub(crate) fn product_in<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, output: CubeTensor<R>) {
    #[cfg(feature = "cublas")]
    if cublas::product_in(&a, &b, &output, false) {
        return;
    }
    let format = output.dtype;
    multiply(a, b, Some(output), format);
}

/// Adds the product `a·b` of two matrices to `sum`, in f32 and in its place, whoever else has that memory.
///
/// # Shapes
/// - a: `[rows, inner]`
/// - b: `[inner, columns]`
/// - sum: `[rows, columns]`, row by row without gaps
///
/// # Panics
/// If the shapes do not fit.
pub fn product_into<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, sum: &CubeTensor<R>) {
    #[cfg(feature = "cublas")]
    if cublas::product_in(&a, &b, sum, true) {
        return;
    }
    let part = empty(sum, Form::new(sum.meta.shape().clone(), DType::F32));
    multiply(a, b, Some(part.clone()), DType::F32);
    let numbers = form(sum).shape.num_elements();
    let vector = vector_size(&[sum, &part], numbers);
    let count = numbers / vector;
    const UNITS: usize = 256;
    add_to::launch::<R>(
        &sum.client.clone(),
        cubes(count.div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
        vector,
        sum.clone().into_tensor_arg(),
        part.into_tensor_arg(),
        count,
    );
}

#[cube(launch)]
fn add_to<N: Size>(sum: &mut Tensor<Vector<f32, N>>, part: &Tensor<Vector<f32, N>>, count: usize) {
    let place = ABSOLUTE_POS;
    if place < count {
        sum[place] += part[place];
    }
}

fn multiply<R: CubeRuntime>(
    a: CubeTensor<R>,
    b: CubeTensor<R>,
    output: Option<CubeTensor<R>>,
    format: DType,
) -> CubeTensor<R> {
    let shapes = [&a, &b].map(|factor| factor.meta.shape().clone());
    matmul(a, b, output, MatmulStrategy::default(), format)
        .unwrap_or_else(|error| panic!("a product of {shapes:?} was refused: {error:?}"))
}

/// Who computes the products of a device, by the device of its Burn backend.
///
/// # Panics
/// If it is a CUDA device that does not exist.
pub fn products<D: Any>(device: &D) -> Products {
    #[cfg(feature = "cublas")]
    return cublas::products(device).unwrap_or_else(|why| Products::CubeCl { why });
    #[cfg(not(feature = "cublas"))]
    {
        let _ = device;
        Products::CubeCl {
            why: crate::products::Why::NotBuilt,
        }
    }
}

/// The tensor with its last two dimensions in each other's place.
pub(crate) fn transposed<R: CubeRuntime>(mut tensor: CubeTensor<R>) -> CubeTensor<R> {
    let rank = tensor.meta.num_dims();
    tensor.meta.swap(rank - 2, rank - 1);
    tensor
}
