//! Head and next-token cross-entropy at once, a chunk of rows at a time, so that the logits of all tokens never exist together.
//!
//! With logits `z = h·W` and `p = softmax(z)`, the loss of a scored row is `ln Σ exp z − z_target`, and what it sends back to the logits is
//! `dz = p − onehot(target)`; with that `∂L/∂h = dz·Wᵀ` and `∂L/∂W = hᵀ·dz`.
//!
//! A chunk is three products and one launch between them, which reads the chunk's logits twice, the second time from a cache if that holds
//! the rows at work, and overwrites them with `dz` in the number format of the products. The gradient of the hidden states is written into
//! its place, and that of the head is added up in f32, in the place of the sum that is given if nobody else has that one. In tensor operations
//! a chunk is three products and some 20 launches, seven of which go through logits in f32.
//!
//! For 16384 tokens, a vocabulary of 32000 and products in bf16, that launch moves 2.1 GB in all, 0.8 ms on an H100 as reckoned, and the sums
//! of the head's gradient 1.3 GB, 0.5 ms. Tensor operations in chunks of 262 rows were measured there at 22 ms between the products, and at
//! 71 ms in products too small for the card.

use std::ops::Range;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, slice};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::kernel::Kernel;
use crate::product::{product_in, product_into, transposed};
use crate::reduce::{max_of_units, sum_all, sum_of_units, sum_of_vector};
use crate::table::{float, input, integers, run, runs_untracked};
use crate::tensor::{Form, cubes, empty, form, in_order, owned, vector_size};

/// The most bytes of a chunk's logits: 256 MiB.
///
/// At a vocabulary of 32000 that is 4096 rows in bf16, enough that each product fills a card and that the sum of the head's gradient, which
/// every chunk reads and writes, costs little beside it.
const LOGITS: usize = 1 << 28;
/// Rows of a chunk are a multiple of this where there are so many: products of whole tiles.
const TILE: usize = 128;

/// The loss and what it sends back to the hidden states and to the head.
#[derive(Debug)]
pub struct HeadGradients<B: Backend> {
    /// The sum of the scored rows' losses, divided by `scored`, in f32; `[1]`.
    pub loss: burn::Tensor<B, 1>,
    /// Gradient of the hidden states, `[tokens, hidden]`, in their number format.
    pub hidden: burn::Tensor<B, 2>,
    /// Gradient of the head and what it was added to, `[hidden, vocab]`, in the number format of the head.
    pub weight: burn::Tensor<B, 2>,
}

/// Loss and gradients at once. The losses are divided by `scored`, a row whose target is `ignored` has none, and the gradient of the head is
/// added to `sum`. The products are in the number format `products`, to which the hidden states and the head are rounded, and so are the
/// logits and their gradients; the loss, the softmax and all sums are in f32. A target that is neither an id nor `ignored` makes NaN of the loss,
/// of the gradient of its row and of that of the head.
///
/// # Shapes
/// - hidden: `[tokens, hidden]`
/// - weight, sum: `[hidden, vocab]`
/// - targets: `[tokens]`
///
/// # Errors
/// `sum` as it was, where the kernels do not run on the tensors, or these are under autodiff.
pub fn loss_with_gradients<B: Backend>(
    hidden: &burn::Tensor<B, 2>,
    weight: &burn::Tensor<B, 2>,
    targets: &burn::Tensor<B, 1, burn::tensor::Int>,
    ignored: i64,
    scored: usize,
    products: DType,
    sum: Option<burn::Tensor<B, 2>>,
) -> Result<HeadGradients<B>, Option<burn::Tensor<B, 2>>> {
    let rows = chunk_rows(hidden.dims()[0], weight.dims()[1] * products.size());
    loss_with_gradients_in_chunks(hidden, weight, targets, ignored, scored, products, sum, rows)
}

