//! Kernels as a node of autodiff's graph: one that computes an operation, and one that computes its gradients.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;

use crate::kernel::AnyKernel;

/// An operation with its backward pass.
#[derive(Clone, Debug)]
pub(crate) struct Differentiable {
    /// Its first output is the operation's; the others are for the backward pass.
    pub(crate) forward: AnyKernel,
    /// Takes what is kept and then the gradient of the output; returns gradients.
    pub(crate) backward: AnyKernel,
    /// What is kept for the backward pass, in the order in which that takes it.
    pub(crate) kept: &'static [Kept],
    /// What each input gets back.
    pub(crate) gradients: &'static [Gradient],
}

/// A tensor that is kept for the backward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kept {
    Input(usize),
    Output(usize),
}

/// What an input gets back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Gradient {
    None,
    /// The gradient of the output, unchanged.
    Upstream,
    /// An output of the backward kernel.
    Found(usize),
    /// An output of the backward kernel, which takes for its last input what has come back to this input already, if something has, and
    /// adds it. No more than one input of an operation has this.
    Added(usize),
}

/// What runs a kernel on the tensors of a backend.
pub(crate) type Run<B> = fn(AnyKernel, Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>>;

/// Runs an operation under autodiff, its kernels by `run`.
pub(crate) fn run_tracked<B: Backend>(
    operation: Differentiable,
    inputs: Vec<FloatTensor<Autodiff<B>>>,
    run: Run<B>,
) -> FloatTensor<Autodiff<B>> {
    let added = operation
        .gradients
        .iter()
        .filter(|gradient| matches!(gradient, Gradient::Added(_)));
    assert!(
        added.count() <= 1,
        "the backward kernel could not tell what came back to which input"
    );
    match inputs.len() {
        1 => run_tracked_of::<B, 1>(operation, inputs, run),
        2 => run_tracked_of::<B, 2>(operation, inputs, run),
        3 => run_tracked_of::<B, 3>(operation, inputs, run),
        4 => run_tracked_of::<B, 4>(operation, inputs, run),
        5 => run_tracked_of::<B, 5>(operation, inputs, run),
        count => unreachable!("no operation has {count} inputs"),
    }
}

fn run_tracked_of<B: Backend, const N: usize>(
    operation: Differentiable,
    inputs: Vec<FloatTensor<Autodiff<B>>>,
    run: Run<B>,
) -> FloatTensor<Autodiff<B>> {
    let Ok(inputs): Result<[_; N], _> = inputs.try_into() else {
        unreachable!("the caller has counted the inputs");
    };
    let nodes = inputs.each_ref().map(|input| input.node.clone());
    // The graph forgets a node that nobody counts, and another thread may make it look at any time: the inputs count until the output is
    // part of it.
    let _counts = inputs.each_ref().map(|input| input.rc.clone());
    let inputs = inputs.map(|input| input.primitive);
    let outputs = run(operation.forward.clone(), inputs.to_vec());
    let kept = operation.kept.iter().map(|kept| match kept {
        Kept::Input(index) => inputs[*index].clone(),
        Kept::Output(index) => outputs[*index].clone(),
    });
    let saved = Saved::<B>(kept.collect());
    let output = outputs.into_iter().next().expect("an operation has an output");
    match (Step { operation, run })
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => prepared.finish(saved, output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}

/// The backward step of an operation.
#[derive(Debug)]
struct Step<B: Backend> {
    operation: Differentiable,
    run: Run<B>,
}

/// What the backward step takes but for the gradient of the output.
#[derive(Debug)]
struct Saved<B: Backend>(Vec<FloatTensor<B>>);

impl<B: Backend> Clone for Saved<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Backend, const N: usize> Backward<B, N> for Step<B> {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let Step { operation, run } = self;
        let upstream = grads.consume::<B>(&ops.node);
        let Saved(mut kept) = ops.state;
        kept.push(upstream.clone());
        let parents = ops.parents.iter().zip(operation.gradients);
        let wanted = parents.filter_map(|(parent, gradient)| Some((parent.as_ref()?, gradient)));
        let mut wants_more = false;
        for (parent, gradient) in wanted {
            wants_more |= matches!(gradient, Gradient::Found(_) | Gradient::Added(_));
            if let Gradient::Added(_) = gradient {
                // Any tensor of that node stands for its gradient.
                let mut place = Autodiff::<B>::from_inner(upstream.clone());
                place.node = parent.clone();
                kept.extend(grads.remove::<B>(&place));
            }
        }
        let found = if wants_more {
            run(operation.backward, kept)
        } else {
            Vec::new()
        };
        for (parent, gradient) in ops.parents.into_iter().zip(operation.gradients) {
            let Some(parent) = parent else {
                continue;
            };
            match gradient {
                Gradient::None => (),
                Gradient::Upstream => grads.register::<B>(parent.id, upstream.clone()),
                Gradient::Found(index) | Gradient::Added(index) => {
                    grads.register::<B>(parent.id, found[*index].clone())
                }
            }
        }
    }
}
