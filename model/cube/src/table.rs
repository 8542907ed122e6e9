//! The table of backends: what runs on the tensors of a backend is found by its type, so that a module which asks needs no bound but
//! `B: Backend`.

use std::any::{Any, TypeId};
use std::marker::PhantomData;

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor, TensorPrimitive};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::Fusion;

use crate::autodiff::{Differentiable, run_tracked};
use crate::backends::ROWS;
use crate::graph::run_in_graph;
use crate::kernel::AnyKernel;

/// A row of the table: a backend, and the same backend under autodiff.
///
/// Burn's default, `NoCheckpointing`, is the strategy of that autodiff: the kernels keep their inputs, and whoever asks Burn to compute some
/// of them again gets that from the module's own tensor operations.
pub(crate) struct Row {
    plain: (TypeId, &'static Entry),
    tracked: (TypeId, &'static Entry),
}

/// A [`Plain`] or a [`Tracked`] of some backend.
type Entry = dyn Any + Send + Sync;

/// What runs on the tensors of a backend.
struct Plain<B: Backend> {
    run: fn(AnyKernel, Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>>,
    /// On CubeCL a tensor of integers has the same type as one of other numbers.
    of_integers: fn(IntTensor<B>) -> FloatTensor<B>,
}

/// What runs on the tensors of a backend under autodiff.
struct Tracked<B: Backend> {
    run: fn(Differentiable, Vec<FloatTensor<B>>) -> FloatTensor<B>,
    of_integers: fn(IntTensor<B>) -> FloatTensor<B>,
}

impl Row {
    /// The row of a backend.
    pub(crate) const fn new<R: CubeRuntime, F: FloatElement, I: IntElement, M: BoolElement>(
        _: PhantomData<Fusion<CubeBackend<R, F, I, M>>>,
    ) -> Self {
        Self {
            plain: (
                TypeId::of::<Fusion<CubeBackend<R, F, I, M>>>(),
                &Plain::<Fusion<CubeBackend<R, F, I, M>>> {
                    run: run_in_graph::<R, F, I, M>,
                    of_integers: |tensor| tensor,
                },
            ),
            tracked: (
                TypeId::of::<Autodiff<Fusion<CubeBackend<R, F, I, M>>>>(),
                &Tracked::<Autodiff<Fusion<CubeBackend<R, F, I, M>>>> {
                    run: run_tracked::<Fusion<CubeBackend<R, F, I, M>>>,
                    of_integers: Autodiff::<Fusion<CubeBackend<R, F, I, M>>>::from_inner,
                },
            ),
        }
    }
}

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
