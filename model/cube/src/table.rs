//! The table of backends: what runs on the tensors of a backend is found by its type, so that a module which asks needs no bound but
//! `B: Backend`.

use std::any::TypeId;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor, TensorPrimitive};

use crate::autodiff::Differentiable;
use crate::backends::ROWS;
use crate::kernel::AnyKernel;
use crate::row::{Entry, Plain, Tracked};

fn entry<B: Backend>() -> Option<&'static Entry> {
    let backend = TypeId::of::<B>();
    let mut entries = ROWS.iter().flat_map(|row| [row.plain, row.tracked]);
    entries.find(|(kind, _)| *kind == backend).map(|(_, entry)| entry)
}

/// Whether the kernels run on the tensors of a backend.
pub fn runs<B: Backend>() -> bool {
    entry::<B>().is_some()
}

/// A tensor as a kernel takes it, its rank forgotten; none where no kernel does.
pub(crate) fn input<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Option<FloatTensor<B>> {
    (is_number(tensor.dtype()) && runs::<B>()).then(|| tensor.clone().into_primitive().tensor())
}

/// Whether kernels compute with a number format.
pub(crate) fn is_number(format: DType) -> bool {
    matches!(format, DType::F32 | DType::BF16 | DType::F16)
}

/// Whether the kernels run on the tensors of a backend, and without autodiff.
pub(crate) fn runs_untracked<B: Backend>() -> bool {
    entry::<B>().is_some_and(<Entry>::is::<Plain<B>>)
}

/// A tensor of integers as a kernel takes it, its rank forgotten; none where no kernel does.
pub(crate) fn integers<B: Backend, const D: usize>(tensor: &Tensor<B, D, Int>) -> Option<FloatTensor<B>> {
    if !matches!(tensor.dtype(), DType::I32 | DType::I64) {
        return None;
    }
    let entry = entry::<B>()?;
    let of_integers = match entry.downcast_ref::<Plain<B>>() {
        Some(plain) => plain.of_integers,
        None => entry.downcast_ref::<Tracked<B>>()?.of_integers,
    };
    Some(of_integers(tensor.clone().into_primitive()))
}

/// A tensor of rank `D`.
pub(crate) fn float<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Runs a kernel on tensors without autodiff.
pub(crate) fn run<B: Backend>(kernel: AnyKernel, inputs: Vec<FloatTensor<B>>) -> Option<Vec<FloatTensor<B>>> {
    let plain: &Plain<B> = entry::<B>()?.downcast_ref()?;
    Some((plain.run)(kernel, inputs))
}

/// Runs an operation on the tensors of [`input`], under autodiff if they are tracked.
pub(crate) fn apply<B: Backend, const D: usize>(
    operation: Differentiable,
    inputs: Vec<FloatTensor<B>>,
) -> Option<Tensor<B, D>> {
    let entry = entry::<B>()?;
    let output = match entry.downcast_ref::<Tracked<B>>() {
        Some(tracked) => (tracked.run)(operation, inputs),
        None => run::<B>(operation.forward, inputs)?.swap_remove(0),
    };
    Some(float(output))
}
