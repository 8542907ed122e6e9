//! Tensors on the host, by name, and why they could not be read or written.

use std::borrow::Cow;
use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, backend::Backend};
use half::{bf16, f16};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, View};

use crate::config::ConfigError;
use crate::params::{ParameterKind, SharedParameter};

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum WeightsError {
    #[error("{path}: {cause}")]
    File { path: String, cause: std::io::Error },
    #[error("{path}: {cause}")]
    Within { path: String, cause: Box<WeightsError> },
    #[error("not a safetensors file: {0}")]
    Format(#[from] SafeTensorError),
    #[error("{0}")]
    Damaged(String),
    #[error("the model has a parameter `{0}` that its configuration has no name for")]
    Unnamed(ParameterKind),
    #[error("`{parameter}` and another parameter have the name `{name}`")]
    SameName { name: String, parameter: ParameterKind },
    #[error(transparent)]
    Shared(#[from] SharedParameter),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("a tensor cannot be read from its device: {0}")]
    Unreadable(String),
    #[error("weights do not fit the model: missing {missing:?}, not used {unused:?}, wrong {wrong:?}")]
    Mismatch {
        /// Names the model needs and the file lacks.
        missing: Vec<String>,
        /// Names the file has and the model does not.
        unused: Vec<String>,
        /// Names with another shape or a type that holds no floats.
        wrong: Vec<String>,
    },
}

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its numbers, row by row.
    pub values: Vec<f32>,
}

impl HostTensor {
    /// The numbers of a tensor in f32, in its shape.
    ///
    /// # Errors
    /// If its backend gives none.
    pub fn of<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Result<Self, WeightsError> {
        let data = tensor.into_data().convert_dtype(DType::F32);
        let shape = data.shape.to_vec();
        let values = data
            .into_vec()
            .map_err(|cause| WeightsError::Unreadable(cause.to_string()))?;
        Ok(Self { shape, values })
    }
}

/// The parameters of a model by their released names.
pub type NamedTensors = BTreeMap<String, HostTensor>;

/// Whether a type holds floats that weights may have.
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Numbers of one of the types that [`is_float`] knows, in f32.
pub(super) fn floats(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| number(*chunk)).collect()
    }
    match dtype {
        Dtype::F64 => Some(each(bytes, |b| f64::from_le_bytes(b) as f32)),
        Dtype::F32 => Some(each(bytes, f32::from_le_bytes)),
        Dtype::F16 => Some(each(bytes, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Some(each(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        _ => None,
    }
}

impl View for &HostTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values.as_slice())
    }
}
