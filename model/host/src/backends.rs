//! The backends that run the fast operations: how the numbers of each are reached, and its row in the table.

#[cfg(feature = "flex")]
mod flex {
    use burn::tensor::DType;
    use burn_flex::{Flex, FlexTensor};

    use crate::matrix::Matrix;
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
            if tensor.dtype() != DType::F32 {
                return None;
            }
            let layout = tensor.layout();
            let ([rows, columns], [row_stride, column_stride]) = (layout.shape().as_slice(), layout.strides()) else {
                return None;
            };
            let values = tensor.storage::<f32>().get(layout.start_offset()..)?;
            Matrix::with_strides(values, [*rows, *columns], [*row_stride, *column_stride])
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
