//! Next-token cross-entropy, fused with the head and computed in chunks of rows, so that `[tokens, vocab]` never exists whole.
//!
//! With logits `z = h·W` and `p = softmax(z)`, the loss of a scored row is `log Σ exp z − z_target`, and its gradient with respect to the
//! logits is `p − onehot(target)`. Both come out of one pass over a chunk, and so do `∂L/∂h = dz·Wᵀ` and the chunk's share of
//! `∂L/∂W = hᵀ·dz`: the logits are dropped before the next chunk begins.

use burn::tensor::{Int, Tensor, backend::Backend};

/// A target that is not scored, as in PyTorch.
pub const IGNORE_INDEX: i64 = -100;

/// Numbers in one chunk of logits: 32 MiB in f32. Larger chunks sum the head's gradient less often, smaller ones stay in cache.
const CHUNK_NUMBERS: usize = 1 << 23;

/// Rows of one chunk.
pub(crate) fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_NUMBERS / vocab).max(16)
}

/// The loss and what it sends back to the hidden states and to the head.
#[derive(Debug)]
pub struct LossGradients<B: Backend> {
    /// Σ of the scored rows' losses, divided by the `scored` given; shape `[1]`.
    pub loss: Tensor<B, 1>,
    /// Gradient of the hidden states, `[tokens, hidden]`.
    pub hidden: Tensor<B, 2>,
    /// Gradient of the head, `[hidden, vocab]`.
    pub weight: Tensor<B, 2>,
}

/// Loss and gradients at once, without an autodiff graph.
///
/// `scored` is the number of scored tokens of the whole optimizer step; with micro-batches the losses add up to the step's mean.
///
/// # Shapes
/// - hidden: `[tokens, hidden]`
/// - weight: `[hidden, vocab]`
/// - targets: `[tokens]`, ids below `vocab` or [`IGNORE_INDEX`]
pub fn loss_with_gradients<B: Backend>(
    hidden: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    scored: usize,
) -> LossGradients<B> {
    let share = 1.0 / scored.max(1) as f64;
    let weight_transposed = weight.clone().transpose();
    let mut losses = Vec::new();
    let mut hidden_gradients = Vec::new();
    let mut weight_gradient: Option<Tensor<B, 2>> = None;
    for chunk in chunks(hidden, targets, weight.dims()[1]) {
        let softmax = Softmax::new(&chunk, weight.clone());
        losses.push(softmax.loss(&chunk).mul_scalar(share));
        let share_of_row = chunk.is_scored.clone().mul_scalar(share);
        let target_share = share_of_row.clone().neg();
        let probabilities = softmax.exponentials * (share_of_row / softmax.sum);
        let logits_gradient =
            probabilities.scatter(1, chunk.targets, target_share, burn::tensor::IndexingUpdateOp::Add);
        hidden_gradients.push(logits_gradient.clone().matmul(weight_transposed.clone()));
        let part = chunk.hidden.transpose().matmul(logits_gradient);
        weight_gradient = Some(match weight_gradient {
            Some(sum) => sum + part,
            None => part,
        });
    }
    LossGradients {
        loss: Tensor::cat(losses, 0).sum(),
        hidden: Tensor::cat(hidden_gradients, 0),
        weight: weight_gradient.unwrap_or_else(|| weight.zeros_like()),
    }
}

/// Loss of every row, 0 where the target is [`IGNORE_INDEX`]; shape `[tokens]`.
///
/// Shapes as in [`loss_with_gradients`]. The logits are chunked here too; on an autodiff backend their softmax is kept for the
/// backward pass all the same, which is why training uses [`loss_with_gradients`].
pub fn token_losses<B: Backend>(
    hidden: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
) -> Tensor<B, 1> {
    let losses = chunks(hidden, targets, weight.dims()[1])
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
    /// `[rows, 1]`, 1 where scored, else 0.
    is_scored: Tensor<B, 2>,
}

