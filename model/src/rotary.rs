//! Rotary position embedding, half-rotated as LLaMA checkpoints have it (arXiv 2104.09864):
//! with `θ_j = p · base^(−2j/d)`, the pair `(x_j, x_{j+d/2})` of a head of size `d` at position `p` is turned by `θ_j`.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

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
}

impl RotaryConfig {
    /// Computes the tables in f64 and keeps them in f32, whatever the precision of the model.
    ///
    /// # Panics
    /// If `head_dim` is odd: the entries of a head are turned in pairs.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Rotary<B> {
        let half = self.head_dim / 2;
        assert_eq!(2 * half, self.head_dim, "the entries of a head are turned in pairs");
        let angles = (0..self.positions).flat_map(|position| {
            (0..self.head_dim).map(move |j| position as f64 * self.base.powf(-((j % half) as f64) / half as f64))
        });
        let (cos, mut sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        for first_half in sin.chunks_mut(half).step_by(2) {
            first_half.iter_mut().for_each(|sine| *sine = -*sine);
        }
        let table = |values| {
            let data = TensorData::new(values, [self.positions, self.head_dim]);
            Tensor::from_data(data, (device, DType::F32))
        };
        Rotary {
            cos: table(cos),
            sin: table(sin),
        }
    }
}

/// Tables of `cos θ` and of `sin θ`, the latter negative in the first half of a head; shape `[positions, head_dim]`.
#[derive(Module, Debug)]
pub struct Rotary<B: Backend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

impl<B: Backend> Rotary<B> {
    /// Length of the tables.
    pub(crate) fn positions(&self) -> usize {
        self.cos.dims()[0]
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
}