/// [`loss_with_gradients`] in chunks of `rows` rows.
#[expect(
    clippy::too_many_arguments,
    reason = "those of the function that everybody else calls, and one"
)]
fn loss_with_gradients_in_chunks<B: Backend>(
    hidden: &burn::Tensor<B, 2>,
    weight: &burn::Tensor<B, 2>,
    targets: &burn::Tensor<B, 1, burn::tensor::Int>,
    ignored: i64,
    scored: usize,
    products: DType,
    sum: Option<burn::Tensor<B, 2>>,
    rows: usize,
) -> Result<HeadGradients<B>, Option<burn::Tensor<B, 2>>> {
    let Some(mut inputs) = inputs(hidden, weight, targets) else {
        return Err(sum);
    };
    let Ok(ignored) = i32::try_from(ignored) else {
        return Err(sum);
    };
    inputs.extend(sum.map(|sum| sum.into_primitive().tensor()));
    let cut = Cut {
        ignored,
        products,
        rows,
    };
    let share = 1.0 / scored.max(1) as f32;
    let found = run::<B>(HeadLoss { cut, share }.into(), inputs).expect("the kernels run on what they took");
    let [loss, hidden, weight]: [_; 3] = found.try_into().expect("three outputs");
    Ok(HeadGradients {
        loss: float(loss),
        hidden: float(hidden),
        weight: float(weight),
    })
}

/// Loss of every row in f32, 0 where the target is `ignored`, NaN where it is neither that nor an id; none where the kernels do not run on the
/// tensors, or these are under autodiff. The products are those of [`loss_with_gradients`].
///
/// # Shapes
/// - hidden: `[tokens, hidden]`
/// - weight: `[hidden, vocab]`
/// - targets and output: `[tokens]`
pub fn token_losses<B: Backend>(
    hidden: &burn::Tensor<B, 2>,
    weight: &burn::Tensor<B, 2>,
    targets: &burn::Tensor<B, 1, burn::tensor::Int>,
    ignored: i64,
    products: DType,
) -> Option<burn::Tensor<B, 1>> {
    let rows = chunk_rows(hidden.dims()[0], weight.dims()[1] * products.size());
    token_losses_in_chunks(hidden, weight, targets, ignored, products, rows)
}

/// [`token_losses`] in chunks of `rows` rows.
fn token_losses_in_chunks<B: Backend>(
    hidden: &burn::Tensor<B, 2>,
    weight: &burn::Tensor<B, 2>,
    targets: &burn::Tensor<B, 1, burn::tensor::Int>,
    ignored: i64,
    products: DType,
    rows: usize,
) -> Option<burn::Tensor<B, 1>> {
    let inputs = inputs(hidden, weight, targets)?;
    let cut = Cut {
        ignored: i32::try_from(ignored).ok()?,
        products,
        rows,
    };
    let losses = run::<B>(TokenLosses { cut }.into(), inputs)?.swap_remove(0);
    Some(float(losses))
}

/// The tensors as the kernels take them; none where they do not, and where there are no tokens.
fn inputs<B: Backend>(
    hidden: &burn::Tensor<B, 2>,
    weight: &burn::Tensor<B, 2>,
    targets: &burn::Tensor<B, 1, burn::tensor::Int>,
) -> Option<Vec<burn::tensor::ops::FloatTensor<B>>> {
    let can_run = runs_untracked::<B>() && hidden.dims()[0] > 0;
    let inputs = || Some(vec![input(hidden)?, input(weight)?, integers(targets)?]);
    can_run.then(inputs).flatten()
}

/// Rows of a chunk, of logits that take so many bytes a row: the same in each chunk but the last, in as few chunks as the bound allows.
fn chunk_rows(tokens: usize, bytes: usize) -> usize {
    let most = rows_within(LOGITS, bytes);
    tokens.div_ceil(tokens.div_ceil(most).max(1)).next_multiple_of(TILE)
}

/// The most rows of whole tiles that take so many bytes in all, each of them `bytes`; one tile at least.
fn rows_within(most: usize, bytes: usize) -> usize {
    (most / bytes.max(1) / TILE).max(1) * TILE
}

/// How the logits are computed.
#[derive(Clone, Debug)]
struct Cut {
    /// The target of a row that is not scored.
    ignored: i32,
    /// Number format of the products.
    products: DType,
    /// Rows of a chunk.
    rows: usize,
}

impl Cut {
    /// The rows of each chunk: those of the cut, or as many as the largest buffer of the device holds.
    fn chunks<R: CubeRuntime>(
        &self,
        hidden: &CubeTensor<R>,
        weight: &CubeTensor<R>,
    ) -> impl Iterator<Item = Range<usize>> + use<R> {
        let tokens = form(hidden).rows();
        let largest = hidden.client.properties().memory.max_page_size as usize;
        let rows = self
            .rows
            .min(rows_within(largest, form(weight).width() * self.products.size()));
        (0..tokens)
            .step_by(rows)
            .map(move |start| start..(start + rows).min(tokens))
    }
}

