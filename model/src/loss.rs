//! Next-token cross-entropy, fused with the head and computed in chunks of rows, so that `[tokens, vocab]` never exists whole.
//!
//! With logits `z = h·W` and `p = softmax(z)`, the loss of a scored row is `log Σ exp z − z_target`, and its gradient with respect to the
//! logits is `p − onehot(target)`. Both come out of one pass over a chunk, and so do `∂L/∂h = dz·Wᵀ` and the chunk's share of
//! `∂L/∂W = hᵀ·dz`: the logits are dropped before the next chunk begins.
//!
//! Products are in the number format of the [`Precision`]; softmax, loss and sums are in f32 in every one.

use burn::tensor::{Bool, DType, Int, Tensor, backend::Backend};
use gpas_batch::IGNORE_INDEX;

use crate::fast::{self, Scoring};
use crate::precision::{Precision, cast};

/// Numbers in one chunk of logits on a processor: 32 MiB in f32. Larger chunks sum the head's gradient less often, smaller ones stay in
/// cache.
const CHUNK_NUMBERS: usize = 1 << 23;
/// Numbers in one chunk of logits on a device: 128 MiB in f32, which every device has in one piece. No cache holds them anyway, a product of
/// few rows leaves most of a device idle, and every chunk reads and writes the whole gradient of the head.
const DEVICE_CHUNK_NUMBERS: usize = 1 << 25;
/// Rows of a chunk on a device are a multiple of this, so that a product has whole tiles.
const DEVICE_TILE: usize = 128;

/// Rows of one chunk on a processor.
pub(crate) fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_NUMBERS / vocab).max(16)
}

/// Rows of one chunk on a device: the same in each chunk but the last, in as few chunks as there can be.
fn device_chunk_rows(tokens: usize, vocab: usize) -> usize {
    let most = (DEVICE_CHUNK_NUMBERS / vocab / DEVICE_TILE).max(1) * DEVICE_TILE;
    let chunks = tokens.div_ceil(most).max(1);
    tokens.div_ceil(chunks).next_multiple_of(DEVICE_TILE)
}

/// Rows of one chunk where a backend computes.
fn chunk_rows_on<B: Backend>(hidden: &Tensor<B, 2>, weight: &Tensor<B, 2>) -> usize {
    let (tokens, vocab) = (hidden.dims()[0], weight.dims()[1]);
    if fast::is_in_memory::<B>() {
        chunk_rows(vocab)
    } else {
        device_chunk_rows(tokens, vocab)
    }
}

/// The loss and what it sends back to the hidden states and to the head.
#[derive(Debug)]
pub struct LossGradients<B: Backend> {
    /// Σ of the scored rows' losses, divided by the `scored` given; shape `[1]`.
    pub loss: Tensor<B, 1>,
    /// Gradient of the hidden states, `[tokens, hidden]`.
    pub hidden: Tensor<B, 2>,
    /// Gradient of the head and what it was added to, `[hidden, vocab]`.
    pub weight: Tensor<B, 2>,
}

/// Loss and gradients at once, without an autodiff graph.
///
/// `scored` is the number of scored tokens of the whole optimizer step; with micro-batches the losses add up to the step's mean. The
/// gradient of the head is added to `sum`, that of the micro-batches before; on a CPU sequence after sequence, `seq` tokens each, so that
/// it is the same sum however they are cut into micro-batches.
///
/// # Shapes
/// - hidden: `[tokens, hidden]`
/// - weight: `[hidden, vocab]`
/// - targets: `[tokens]`, ids below `vocab` or [`IGNORE_INDEX`]
///
/// # Panics
/// If there is not one target for each row of hidden states, and, where tensors lie in the memory of this process, if a target is neither
/// an id nor [`IGNORE_INDEX`]. To look at the targets of a device would mean to wait for it: there the loss of such a target is NaN.
pub fn loss_with_gradients<B: Backend>(
    hidden: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    scored: usize,
    seq: usize,
    sum: Option<Tensor<B, 2>>,
    precision: Precision,
) -> LossGradients<B> {
    check_targets(&hidden, &weight, &targets);
    let scoring = Scoring {
        ignored: i64::from(IGNORE_INDEX),
        scored,
        seq,
        products: precision.products(),
    };
    let sum = match fast::loss_with_gradients(&hidden, &weight, &targets, scoring, sum) {
        Ok((loss, hidden, weight)) => return LossGradients { loss, hidden, weight },
        Err(sum) => sum,
    };
    let rows = chunk_rows_on(&hidden, &weight);
    let found = loss_with_gradients_in_chunks(hidden, weight, targets, scored, precision, rows);
    LossGradients {
        weight: match sum {
            Some(sum) => sum + found.weight,
            None => found.weight,
        },
        ..found
    }
}

