//! The hot operations, fused, for backends whose tensors lie in the memory of this process: flex and ndarray.
//!
//! Every module says what it computes in tensor operations, which any backend runs and autodiff differentiates. On a processor those
//! cost more between the matrix products than in them: each walks over memory once more, on one thread. So a module first asks
//! [`runs`], and where the answer is yes it calls `apply` with an `Operation`: the same mathematics as one loop over slices, on all
//! threads, with a backward pass of its own. Whether a tensor is in memory is seen from its type, so nothing of this shows in the bounds
//! of a module: it takes any `B: Backend`, and one that this file does not know computes as its module says.
//!
//! Each operation is tested against the tensor operations that it stands for. No sum depends on how work is cut among threads, and what is
//! summed across a cut is summed in order, so the same numbers come out on every run.

mod adam;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod attention;
mod cached;
mod embedding;
mod few;
mod gate;
mod head;
mod linear;
mod matrix;
mod memory;
mod norm;
mod scale;
mod swiglu;
mod vector;

pub use adam::{AdamStep, sum_of_squares};
pub(crate) use attention::CausalAttention;
pub(crate) use cached::{Heads, HostCache};
pub(crate) use embedding::Embed;
pub(crate) use gate::{Gate, GatedSum, Sum};
pub(crate) use head::{loss_with_gradients, token_losses};
use linear::Linear;
pub(crate) use norm::Norm;
pub(crate) use scale::Scale;
pub(crate) use swiglu::SwiGlu;

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, Tensor, TensorData, TensorMetadata, TensorPrimitive};
use burn_flex::{Flex, FlexTensor};
#[cfg(feature = "ndarray")]
use burn_ndarray::{NdArray, NdArrayTensor};
use rayon::prelude::*;

use matrix::{Into, Matrix};
use memory::{Blank, as_blank, written};

/// A backend whose f32 tensors are slices.
trait HostBackend: Backend {
    /// The numbers of a tensor, row by row; none if they do not lie so.
    fn floats(tensor: &FloatTensor<Self>) -> Option<&[f32]>;
}

impl HostBackend for Flex {
    fn floats(tensor: &FlexTensor) -> Option<&[f32]> {
        tensor.as_slice()
    }
}

#[cfg(feature = "ndarray")]
impl HostBackend for NdArray<f32> {
    fn floats(tensor: &NdArrayTensor) -> Option<&[f32]> {
        match tensor {
            NdArrayTensor::F32(array) => array.view().to_slice(),
            _ => None,
        }
    }
}

/// Whether the fused operations run on tensors like this one: f32 in the memory of this process.
pub fn runs<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> bool {
    tensor.dtype() == DType::F32 && is_host::<B>()
}

/// Whether the tensors of a backend lie in the memory of this process.
pub(crate) fn is_host<B: Backend>() -> bool {
    fn is<B: Backend, I: Backend>() -> bool {
        use std::any::TypeId;
        let primitive = TypeId::of::<FloatTensor<B>>();
        primitive == TypeId::of::<FloatTensor<I>>() || primitive == TypeId::of::<FloatTensor<Autodiff<I>>>()
    }
    #[cfg(feature = "ndarray")]
    if is::<B, NdArray<f32>>() {
        return true;
    }
    is::<B, Flex>()
}

/// An input of an operation.
#[derive(Clone, Debug)]
pub(crate) struct View<'a> {
    /// Row by row.
    values: &'a [f32],
    shape: Shape,
}

impl View<'_> {
    /// Size of the last dimension.
    fn width(&self) -> usize {
        self.shape.as_slice().last().copied().unwrap_or(1)
    }

    /// How many numbers a sequence of `[batch, seq, hidden]` has; a tensor of lower rank is one sequence.
    fn sequence(&self) -> usize {
        let length = self.values.len().max(1);
        match self.shape.as_slice() {
            [batch, _, _, ..] => length / (*batch).max(1),
            _ => length,
        }
    }

    /// Of each sequence the sums of its pieces of at most `piece` numbers, which are handled in parallel and added up in their order.
    fn sums_of_sequences(&self, piece: usize, sums: impl Fn(Range<usize>) -> Vec<f64> + Sync) -> Vec<Vec<f64>> {
        let (length, sequence) = (self.values.len(), self.sequence());
        let sequences = (0..length).into_par_iter().step_by(sequence);
        let sums = sequences.map(|start| {
            let end = (start + sequence).min(length);
            let pieces = (start..end).into_par_iter().step_by(piece);
            let parts: Vec<Vec<f64>> = pieces.map(|start| sums(start..(start + piece).min(end))).collect();
            let add = |mut sum: Vec<f64>, part: Vec<f64>| {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
                sum
            };
            parts.into_iter().reduce(add).unwrap_or_default()
        });
        sums.collect()
    }
}

