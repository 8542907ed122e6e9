//! What a model costs before it exists: parameters, floating-point operations, memory.

use core::fmt::Write;

use crate::config::LlamaConfig;
use crate::loss::chunk_rows;
use crate::params::{NormPlace, ParameterKind};
#[cfg(doc)]
use crate::scheme::Wiring;

/// Predicted peak of training with Adam, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingMemory {
    /// The weights.
    pub parameters: u64,
    /// One gradient per weight, and one more while micro-batches are added up.
    pub gradients: u64,
    /// Adam's two moments per weight.
    pub optimizer: u64,
    /// What the backward pass needs of one micro-batch.
    pub activations: u64,
    /// One chunk of logits with its softmax, and the head's gradient as it is summed.
    pub loss: u64,
}

impl TrainingMemory {
    /// All of it.
    pub fn total(&self) -> u64 {
        [self.gradients, self.optimizer, self.activations, self.loss]
            .into_iter()
            .fold(self.parameters, u64::saturating_add)
    }
}

/// Bytes of a number in f32.
const F32: u128 = 4;

impl LlamaConfig {
    /// Number of parameters, gates not counted, as the papers count.
    pub fn parameters(&self) -> u64 {
        self.count(|kind| !kind.is_gate())
    }

    /// Number of parameters that multiply every token: all but the embedding, the head counted (also where it is tied to the embedding).
    pub fn non_embedding_parameters(&self) -> u64 {
        let tied = if self.tied_head { self.head_parameters() } else { 0 };
        self.count(|kind| !kind.is_gate() && kind != ParameterKind::Embedding) + tied
    }

    /// Number of gates, trained or fixed.
    pub fn gates(&self) -> u64 {
        (self.layers * self.gates_per_layer()) as u64
    }

