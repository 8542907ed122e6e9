//! Rotary position embedding, half-rotated as LLaMA checkpoints have it (arXiv 2104.09864):
//! with `θ_j = p · base^(−2j/d)`, the pair `(x_j, x_{j+d/2})` of a head of size `d` at position `p` is turned by `θ_j`. A
//! [scaling](RopeScaling) changes the frequencies.
//!
//! Those of `dynamic` depend on the length of the sequence beyond a number of positions. A sequence that is seen at once is turned by the
//! frequencies of its whole length. One that grows in a cache is turned by those of the length at which each token came, as in
//! `transformers`: the keys that are kept stay as they were turned. So beyond the original positions, cached and uncached logits of such a
//! model are different functions; the layers above the first make that unavoidable without computing every token again.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::rope_scaling::RopeScaling;

/// Configuration of [`Rotary`] tables.
#[derive(Config, Debug)]
pub struct RotaryConfig {
    /// Longest sequence.
    pub positions: usize,
    /// Size of a head; even.
    pub head_dim: usize,
    /// Base of the frequencies.
    #[config(default = 10000.0)]
    pub base: f64,
    /// What changes the frequencies.
    #[config(default = "RopeScaling::Default")]
    pub scaling: RopeScaling,
}

impl RotaryConfig {
    /// Computes the tables in f64 and keeps them in f32, whatever the precision of the model.
    ///
    /// # Panics
    /// If `head_dim` is odd: the entries of a head are turned in pairs.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Rotary<B> {
        let half = self.head_dim / 2;
        assert_eq!(2 * half, self.head_dim, "the entries of a head are turned in pairs");
        let constant = self.frequencies(1);
        let constant_up_to = self.scaling.constant_up_to().unwrap_or(self.positions);
        self.tables(self.positions, device, |position| {
            // The token at this position is the last of a sequence that grows one by one.
            let grown = (position >= constant_up_to).then(|| self.frequencies(position + 1));
            grown.unwrap_or_else(|| constant.clone())
        })
    }

    /// Radians by which each pair of a head turns from one position to the next, in a sequence of `length` tokens.
    pub fn frequencies(&self, length: usize) -> Vec<f64> {
        self.scaling.frequencies(self.base, self.head_dim, length)
    }

    /// Tables of some positions from 0, each with its frequencies.
    fn tables<B: Backend>(
        &self,
        positions: usize,
        device: &B::Device,
        frequencies: impl Fn(usize) -> Vec<f64>,
    ) -> Rotary<B> {
        let half = self.head_dim / 2;
        let attention = self.scaling.attention_factor();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..positions {
            let angles = frequencies(position)
                .into_iter()
                .map(|frequency| position as f64 * frequency);
            let (cosines, sines): (Vec<f64>, Vec<f64>) = angles
                .map(|angle| (angle.cos() * attention, angle.sin() * attention))
                .unzip();
            cos.extend([&cosines, &cosines].into_iter().flatten().map(|cosine| *cosine as f32));
            sin.extend(sines.iter().map(|sine| -*sine as f32));
            sin.extend(sines.iter().map(|sine| *sine as f32));
        }
        let table = |values: Vec<f32>| {
            let data = TensorData::new(values, [positions, 2 * half]);
            Tensor::from_data(data, (device, DType::F32))
        };
        Rotary {
            cos: table(cos),
            sin: table(sin),
            config: self.clone(),
        }
    }
}

/// Tables of `cos θ` and of `sin θ`, the latter negative in the first half of a head; shape `[positions, head_dim]`.
#[derive(Module, Debug)]
pub struct Rotary<B: Backend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    #[module(skip)]
    config: RotaryConfig,
}

impl<B: Backend> Rotary<B> {
    /// Length of the tables.
    pub(crate) fn positions(&self) -> usize {
        self.cos.dims()[0]
    }

    /// The tables for a sequence of `length` tokens of which more than one is seen at once: all of those are turned by the frequencies of
    /// that length.
    pub(crate) fn of_length(&self, length: usize) -> Self {
        if self
            .config
            .scaling
            .constant_up_to()
            .is_none_or(|constant| length <= constant)
        {
            return self.clone();
        }
        let frequencies = self.config.frequencies(length);
        self.config
            .tables(length, &self.cos.device(), |_position| frequencies.clone())
    }

    /// [`of_length`](Self::of_length), cut to `length` positions: once for all layers, since a device may copy what it cuts.
    pub(crate) fn for_sequences_of(&self, length: usize) -> Self {
        let rotary = self.of_length(length);
        let [cos, sin] = rotary.tables(length);
        Self { cos, sin, ..rotary }
    }

    /// The tables for `seq` positions, cosines and sines, each `[seq, head_dim]`.
    ///
    /// # Panics
    /// If `seq` is longer than the tables.
    pub(crate) fn tables(&self, seq: usize) -> [Tensor<B, 2>; 2] {
        self.tables_from(0, seq)
    }