/// What an operation returns.
pub(crate) struct Output<K> {
    /// Row by row.
    values: Vec<f32>,
    shape: Shape,
    /// What the backward pass needs besides the inputs.
    kept: K,
}

/// What is asked for of one input of an operation.
pub(crate) enum Wanted<'a> {
    Nothing,
    Gradient,
    /// To be added to the sum over the sequences that came before.
    Sum(&'a mut [f32]),
}

impl Wanted<'_> {
    fn is_wanted(&self) -> bool {
        !matches!(self, Wanted::Nothing)
    }

    /// The gradient that `write` writes, or adds to the sum.
    ///
    /// # Safety
    /// Where it is not to add, `write` leaves none of the `length` numbers unwritten, and it writes numbers only.
    unsafe fn write(self, length: usize, write: impl FnOnce(&mut Blank, Into)) -> Gradient {
        match self {
            Wanted::Nothing => Gradient::None,
            // SAFETY: as the caller promises.
            Wanted::Gradient => Gradient::Values(unsafe { written(length, |out| write(out, Into::Empty)) }),
            Wanted::Sum(sum) => {
                assert_eq!(sum.len(), length);
                write(as_blank(sum), Into::Sum);
                Gradient::Added
            }
        }
    }

    /// The sum of the sequences' parts, added in their order.
    fn add_up(self, length: usize, parts: impl IntoIterator<Item = Vec<f64>>) -> Gradient {
        let add_to = |sum: &mut [f32]| {
            for part in parts {
                for (sum, part) in sum.iter_mut().zip(part) {
                    *sum = (f64::from(*sum) + part) as f32;
                }
            }
        };
        match self {
            Wanted::Nothing => Gradient::None,
            Wanted::Gradient => {
                let mut sum = vec![0.0; length];
                add_to(&mut sum);
                Gradient::Values(sum)
            }
            Wanted::Sum(sum) => {
                add_to(sum);
                Gradient::Added
            }
        }
    }
}

/// What an operation sends back to one of its inputs.
pub(crate) enum Gradient {
    /// Nothing; nobody asked.
    None,
    /// It is in the sum.
    Added,
    /// What came from above, unchanged.
    Upstream,
    /// These numbers, in the shape of the input.
    Values(Vec<f32>),
}