/// `h, W, targets (, a sum) ↦ loss, ∂L/∂h, ∂L/∂W (+ the sum)`.
#[derive(Clone, Debug)]
pub(crate) struct HeadLoss {
    cut: Cut,
    /// What a row's loss counts for.
    share: f32,
}

impl Kernel for HeadLoss {
    const NAME: &'static str = "gpas_head_loss";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        vec![Form::new([1], DType::F32), inputs[0].clone(), inputs[1].clone()]
    }

    fn run<R: CubeRuntime>(&self, mut inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let before = (inputs.len() == 4).then(|| inputs.pop()).flatten();
        let [loss, of_hidden] = [0, 1].map(|index| {
            let forms: Vec<Form> = inputs.iter().map(form).collect();
            empty(&inputs[0], self.outputs(&forms).swap_remove(index))
        });
        let [hidden, weight, targets]: [_; 3] = inputs.try_into().expect("three tensors");
        let [targets] = in_order(vec![targets]);
        let format = weight.dtype;
        // The gradient of the head lies in memory as the head does.
        let is_by_columns = is_by_columns(&weight);
        let mut sum = before.map(|before| {
            let before = if is_by_columns { transposed(before) } else { before };
            owned(cast(before, DType::F32))
        });
        let hidden = cast(hidden, self.cut.products);
        let weight = rounded(weight, self.cut.products);
        let losses = empty(&targets, Form::new([form(&hidden).rows()], DType::F32));
        for rows in self.cut.chunks(&hidden, &weight) {
            let chunk = slice(hidden.clone(), &[rows.clone(), 0..form(&hidden).width()]);
            let logits = logits_of(chunk.clone(), weight.clone());
            let of_logits = Some(self.share);
            cross_entropy_of(&logits, &targets, &losses, rows.start, self.cut.ignored, of_logits);
            product_at(logits.clone(), transposed(weight.clone()), &of_hidden, rows);
            let (a, b) = if is_by_columns {
                (transposed(logits), chunk)
            } else {
                (transposed(chunk), logits)
            };
            match &sum {
                Some(sum) => product_into(a, b, sum),
                None => {
                    let first = empty(&a, Form::new([a.meta.shape()[0], b.meta.shape()[1]], DType::F32));
                    product_in(a, b, first.clone());
                    sum = Some(first);
                }
            }
        }
        sum_all(&losses, &loss, self.share);
        let of_weight = cast(sum.expect("there is a chunk, for there are tokens"), format);
        let of_weight = if is_by_columns {
            transposed(of_weight)
        } else {
            of_weight
        };
        vec![loss, of_hidden, of_weight]
    }
}

/// `h, W, targets ↦ losses`.
#[derive(Clone, Debug)]
pub(crate) struct TokenLosses {
    cut: Cut,
}

impl Kernel for TokenLosses {
    const NAME: &'static str = "gpas_token_losses";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        vec![Form::new([inputs[0].rows()], DType::F32)]
    }

    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let losses = empty(&inputs[0], self.outputs(&[form(&inputs[0])]).swap_remove(0));
        let [hidden, weight, targets]: [_; 3] = inputs.try_into().expect("three tensors");
        let [targets] = in_order(vec![targets]);
        let hidden = cast(hidden, self.cut.products);
        let weight = rounded(weight, self.cut.products);
        for rows in self.cut.chunks(&hidden, &weight) {
            let chunk = slice(hidden.clone(), &[rows.clone(), 0..form(&hidden).width()]);
            let logits = logits_of(chunk, weight.clone());
            cross_entropy_of(&logits, &targets, &losses, rows.start, self.cut.ignored, None);
        }
        vec![losses]
    }
}

/// Whether a matrix lies in memory column by column, as an embedding does that serves as head.
fn is_by_columns<R: CubeRuntime>(matrix: &CubeTensor<R>) -> bool {
    matrix.meta.strides()[0] == 1
}

/// A matrix in a number format, in the order in which it lies in memory.
fn rounded<R: CubeRuntime>(matrix: CubeTensor<R>, format: DType) -> CubeTensor<R> {
    if is_by_columns(&matrix) {
        transposed(cast(transposed(matrix), format))
    } else {
        cast(matrix, format)
    }
}

/// `h·W`, row by row without gaps.
fn logits_of<R: CubeRuntime>(hidden: CubeTensor<R>, weight: CubeTensor<R>) -> CubeTensor<R> {
    let logits = empty(
        &hidden,
        Form::new([form(&hidden).rows(), form(&weight).width()], hidden.dtype),
    );
    product_in(hidden, weight, logits.clone());
    logits
}

