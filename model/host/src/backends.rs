//! The backends that run the fast operations: how the numbers of each are reached, and its row in the table.

#[cfg(feature = "flex")]
mod flex {
    use burn::tensor::{DType, bf16};
    use burn_flex::{Flex, FlexTensor};

    use crate::matrix::{Matrix, Strided};
    use crate::storage::HostMemory;

    #[derive(Debug)]
    struct FlexMemory;

    impl HostMemory for FlexMemory {
        type Backend = Flex;

        fn floats(tensor: &FlexTensor) -> Option<&[f32]> {
            tensor.as_slice()
        }

        fn floats_mut(tensor: &mut FlexTensor) -> Option<&mut [f32]> {
            let is_whole = tensor.as_slice::<f32>()?.len() == tensor.storage::<f32>().len();
            is_whole.then(|| tensor.storage_mut())
        }

        fn matrix(tensor: &FlexTensor) -> Option<Matrix<'_>> {
            let place = Place::of(tensor, DType::F32)?;
            Matrix::with_strides(tensor.storage().get(place.start..)?, place.shape, place.strides)
        }

        const HAS_BF16: bool = true;

        fn bf16s(tensor: &FlexTensor) -> Option<&[bf16]> {
            tensor.as_slice()
        }

        fn bf16s_mut(tensor: &mut FlexTensor) -> Option<&mut [bf16]> {
            let is_whole = tensor.as_slice::<bf16>()?.len() == tensor.storage::<bf16>().len();
            is_whole.then(|| tensor.storage_mut())
        }

        fn bf16_matrix(tensor: &FlexTensor) -> Option<Strided<&[bf16]>> {
            let place = Place::of(tensor, DType::BF16)?;
            Strided::with_strides(tensor.storage().get(place.start..)?, place.shape, place.strides)
        }
    }

    /// Where the numbers of a tensor of two dimensions lie in its storage.
    struct Place {
        start: usize,
        shape: [usize; 2],
        strides: [isize; 2],
    }

    impl Place {
        fn of(tensor: &FlexTensor, format: DType) -> Option<Self> {
            let layout = tensor.layout();
            let ([rows, columns], [row_stride, column_stride]) = (layout.shape().as_slice(), layout.strides()) else {
                return None;
            };
            (tensor.dtype() == format).then_some(Self {
                start: layout.start_offset(),
                shape: [*rows, *columns],
                strides: [*row_stride, *column_stride],
            })
        }
    }

    crate::backend!(FlexMemory);
}

#[cfg(feature = "ndarray")]
mod ndarray {
    use burn_ndarray::{NdArray, NdArrayTensor};

    use crate::matrix::Matrix;
    use crate::storage::HostMemory;

    #[derive(Debug)]
    struct NdArrayMemory;

    impl HostMemory for NdArrayMemory {
        type Backend = NdArray<f32>;

        fn floats(tensor: &NdArrayTensor) -> Option<&[f32]> {
            match tensor {
                NdArrayTensor::F32(array) => array.view().to_slice(),
                _ => None,
            }
        }

        fn floats_mut(tensor: &mut NdArrayTensor) -> Option<&mut [f32]> {
            match tensor {
                NdArrayTensor::F32(array) => array.ensure_owned().as_slice_mut(),
                _ => None,
            }
        }

        fn matrix(tensor: &NdArrayTensor) -> Option<Matrix<'_>> {
            let NdArrayTensor::F32(array) = tensor else {
                return None;
            };
            let view = array.view();
            let ([rows, columns], [row_stride, column_stride]) = (array.shape(), view.strides()) else {
                return None;
            };
            let (shape, strides) = ([*rows, *columns], [*row_stride, *column_stride]);
            Matrix::with_strides(view.to_slice_memory_order()?, shape, strides)
        }
    }

    crate::backend!(NdArrayMemory);
}