/// A differentiable operation over slices.
pub(crate) trait Operation<const N: usize>: Debug + Send + 'static {
    /// What the forward pass keeps for the backward pass besides the inputs.
    type Kept: Clone + Debug + Send + 'static;

    /// The first input whose gradient adds to what has come back before, and so do those after it: the weights, and the stream where that
    /// saves a walk over it. The gradient of a weight is a sum over the sequences, and is to be added up in their order, one after the
    /// other: then it does not depend on which of them a micro-batch holds.
    const FIRST_SUMMED: usize;

    fn forward(&self, inputs: [View<'_>; N]) -> Output<Self::Kept>;

    /// The gradients of the inputs; `upstream` is that of the output.
    fn backward(
        &self,
        inputs: [View<'_>; N],
        kept: &Self::Kept,
        upstream: &[f32],
        wanted: [Wanted<'_>; N],
    ) -> [Gradient; N];
}

/// A tensor as [`apply`] takes it, its rank forgotten.
pub(crate) fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// Runs an operation on tensors for which [`runs`] has said yes, under autodiff if they are tracked.
pub(crate) fn apply<B: Backend, O: Operation<N>, const N: usize, const D: usize>(
    operation: O,
    inputs: [FloatTensor<B>; N],
) -> Tensor<B, D> {
    macro_rules! on {
        ($host:ty, $inputs:ident) => {{
            let inputs = match cast::<_, [FloatTensor<$host>; N]>($inputs) {
                Ok(inputs) => {
                    return finish::<$host, B, D>(run::<$host, O, N>(&operation, &inputs.map(in_order::<$host>)).0);
                }
                Err(inputs) => inputs,
            };
            match cast::<_, [FloatTensor<Autodiff<$host>>; N]>(inputs) {
                Ok(inputs) => return finish::<Autodiff<$host>, B, D>(run_tracked::<$host, O, N>(operation, inputs)),
                Err(inputs) => inputs,
            }
        }};
    }
    let inputs = on!(Flex, inputs);
    #[cfg(feature = "ndarray")]
    let inputs = on!(NdArray<f32>, inputs);
    drop(inputs);
    unreachable!("`runs` knows the same backends")
}

/// `a·b` as a fused step multiplies it; none where the fused operations do not run.
pub fn product<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    let seq = a.dims()[0];
    (runs(&a) && runs(&b)).then(|| linear(primitive(a), [primitive(b)], seq))
}

/// `[x · W₁ | x · W₂ | …]` of tensors for which [`runs`] has said yes, of up to three weights; `x` holds `seq` rows of
/// each sequence.
pub(crate) fn linear<B: Backend, const N: usize>(
    x: FloatTensor<B>,
    weights: [FloatTensor<B>; N],
    seq: usize,
) -> Tensor<B, 2> {
    let inputs: Vec<_> = std::iter::once(x).chain(weights).collect();
    // The number of inputs is part of an operation's type.
    fn of<B: Backend, const N: usize>(
        inputs: Vec<FloatTensor<B>>,
        seq: usize,
    ) -> Result<Tensor<B, 2>, Vec<FloatTensor<B>>>
    where
        Linear: Operation<N>,
    {
        inputs.try_into().map(|inputs: [_; N]| apply(Linear { seq }, inputs))
    }
    let outputs = of::<B, 2>(inputs, seq)
        .or_else(|inputs| of::<B, 3>(inputs, seq))
        .or_else(|inputs| of::<B, 4>(inputs, seq));
    outputs.unwrap_or_else(|_| unreachable!("no module has more than three weights on one input"))
}

/// `x·W` of few rows, each of which is summed by itself, from a weight that lies in either order; none where the tensors are not in the
/// memory of this process.
pub(crate) fn few_rows<B: Backend>(x: &Tensor<B, 2>, weight: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    let (x, weight) = (primitive(x.clone()), primitive(weight.clone()));
    let (x, weight) = (matrix::<B>(&x)?, matrix::<B>(&weight)?);
    if !x.is_by_rows() {
        return None;
    }
    let (shape, values) = ([x.rows(), weight.columns()], few::multiply_few(x, &[weight]));
    let values = tensor::<B>(values, shape.into());
    Some(Tensor::from_primitive(TensorPrimitive::Float(values)))
}

/// Attention of new tokens to those of their sequences, themselves included; none where the fused operations do not run without autodiff.
///
/// # Shapes
/// - projected: `[sequences · count, (heads + 2 · kv_heads) · head_dim]`
/// - tables: the cosines and sines of all positions, `[positions, head_dim]`
/// - sequences: what each has kept, and the number of its tokens before the new ones
/// - output: `[sequences · count, heads · head_dim]`
pub(crate) fn cached_attention<B: Backend>(
    projected: &Tensor<B, 2>,
    heads: Heads,
    tables: [Tensor<B, 2>; 2],
    count: usize,
    sequences: &mut [(&mut HostCache, usize)],
) -> Option<Tensor<B, 2>> {
    let projected = primitive(projected.clone());
    let tables = tables.map(primitive);
    let projected = host_floats::<B>(&projected)?;
    let tables = cached::Tables {
        cos: host_floats::<B>(&tables[0])?,
        sin: host_floats::<B>(&tables[1])?,
    };
    let own = projected.chunks_exact(projected.len() / sequences.len());
    for ((cache, before), own) in sequences.iter_mut().zip(own) {
        cache.append(own, heads, *before, tables);
    }
    let positions = sequences
        .iter()
        .flat_map(|(cache, before)| (*before..before + count).map(|position| cached::Asking { cache, position }));
    let (values, shape) = cached::attend(projected, heads, &positions.collect::<Vec<_>>(), tables);
    Some(Tensor::from_primitive(TensorPrimitive::Float(tensor::<B>(
        values, shape,
    ))))
}

/// Keeps keys and values of the first tokens of a sequence; whether that was done, as [`cached_attention`].
pub(crate) fn keep<B: Backend>(
    projected: &Tensor<B, 2>,
    heads: Heads,
    tables: [Tensor<B, 2>; 2],
    cache: &mut HostCache,
) -> bool {
    let projected = primitive(projected.clone());
    let tables = tables.map(primitive);
    let floats = |tensor| host_floats::<B>(tensor);
    let (Some(projected), Some(cos), Some(sin)) = (floats(&projected), floats(&tables[0]), floats(&tables[1])) else {
        return false;
    };
    cache.append(projected, heads, 0, cached::Tables { cos, sin });
    true
}

/// A value as the type that it has.
fn cast<T: 'static, U: 'static>(value: T) -> Result<U, T> {
    let mut value = Some(value);
    match (&mut value as &mut dyn Any).downcast_mut::<Option<U>>() {
        Some(cast) => Ok(cast.take().expect("it was put there above")),
        None => Err(value.expect("nobody took it")),
    }
}

fn finish<T: Backend, B: Backend, const D: usize>(output: FloatTensor<T>) -> Tensor<B, D> {
    match cast::<FloatTensor<T>, FloatTensor<B>>(output) {
        Ok(output) => Tensor::from_primitive(TensorPrimitive::Float(output)),
        Err(_) => unreachable!("the inputs had the same type"),
    }
}

fn tensor<B: Backend>(values: Vec<f32>, shape: Shape) -> FloatTensor<B> {
    B::float_from_data(TensorData::new(values, shape), &B::Device::default())
}

/// The tensor with its numbers row by row.
fn in_order<B: HostBackend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    if B::floats(&tensor).is_some() {
        return tensor;
    }
    let device = B::float_device(&tensor);
    let data = burn::tensor::try_read_sync(B::float_into_data(tensor));
    let data = data
        .and_then(Result::ok)
        .expect("the memory of this process can be read");
    B::float_from_data(data, &device)
}

fn views<B: HostBackend, const N: usize>(inputs: &[FloatTensor<B>; N]) -> [View<'_>; N] {
    inputs.each_ref().map(|input| View {
        values: B::floats(input).expect("inputs are put in order first"),
        shape: input.shape(),
    })
}

fn run<B: HostBackend, O: Operation<N>, const N: usize>(
    operation: &O,
    inputs: &[FloatTensor<B>; N],
) -> (FloatTensor<B>, O::Kept) {
    let Output { values, shape, kept } = operation.forward(views::<B, N>(inputs));
    (tensor::<B>(values, shape), kept)
}

fn run_tracked<B: HostBackend, O: Operation<N>, const N: usize>(
    operation: O,
    inputs: [FloatTensor<Autodiff<B>>; N],
) -> FloatTensor<Autodiff<B>> {
    let nodes = inputs.each_ref().map(|input| input.node.clone());
    // The graph forgets a node that nobody counts, and another thread may make it look at any time: the inputs count until the output is
    // part of it.
    let _counts = inputs.each_ref().map(|input| input.rc.clone());
    let inputs = inputs.map(|input| in_order::<B>(input.primitive));
    let (output, kept) = run::<B, O, N>(&operation, &inputs);
    let step = Step(operation);
    // No checkpointing strategy of Burn's computes it again: it says itself what it keeps.
    match step.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(Saved::<B, O, N> { inputs, kept }, output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}

/// The backward step of an operation.
#[derive(Debug)]
struct Step<O>(O);

struct Saved<B: Backend, O: Operation<N>, const N: usize> {
    inputs: [FloatTensor<B>; N],
    kept: O::Kept,
}

impl<B: Backend, O: Operation<N>, const N: usize> Clone for Saved<B, O, N> {
    fn clone(&self) -> Self {
        Self {
            inputs: self.inputs.clone(),
            kept: self.kept.clone(),
        }
    }
}

impl<B: Backend, O: Operation<N>, const N: usize> Debug for Saved<B, O, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved")
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}

impl<B: HostBackend, O: Operation<N>, const N: usize> Backward<B, N> for Step<O> {
    type State = Saved<B, O, N>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let upstream = in_order::<B>(grads.consume::<B>(&ops.node));
        let Saved { inputs, kept } = ops.state;
        let mut sums: [_; N] = std::array::from_fn(|index| match &ops.parents[index] {
            Some(weight) if index >= O::FIRST_SUMMED => {
                let mut place = Autodiff::<B>::from_inner(inputs[index].clone());
                place.node = weight.clone();
                grads.remove::<B>(&place)
            }
            _ => None,
        });
        let mut places = sums.iter_mut();
        let wanted = ops.parents.each_ref().map(|parent| {
            let sum = places.next().and_then(Option::as_mut).and_then(floats_mut::<B>);
            match (parent, sum) {
                (None, _) => Wanted::Nothing,
                (Some(_), None) => Wanted::Gradient,
                (Some(_), Some(sum)) => Wanted::Sum(sum),
            }
        });
        let values = B::floats(&upstream).expect("it was put in order above");
        let gradients = self.0.backward(views::<B, N>(&inputs), &kept, values, wanted);
        let found = gradients.into_iter().zip(sums).zip(&inputs);
        for (parent, ((gradient, sum), input)) in ops.parents.into_iter().zip(found) {
            let gradient = match gradient {
                Gradient::None | Gradient::Added => None,
                Gradient::Upstream => Some(upstream.clone()),
                Gradient::Values(values) => Some(tensor::<B>(values, input.shape())),
            };
            if let Some(parent) = parent {
                for part in sum.into_iter().chain(gradient) {
                    grads.register::<B>(parent.id, part);
                }
            }
        }
    }
}

