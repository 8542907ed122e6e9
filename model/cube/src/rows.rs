//! Tensors whose rows lie at one distance from each other, which may be more than their width: on some devices a product pads its rows to
//! whole wide loads, and to close the gaps would be a copy of everything.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::zspace::striding::has_pitched_row_major_strides;

use crate::tensor::{form, vector_size};

/// A tensor as rows of its last dimension.
pub(crate) struct Rows<R: CubeRuntime> {
    pub(crate) tensor: CubeTensor<R>,
    /// How many rows there are.
    pub(crate) count: usize,
    /// Numbers of a row.
    pub(crate) width: usize,
    /// Numbers from the beginning of one row to that of the next.
    pub(crate) pitch: usize,
}

impl<R: CubeRuntime> Rows<R> {
    /// The rows of a tensor of two dimensions or more, which is copied if its rows lie in another order.
    pub(crate) fn new(tensor: CubeTensor<R>) -> Self {
        let tensor = if has_pitched_row_major_strides(tensor.meta.shape(), tensor.meta.strides()) {
            tensor
        } else {
            into_contiguous(tensor)
        };
        let form = form(&tensor);
        Self {
            count: form.rows(),
            width: form.width(),
            pitch: tensor.meta.strides()[form.shape.num_dims() - 2],
            tensor,
        }
    }

    /// How many numbers one load takes, so that whole loads make up the distance of the rows and also `parts`: a number, or the bitwise or of
    /// several, since a power of two divides all of them exactly if it divides that.
    pub(crate) fn vector_size(&self, parts: usize) -> usize {
        vector_size(&[&self.tensor], self.pitch | parts)
    }
}