    /// The tables for `seq` positions from `first` on.
    fn tables_from(&self, first: usize, seq: usize) -> [Tensor<B, 2>; 2] {
        if first == 0 && seq == self.positions() {
            return self.all_tables();
        }
        [&self.cos, &self.sin].map(|table| table.clone().narrow(0, first, seq))
    }

    /// The tables for all positions.
    pub(crate) fn all_tables(&self) -> [Tensor<B, 2>; 2] {
        [&self.cos, &self.sin].map(Clone::clone)
    }

    /// Turns queries or keys by their positions, counted from 0.
    ///
    /// # Shapes
    /// - input and output: `[batch, seq, heads, head_dim]`
    ///
    /// # Panics
    /// If `seq` is longer than the tables.
    pub fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        self.forward_from(0, x)
    }

    /// Turns queries or keys by their positions, the first of which is `first`: `x · cos θ + turn₉₀(x) · sin θ`.
    ///
    /// The two halves of a head change places in one copy, and the sign of that turn stands in the table of sines, so that every other
    /// operation runs over whole contiguous rows.
    ///
    /// # Shapes
    /// - input and output: `[batch, seq, heads, head_dim]`
    ///
    /// # Panics
    /// If the tables end before the last position.
    pub fn forward_from(&self, first: usize, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, seq, heads, head_dim] = x.dims();
        let dtype = x.dtype();
        let half = head_dim / 2;
        let [cos, sin] = self.tables_from(first, seq).map(|table| {
            let rows = table.reshape([seq, 1, head_dim]);
            rows.repeat_dim(1, heads).reshape([1, seq * heads * head_dim])
        });
        let x = x.cast(DType::F32).reshape([batch * seq * heads, head_dim]);
        let swapped = Tensor::cat(vec![x.clone().narrow(1, half, half), x.clone().narrow(1, 0, half)], 1);
        let flat = |x: Tensor<B, 2>| x.reshape([batch, seq * heads * head_dim]);
        let sum = flat(x) * cos + flat(swapped) * sin;
        sum.reshape([batch, seq, heads, head_dim]).cast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;
    use burn_flex::{Flex, FlexDevice};

    #[test]
    fn turns_halves_by_their_angle() {
        let rotary = RotaryConfig::new(3, 4).init::<Flex>(&FlexDevice);
        let x = Tensor::<Flex, 4>::from_floats([[[[0.0; 4]], [[1.0, 2.0, 3.0, 4.0]]]], &FlexDevice);
        // Position 1: angles 1 and 0.01; the pairs are (1, 3) and (2, 4).
        let expected = TensorData::from([[
            [[0.0, 0.0, 0.0, 0.0]],
            [[
                1f32.cos() - 3.0 * 1f32.sin(),
                2.0 * 0.01f32.cos() - 4.0 * 0.01f32.sin(),
                3.0 * 1f32.cos() + 1f32.sin(),
                4.0 * 0.01f32.cos() + 2.0 * 0.01f32.sin(),
            ]],
        ]]);
        rotary
            .forward(x)
            .into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::absolute(1e-6));
    }

    /// A fourth of the frequencies turns by the same angles at four times the position.
    #[test]
    fn a_scaling_reaches_the_tables() {
        let scaling = RopeScaling::Linear { factor: 4.0 };
        let rotary = RotaryConfig::new(9, 4).with_scaling(scaling).init::<Flex>(&FlexDevice);
        let plain = RotaryConfig::new(3, 4).init::<Flex>(&FlexDevice);
        for position in 0..3 {
            let row = |table: &Tensor<Flex, 2>, row: usize| table.clone().narrow(0, row, 1).into_data();
            assert_eq!(row(&rotary.cos, 4 * position), row(&plain.cos, position));
            assert_eq!(row(&rotary.sin, 4 * position), row(&plain.sin, position));
        }
    }

    /// Without a scaling, length changes nothing; with `dynamic`, each row of the growing tables is the last one of its length's.
    #[test]
    fn a_growing_sequence_is_turned_by_the_length_at_which_each_token_comes() {
        let scaling = RopeScaling::Dynamic {
            factor: 2.0,
            original_max_position_embeddings: 4,
        };
        let config = RotaryConfig::new(12, 4);
        let plain = config.init::<Flex>(&FlexDevice);
        let rotary = config.with_scaling(scaling).init::<Flex>(&FlexDevice);
        assert_eq!(plain.of_length(9).positions(), 12);
        let row = |rotary: &Rotary<Flex>, row: usize| rotary.cos.clone().narrow(0, row, 1).into_data();
        for length in 1..=12 {
            let whole = rotary.of_length(length);
            assert_eq!(row(&whole, length - 1), row(&rotary, length - 1), "{length}");
            let is_plain = row(&whole, 1) == row(&plain, 1);
            assert_eq!(is_plain, length <= 4, "{length}");
        }
    }
}
