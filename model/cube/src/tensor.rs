//! What a kernel sees of a tensor: rows of numbers, and how many of them one load takes.

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::CubeCount;
use cubecl::std::tensor::copy_into;

/// Shape and number format of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Form {
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
}

impl Form {
    pub(crate) fn new(shape: impl Into<Shape>, dtype: DType) -> Self {
        Self {
            shape: shape.into(),
            dtype,
        }
    }

    /// Size of the last dimension.
    pub(crate) fn width(&self) -> usize {
        self.shape.as_slice().last().copied().unwrap_or(1)
    }

    /// Size of all dimensions but the last.
    pub(crate) fn rows(&self) -> usize {
        self.shape.num_elements() / self.width().max(1)
    }
}

/// The form of a tensor.
pub(crate) fn form<R: CubeRuntime>(tensor: &CubeTensor<R>) -> Form {
    Form::new(tensor.meta.shape().clone(), tensor.dtype)
}

/// A tensor whose numbers lie row by row without gaps, beside another one.
pub(crate) fn empty<R: CubeRuntime>(beside: &CubeTensor<R>, form: Form) -> CubeTensor<R> {
    empty_device_contiguous_dtype(beside.client.clone(), beside.device.clone(), form.shape, form.dtype)
}

/// The tensors with their numbers row by row without gaps.
pub(crate) fn in_order<R: CubeRuntime, const N: usize>(tensors: Vec<CubeTensor<R>>) -> [CubeTensor<R>; N] {
    let tensors: Vec<_> = tensors.into_iter().map(into_contiguous).collect();
    match tensors.try_into() {
        Ok(tensors) => tensors,
        Err(tensors) => panic!("a kernel of {N} tensors was given {}", tensors.len()),
    }
}

/// The numbers of a tensor row by row without gaps, where they may be overwritten: in their place if nobody else has it, else copied.
pub(crate) fn owned<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    let [tensor] = in_order(vec![tensor]);
    if tensor.can_mut() {
        return tensor;
    }
    let copy = empty(&tensor, form(&tensor));
    let (client, format) = (tensor.client.clone(), tensor.dtype.into());
    copy_into(&client, tensor.binding(), copy.clone().binding(), format);
    copy
}

/// How many numbers one load takes: the most that divide a row and whose widest format fits the device's loads.
pub(crate) fn vector_size<R: CubeRuntime>(tensors: &[&CubeTensor<R>], width: usize) -> usize {
    let widest = tensors.iter().map(|tensor| tensor.dtype.size()).max().unwrap_or(4);
    let client = &tensors[0].client;
    let mut sizes = client.io_optimized_vector_sizes(widest);
    sizes.find(|size| width.is_multiple_of(*size)).unwrap_or(1)
}

/// How many units share a row of so many vectors: a power of two.
pub(crate) fn units_for(vectors: usize) -> usize {
    vectors.next_power_of_two().clamp(32, 256)
}

/// So many cubes, or a few more: no device takes more than 65535 in one direction.
pub(crate) fn cubes(count: usize) -> CubeCount {
    const MOST: usize = 32768;
    match count {
        0..=MOST => CubeCount::Static(count as u32, 1, 1),
        _ => CubeCount::Static(MOST as u32, count.div_ceil(MOST) as u32, 1),
    }
}