/// Writes `a·b` into some rows of a matrix whose numbers lie row by row.
fn product_at<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, whole: &CubeTensor<R>, rows: Range<usize>) {
    let width = form(whole).width();
    let (first, part) = (rows.start * width, Form::new([rows.len(), width], whole.dtype));
    let offset = (first * whole.dtype.size()) as u64;
    if offset.is_multiple_of(whole.client.properties().memory.alignment) {
        let handle = whole.handle.clone().offset_start(offset);
        let (client, device) = (whole.client.clone(), whole.device.clone());
        product_in(
            a,
            b,
            CubeTensor::new_contiguous(client, device, part.shape, handle, part.dtype),
        );
        return;
    }
    // No tensor can begin there: rows of an odd width in a format of two bytes.
    let count = part.shape.num_elements();
    let part = empty(whole, part);
    product_in(a, b, part.clone());
    const UNITS: usize = 256;
    put::launch::<R>(
        &whole.client.clone(),
        cubes(count.div_ceil(UNITS)),
        CubeDim::new_1d(UNITS as u32),
        part.into_tensor_arg(),
        whole.clone().into_tensor_arg(),
        first,
        count,
        whole.dtype.into(),
    );
}

#[cube(launch)]
fn put<F: Float>(
    part: &Tensor<F>,
    whole: &mut Tensor<F>,
    first: usize,
    count: usize,
    #[define(F)] _format: StorageType,
) {
    let place = ABSOLUTE_POS;
    if place < count {
        whole[first + place] = part[place];
    }
}

/// Writes the losses of a chunk that begins at row `first`. With the share of a row's loss, the gradients of the logits take their place.
fn cross_entropy_of<R: CubeRuntime>(
    logits: &CubeTensor<R>,
    targets: &CubeTensor<R>,
    losses: &CubeTensor<R>,
    first: usize,
    ignored: i32,
    share: Option<f32>,
) {
    let (rows, vocab) = (form(logits).rows(), form(logits).width());
    let vector = vector_size(&[logits], vocab);
    let vectors = vocab / vector;
    // Many units to a row, that the rows at work are few and stay in the cache until they are read again.
    const MOST: usize = 512;
    let most = 1 << logits.client.properties().hardware.max_units_per_cube.ilog2();
    let units = vectors.next_power_of_two().clamp(32, MOST.min(most));
    cross_entropy::launch::<R>(
        &logits.client.clone(),
        cubes(rows),
        CubeDim::new_1d(units as u32),
        vector,
        logits.clone().into_tensor_arg(),
        targets.clone().into_tensor_arg(),
        losses.clone().into_tensor_arg(),
        first,
        rows,
        ignored,
        share.unwrap_or_default(),
        f32::NAN,
        share.is_some(),
        vectors,
        units,
        [logits.dtype.into(), targets.dtype.into()],
    );
}

/// The largest of the numbers of a vector.
#[cube]
fn max_of_vector<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut most = vector[0];
    #[unroll]
    for lane in 1..vector.vector_size() {
        most = max(most, vector[lane]);
    }
    most
}