/// `y` as it is. Going back, `sum` is where the gradient of `weight` comes together before anything that led to `y` adds to it. Only on
/// a backend that [`is_host`].
pub(crate) fn carry<B: AutodiffBackend, const D: usize, const E: usize>(
    y: Tensor<B, D>,
    weight: Tensor<B, E>,
    sum: Tensor<B::InnerBackend, E>,
) -> Tensor<B, D> {
    fn on<H: HostBackend>(pair: [FloatTensor<Autodiff<H>>; 2], sum: FloatTensor<H>) -> FloatTensor<Autodiff<H>> {
        let nodes = pair.each_ref().map(|tensor| tensor.node.clone());
        // They count until the result is part of the graph: see `run_tracked`.
        let _counts = pair.each_ref().map(|tensor| tensor.rc.clone());
        let [y, _] = pair.map(|tensor| tensor.primitive);
        match Backward::<H, 2>::prepare::<NoCheckpointing>(Carry, nodes)
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prepared) => prepared.finish(sum, y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }
    macro_rules! on {
        ($host:ty, $pair:ident, $sum:ident) => {
            match (
                cast::<_, [FloatTensor<Autodiff<$host>>; 2]>($pair),
                cast::<_, FloatTensor<$host>>($sum),
            ) {
                (Ok(pair), Ok(sum)) => return finish::<Autodiff<$host>, B, D>(on::<$host>(pair, sum)),
                (Err(pair), Err(sum)) => (pair, sum),
                _ => unreachable!("the inner backend is that without autodiff"),
            }
        };
    }
    let (pair, sum) = ([primitive(y), primitive(weight)], primitive(sum));
    let (pair, sum) = on!(Flex, pair, sum);
    #[cfg(feature = "ndarray")]
    let (pair, sum) = on!(NdArray<f32>, pair, sum);
    drop((pair, sum));
    unreachable!("`is_host` knows the same backends")
}