/// [`loss_with_gradients`] in chunks of `rows` rows.
fn loss_with_gradients_in_chunks<B: Backend>(
    hidden: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    scored: usize,
    precision: Precision,
    rows: usize,
) -> LossGradients<B> {
    let share = 1.0 / scored.max(1) as f64;
    let (hidden_format, weight_format, products) = (hidden.dtype(), weight.dtype(), precision.products());
    let (hidden, weight) = (hidden.cast(products), weight.cast(products));
    let weight_transposed = weight.clone().transpose();
    let mut losses = Vec::new();
    let mut hidden_gradients = Vec::new();
    let mut weight_gradient: Option<Tensor<B, 2>> = None;
    for chunk in chunks(hidden, targets, weight.dims()[1], rows) {
        let softmax = Softmax::new(&chunk, weight.clone());
        losses.push(softmax.loss(&chunk).mul_scalar(share));
        let share_of_row = chunk.is_scored.clone().mul_scalar(share);
        let target_share = share_of_row.clone().neg();
        let probabilities = softmax.exponentials * (share_of_row / softmax.sum);
        let logits_gradient =
            probabilities.scatter(1, chunk.targets, target_share, burn::tensor::IndexingUpdateOp::Add);
        let logits_gradient = logits_gradient.cast(products);
        let hidden_gradient = logits_gradient.clone().matmul(weight_transposed.clone());
        hidden_gradients.push(hidden_gradient.cast(hidden_format));
        let part = chunk.hidden.transpose().matmul(logits_gradient).cast(DType::F32);
        weight_gradient = Some(match weight_gradient {
            Some(sum) => sum + part,
            None => part,
        });
    }
    LossGradients {
        loss: Tensor::cat(losses, 0).sum(),
        hidden: Tensor::cat(hidden_gradients, 0),
        weight: weight_gradient
            .unwrap_or_else(|| weight.zeros_like())
            .cast(weight_format),
    }
}

/// Loss of every row, 0 where the target is [`IGNORE_INDEX`]; shape `[tokens]`.
///
/// Shapes as in [`loss_with_gradients`]. The logits are chunked here too; on an autodiff backend their softmax is kept for the
/// backward pass all the same, which is why training uses [`loss_with_gradients`].
///
/// # Panics
/// As [`loss_with_gradients`].
pub fn token_losses<B: Backend>(
    hidden: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    precision: Precision,
) -> Tensor<B, 1> {
    check_targets(&hidden, &weight, &targets);
    let products = precision.products();
    if let Some(found) = fast::token_losses(&hidden, &weight, &targets, i64::from(IGNORE_INDEX), products) {
        return found;
    }
    let rows = chunk_rows_on(&hidden, &weight);
    token_losses_in_chunks(cast(hidden, products), weight.cast(products), targets, rows)
}

/// [`token_losses`] in chunks of `rows` rows.
fn token_losses_in_chunks<B: Backend>(
    hidden: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    rows: usize,
) -> Tensor<B, 1> {
    let losses = chunks(hidden, targets, weight.dims()[1], rows)
        .map(|chunk| Softmax::new(&chunk, weight.clone()).loss(&chunk))
        .collect();
    Tensor::cat(losses, 0)
}

/// Some rows with their targets.
struct Chunk<B: Backend> {
    /// `[rows, hidden]`.
    hidden: Tensor<B, 2>,
    /// `[rows, 1]`, 0 where not scored.
    targets: Tensor<B, 2, Int>,
    /// `[rows, 1]`, 1 where scored, else 0; NaN where the target is neither an id nor [`IGNORE_INDEX`].
    is_scored: Tensor<B, 2>,
}