/// One row is the work of one cube, whose units go through it once for the maximum and `Σ exp(z − max)` of what they have seen so far, and
/// once more for the gradients.
#[cube(launch)]
fn cross_entropy<F: Float, I: Int, N: Size>(
    logits: &mut Tensor<Vector<F, N>>,
    targets: &Tensor<I>,
    losses: &mut Tensor<f32>,
    first: usize,
    rows: usize,
    ignored: i32,
    share: f32,
    // Not each device's compiler knows how to spell this number.
    not_a_number: f32,
    #[comptime] has_gradient: bool,
    #[comptime] vectors: usize,
    #[comptime] units: usize,
    #[define(F, I)] _formats: [StorageType; 2],
) {
    let mut shared = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    if row < rows {
        let unit = UNIT_POS as usize;
        let lanes = logits.vector_size().comptime();
        let start = row * vectors;
        let turns = comptime!(vectors.div_ceil(units));

        // Finite, so that a logit of minus infinity counts for nothing and not for NaN.
        let mut most = f32::min_value();
        let mut sum = 0.0f32;
        for turn in 0..turns {
            let index = turn * units + unit;
            if index < vectors {
                let logits = Vector::<f32, N>::cast_from(logits[start + index]);
                let before = most;
                most = max(most, max_of_vector(logits));
                let exponentials = (logits - Vector::new(most)).exp();
                sum = sum * (before - most).exp() + sum_of_vector(exponentials);
            }
        }

        let target = targets[first + row];
        let mut weight = not_a_number;
        let mut column = 0usize;
        if target >= I::from_int(0) && target < I::cast_from(comptime!(vectors * lanes)) {
            weight = 1.0;
            column = usize::cast_from(target);
        }
        if target == I::cast_from(ignored) {
            weight = 0.0;
        }
        let target_vector = column / lanes;
        let target_lane = column % lanes;
        // Read before any unit overwrites it.
        let mut of_target = 0.0f32;
        let read = Vector::<f32, N>::cast_from(logits[start + target_vector]);
        #[unroll]
        for lane in 0..lanes {
            if lane == target_lane {
                of_target = read[lane];
            }
        }

        let most_of_all = max_of_units(most, &mut shared, units);
        let sum_of_all = sum_of_units(sum * (most - most_of_all).exp(), &mut shared, units);
        if unit == 0 {
            losses[first + row] = (most_of_all - of_target + sum_of_all.ln()) * weight;
        }
        if has_gradient {
            let most_of_all = Vector::<f32, N>::new(most_of_all);
            let factor = Vector::<f32, N>::new(share * weight / sum_of_all);
            for turn in 0..turns {
                let index = turn * units + unit;
                if index < vectors {
                    let logits_here = Vector::<f32, N>::cast_from(logits[start + index]);
                    let mut gradients = (logits_here - most_of_all).exp() * factor;
                    if index == target_vector {
                        #[unroll]
                        for lane in 0..lanes {
                            if lane == target_lane {
                                gradients[lane] -= share * weight;
                            }
                        }
                    }
                    logits[start + index] = Vector::cast_from(gradients);
                }
            }
        }
    }
}

#[cfg(test)]
mod sizes {
    use super::chunk_rows;

    #[test]
    fn chunks_are_equal_tiles_within_the_bound() {
        // 130m: 16384 tokens, a vocabulary of 32000, in bf16 and in f32.
        assert_eq!(chunk_rows(16384, 64_000), 4096);
        assert_eq!(chunk_rows(16384, 128_000), 2048);
        // One chunk takes what there is.
        assert_eq!(chunk_rows(100, 64_000), 128);
        assert_eq!(chunk_rows(5000, 64_000), 2560);
        // However large the vocabulary is.
        assert_eq!(chunk_rows(1000, 1 << 30), 128);
    }
}

#[cfg(test)]
#[cfg(feature = "vulkan")]
mod tests {
    use burn::backend::Autodiff;
    use burn::tensor::activation::log_softmax;
    use burn::tensor::backend::Backend;
    use burn::tensor::{DType, Distribution, Int, Tensor, Tolerance};
    use burn_wgpu::{Vulkan, WgpuDevice};

    use super::*;

    const IGNORED: i32 = -100;

    /// Tokens, width and vocabulary, and the rows of a chunk, of which the last one is shorter: for vectors of several numbers, for vectors of
    /// one, and for more vectors in a row than a cube has units. There are few shapes, since each has products of its own to compile.
    const EVEN: ([usize; 3], usize) = ([70, 24, 96], 32);
    const ODD: ([usize; 3], usize) = ([50, 37, 101], 16);
    const LONG: ([usize; 3], usize) = ([70, 24, 2112], 32);

    fn device() -> WgpuDevice {
        WgpuDevice::DefaultDevice
    }

    fn random(shape: [usize; 2]) -> Tensor<Vulkan, 2> {
        Tensor::random(shape, Distribution::Normal(0.0, 0.5), &device())
    }

    fn targets(ids: &[i32]) -> Tensor<Vulkan, 1, Int> {
        Tensor::from_ints(ids, &device())
    }

    /// A target for each row, every seventh of which is not scored.
    fn some_targets(tokens: usize, vocab: usize) -> Vec<i32> {
        let target = |row| {
            if row % 7 == 3 {
                IGNORED
            } else {
                (row * 31 % vocab) as i32
            }
        };
        (0..tokens).map(target).collect()
    }

    fn values<const D: usize>(tensor: Tensor<Vulkan, D>) -> Vec<f32> {
        tensor.into_data().convert::<f32>().into_vec().unwrap()
    }

