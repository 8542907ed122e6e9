//! A row of the table of backends: how the kernels run on the tensors of one.

use std::any::{Any, TypeId};
use std::marker::PhantomData;

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::Fusion;

use crate::autodiff::{Differentiable, Run, run_tracked};
use crate::graph::run_in_graph;
use crate::kernel::{OnEveryRuntime, OnRuntime};

/// A row of the table: a backend, and the same backend under autodiff.
///
/// Burn's default, `NoCheckpointing`, is the strategy of that autodiff: the kernels keep their inputs, and whoever asks Burn to compute some
/// of them again gets that from the module's own tensor operations.
pub(crate) struct Row {
    pub(crate) plain: (TypeId, &'static Entry),
    pub(crate) tracked: (TypeId, &'static Entry),
}

/// A [`Plain`] or a [`Tracked`] of some backend.
pub(crate) type Entry = dyn Any + Send + Sync;

/// What runs on the tensors of a backend.
pub(crate) struct Plain<B: Backend> {
    pub(crate) run: Run<B>,
    /// On CubeCL a tensor of integers has the same type as one of other numbers.
    pub(crate) of_integers: fn(IntTensor<B>) -> FloatTensor<B>,
}

/// What runs on the tensors of a backend under autodiff.
pub(crate) struct Tracked<B: Backend> {
    pub(crate) run: fn(Differentiable, Vec<FloatTensor<B>>) -> FloatTensor<B>,
    pub(crate) of_integers: fn(IntTensor<B>) -> FloatTensor<B>,
}

impl Row {
    /// The row of a backend.
    pub(crate) const fn new<R: CubeRuntime, F: FloatElement, I: IntElement, M: BoolElement>(
        _: PhantomData<Fusion<CubeBackend<R, F, I, M>>>,
    ) -> Self
    where
        dyn OnEveryRuntime: OnRuntime<R>,
    {
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
                    run: |operation, inputs| run_tracked(operation, inputs, run_in_graph::<R, F, I, M>),
                    of_integers: Autodiff::<Fusion<CubeBackend<R, F, I, M>>>::from_inner,
                },
            ),
        }
    }
}
