//! Causal attention with rotary positions and grouped key heads, from the rows of the projections to what the heads mix.
//!
//! With queries `q` (turned by their positions and scaled by `1/√head_dim`), keys `k` (turned) and values `v` of a head,
//! `y = P·v` where `P = softmax(q·kᵀ)` up to the diagonal. With `g = ∂L/∂y` and `G = g·vᵀ`, `S = P ⊙ (G − rowsum(P ⊙ G))`:
//! `∂L/∂v = Pᵀ·g`, `∂L/∂q = S·k` and `∂L/∂k = Sᵀ·q`. The query heads that share a key head are rows below each other, so that no key is
//! repeated and what comes back to a key from all of them is one product.
//!
//! # Launches
//! Forward 5, of which 2 are products: turn and lay out, `q·kᵀ`, softmax, `P·v`, lay back. Backward 7, of which 4 are products: lay out g,
//! `g·vᵀ`, S, three products, turn back; 8 where P is not kept but `q·kᵀ` is a product once more.
//!
//! # Bytes moved
//! For each of the `batch · heads · seq²` scores, with numbers of two bytes: forward 7 (2 written by the product, 3 by
//! [softmax](crate::softmax), 2 read by the product), backward 12 (2 written, 4, and 2 read by each of three products), or 16 with the
//! product once more. The tensor operations move about 70. The products make the whole square, of which the half above the diagonal is for
//! nothing.
//!
//! # What is kept
//! q, k and v in place of the projections. P is `seq · heads` numbers for each token, which at 12 heads and 16 sequences of 1024 tokens is
//! 400 MB a layer, about as much as all else that a layer keeps. So P is kept while it is at most twice q, k and v together (for heads of 64
//! without groups, up to 384 tokens), and else computed again, for 4 bytes a score and one product more.
//!
//! A weight of 0 times a value that is no number is no number: such a value shows in the rows before it too, as in tensor operations.

use burn::tensor::backend::Backend;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use crate::autodiff::{Differentiable, Gradient, Kept};
use crate::kernel::Kernel;
use crate::product::{product, transposed};
use crate::rotary::{Sizes, exchanged, turned_back, turned_heads};
use crate::softmax::{Given, causal_softmax, causal_softmax_backward};
use crate::table::{apply, input};
use crate::tensor::{Form, in_order};

/// Causal attention within sequences of one length. The queries, keys and values of a token stand side by side in its row; `tables` are the
/// cosines and the sines of the rotation, which turns the first half of a head against the second.
///
/// # Shapes
/// - projected: `[batch · seq, (heads + 2 · kv_heads) · head_dim]`
/// - tables: `[seq, head_dim]`
/// - output: `[batch · seq, heads · head_dim]`
///
/// # Panics
/// If the shapes do not fit each other.
pub fn causal_attention<B: Backend>(
    projected: &burn::Tensor<B, 2>,
    tables: &[burn::Tensor<B, 2>; 2],
    heads: usize,
    kv_heads: usize,
) -> Option<burn::Tensor<B, 2>> {
    let [cos, sin] = tables;
    let [seq, head_dim] = cos.dims();
    if seq == 0 {
        return None;
    }
    let sizes = Sizes {
        batch: projected.dims()[0] / seq,
        seq,
        heads,
        kv_heads,
        head_dim,
    };
    assert_eq!(
        projected.dims(),
        sizes.together(),
        "sequences, and the heads of a token"
    );
    assert_eq!(sin.dims(), [seq, head_dim], "the table of sines, and that of cosines");
    let keeps_weights = keeps_weights(sizes);
    let operation = Differentiable {
        forward: CausalAttention { sizes, keeps_weights }.into(),
        backward: CausalAttentionBackward { sizes, keeps_weights }.into(),
        kept: match keeps_weights {
            false => &KEPT[..5],
            true => &KEPT,
        },
        gradients: &[Gradient::Found(0), Gradient::None, Gradient::None],
    };
    apply(operation, vec![input(projected)?, input(cos)?, input(sin)?])
}

/// The tables, q, k, v and the weights.
const KEPT: [Kept; 6] = [
    Kept::Input(1),
    Kept::Input(2),
    Kept::Output(1),
    Kept::Output(2),
    Kept::Output(3),
    Kept::Output(4),
];

/// Whether the weights are at most twice as many numbers as queries, keys and values together.
fn keeps_weights(sizes: Sizes) -> bool {
    let [_, width] = sizes.together();
    sizes.heads * sizes.seq <= 2 * width
}

/// `projected, cos, sin ↦ y, q, k, v (, P)`.
#[derive(Clone, Debug)]
pub(crate) struct CausalAttention {
    sizes: Sizes,
    keeps_weights: bool,
}

impl Kernel for CausalAttention {
    const NAME: &'static str = "gpas_causal_attention";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        let format = inputs[0].dtype;
        let mut outputs = vec![
            Form::new(self.sizes.mixed(), format),
            Form::new(self.sizes.queries(), format),
            Form::new(self.sizes.keys(), format),
            Form::new(self.sizes.keys(), format),
        ];
        if self.keeps_weights {
            outputs.push(Form::new(self.sizes.scores(), format));
        }
        outputs
    }

    fn run<R: CubeRuntime>(&self, mut inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let Sizes { seq, heads, .. } = self.sizes;
        let projected = inputs.remove(0);
        let tables = in_order(inputs);
        let format = projected.dtype;
        let [q, k, v] = turned_heads(projected, &tables, self.sizes);
        let scores = product(q.clone(), transposed(k.clone()), format);
        let weights = causal_softmax(scores);
        let mixed = product(weights.clone(), v.clone(), format);
        let mixed = exchanged(mixed, [heads, seq], self.sizes.mixed());
        let mut outputs = vec![mixed, q, k, v];
        if self.keeps_weights {
            outputs.push(weights);
        }
        outputs
    }
}

/// `cos, sin, q, k, v (, P), ∂L/∂y ↦ ∂L/∂projected`.
#[derive(Clone, Debug)]
pub(crate) struct CausalAttentionBackward {
    sizes: Sizes,
    keeps_weights: bool,
}

impl Kernel for CausalAttentionBackward {
    const NAME: &'static str = "gpas_causal_attention_backward";

    fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
        vec![Form::new(self.sizes.together(), inputs[2].dtype)]
    }

    fn run<R: CubeRuntime>(&self, mut inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
        let Sizes {
            seq, heads, head_dim, ..
        } = self.sizes;
        let [upstream] = in_order(inputs.split_off(inputs.len() - 1));
        let weights = self
            .keeps_weights
            .then(|| inputs.split_off(5))
            .and_then(|mut kept| kept.pop());
        let [q, k, v] = in_order(inputs.split_off(2));
        let tables = in_order(inputs);
        let format = q.dtype;
        let upstream = CubeTensor::new_contiguous(
            upstream.client,
            upstream.device,
            [upstream.meta.shape()[0] * heads, head_dim].into(),
            upstream.handle,
            upstream.dtype,
        );
        let upstream = exchanged(upstream, [seq, heads], self.sizes.queries());
        let (given, kind) = match weights {
            Some(weights) => (weights, Given::Weights),
            None => (product(q.clone(), transposed(k.clone()), format), Given::Scores),
        };
        let of_weights = product(upstream.clone(), transposed(v), format);
        let [weights, of_scores] = causal_softmax_backward(given, kind, of_weights);
        let of_v = product(transposed(weights), upstream, format);
        let of_q = product(of_scores.clone(), k, format);
        let of_k = product(transposed(of_scores), q, format);
        vec![turned_back([of_q, of_k, of_v], &tables, self.sizes)]
    }
}
