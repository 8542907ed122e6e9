//! The table of backends: what runs on the tensors of a backend is found by its type, so that a module which asks needs no bound but
//! `B: Backend`.
//!
//! It is put together when the program is linked and never changes. A backend that could join while a program runs would change the last
//! bits of its numbers half way.

use std::any::{Any, TypeId};

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorPrimitive, bf16};
use linkme::distributed_slice;

use crate::autodiff::{carry, run, run_tracked};
use crate::matrix::Matrix;
use crate::matrix::Strided;
use crate::numbers::Numbers;
use crate::operand::Operand;
use crate::operation::Operation;
use crate::storage::HostMemory;

/// Every backend that runs the fast operations, a row each. [`backend!`](crate::backend!) adds one.
#[distributed_slice]
pub static BACKENDS: [Row];

/// Adds a row to the table of backends: that whose tensors lie where the type, a [`HostMemory`], says.
#[macro_export]
macro_rules! backend {
    ($memory:ty) => {
        const _: () = {
            #[$crate::linkme::distributed_slice($crate::BACKENDS)]
            #[linkme(crate = $crate::linkme)]
            static ROW: $crate::Row = $crate::Row::new::<$memory>();
        };
    };
}

/// A row of the table: a backend, and the same backend under autodiff.
///
/// Burn's default, `NoCheckpointing`, is the strategy of that autodiff. An `Autodiff` with another one is not in the table: the fused
/// operations keep their inputs, and whoever asks Burn to compute some of them again gets that from the module's own tensor operations.
#[derive(Debug)]
pub struct Row {
    kinds: [(TypeId, &'static [&'static Entry]); 2],
}

/// A [`Memory`], [`Formats`], [`Fused`] or [`Carry`] of some backend.
type Entry = dyn Any + Send + Sync;

impl Row {
    /// The row of the backend whose tensors lie where `M` says.
    pub const fn new<M: HostMemory>() -> Self {
        Self {
            kinds: [
                (TypeId::of::<M::Backend>(), Entries::<M>::PLAIN),
                (TypeId::of::<Autodiff<M::Backend>>(), Entries::<M>::TRACKED),
            ],
        }
    }
}

/// How the numbers of a backend's tensors are reached: the functions of [`HostMemory`], with the backend for a parameter.
pub(crate) struct Memory<B: Backend> {
    pub(crate) floats: fn(&FloatTensor<B>) -> Option<&[f32]>,
    pub(crate) floats_mut: fn(&mut FloatTensor<B>) -> Option<&mut [f32]>,
    matrix: fn(&FloatTensor<B>) -> Option<Matrix<'_>>,
    bf16s: fn(&FloatTensor<B>) -> Option<&[bf16]>,
    pub(crate) bf16s_mut: fn(&mut FloatTensor<B>) -> Option<&mut [bf16]>,
    bf16_matrix: fn(&FloatTensor<B>) -> Option<Strided<&[bf16]>>,
}

impl<B: Backend> Memory<B> {
    /// The numbers of a tensor, row by row, in whichever format they are; none if they do not lie so.
    pub(crate) fn numbers<'a>(&self, tensor: &'a FloatTensor<B>) -> Option<Numbers<'a>> {
        let bf16s = || (self.bf16s)(tensor).map(Numbers::Bf16);
        (self.floats)(tensor).map(Numbers::F32).or_else(bf16s)
    }

    /// The numbers of a tensor of two dimensions in whichever order and format they are.
    pub(crate) fn operand<'a>(&self, tensor: &'a FloatTensor<B>) -> Option<Operand<'a>> {
        let bf16s = || (self.bf16_matrix)(tensor).map(Operand::Bf16);
        (self.matrix)(tensor).map(Operand::F32).or_else(bf16s)
    }
}