    #[track_caller]
    fn assert_close<const D: usize>(found: Tensor<Vulkan, D>, expected: Tensor<Vulkan, D>, tolerance: f32) {
        let scale = values(expected.clone().abs().max())[0];
        let [found, expected] = [found, expected].map(|tensor| tensor.cast(DType::F32).into_data());
        found.assert_approx_eq::<f32>(&expected, Tolerance::absolute(tolerance * scale));
    }

    /// Losses of the rows by tensor operations, and the gradients of their sum over `scored` for the hidden states and the head.
    fn by_tensor_operations(
        hidden: &Tensor<Vulkan, 2>,
        weight: &Tensor<Vulkan, 2>,
        ids: &[i32],
        scored: usize,
    ) -> [Tensor<Vulkan, 2>; 3] {
        let [hidden, weight] =
            [hidden, weight].map(|tensor| Tensor::<Autodiff<Vulkan>, 2>::from_inner(tensor.clone()).require_grad());
        let targets: Tensor<Autodiff<Vulkan>, 1, Int> = Tensor::from_inner(targets(ids));
        let is_ignored = targets.clone().equal_elem(IGNORED).reshape([ids.len(), 1]);
        let logits = log_softmax(hidden.clone().matmul(weight.clone()), 1);
        let of_targets = logits.gather(1, targets.clamp_min(0).reshape([ids.len(), 1]));
        let losses = of_targets.neg().mask_fill(is_ignored, 0.0);
        let gradients = losses.clone().sum().div_scalar(scored as f32).backward();
        [
            losses.inner(),
            hidden.grad(&gradients).unwrap(),
            weight.grad(&gradients).unwrap(),
        ]
    }

    /// With a head of its own and with one that is an embedding's transpose.
    #[test]
    fn agrees_with_tensor_operations() {
        for ([tokens, width, vocab], rows) in [EVEN, ODD, LONG] {
            let hidden = random([tokens, width]);
            let ids = some_targets(tokens, vocab);
            let scored = ids.iter().filter(|id| **id != IGNORED).count();
            for weight in [random([width, vocab]), random([vocab, width]).transpose()] {
                let [losses, of_hidden, of_weight] = by_tensor_operations(&hidden, &weight, &ids, scored);
                let found = loss_with_gradients_in_chunks(
                    &hidden,
                    &weight,
                    &targets(&ids),
                    IGNORED.into(),
                    scored,
                    DType::F32,
                    None,
                    rows,
                )
                .unwrap();
                assert_close(found.loss, losses.clone().sum().div_scalar(scored as f32), 1e-5);
                assert_close(found.hidden, of_hidden, 1e-5);
                assert_close(found.weight, of_weight, 1e-5);
                let found =
                    token_losses_in_chunks(&hidden, &weight, &targets(&ids), IGNORED.into(), DType::F32, rows).unwrap();
                assert_close(found.clone(), losses.squeeze_dim(1), 1e-5);
                for (loss, id) in values(found).iter().zip(&ids) {
                    assert_eq!(*loss == 0.0, *id == IGNORED);
                }
            }
        }
    }

    /// Whether somebody else still has the sum, which then stays as it is, or not.
    #[test]
    fn the_gradient_of_the_head_is_added_to_a_sum() {
        let ([tokens, width, vocab], rows) = EVEN;
        let (hidden, ids) = (random([tokens, width]), some_targets(tokens, vocab));
        for weight in [random([width, vocab]), random([vocab, width]).transpose()] {
            let of_weight = by_tensor_operations(&hidden, &weight, &ids, 30)[2].clone();
            for sum in [random([width, vocab]), random([vocab, width]).transpose()] {
                let before = values(sum.clone());
                let expected = sum.clone() + of_weight.clone();
                let run = |sum| {
                    let targets = targets(&ids);
                    loss_with_gradients_in_chunks(
                        &hidden,
                        &weight,
                        &targets,
                        IGNORED.into(),
                        30,
                        DType::F32,
                        Some(sum),
                        rows,
                    )
                    .unwrap()
                    .weight
                };
                assert_close(run(sum.clone()), expected.clone(), 1e-5);
                assert_eq!(values(sum.clone()), before);
                assert_close(run(sum), expected, 1e-5);
            }
        }
    }

