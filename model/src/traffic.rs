//! Bytes that a training step moves between a card and its memory, reckoned from shapes: what an operation reads and writes, once each.
//!
//! A card computes a product in less time than it takes to bring most of its operands, and everything else in none, so that bytes over the
//! memory's rate is what a step cannot be quicker than. Two ways of computing a step are reckoned. [`Path::Separate`] is that of the
//! modules' tensor operations as Burn's fusion joins them, as the profile of a step of `130m` on an H100 shows them; [`Path::Fused`] is
//! that of kernels that each read what they need once. What a cache saves is not reckoned, and neither is what is small beside the rest:
//! statistics of rows, ids, gates, norms' weights.

use serde::Serialize;

use crate::config::LlamaConfig;
use crate::loss::chunk_rows;

/// A way of computing a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Tensor operations one after the other.
    Separate,
    /// One kernel for the causal softmax, rotary positions of queries and keys, RMSNorm, the gated sum, SwiGLU, a chunk of the loss, the
    /// embedding's gradient, the norms of all gradients, and Adam; one product for all weights that see the same input.
    Fused,
}

/// Bytes of the parts of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Rows of the embedding, and its gradient.
    pub embedding: u64,
    /// All layers, forward.
    pub forward: u64,
    /// All layers, backward.
    pub backward: u64,
    /// Logits, loss and their gradients.
    pub head: u64,
    /// Norms of the gradients, Adam, and the weights in the products' number format.
    pub optimizer: u64,
}

impl Traffic {
    /// All of it.
    pub fn total(&self) -> u64 {
        let parts = [self.forward, self.backward, self.head, self.optimizer];
        parts.into_iter().fold(self.embedding, u64::saturating_add)
    }

    /// The parts by name.
    pub fn parts(&self) -> [(&'static str, u64); 5] {
        [
            ("embedding", self.embedding),
            ("layers forward", self.forward),
            ("layers backward", self.backward),
            ("head and loss", self.head),
            ("optimizer", self.optimizer),
        ]
    }
}

/// The most bytes of a chunk's logits in fused kernels.
const FUSED_LOGITS: usize = 1 << 28;

/// How often the tensors of a layer are read or written.
struct Passes {
    /// `[tokens, hidden]` in f32: the residual stream and its gradient.
    stream: u64,
    /// `[tokens, hidden]` in the products' format.
    narrow: u64,
    /// `[tokens, intermediate]` in the products' format.
    wide: u64,
    /// `[tokens, heads, seq]` in f32.
    scores: u64,
    /// `[tokens, heads, seq]` in the products' format.
    narrow_scores: u64,
    /// Bytes for each weight, in units of half a number of f32.
    weights: u64,
}

impl Path {
    /// Forward through one layer.
    fn forward(self) -> Passes {
        match self {
            // Norms 8, rotary halves 20, sums and gates 4; then casts, transposes and operands of products; scores are cast, masked, and
            // go through a softmax of five operations; weights are cast for each product.
            Path::Separate => Passes {
                stream: 32,
                narrow: 31,
                wide: 8,
                scores: 9,
                narrow_scores: 4,
                weights: 4,
            },
            // Two norms read the stream, two gated sums read and write it; scores go from product to softmax to product.
            Path::Fused => Passes {
                stream: 6,
                narrow: 20,
                wide: 6,
                scores: 0,
                narrow_scores: 4,
                weights: 1,
            },
        }
    }

    /// Backward through one layer.
    fn backward(self) -> Passes {
        match self {
            // The rotary halves alone go through the stream's size 25 times, norms and gated sums 30.
            Path::Separate => Passes {
                stream: 55,
                narrow: 45,
                wide: 13,
                scores: 8,
                narrow_scores: 6,
                weights: 5,
            },
            // Two gated sums read two tensors of the stream's size, two norms read two and write one.
            Path::Fused => Passes {
                stream: 10,
                narrow: 32,
                wide: 11,
                scores: 0,
                narrow_scores: 7,
                weights: 3,
            },
        }
    }
}

/// Bytes of a number in f32.
const F32: u64 = 4;

impl LlamaConfig {
    /// Bytes that an optimizer step on `batch` sequences of `seq` tokens moves, `micro_batch` of them at a time.
    ///
    /// It is reckoned for layers with a norm before each sub-layer and a gated sum after it, which most schemes have, and for as many
    /// key-value heads as heads. Recomputation adds another forward pass.
    pub fn traffic(&self, batch: usize, micro_batch: usize, seq: usize, path: Path) -> Traffic {
        let narrow = self.precision.products().size() as u64;
        let micro_batches = batch.div_ceil(micro_batch.max(1)) as u64;
        let (hidden, layers, length) = (self.hidden as u64, self.layers as u64, seq as u64);
        let tokens = batch as u64 * length;
        let stream = tokens * hidden;
        let of_layer = 4 * hidden * hidden + 3 * hidden * self.intermediate as u64;
        let layer = |passes: Passes| {
            F32 * passes.stream * stream
                + narrow * (passes.narrow * stream + passes.wide * tokens * self.intermediate as u64)
                + (F32 * passes.scores + narrow * passes.narrow_scores) * tokens * self.heads as u64 * length
                // Gradients of weights are summed in f32, whatever the products are in.
                + micro_batches * passes.weights * 2 * of_layer
        };
        let again = if self.recompute { 2 } else { 1 };
        Traffic {
            // Rows are read and written, and their gradients read and added to a table of zeros.
            embedding: F32 * (4 * stream + micro_batches * self.vocab as u64 * hidden),
            forward: again * layers * layer(path.forward()),
            backward: layers * layer(path.backward()),
            head: self.head_traffic(tokens, tokens.div_ceil(micro_batches.max(1)), path),
            optimizer: self.optimizer_traffic(path),
        }
    }