    /// Numbers in the parameters of some kinds.
    fn count(&self, counts: impl Fn(ParameterKind) -> bool) -> u64 {
        let counted = self.parameter_shapes().filter(|(kind, _)| counts(*kind));
        counted.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    fn head_parameters(&self) -> u64 {
        (self.vocab * self.hidden) as u64
    }

    /// Norms around each sub-layer of a layer.
    fn norms(&self, index: usize) -> usize {
        let wiring = self.wiring(index);
        NormPlace::ALL
            .iter()
            .filter(|place| wiring.norm(**place).is_some())
            .count()
    }

    /// Floating-point operations of forward and backward for one token in sequences of `seq`.
    ///
    /// A weight takes one multiplication and one addition per token in the forward pass and twice that in the backward pass (its own
    /// gradient and that of its input): 6 per non-embedding parameter. Attention multiplies `q·kᵀ` and `p·v`, each `2 · hidden`
    /// operations for every key that a query sees, `seq / 2` on average under the causal mask; three passes and two products give
    /// `6 · layers · seq · hidden`. What recomputation repeats is not counted.
    pub fn flops_per_token(&self, seq: usize) -> f64 {
        6.0 * self.non_embedding_parameters() as f64 + 6.0 * self.layers as f64 * seq as f64 * self.hidden as f64
    }

    /// Predicted peak memory of training with batches of `batch` sequences of `seq` tokens, `micro_batch` at a time.
    ///
    /// Per token, a layer keeps for its backward pass about `14 · hidden` numbers around attention, `2 · hidden` for every norm and branch
    /// scale (what goes in and what comes out), `4 · intermediate` in the MLP, and `2 · heads · seq` attention scores and probabilities. With recomputation, one layer at a time does, and each keeps
    /// its input besides. What lies between matrix products has their number format, the rest is f32.
    pub fn training_memory(&self, batch: usize, micro_batch: usize, seq: usize) -> TrainingMemory {
        let (weight, product) = (
            self.precision.parameters().size() as u128,
            self.precision.products().size() as u128,
        );
        let bytes = |bytes: u128| u64::try_from(bytes).unwrap_or(u64::MAX);
        let weights = u128::from(self.parameters() + self.gates());
        let (hidden, heads, length) = (self.hidden as u128, self.heads as u128, seq as u128);
        let layer = product * (14 * hidden + 4 * self.intermediate as u128 + heads * length) + F32 * heads * length;
        let scales = |index| usize::from(self.wiring(index).branch_scale.is_some());
        let norms = |index| 2 * F32 * 2 * (self.norms(index) + scales(index)) as u128 * hidden;
        let per_token = if self.recompute {
            let largest = (0..self.layers).map(norms).max().unwrap_or(0);
            layer + largest + (self.layers as u128 + 1) * weight.max(product) * hidden
        } else {
            self.layers as u128 * layer + (0..self.layers).map(norms).sum::<u128>()
        };
        let tokens = micro_batch as u128 * length;
        let rows = tokens.min(chunk_rows(self.vocab) as u128);
        TrainingMemory {
            parameters: bytes(weight * weights),
            gradients: bytes(weight * if micro_batch < batch { 2 * weights } else { weights }),
            optimizer: bytes(weight * 2 * weights),
            activations: bytes(tokens.saturating_mul(per_token)),
            loss: bytes(F32 * (2 * rows * self.vocab as u128 + u128::from(self.head_parameters()))),
        }
    }

    /// What both sub-layers of layer `index` (from 0) do to the residual stream, for people to read: [`Wiring::formula`] with the gate at its
    /// configured place.
    pub fn formula(&self, index: usize) -> String {
        self.wiring(index).formula(self.gate_place(index))
    }

    /// The model for people to read: its sizes, and the line that every layer computes for attention and for the MLP.
    pub fn describe(&self) -> String {
        let mut text = format!(
            "{}: {} layers, hidden {}, intermediate {}, {} heads ({} key-value), vocabulary {}{}\n",
            self.scheme,
            self.layers,
            self.hidden,
            self.intermediate,
            self.heads,
            self.kv_heads(),
            self.vocab,
            if self.tied_head { ", tied head" } else { "" },
        );
        if self.scheme.norm.embedding_norm().is_some() {
            text.push_str("  embedding: x ← N(x)\n");
        }
        let mut start = 0;
        for index in 1..=self.layers {
            if index == self.layers || self.formula(index) != self.formula(start) {
                let range = if index == start + 1 {
                    format!("layer {start}")
                } else {
                    format!("layers {start}–{}", index - 1)
                };
                // Writing to a String cannot fail.
                let _ = writeln!(text, "  {range}: {}", self.formula(start));
                start = index;
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use crate::precision::Precision;
    use crate::{Llama, LlamaConfig, Preset, Scheme};
    use burn::module::Module;
    use burn_flex::{Flex, FlexDevice};

    /// Parameter counts of the published sizes, head untied, norms counted, gates not.
    const PUBLISHED: [(&str, u64); 13] = [
        ("9m", 8_995_968),
        ("20m", 19_548_416),
        ("35m", 35_197_824),
        ("40m", 42_392_480),
        ("60m", 58_073_600),
        ("71m", 70_578_688),
        ("100m", 100_117_120),
        ("130m", 134_105_856),
        ("250m", 247_370_496),
        ("350m", 367_969_280),
        ("1b", 1_339_082_752),
        ("3b", 2_685_831_680),
        ("7b", 6_738_415_616),
    ];

    #[test]
    fn parameters_of_the_published_sizes() {
        for (name, parameters) in PUBLISHED {
            assert_eq!(Preset::named(name).unwrap().config().parameters(), parameters, "{name}");
        }
    }

    #[test]
    fn operations_per_token_count_weights_and_attention() {
        let config = LlamaConfig::new(10, 4, 6, 2, 3);
        // Layer: 4·4·4 + 3·4·6 + 2·4 = 144; three of them, the final norm and the head.
        assert_eq!(config.non_embedding_parameters(), 3 * 144 + 4 + 40);
        assert_eq!(config.flops_per_token(8), 6.0 * 476.0 + 6.0 * 3.0 * 8.0 * 4.0);
    }

    /// Against the arithmetic of the documentation, and without overflow for sizes that nobody has.
    #[test]
    fn memory_counts_weights_activations_and_a_chunk_of_logits() {
        let config = LlamaConfig::new(10, 4, 6, 2, 3);
        let whole = config.training_memory(2, 2, 8);
        let weights = config.parameters() + 3;
        assert_eq!(
            (whole.parameters, whole.gradients, whole.optimizer),
            (4 * weights, 4 * weights, 8 * weights)
        );
        // 16 tokens; three layers of 14·4 + 4·6 + 2·2·8 numbers, and two for each of six norms of width 4.
        assert_eq!(whole.activations, 4 * 16 * (3 * 112 + 2 * 6 * 4));
        assert_eq!(whole.loss, 4 * (2 * 16 * 10 + 40));
        // The inputs of three layers and of the final norm, and one layer.
        let recomputed = config.clone().with_recompute(true).training_memory(2, 2, 8);
        assert_eq!(recomputed.activations, 4 * 16 * (4 * 4 + 112 + 2 * 2 * 4));
        let halved = config
            .clone()
            .with_precision(Precision::Bf16Pure)
            .training_memory(2, 2, 8);
        assert_eq!((halved.parameters, halved.loss), (2 * weights, whole.loss));
        let cut = config.training_memory(2, 1, 8);
        assert_eq!((cut.gradients, cut.activations), (8 * weights, whole.activations / 2));
        assert_eq!(
            config.training_memory(usize::MAX, usize::MAX, usize::MAX).total(),
            u64::MAX
        );
    }

    #[test]
    fn a_tied_head_is_stored_once_and_computed_with() {
        let untied = LlamaConfig::new(10, 4, 6, 2, 3);
        let tied = untied.clone().with_tied_head(true);
        assert_eq!(untied.parameters() - tied.parameters(), 40);
        assert_eq!(untied.non_embedding_parameters(), tied.non_embedding_parameters());
    }

    /// What is counted is what a model has and what its file holds, norms, branch scales and gates alike.
    #[test]
    fn every_scheme_has_the_parameters_that_are_counted() {
        for scheme in Scheme::all() {
            let config = LlamaConfig::new(10, 4, 6, 2, 8).with_scheme(scheme);
            let model = config.init::<Flex>(1, &FlexDevice);
            let counted = config.parameters() + config.gates();
            assert_eq!(model.num_params() as u64, counted, "{scheme}");
            let tensors = model.to_tensors(&config).unwrap();
            let saved: usize = tensors.values().map(|tensor| tensor.values.len()).sum();
            assert_eq!(saved as u64, counted, "{scheme}: two weights have one name");
            let other = Llama::<Flex>::from_tensors(&config, &tensors, &FlexDevice).unwrap();
            assert_eq!(other.to_tensors(&config).unwrap(), tensors, "{scheme}");
        }
    }

    #[test]
    fn a_norm_on_the_embedding_is_told() {
        let config = LlamaConfig::new(10, 4, 6, 2, 3).with_scheme("peri".parse().unwrap());
        assert!(
            config
                .describe()
                .ends_with("\n  embedding: x ← N(x)\n  layers 0–2: x ← x + N(F(N(x)))\n")
        );
    }

    #[test]
    fn the_description_groups_equal_layers() {
        let config = LlamaConfig::new(10, 4, 6, 2, 8).with_scheme("post_pre_gpas".parse().unwrap());
        assert_eq!(
            config.describe(),
            "post_pre_gpas: 8 layers, hidden 4, intermediate 6, 2 heads (2 key-value), vocabulary 10\n  \
             layers 0–1: x ← N(G(x) + F(x))\n  layers 2–7: x ← G(x + F(N(x)))\n"
        );
    }
}
