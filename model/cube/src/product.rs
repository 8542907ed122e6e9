//! Matrix products of a device: the one place from which kernels ask for them.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;

/// `a·b`, batch by batch, summed in f32; `a` and `b` have one number format, and the result has the format `output`.
///
/// # Shapes
/// - a: `[…, rows, inner]`
/// - b: `[…, inner, columns]`
/// - output: `[…, rows, columns]`
pub(crate) fn product<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, output: DType) -> CubeTensor<R> {
    let shapes = [&a, &b].map(|factor| factor.meta.shape().clone());
    matmul(a, b, None, MatmulStrategy::default(), output)
        .unwrap_or_else(|error| panic!("a product of {shapes:?} was refused: {error:?}"))
}

/// The tensor with its last two dimensions in each other's place.
pub(crate) fn transposed<R: CubeRuntime>(mut tensor: CubeTensor<R>) -> CubeTensor<R> {
    let rank = tensor.meta.num_dims();
    tensor.meta.swap(rank - 2, rank - 1);
    tensor
}
