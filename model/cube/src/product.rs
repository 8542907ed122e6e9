//! Matrix products of a device: the one place from which kernels ask for them.

use std::any::Any;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::add;
use burn_cubecl::tensor::CubeTensor;

#[cfg(feature = "cublas")]
use crate::cublas;
use crate::products::Products;

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
    let shapes = [&a, &b].map(|factor| factor.meta.shape().clone());
    matmul(a, b, None, MatmulStrategy::default(), output)
        .unwrap_or_else(|error| panic!("a product of {shapes:?} was refused: {error:?}"))
}

/// `sum + a·b`, in the memory of the sum where nothing else has it.
///
/// # Shapes
/// - a: `[…, rows, inner]`
/// - b: `[…, inner, columns]`
/// - sum, output: `[…, rows, columns]`
///
/// # Panics
/// If the shapes do not fit.
pub fn product_into<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, sum: CubeTensor<R>) -> CubeTensor<R> {
    #[cfg(feature = "cublas")]
    if cublas::product_into(&a, &b, &sum) {
        return sum;
    }
    let product = product(a, b, sum.dtype);
    add(sum, product)
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