fn chunks<B: Backend>(
    hidden: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    vocab: usize,
    rows: usize,
) -> impl Iterator<Item = Chunk<B>> {
    let tokens = hidden.dims()[0];
    let is_ignored = targets.clone().equal_elem(IGNORE_INDEX);
    let is_wrong = is_outside(targets.clone(), vocab).bool_and(is_ignored.clone().bool_not());
    let is_scored = is_ignored.bool_not().float().cast(DType::F32);
    let is_scored = is_scored.mask_fill(is_wrong, f32::NAN).reshape([tokens, 1]);
    let targets = targets.clamp(0, vocab as i64 - 1).reshape([tokens, 1]);
    (0..tokens).step_by(rows).map(move |start| {
        let length = rows.min(tokens - start);
        Chunk {
            hidden: hidden.clone().narrow(0, start, length),
            is_scored: is_scored.clone().narrow(0, start, length),
            targets: targets.clone().narrow(0, start, length),
        }
    })
}

/// Which of these are no ids of a vocabulary.
pub(crate) fn is_outside<B: Backend, const D: usize>(ids: Tensor<B, D, Int>, vocab: usize) -> Tensor<B, D, Bool> {
    ids.clone().lower_elem(0).bool_or(ids.greater_equal_elem(vocab as i64))
}

/// Panics where the targets do not fit the hidden states; where nobody has to wait for their values, these are looked at too.
fn check_targets<B: Backend>(hidden: &Tensor<B, 2>, weight: &Tensor<B, 2>, targets: &Tensor<B, 1, Int>) {
    let (tokens, vocab) = (hidden.dims()[0], weight.dims()[1]);
    assert_eq!(
        targets.dims(),
        [tokens],
        "the number of targets, and that of the hidden states"
    );
    if !fast::is_in_memory::<B>() {
        return;
    }
    let is_target =
        |target: &i64| *target == i64::from(IGNORE_INDEX) || usize::try_from(*target).is_ok_and(|id| id < vocab);
    if let Some(target) = targets.to_data().iter::<i64>().find(|target| !is_target(target)) {
        panic!("target {target} is neither an id of the vocabulary of {vocab} nor {IGNORE_INDEX}, which is not scored");
    }
}

/// The softmax of a chunk before its division, and what the loss needs besides.
struct Softmax<B: Backend> {
    /// `exp(z − max z)`, `[rows, vocab]`.
    exponentials: Tensor<B, 2>,
    /// `Σ exp(z − max z)`, `[rows, 1]`.
    sum: Tensor<B, 2>,
    /// `z_target − max z`, `[rows, 1]`.
    target: Tensor<B, 2>,
}

impl<B: Backend> Softmax<B> {
    fn new(chunk: &Chunk<B>, weight: Tensor<B, 2>) -> Self {
        let logits = chunk.hidden.clone().matmul(weight).cast(DType::F32);
        let max = logits.clone().detach().max_dim(1);
        let target = logits.clone().gather(1, chunk.targets.clone()) - max.clone();
        // The last uses of the logits: a backend may work in their place.
        let exponentials = (logits - max).exp();
        let sum = exponentials.clone().sum_dim(1);
        Self {
            exponentials,
            sum,
            target,
        }
    }