    /// Logits in chunks of rows: their product, the softmax, its gradient, and the two products that go back.
    fn head_traffic(&self, tokens: u64, micro_batch: u64, path: Path) -> u64 {
        let narrow = self.precision.products().size() as u64;
        let (vocab, head) = (self.vocab as u64, (self.vocab * self.hidden) as u64);
        let (rows, wide_passes, narrow_passes) = match path {
            // The logits are cast, and their largest, exponentials, sum, quotient and cast are operations of their own.
            Path::Separate => (chunk_rows(self.vocab), 8, 5),
            // Statistics in one pass, gradients in another, in place.
            Path::Fused => (FUSED_LOGITS / (self.vocab * self.precision.products().size()), 0, 6),
        };
        let rows = (rows as u64).min(micro_batch.max(1));
        let chunks = tokens.div_ceil(rows.max(1));
        let logits = tokens * vocab * (F32 * wide_passes + narrow * narrow_passes);
        // The head is read by two products, and the sum of its gradient read and written.
        let weights = chunks * head * (2 * narrow + 2 * F32);
        logits + weights + 4 * narrow * tokens * self.hidden as u64
    }

    /// Every gradient's norm, and Adam on weight, gradient and two moments.
    fn optimizer_traffic(&self, path: Path) -> u64 {
        let weights = self.parameters() + self.gates();
        let casts = match self.precision.products().size() as u64 {
            F32 => 0,
            narrow => narrow,
        };
        match path {
            // A flat copy for the norm 3; clipping, two moments and the update in operations of 16 passes; casts are counted where they are made.
            Path::Separate => 19 * F32 * weights,
            // The norm reads once; Adam reads four and writes three. Projections write their weights in the products' format.
            Path::Fused => weights * (8 * F32 + casts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Precision, Preset};

    fn config() -> LlamaConfig {
        Preset::named("130m").unwrap().config().with_precision(Precision::Bf16)
    }

    /// What an H100's counters said that a step of `130m`, 64 × 256, moved between memory and cache, in GB: 4.62 forward and 6.91 backward
    /// a layer, 45.9 in the head.
    #[test]
    fn what_is_reckoned_of_tensor_operations_is_what_a_card_has_counted() {
        let found = config().traffic(64, 64, 256, Path::Separate);
        let close = |reckoned: u64, counted: f64| {
            let ratio = reckoned as f64 / 1e9 / counted;
            assert!((0.85..1.2).contains(&ratio), "{reckoned} of {counted}e9: {ratio}");
        };
        close(found.forward / 12, 4.62);
        close(found.backward / 12, 6.91);
        close(found.head, 45.9);
    }

    #[test]
    fn fused_kernels_move_two_fifths_at_most() {
        for (batch, seq) in [(64, 256), (16, 1024)] {
            let [separate, fused] = [Path::Separate, Path::Fused].map(|path| config().traffic(batch, batch, seq, path));
            println!("{batch} × {seq}: {separate:?} {fused:?}");
            assert!(5 * fused.total() < 2 * separate.total());
            for ((name, before), (_, after)) in separate.parts().into_iter().zip(fused.parts()) {
                assert!(after <= before, "{name}");
            }
        }
    }

    /// By hand, for sizes that are easy to: 8 tokens of width 2, one layer, 3 ids.
    #[test]
    fn every_term_is_the_shape_it_says() {
        let config = LlamaConfig::new(3, 2, 5, 1, 1);
        let found = config.traffic(2, 2, 4, Path::Fused);
        // In f32 both formats have 4 bytes. The layer has 4·4 + 3·10 weights.
        assert_eq!(found.forward, 4 * (6 * 16 + 20 * 16 + 6 * 40 + 4 * 32) + 2 * 46);
        assert_eq!(found.head, 8 * 3 * 4 * 6 + 6 * 16 + 4 * 4 * 16);
        assert_eq!(found.optimizer, (config.parameters() + 1) * 32);
        let parts: u64 = found.parts().iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(parts, found.total());
        let recomputed = config.with_recompute(true).traffic(2, 2, 4, Path::Fused);
        assert_eq!(recomputed.forward, 2 * found.forward);
    }
}