/// The formats of the tensors that operations take.
struct Formats(&'static [DType]);

/// A function that runs an operation of `N` tensors.
type RunOperation<B, const N: usize> = fn(Box<dyn Operation<N>>, [FloatTensor<B>; N]) -> FloatTensor<B>;

/// Runs an operation of `N` tensors.
struct Fused<B: Backend, const N: usize>(RunOperation<B, N>);

/// A function that runs [`carry`] on two tracked tensors and a sum.
type RunCarry<B> = fn([FloatTensor<B>; 2], FloatTensor<<B as AutodiffBackend>::InnerBackend>) -> FloatTensor<B>;

/// Runs [`carry`].
struct Carry<B: AutodiffBackend>(RunCarry<B>);

struct Entries<M>(M);

impl<M: HostMemory> Entries<M> {
    const FORMATS: Formats = Formats(match M::HAS_BF16 {
        true => &[DType::F32, DType::BF16],
        false => &[DType::F32],
    });

    const PLAIN: &'static [&'static Entry] = &[
        &Fused::<M::Backend, 1>(run::<M, 1>),
        &Fused::<M::Backend, 2>(run::<M, 2>),
        &Fused::<M::Backend, 3>(run::<M, 3>),
        &Fused::<M::Backend, 4>(run::<M, 4>),
        &Memory::<M::Backend> {
            floats: M::floats,
            floats_mut: M::floats_mut,
            matrix: M::matrix,
            bf16s: M::bf16s,
            bf16s_mut: M::bf16s_mut,
            bf16_matrix: M::bf16_matrix,
        },
        &Self::FORMATS,
    ];

    const TRACKED: &'static [&'static Entry] = &[
        &Fused::<Autodiff<M::Backend>, 1>(run_tracked::<M, 1>),
        &Fused::<Autodiff<M::Backend>, 2>(run_tracked::<M, 2>),
        &Fused::<Autodiff<M::Backend>, 3>(run_tracked::<M, 3>),
        &Fused::<Autodiff<M::Backend>, 4>(run_tracked::<M, 4>),
        &Carry::<Autodiff<M::Backend>>(carry::<M::Backend>),
        &Self::FORMATS,
    ];
}

/// The entries of a backend; none where it is not in the table.
fn entries<B: Backend>() -> Option<&'static [&'static Entry]> {
    let backend = TypeId::of::<B>();
    let mut kinds = BACKENDS.iter().flat_map(|row| &row.kinds);
    kinds.find(|(kind, _)| *kind == backend).map(|(_, entries)| *entries)
}

fn entry<B: Backend, E: Any>() -> Option<&'static E> {
    entries::<B>()?.iter().find_map(|entry| entry.downcast_ref())
}

/// Whether the fast operations run on the tensors of a backend: those of f32, and of bf16 where it [has](HostMemory::HAS_BF16) such.
pub fn runs<B: Backend>() -> bool {
    entries::<B>().is_some()
}

/// How the numbers of a backend's tensors are reached; none where they are not in the memory of this process, or under autodiff.
pub(crate) fn memory<B: Backend>() -> Option<&'static Memory<B>> {
    entry::<B, Memory<B>>()
}

/// A tensor as an operation takes it, its rank forgotten; none where no operation does.
pub(crate) fn input<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Option<FloatTensor<B>> {
    takes::<B>(tensor.dtype()).then(|| primitive(tensor.clone()))
}

/// Whether operations take tensors of a backend and a number format.
pub(crate) fn takes<B: Backend>(format: DType) -> bool {
    entry::<B, Formats>().is_some_and(|Formats(formats)| formats.contains(&format))
}

/// A tensor with its rank forgotten.
pub(crate) fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// A tensor of rank `D`.
pub(crate) fn float<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// Runs an operation on the tensors of [`input`], under autodiff if they are tracked.
pub(crate) fn apply<B: Backend, const N: usize, const D: usize>(
    operation: impl Operation<N>,
    inputs: [FloatTensor<B>; N],
) -> Option<Tensor<B, D>> {
    let Fused(run) = entry::<B, Fused<B, N>>()?;
    Some(float(run(Box::new(operation), inputs)))
}

/// `y` as it is. Going back, `sum` is where the gradient of `weight` comes together before anything that led to `y` adds to it.
///
/// # Errors
/// `sum`, where the backend does not [run](runs) the fast operations.
pub fn carry_sum<B: AutodiffBackend, const D: usize, const E: usize>(
    y: &Tensor<B, D>,
    weight: &Tensor<B, E>,
    sum: Tensor<B::InnerBackend, E>,
) -> Result<Tensor<B, D>, Tensor<B::InnerBackend, E>> {
    let Some(Carry(carry)) = entry::<B, Carry<B>>() else {
        return Err(sum);
    };
    let [y, weight] = [primitive(y.clone()), primitive(weight.clone())];
    Ok(float(carry([y, weight], primitive(sum))))
}