    /// `log Σ exp z − z_target` of the scored rows, `[rows]`.
    fn loss(&self, chunk: &Chunk<B>) -> Tensor<B, 1> {
        let loss = self.sum.clone().log() - self.target.clone();
        (loss * chunk.is_scored.clone()).squeeze_dim(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::loss::CrossEntropyLossConfig;
    use burn::tensor::Distribution;
    use burn_flex::{Flex, FlexDevice};
    use gpas_host::check::assert_close;

    type Autodiff = burn::backend::Autodiff<Flex>;

    /// Against Burn's loss on whole logits and Burn's autodiff, over several chunks and with ignored rows.
    #[test]
    fn agrees_with_the_unfused_loss_and_its_gradients() {
        // Three chunks, the last one shorter. The vocabulary is small, so that every entry of a gradient counts beside its peak.
        let (tokens, width, vocab, chunk) = (40, 6, 50, 16);
        let random =
            |shape: [usize; 2]| Tensor::<Autodiff, 2>::random(shape, Distribution::Normal(0.0, 0.5), &FlexDevice);
        let hidden = random([tokens, width]).require_grad();
        let weight = random([width, vocab]).require_grad();
        let is_ignored = |row: &i32| row % 7 == 3;
        let ids: Vec<i32> = (0..tokens as i32)
            .map(|row| if is_ignored(&row) { -100 } else { row * 7 % vocab as i32 })
            .collect();
        let rows: Vec<i32> = (0..tokens as i32).filter(|row| !is_ignored(row)).collect();
        let targets = Tensor::<Autodiff, 1, Int>::from_ints(ids.as_slice(), &FlexDevice);
        let kept = Tensor::<Autodiff, 1, Int>::from_ints(rows.as_slice(), &FlexDevice);

        let logits = hidden.clone().matmul(weight.clone()).select(0, kept.clone());
        let expected = CrossEntropyLossConfig::new()
            .init(&FlexDevice)
            .forward(logits, targets.clone().select(0, kept));
        let gradients = expected.backward();

        let (inner_hidden, inner_weight) = (hidden.clone().inner(), weight.clone().inner());
        let fused = loss_with_gradients_in_chunks(
            inner_hidden.clone(),
            inner_weight.clone(),
            targets.clone().inner(),
            rows.len(),
            Precision::F32,
            chunk,
        );
        let loss = fused.loss.into_scalar();
        let relative = (loss / expected.into_scalar() - 1.0).abs();
        assert!(relative < 1e-5, "loss: {relative}");
        assert_close(fused.hidden, hidden.grad(&gradients).unwrap(), "hidden");
        assert_close(fused.weight, weight.grad(&gradients).unwrap(), "weight");

        let losses = token_losses_in_chunks(inner_hidden, inner_weight, targets.inner(), chunk);
        let losses = losses.into_data().into_vec::<f32>().unwrap();
        assert_eq!(losses.len(), tokens);
        for (row, loss) in (0..).zip(&losses) {
            assert_eq!(*loss == 0.0, is_ignored(&row), "row {row}: {loss}");
        }
        let mean = losses.iter().sum::<f32>() / rows.len() as f32;
        assert!((mean / loss - 1.0).abs() < 1e-5, "{mean} against {loss}");
    }

    /// A number that is none must reach the loss and the gradients, or the step that made it would be taken.
    #[test]
    fn what_is_not_finite_is_not_hidden() {
        let weight = Tensor::<Flex, 2>::ones([3, 300], &FlexDevice);
        for bad in [f32::NAN, f32::INFINITY] {
            let hidden = Tensor::<Flex, 2>::from_floats([[bad, 0.0, 0.0]], &FlexDevice);
            let target = Tensor::<Flex, 1, Int>::from_ints([0], &FlexDevice);
            let fused = loss_with_gradients(hidden, weight.clone(), target, 1, 1, None, Precision::F32);
            assert!(!fused.loss.into_scalar().is_finite(), "{bad}");
            assert!(!fused.weight.is_finite().all().into_scalar(), "{bad}");
        }
    }

    /// As many rows as fit the numbers of a chunk, and at least 16.
    #[test]
    fn a_chunk_of_a_processor_has_the_rows_that_fit() {
        assert_eq!(chunk_rows(32_000), 262);
        assert_eq!(chunk_rows(1 << 23), 16);
    }

    /// Equal chunks of whole tiles within the numbers of a chunk, and at least one tile.
    #[test]
    fn chunks_of_a_device_are_equal_and_of_whole_tiles() {
        assert_eq!(device_chunk_rows(16_384, 32_000), 1024);
        // Six chunks of at most 1024 rows.
        assert_eq!(device_chunk_rows(5200, 32_000), 896);
        assert_eq!(device_chunk_rows(100, 32_000), 128);
        assert_eq!(device_chunk_rows(1000, 1 << 27), 128);
        for tokens in (1..20_000).step_by(333) {
            let rows = device_chunk_rows(tokens, 50_257);
            assert_eq!(rows % 128, 0);
            assert!(rows * 50_257 <= DEVICE_CHUNK_NUMBERS, "{tokens}: {rows}");
        }
    }

    /// The chunks of a device, which is a backend whose tensors are not in the memory of this process, cost no accuracy.
    #[test]
    fn the_chunks_of_a_processor_and_of_a_device_agree() {
        let (tokens, width, vocab) = (700, 5, 32_000);
        let random = |shape: [usize; 2]| Tensor::<Flex, 2>::random(shape, Distribution::Normal(0.0, 0.5), &FlexDevice);
        let (hidden, weight) = (random([tokens, width]), random([width, vocab]));
        let ids: Vec<i32> = (0..tokens as i32).map(|row| row * 7 % vocab as i32).collect();
        let targets = Tensor::<Flex, 1, Int>::from_ints(ids.as_slice(), &FlexDevice);
        let [processor, device] = [chunk_rows(vocab), device_chunk_rows(tokens, vocab)].map(|rows| {
            let (hidden, weight, targets) = (hidden.clone(), weight.clone(), targets.clone());
            loss_with_gradients_in_chunks(hidden, weight, targets, tokens, Precision::F32, rows)
        });
        assert_close(device.loss, processor.loss, "loss");
        assert_close(device.hidden, processor.hidden, "hidden");
        assert_close(device.weight, processor.weight, "weight");
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let hidden = Tensor::<Flex, 2>::from_floats([[1e4, 0.0]], &FlexDevice);
        let weight = Tensor::<Flex, 2>::from_floats([[1.0, -1.0], [0.0, 0.0]], &FlexDevice);
        let target = Tensor::<Flex, 1, Int>::from_ints([0], &FlexDevice);
        let fused = loss_with_gradients(hidden, weight, target, 1, 1, None, Precision::F32);
        assert_eq!(fused.loss.into_scalar(), 0.0);
    }

    #[test]
    fn a_step_without_scored_tokens_is_zero() {
        let hidden = Tensor::<Flex, 2>::ones([2, 3], &FlexDevice);
        let weight = Tensor::<Flex, 2>::ones([3, 4], &FlexDevice);
        let targets = Tensor::<Flex, 1, Int>::from_ints([-100, -100], &FlexDevice);
        let fused = loss_with_gradients(hidden, weight, targets, 0, 2, None, Precision::F32);
        assert_eq!(fused.loss.into_scalar(), 0.0);
        assert_eq!(fused.weight.abs().max().into_scalar(), 0.0);
    }

    #[cfg(feature = "host")]
    fn loss_of(targets: [i32; 2]) -> f32 {
        let hidden = Tensor::<Flex, 2>::ones([2, 3], &FlexDevice);
        let weight = Tensor::<Flex, 2>::ones([3, 4], &FlexDevice);
        let targets = Tensor::<Flex, 1, Int>::from_ints(targets, &FlexDevice);
        loss_with_gradients(hidden, weight, targets, 2, 2, None, Precision::F32)
            .loss
            .into_scalar()
    }

    #[cfg(feature = "host")]
    #[test]
    #[should_panic(expected = "target -1 is neither an id of the vocabulary of 4 nor -100, which is not scored")]
    fn a_target_below_zero_is_named() {
        loss_of([1, -1]);
    }

    #[cfg(feature = "host")]
    #[test]
    #[should_panic(expected = "target 4 is neither an id of the vocabulary of 4 nor -100, which is not scored")]
    fn a_target_above_the_vocabulary_is_named() {
        loss_of([4, 1]);
    }

    #[test]
    #[should_panic(expected = "the number of targets, and that of the hidden states")]
    fn targets_of_another_number_are_refused() {
        let hidden = Tensor::<Flex, 2>::ones([3, 3], &FlexDevice);
        let weight = Tensor::<Flex, 2>::ones([3, 4], &FlexDevice);
        token_losses(
            hidden,
            weight,
            Tensor::<Flex, 1, Int>::from_ints([1, 2], &FlexDevice),
            Precision::F32,
        );
    }

    /// As on a device, where nobody looks at the targets.
    #[test]
    fn a_target_that_nobody_looks_at_has_no_number_as_loss() {
        let hidden = Tensor::<Flex, 2>::ones([3, 3], &FlexDevice);
        let weight = Tensor::<Flex, 2>::ones([3, 4], &FlexDevice);
        for wrong in [-1, 4, -99] {
            let targets = || Tensor::<Flex, 1, Int>::from_ints([1, wrong, -100], &FlexDevice);
            let losses = token_losses_in_chunks(hidden.clone(), weight.clone(), targets(), 2);
            let losses: Vec<f32> = losses.into_data().into_vec().unwrap();
            assert!((losses[0] - 4f32.ln()).abs() < 1e-6, "{losses:?}");
            assert!(losses[1].is_nan() && losses[2] == 0.0, "{losses:?}");
            let (hidden, weight) = (hidden.clone(), weight.clone());
            let found = loss_with_gradients_in_chunks(hidden, weight, targets(), 2, Precision::F32, 2);
            assert!(found.loss.into_scalar().is_nan());
            assert!(found.weight.is_nan().all().into_scalar());
        }
    }
}

#[cfg(all(test, feature = "host"))]
mod fused {
    use super::*;
    use burn::tensor::Distribution;
    use burn_flex::{Flex, FlexDevice};
    use gpas_host::check::{assert_close, assert_close_in};

    fn scoring(seq: usize) -> Scoring {
        Scoring {
            ignored: i64::from(IGNORE_INDEX),
            scored: 900,
            seq,
            products: DType::F32,
        }
    }

    /// Over more than one chunk of rows and block of the vocabulary, with a head of its own and one that is the embedding's transpose.
    #[test]
    fn fused_and_plain_agree() {
        let (tokens, width, vocab) = (1100, 10, 600);
        let random = |shape: [usize; 2]| Tensor::<Flex, 2>::random(shape, Distribution::Normal(0.0, 1.0), &FlexDevice);
        let hidden = random([tokens, width]);
        let ids: Vec<i32> = (0..tokens as i32)
            .map(|row| if row % 7 == 3 { -100 } else { row * 7 % vocab as i32 })
            .collect();
        let targets = Tensor::<Flex, 1, Int>::from_ints(ids.as_slice(), &FlexDevice);
        for weight in [random([width, vocab]), random([vocab, width]).transpose()] {
            let (h, w, t) = (hidden.clone(), weight.clone(), targets.clone());
            let plain = loss_with_gradients_in_chunks(h, w, t, 900, Precision::F32, 300);
            for seq in [50, 550, 1100] {
                let fused = fast::loss_with_gradients(&hidden, &weight, &targets, scoring(seq), None);
                let (loss, of_hidden, of_weight) = fused.unwrap();
                assert_close(loss, plain.loss.clone(), "loss");
                assert_close(of_hidden, plain.hidden.clone(), "hidden");
                assert_close(of_weight, plain.weight.clone(), "weight");
            }
            let fused = fast::token_losses(&hidden, &weight, &targets, i64::from(IGNORE_INDEX), DType::F32).unwrap();
            assert_close(
                fused,
                token_losses_in_chunks(hidden.clone(), weight.clone(), targets.clone(), 300),
                "losses",
            );
            fused_and_plain_agree_in_bf16(hidden.clone(), weight, targets.clone());
        }
    }

    /// With products of bf16: against f32 on the rounded numbers.
    fn fused_and_plain_agree_in_bf16(hidden: Tensor<Flex, 2>, weight: Tensor<Flex, 2>, targets: Tensor<Flex, 1, Int>) {
        const ROUNDED: DType = DType::BF16;
        let [h, w] = [hidden, weight].map(|tensor| tensor.cast(ROUNDED).cast(DType::F32));
        let (h, w, t) = (h.clone(), w.clone(), targets.clone());
        let plain = loss_with_gradients_in_chunks(h.clone(), w.clone(), t.clone(), 900, Precision::F32, 300);
        for weight in [w.clone(), w.clone().cast(ROUNDED)] {
            let format = weight.dtype();
            let fused = loss_with_gradients(h.clone(), weight, t.clone(), 900, 550, None, Precision::Bf16);
            assert_eq!((fused.hidden.dtype(), fused.weight.dtype()), (DType::F32, format));
            // The products of the logits are exact, and so is the loss but for sums of f32.
            assert_close(fused.loss, plain.loss.clone(), "loss");
            assert_close_in(ROUNDED, fused.hidden, plain.hidden.clone(), "hidden");
            assert_close_in(ROUNDED, fused.weight.cast(DType::F32), plain.weight.clone(), "weight");
        }
        let losses = token_losses(h.clone(), w.clone(), t.clone(), Precision::Bf16);
        assert_close(losses, token_losses_in_chunks(h, w, t, 300), "losses");
    }
}