    /// In half precision, whose small gradients f16 holds where few tokens share the loss; chunks that no tensor can begin at among them.
    #[test]
    fn products_in_half_precision() {
        if !<Vulkan>::supports_dtype(&device(), DType::F16) {
            return;
        }
        for ([tokens, width, vocab], rows) in [EVEN, ODD] {
            let [hidden, weight] =
                [[tokens, width], [width, vocab]].map(|shape| random(shape).cast(DType::F16).cast(DType::F32));
            let ids = some_targets(tokens, vocab);
            let [losses, of_hidden, of_weight] = by_tensor_operations(&hidden, &weight, &ids, tokens);
            for format in [DType::F32, DType::F16] {
                let found = loss_with_gradients_in_chunks(
                    &hidden.clone().cast(format),
                    &weight,
                    &targets(&ids),
                    IGNORED.into(),
                    tokens,
                    DType::F16,
                    None,
                    rows,
                )
                .unwrap();
                assert_eq!(
                    [found.loss.dtype(), found.hidden.dtype(), found.weight.dtype()],
                    [DType::F32, format, DType::F32]
                );
                assert_close(found.loss, losses.clone().sum().div_scalar(tokens as f32), 2e-3);
                assert_close(found.hidden, of_hidden.clone(), 4e-3);
                assert_close(found.weight, of_weight.clone(), 4e-3);
            }
        }
    }

    fn found(hidden: &Tensor<Vulkan, 2>, weight: &Tensor<Vulkan, 2>, ids: &[i32]) -> [Vec<f32>; 3] {
        let scored = ids.iter().filter(|id| **id != IGNORED).count();
        let found =
            loss_with_gradients(hidden, weight, &targets(ids), IGNORED.into(), scored, DType::F32, None).unwrap();
        [values(found.loss), values(found.hidden), values(found.weight)]
    }

    #[test]
    fn a_wrong_target_has_no_number_as_loss() {
        let (hidden, weight) = (random([3, 8]), random([8, 40]));
        for wrong in [-1, 40, -99, i32::MAX, i32::MIN] {
            let ids = [1, wrong, IGNORED];
            let [loss, of_hidden, of_weight] = found(&hidden, &weight, &ids);
            assert!(
                loss[0].is_nan() && of_weight.iter().all(|value| value.is_nan()),
                "{wrong}"
            );
            assert!(of_hidden[..8].iter().all(|value| value.is_finite()));
            assert!(of_hidden[8..16].iter().all(|value| value.is_nan()));
            assert!(of_hidden[16..].iter().all(|value| *value == 0.0));
            let losses = token_losses(&hidden, &weight, &targets(&ids), IGNORED.into(), DType::F32);
            let losses = values(losses.unwrap());
            assert!(losses[0] > 0.0 && losses[1].is_nan() && losses[2] == 0.0, "{losses:?}");
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let hidden = Tensor::from_floats([[1e4, 0.0]], &device());
        let weight = Tensor::from_floats([[1.0, -1.0], [0.0, 0.0]], &device());
        assert_eq!(found(&hidden, &weight, &[0])[0], [0.0]);
        assert_eq!(found(&hidden, &weight, &[1])[0], [2e4]);
    }

    #[test]
    fn without_scored_tokens_all_is_zero() {
        let all = found(&random([5, 8]), &random([8, 40]), &[IGNORED; 5]);
        assert!(all.into_iter().flatten().all(|value| value == 0.0));
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        let weight = Tensor::ones([3, 300], &device());
        for bad in [f32::NAN, f32::INFINITY] {
            let hidden = Tensor::from_floats([[bad, 0.0, 0.0], [0.0, 1.0, 0.0]], &device());
            let [loss, _, of_weight] = found(&hidden, &weight, &[0, 1]);
            assert!(
                !loss[0].is_finite() && of_weight.iter().any(|value| !value.is_finite()),
                "{bad}"
            );
        }
    }

    #[test]
    fn tensors_under_autodiff_are_left_to_it() {
        let [hidden, weight] = [[3, 8], [8, 40]].map(|shape| Tensor::<Autodiff<Vulkan>, 2>::from_inner(random(shape)));
        let targets = Tensor::from_inner(targets(&[1, 2, 3]));
        assert!(token_losses(&hidden, &weight, &targets, IGNORED.into(), DType::F32).is_none());
        let sum = Some(weight.clone());
        let left = loss_with_gradients(&hidden, &weight, &targets, IGNORED.into(), 3, DType::F32, sum);
        assert!(left.unwrap_err().is_some());
    }
}
