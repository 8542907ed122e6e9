//! The one trait that a backend meets to run the fast operations: where the numbers of its tensors lie.

use std::fmt::Debug;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{TensorMetadata, bf16};

use crate::matrix::{Matrix, Strided};
use crate::numbers::Numbers;

/// Where the f32 tensors of a backend, and its bf16 tensors if it has such, lie in the memory of this process.
///
/// It is implemented by a type of your own rather than by the backend, so that you can opt in a backend of another crate. With
/// [`backend!`](crate::backend!) the backend, and Burn's `Autodiff` around it, runs the fast operations in every module that asks for them:
///
/// ```
/// use burn::tensor::ops::FloatTensor;
/// use burn_ndarray::{NdArray, NdArrayTensor};
/// use gpas_host::HostMemory;
///
/// type Mine = NdArray<f32, i32>;
///
/// #[derive(Debug)]
/// struct MineInMemory;
///
/// impl HostMemory for MineInMemory {
///     type Backend = Mine;
///
///     fn floats(tensor: &FloatTensor<Mine>) -> Option<&[f32]> {
///         match tensor {
///             NdArrayTensor::F32(array) => array.view().to_slice(),
///             _ => None,
///         }
///     }
///
///     fn floats_mut(tensor: &mut FloatTensor<Mine>) -> Option<&mut [f32]> {
///         match tensor {
///             NdArrayTensor::F32(array) => array.ensure_owned().as_slice_mut(),
///             _ => None,
///         }
///     }
/// }
///
/// gpas_host::backend!(MineInMemory);
///
/// assert!(gpas_host::runs::<Mine>());
/// ```
pub trait HostMemory: Debug + Send + Sync + 'static {
    /// The backend, without autodiff.
    type Backend: Backend;

    /// The numbers of a tensor, row by row; none if they are not f32 or do not lie so.
    fn floats(tensor: &FloatTensor<Self::Backend>) -> Option<&[f32]>;

    /// The numbers of a tensor, row by row, to be changed in place; none if they are not f32 or do not lie so. A tensor that shares its
    /// numbers gets its own first.
    fn floats_mut(tensor: &mut FloatTensor<Self::Backend>) -> Option<&mut [f32]>;

    /// The numbers of a tensor of two dimensions in whichever order they lie, so that a transpose is read without being copied; none if
    /// they are not f32 or there are none.
    fn matrix(tensor: &FloatTensor<Self::Backend>) -> Option<Matrix<'_>> {
        let shape = tensor.shape();
        let [rows, columns] = *shape.as_slice() else {
            return None;
        };
        Matrix::with_strides(Self::floats(tensor)?, [rows, columns], [columns as isize, 1])
    }

    /// Whether the functions below reach the numbers of bf16 tensors, so that the fast operations take those too.
    const HAS_BF16: bool = false;

    /// As [`floats`](Self::floats), of bf16.
    fn bf16s(tensor: &FloatTensor<Self::Backend>) -> Option<&[bf16]> {
        let _ = tensor;
        None
    }

    /// As [`floats_mut`](Self::floats_mut), of bf16.
    fn bf16s_mut(tensor: &mut FloatTensor<Self::Backend>) -> Option<&mut [bf16]> {
        let _ = tensor;
        None
    }

    /// As [`matrix`](Self::matrix), of bf16.
    fn bf16_matrix(tensor: &FloatTensor<Self::Backend>) -> Option<Strided<&[bf16]>> {
        let shape = tensor.shape();
        let [rows, columns] = *shape.as_slice() else {
            return None;
        };
        Strided::with_strides(Self::bf16s(tensor)?, [rows, columns], [columns as isize, 1])
    }
}

/// The numbers of a tensor in whichever format they are, row by row; none if they do not lie so.
pub(crate) fn numbers<M: HostMemory>(tensor: &FloatTensor<M::Backend>) -> Option<Numbers<'_>> {
    let bf16s = || M::bf16s(tensor).map(Numbers::Bf16);
    M::floats(tensor).map(Numbers::F32).or_else(bf16s)
}