/// The backward step of [`carry`]: of what is carried and of the weight.
#[derive(Debug)]
struct Carry;

impl<B: HostBackend> Backward<B, 2> for Carry {
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

/// A matrix in memory, in whichever order its numbers lie.
fn matrix<B: Backend>(tensor: &FloatTensor<B>) -> Option<Matrix<'_>> {
    let tensor = tensor as &dyn Any;
    if let Some(tensor) = tensor.downcast_ref::<FlexTensor>() {
        if tensor.dtype() != DType::F32 {
            return None;
        }
        let layout = tensor.layout();
        let ([rows, columns], [row_stride, column_stride]) = (layout.shape().as_slice(), layout.strides()) else {
            return None;
        };
        let values = tensor.storage::<f32>().get(layout.start_offset()..)?;
        return Matrix::with_strides(values, [*rows, *columns], [*row_stride, *column_stride]);
    }
    #[cfg(feature = "ndarray")]
    if let Some(NdArrayTensor::F32(array)) = tensor.downcast_ref::<NdArrayTensor>() {
        let view = array.view();
        let ([rows, columns], [row_stride, column_stride]) = (array.shape(), view.strides()) else {
            return None;
        };
        let sizes = ([*rows, *columns], [*row_stride, *column_stride]);
        return Matrix::with_strides(view.to_slice_memory_order()?, sizes.0, sizes.1);
    }
    None
}

