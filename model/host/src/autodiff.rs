//! A fused operation on the tensors of a backend, and as a node of autodiff's graph.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{Shape, TensorMetadata};

use crate::numbers::Values;
use crate::operation::{Gradient, Kept, Operation, Output, View, Wanted};
use crate::storage::{HostMemory, numbers};

/// A backend's tensor of some numbers, which lie row by row.
pub(crate) fn tensor<B: Backend>(values: Values, shape: Shape, device: &B::Device) -> FloatTensor<B> {
    B::float_from_data(values.into_data(shape), device)
}

/// The tensor with its numbers row by row.
fn in_order<M: HostMemory>(tensor: FloatTensor<M::Backend>) -> FloatTensor<M::Backend> {
    if numbers::<M>(&tensor).is_some() {
        return tensor;
    }
    let device = M::Backend::float_device(&tensor);
    let data = burn::tensor::try_read_sync(M::Backend::float_into_data(tensor));
    let data = data
        .and_then(Result::ok)
        .expect("the memory of this process can be read");
    M::Backend::float_from_data(data, &device)
}

fn views<M: HostMemory, const N: usize>(inputs: &[FloatTensor<M::Backend>; N]) -> [View<'_>; N] {
    inputs.each_ref().map(|input| View {
        values: numbers::<M>(input).expect("inputs are put in order first"),
        shape: input.shape(),
    })
}

fn forward<M: HostMemory, const N: usize>(
    operation: &dyn Operation<N>,
    inputs: &[FloatTensor<M::Backend>; N],
) -> (FloatTensor<M::Backend>, Kept) {
    let Output { values, shape, kept } = operation.forward(views::<M, N>(inputs));
    let device = M::Backend::float_device(&inputs[0]);
    let values = values.in_format(operation.format(inputs[0].dtype()));
    (tensor::<M::Backend>(values, shape, &device), kept)
}

/// Runs an operation on tensors without autodiff.
pub(crate) fn run<M: HostMemory, const N: usize>(
    operation: Box<dyn Operation<N>>,
    inputs: [FloatTensor<M::Backend>; N],
) -> FloatTensor<M::Backend> {
    forward::<M, N>(operation.as_ref(), &inputs.map(in_order::<M>)).0
}

/// Runs an operation under autodiff.
pub(crate) fn run_tracked<M: HostMemory, const N: usize>(
    operation: Box<dyn Operation<N>>,
    inputs: [FloatTensor<Autodiff<M::Backend>>; N],
) -> FloatTensor<Autodiff<M::Backend>> {
    let nodes = inputs.each_ref().map(|input| input.node.clone());
    // The graph forgets a node that nobody counts, and another thread may make it look at any time: the inputs count until the output is
    // part of it.
    let _counts = inputs.each_ref().map(|input| input.rc.clone());
    let inputs = inputs.map(|input| in_order::<M>(input.primitive));
    let (output, kept) = forward::<M, N>(operation.as_ref(), &inputs);
    let step = Step::<M, N>(operation, PhantomData);
    match step.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(Saved::<M::Backend, N> { inputs, kept }, output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}

/// The backward step of an operation.
#[derive(Debug)]
struct Step<M, const N: usize>(Box<dyn Operation<N>>, PhantomData<M>);

struct Saved<B: Backend, const N: usize> {
    inputs: [FloatTensor<B>; N],
    kept: Kept,
}

impl<B: Backend, const N: usize> Clone for Saved<B, N> {
    fn clone(&self) -> Self {
        Self {
            inputs: self.inputs.clone(),
            kept: self.kept.clone(),
        }
    }
}

impl<B: Backend, const N: usize> Debug for Saved<B, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved")
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

impl<M: HostMemory, const N: usize> Backward<M::Backend, N> for Step<M, N> {
    type State = Saved<M::Backend, N>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let upstream = in_order::<M>(grads.consume::<M::Backend>(&ops.node));
        let Saved { inputs, kept } = ops.state;
        let first_summed = self.0.first_summed();
        let mut sums: [_; N] = std::array::from_fn(|index| match &ops.parents[index] {
            Some(weight) if index >= first_summed => {
                let mut place = Autodiff::<M::Backend>::from_inner(inputs[index].clone());
                place.node = weight.clone();
                grads.remove::<M::Backend>(&place)
            }
            _ => None,
        });
        let mut places = sums.iter_mut();
        let wanted = ops.parents.each_ref().map(|parent| {
            let sum = places.next().and_then(Option::as_mut).and_then(M::floats_mut);
            match (parent, sum) {
                (None, _) => Wanted::Nothing,
                (Some(_), None) => Wanted::Gradient,
                (Some(_), Some(sum)) => Wanted::Sum(sum),
            }
        });
        let values = numbers::<M>(&upstream).expect("it was put in order above");
        let gradients = self.0.backward(views::<M, N>(&inputs), &kept, values, wanted);
        let found = gradients.into_iter().zip(sums).zip(&inputs);
        for (parent, ((gradient, sum), input)) in ops.parents.into_iter().zip(found) {
            let gradient = match gradient {
                Gradient::None | Gradient::Added => None,
                Gradient::Upstream => Some(upstream.clone()),
                Gradient::Values(values) => {
                    let device = M::Backend::float_device(input);
                    let values = values.in_format(input.dtype());
                    Some(tensor::<M::Backend>(values, input.shape(), &device))
                }
            };
            if let Some(parent) = parent {
                for part in sum.into_iter().chain(gradient) {
                    grads.register::<M::Backend>(parent.id, part);
                }
            }
        }
    }
}

/// `y` as it is; going back, `sum` becomes the first part of the gradient of `weight`.
pub(crate) fn carry<B: Backend>(pair: [FloatTensor<Autodiff<B>>; 2], sum: FloatTensor<B>) -> FloatTensor<Autodiff<B>> {
    let nodes = pair.each_ref().map(|tensor| tensor.node.clone());
    // Both inputs count until the result is part of the graph: see `run_tracked`.
    let _counts = pair.each_ref().map(|tensor| tensor.rc.clone());
    let [y, _] = pair.map(|tensor| tensor.primitive);
    let prepared = Backward::<B, 2>::prepare::<NoCheckpointing>(Carry, nodes);
    match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(sum, y),
        OpsKind::UnTracked(prepared) => prepared.finish(y),
    }
}

/// The backward step of [`carry`]: of what is carried and of the weight.
#[derive(Debug)]
struct Carry;

impl<B: Backend> Backward<B, 2> for Carry {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let upstream = grads.consume::<B>(&ops.node);
        let [y, weight] = ops.parents;
        if let Some(weight) = weight {
            grads.register::<B>(weight.id, ops.state);
        }
        if let Some(y) = y {
            grads.register::<B>(y.id, upstream);
        }
    }
}