fn chunks<B: Backend>(
    hidden: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    vocab: usize,
) -> impl Iterator<Item = Chunk<B>> {
    let tokens = hidden.dims()[0];
    let rows = chunk_rows(vocab);
    (0..tokens).step_by(rows).map(move |start| {
        let length = rows.min(tokens - start);
        let targets = targets.clone().narrow(0, start, length).reshape([length, 1]);
        Chunk {
            hidden: hidden.clone().narrow(0, start, length),
            is_scored: targets.clone().not_equal_elem(IGNORE_INDEX).float(),
            targets: targets.clamp_min(0),
        }
    })
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
        let logits = chunk.hidden.clone().matmul(weight);
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
    use burn::tensor::{Distribution, Tolerance};
    use burn_flex::{Flex, FlexDevice};

    type Autodiff = burn::backend::Autodiff<Flex>;

    /// Against Burn's loss on whole logits and Burn's autodiff, over several chunks and with ignored rows.
    #[test]
    fn agrees_with_the_unfused_loss_and_its_gradients() {
        let (tokens, width, vocab) = (40, 6, (1 << 23) / 16);
        assert_eq!(chunk_rows(vocab), 16, "three chunks, the last one shorter");
        let random =
            |shape: [usize; 2]| Tensor::<Autodiff, 2>::random(shape, Distribution::Normal(0.0, 0.5), &FlexDevice);
        let hidden = random([tokens, width]).require_grad();
        let weight = random([width, vocab]).require_grad();
        let ids: Vec<i32> = (0..tokens as i32)
            .map(|row| if row % 7 == 3 { -100 } else { row * 1000 })
            .collect();
        let rows: Vec<i32> = (0..tokens as i32).filter(|row| row % 7 != 3).collect();
        let targets = Tensor::<Autodiff, 1, Int>::from_ints(ids.as_slice(), &FlexDevice);
        let kept = Tensor::<Autodiff, 1, Int>::from_ints(rows.as_slice(), &FlexDevice);

        let logits = hidden.clone().matmul(weight.clone()).select(0, kept.clone());
        let expected = CrossEntropyLossConfig::new()
            .init(&FlexDevice)
            .forward(logits, targets.clone().select(0, kept));
        let gradients = expected.backward();

        let fused = loss_with_gradients(
            hidden.clone().inner(),
            weight.clone().inner(),
            targets.clone().inner(),
            rows.len(),
        );
        let close = Tolerance::<f32>::absolute(1e-6);
        fused
            .loss
            .clone()
            .into_data()
            .assert_approx_eq(&expected.into_data(), Tolerance::<f32>::relative(1e-6));
        fused
            .hidden
            .into_data()
            .assert_approx_eq(&hidden.grad(&gradients).unwrap().into_data(), close);
        fused
            .weight
            .into_data()
            .assert_approx_eq(&weight.grad(&gradients).unwrap().into_data(), close);

        let rows_lost = token_losses(hidden.inner(), weight.inner(), targets.inner());
        assert_eq!(rows_lost.clone().narrow(0, 3, 1).into_scalar(), 0.0);
        let mean: f32 = rows_lost.sum().into_scalar() / rows.len() as f32;
        assert!((mean - fused.loss.into_scalar()).abs() < 1e-4);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let hidden = Tensor::<Flex, 2>::from_floats([[1e4, 0.0]], &FlexDevice);
        let weight = Tensor::<Flex, 2>::from_floats([[1.0, -1.0], [0.0, 0.0]], &FlexDevice);
        let target = Tensor::<Flex, 1, Int>::from_ints([0], &FlexDevice);
        let fused = loss_with_gradients(hidden, weight, target, 1);
        assert_eq!(fused.loss.into_scalar(), 0.0);
    }

    #[test]
    fn a_step_without_scored_tokens_is_zero() {
        let hidden = Tensor::<Flex, 2>::ones([2, 3], &FlexDevice);
        let weight = Tensor::<Flex, 2>::ones([3, 4], &FlexDevice);
        let targets = Tensor::<Flex, 1, Int>::from_ints([-100, -100], &FlexDevice);
        let fused = loss_with_gradients(hidden, weight, targets, 0);
        assert_eq!(fused.loss.into_scalar(), 0.0);
        assert_eq!(fused.weight.abs().max().into_scalar(), 0.0);
    }
}
