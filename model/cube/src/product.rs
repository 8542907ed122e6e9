//! Matrix products of a device: the one place from which kernels ask for them.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::tensor::{Form, cubes, empty, form, vector_size};

/// `a·b`, batch by batch, summed in f32; `a` and `b` have one number format, and the result has the format `output`.
///
/// # Shapes
/// - a: `[…, rows, inner]`
/// - b: `[…, inner, columns]`
/// - output: `[…, rows, columns]`
pub(crate) fn product<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, output: DType) -> CubeTensor<R> {
    multiply(a, b, None, output)
}

/// [`product`] of two matrices, written into a tensor that is there already.
pub(crate) fn product_in<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, output: CubeTensor<R>) {
    let format = output.dtype;
    multiply(a, b, Some(output), format);
}

/// Adds the product `a·b` of two matrices to `sum`, in f32 and in its place.
///
/// # Shapes
/// - a: `[rows, inner]`
/// - b: `[inner, columns]`
/// - sum: `[rows, columns]`, row by row without gaps
pub(crate) fn product_into<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, sum: &CubeTensor<R>) {
    let part = empty(sum, Form::new(sum.meta.shape().clone(), DType::F32));
    product_in(a, b, part.clone());
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

/// The tensor with its last two dimensions in each other's place.
pub(crate) fn transposed<R: CubeRuntime>(mut tensor: CubeTensor<R>) -> CubeTensor<R> {
    let rank = tensor.meta.num_dims();
    tensor.meta.swap(rank - 2, rank - 1);
    tensor
}