/// The numbers of a tensor in the memory of this process, row by row; none if they do not lie so.
fn host_floats<B: Backend>(tensor: &FloatTensor<B>) -> Option<&[f32]> {
    let tensor = tensor as &dyn Any;
    #[cfg(feature = "ndarray")]
    if let Some(tensor) = tensor.downcast_ref() {
        return NdArray::<f32>::floats(tensor);
    }
    Flex::floats(tensor.downcast_ref()?)
}

/// The numbers of a tensor in the memory of this process, to be changed in place. A tensor that shares them gets its own first.
fn floats_mut<B: Backend>(tensor: &mut FloatTensor<B>) -> Option<&mut [f32]> {
    let tensor = tensor as &mut dyn Any;
    // Asked twice, since a borrow that is returned from one branch lasts through the others.
    if tensor.is::<FlexTensor>() {
        let tensor = tensor.downcast_mut::<FlexTensor>()?;
        let is_whole = tensor.as_slice::<f32>()?.len() == tensor.storage::<f32>().len();
        return if is_whole { Some(tensor.storage_mut()) } else { None };
    }
    #[cfg(feature = "ndarray")]
    if let Some(NdArrayTensor::F32(array)) = tensor.downcast_mut::<NdArrayTensor>() {
        return array.ensure_owned().as_slice_mut();
    }
    None
}

#[cfg(test)]
pub(crate) mod check {
    //! Fused operations against the tensor operations that they stand for.

    use std::cell::RefCell;

    use super::*;
    use burn_flex::FlexDevice;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal};

    pub(crate) type Tracked = Autodiff<Flex>;

    thread_local! {
        /// Each test has a thread, and so the same numbers on every run: sums that nearly cancel would now and then differ by more than
        /// their size allows.
        static STREAM: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(1));
    }

    /// Numbers of N(0, 1).
    pub(crate) fn random<const D: usize>(shape: [usize; D]) -> Tensor<Tracked, D> {
        let count = shape.iter().product();
        let values: Vec<f32> =
            STREAM.with_borrow_mut(|stream| StandardNormal.sample_iter(stream).take(count).collect());
        Tensor::<Tracked, D>::from_data(TensorData::new(values, shape), &FlexDevice).require_grad()
    }

    /// The largest difference is at most 1e-5 of the largest expected entry.
    pub(crate) fn assert_close<B: Backend, const D: usize>(found: Tensor<B, D>, expected: Tensor<B, D>, what: &str) {
        use burn::tensor::ElementConversion;
        assert_eq!(found.dims(), expected.dims(), "{what}");
        let peak: f32 = expected.clone().abs().max().into_scalar().elem();
        let difference: f32 = (found - expected).abs().max().into_scalar().elem();
        assert!(
            difference <= 1e-5 * peak,
            "{what}: {difference} where the peak is {peak}"
        );
    }

    /// What two ways of computing the same send back through random numbers.
    pub(crate) fn gradients<const D: usize>(
        fused: Tensor<Tracked, D>,
        plain: Tensor<Tracked, D>,
    ) -> [<Tracked as AutodiffBackend>::Gradients; 2] {
        assert_close(fused.clone().inner(), plain.clone().inner(), "output");
        let upstream = random(plain.dims()).detach();
        [fused, plain].map(|y| (y * upstream.clone()).sum().backward())
    }
}
