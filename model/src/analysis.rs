//! What a trained model does to its residual stream, layer by layer: the quantities of the GPAS, ShortGPT and layer-pruning papers.
//!
//! `h_i` is the residual stream before layer i at one token, and `h_L` that after the last of L layers, before the final norm.
//!
//! | quantity | formula | source |
//! |---|---|---|
//! | variance of the stream before layer i | `mean((h_i − mean(h_i))²)` over all entries of all tokens | arXiv 2506.22049 |
//! | block influence of layer i | `1 − mean(cos(h_i, h_{i+1}))` over tokens | ShortGPT, arXiv 2403.03853 |
//! | angular distance over n layers | `mean(arccos(cos(h_i, h_{i+n})) / π)` over tokens | arXiv 2403.17887, there of a sequence's last token |
//! | importance of layer i | the loss [without it](Llama::token_losses_without), less the loss | arXiv 2506.22049; 2403.03853 |
//! | weight norm of a matrix | `√Σ w²` | |
//!
//! Neighbouring layers are nearly parallel, and there the arccosine of a rounded cosine loses half of its digits. So both come from
//! `d = |u − v|²` and `s = |u + v|²` of the unit vectors `u`, `v`: `1 − cos = 2·d / (d + s)`, and the angle is `2·atan2(√d, √s)`
//! (Kahan). A zero vector is perpendicular to every other, as in PyTorch.
//!
//! The accumulators take one batch at a time. What they add up is one number per token, in f64 on the host, so they hold no stream and the
//! result does not depend on how tokens are cut into batches.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::block::Block;
#[cfg(doc)]
use crate::llama::Llama;
use crate::params::{ParameterKind, ParameterValue, Projection};

/// Variance of the entries of several streams, over all tokens that are added.
#[derive(Clone, Debug, Default)]
pub struct StreamVariance {
    width: usize,
    tokens: usize,
    streams: Vec<Moments>,
}

/// Sums over tokens; `m` is the mean of a token's entries.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    means: f64,
    squared_means: f64,
    /// Of the squared differences of a token's entries from `m`.
    spread: f64,
}

impl StreamVariance {
    /// Adds the tokens that count of one batch.
    ///
    /// # Shapes
    /// - streams: any number of `[batch, seq, hidden]`, the same on every call
    /// - counts: `batch · seq`
    pub fn add<B: Backend>(&mut self, streams: &[Tensor<B, 3>], counts: &[bool]) {
        let rows = streams.iter().flat_map(|stream| {
            let stream = flat(stream);
            let mean = stream.clone().mean_dim(1);
            let spread = (stream - mean.clone()).square().sum_dim(1);
            [mean, spread]
        });
        let rows = to_host(rows.collect());
        self.width = streams.first().map_or(0, |stream| stream.dims()[2]);
        self.tokens += counts.iter().filter(|counts| **counts).count();
        self.streams.resize(streams.len(), Moments::default());
        for (sums, rows) in self.streams.iter_mut().zip(rows.chunks_exact(2 * counts.len())) {
            for (mean, spread) in counted_pairs(rows, counts) {
                sums.means += mean;
                sums.squared_means += mean * mean;
                sums.spread += spread;
            }
        }
    }

    /// The variance of each stream; NaN without tokens.
    pub fn values(&self) -> Vec<f64> {
        let (tokens, width) = (self.tokens as f64, self.width as f64);
        let variance = |sums: &Moments| {
            let between = sums.squared_means - sums.means * sums.means / tokens;
            (sums.spread + width * between) / (tokens * width)
        };
        self.streams.iter().map(variance).collect()
    }
}

/// Block influence and angular distances between streams, over all tokens that are added.
#[derive(Clone, Debug, Default)]
pub struct StreamAngles {
    streams: usize,
    tokens: usize,
    /// Of every pair i < j, those of i = 0 first.
    pairs: Vec<Pair>,
}

/// Sums over tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    /// Of `1 − cos`.
    influence: f64,
    /// Of the angles, in radians.
    angle: f64,
}

impl StreamAngles {
    /// Adds the tokens that count of one batch.
    ///
    /// # Shapes
    /// - streams: any number of `[batch, seq, hidden]`, the same on every call
    /// - counts: `batch · seq`
    pub fn add<B: Backend>(&mut self, streams: &[Tensor<B, 3>], counts: &[bool]) {
        let units: Vec<_> = streams.iter().map(|stream| unit(flat(stream))).collect();
        let squares = |x: Tensor<B, 2>| x.square().sum_dim(1);
        self.streams = streams.len();
        self.tokens += counts.iter().filter(|counts| **counts).count();
        let pairs = self.streams * self.streams.saturating_sub(1) / 2;
        self.pairs.resize(pairs, Pair::default());
        let mut sums = self.pairs.iter_mut();
        for (index, from) in units.iter().enumerate() {
            let rows = units[index + 1..].iter().flat_map(|to| {
                let (difference, sum) = (from.clone() - to.clone(), from.clone() + to.clone());
                [squares(difference), squares(sum)]
            });
            // The pairs of one stream at a time: all of them at once would be as large as the streams.
            let rows = to_host(rows.collect());
            for (rows, sums) in rows.chunks_exact(2 * counts.len()).zip(&mut sums) {
                for (d, s) in counted_pairs(rows, counts) {
                    // Two zero vectors are the same.
                    sums.influence += if d + s == 0.0 { 0.0 } else { 2.0 * d / (d + s) };
                    sums.angle += 2.0 * d.sqrt().atan2(s.sqrt());
                }
            }
        }
    }

    /// `1 − cos` between each stream and the next; NaN without tokens.
    pub fn block_influence(&self) -> Vec<f64> {
        let neighbours = (1..self.streams).map(|to| self.pair(to - 1, to).influence / self.tokens as f64);
        neighbours.collect()
    }

    /// At `[n − 1][i]` the angle between stream i and stream i + n in units of π: 0 of parallel streams, ½ of perpendicular ones, 1 of
    /// opposite ones; NaN without tokens.
    pub fn angular_distance(&self) -> Vec<Vec<f64>> {
        let of_pair = |from, to| self.pair(from, to).angle / PI / self.tokens as f64;
        (1..self.streams)
            .map(|n| (0..self.streams - n).map(|from| of_pair(from, from + n)).collect())
            .collect()
    }

    fn pair(&self, from: usize, to: usize) -> Pair {
        let before: usize = (0..from).map(|index| self.streams - 1 - index).sum();
        self.pairs[before + to - from - 1]
    }
}

/// `[tokens, hidden]` in f32.
fn flat<B: Backend>(stream: &Tensor<B, 3>) -> Tensor<B, 2> {
    stream.clone().cast(DType::F32).flatten(0, 1)
}

/// Rows of length 1; zero ones stay zero. A row is divided by its largest entry first, so that no square overflows or vanishes.
fn unit<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let largest = x.clone().abs().max_dim(1).clamp_min(f32::MIN_POSITIVE);
    let x = x / largest;
    let length = x.clone().square().sum_dim(1).sqrt().clamp_min(f32::MIN_POSITIVE);
    x / length
}

/// Columns `[tokens, 1]`, one after the other, read in one transfer.
fn to_host<B: Backend>(columns: Vec<Tensor<B, 2>>) -> Vec<f64> {
    if columns.is_empty() {
        return Vec::new();
    }
    Tensor::cat(columns, 0).into_data().iter::<f64>().collect()
}

/// The entries of two columns at the tokens that count.
fn counted_pairs<'a>(rows: &'a [f64], counts: &'a [bool]) -> impl Iterator<Item = (f64, f64)> + 'a {
    let (first, second) = rows.split_at(counts.len());
    let pairs = first.iter().zip(second).zip(counts);
    pairs
        .filter(|(_, counts)| **counts)
        .map(|((first, second), _)| (*first, *second))
}

/// Norm of each matrix of a layer.
pub fn weight_norms<B: Backend>(layer: &Block<B>) -> BTreeMap<Projection, f64> {
    let norm = |weight: Tensor<B, 2>| {
        let rows = weight.cast(DType::F32).square().sum_dim(1).into_data();
        rows.iter::<f64>().sum::<f64>().sqrt()
    };
    let parameters = layer.parameters(0).into_iter();
    let matrices = parameters.filter_map(|parameter| match (parameter.kind, parameter.value) {
        (ParameterKind::Projection { projection, .. }, ParameterValue::Matrix(weight)) => {
            Some((projection, norm(weight.val())))
        }
        _ => None,
    });
    matrices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LlamaConfig, Progress};
    use burn::module::Param;
    use burn::tensor::{Int, TensorData};
    use burn_flex::{Flex, FlexDevice};

    const LAYERS: usize = 4;
    const HIDDEN: usize = 16;

    fn model(scheme: &str) -> crate::Llama<Flex> {
        let config = LlamaConfig::new(20, HIDDEN, 40, 2, LAYERS).with_scheme(scheme.parse().unwrap());
        let mut model = config.with_residual_warmup(6).init::<Flex>(3, &FlexDevice);
        for (index, layer) in model.layers.iter_mut().enumerate() {
            // Weights that change the stream much, and a gate past the zero of its scale.
            layer.mlp.down.weight = layer.mlp.down.weight.clone().map(|weight| weight * 40.0);
            for gate in &mut layer.gates {
                let alpha = [0.4, 3.0, -0.3, 0.0][index];
                gate.gate = Param::from_data([alpha], &FlexDevice);
            }
        }
        model
    }

    /// Two batches of unlike shapes, some tokens of which do not count.
    fn batches() -> Vec<(Tensor<Flex, 2, Int>, Vec<bool>)> {
        let batch = |rows: usize, seq: usize, skip: usize| {
            let ids: Vec<i32> = (0..rows * seq).map(|at| ((at * at + skip) % 20) as i32).collect();
            let ids = Tensor::<Flex, 1, Int>::from_ints(ids.as_slice(), &FlexDevice).reshape([rows, seq]);
            (ids, (0..rows * seq).map(|at| at % skip != 1).collect())
        };
        vec![batch(2, 7, 5), batch(1, 9, 3)]
    }

    /// Streams of the tokens that count, `[stream][token][channel]`.
    fn streams(model: &crate::Llama<Flex>) -> Vec<Vec<Vec<f64>>> {
        let mut found = vec![Vec::new(); LAYERS + 1];
        for (ids, counts) in batches() {
            for (found, stream) in found.iter_mut().zip(model.residual_streams(ids)) {
                let values: Vec<f64> = stream.into_data().iter::<f64>().collect();
                let rows = values.chunks(HIDDEN).zip(&counts).filter(|(_, counts)| **counts);
                found.extend(rows.map(|(row, _)| row.to_vec()));
            }
        }
        found
    }

    fn cosine(a: &[f64], b: &[f64]) -> f64 {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).clamp(-1.0, 1.0)
    }

    fn mean(values: impl Iterator<Item = f64>) -> f64 {
        let values: Vec<f64> = values.collect();
        values.iter().sum::<f64>() / values.len() as f64
    }

    fn assert_near(found: f64, expected: f64, what: &str) {
        assert!(
            (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
            "{what}: {found} against {expected}"
        );
    }

    /// From the streams in plain loops.
    #[test]
    fn variances_influences_and_angles_are_their_formulas() {
        for scheme in ["pre_gpas", "post", "prores_gpas", "layerscale"] {
            let model = model(scheme).with_progress(Progress::after(3));
            let (mut variance, mut angles) = (StreamVariance::default(), StreamAngles::default());
            for (ids, counts) in batches() {
                let streams = model.residual_streams(ids);
                variance.add(&streams, &counts);
                angles.add(&streams, &counts);
            }
            let streams = streams(&model);
            assert_eq!(streams[0].len(), 11 + 6);
            assert_eq!(variance.values().len(), LAYERS + 1);
            for (found, stream) in variance.values().into_iter().zip(&streams) {
                let entries = || stream.iter().flatten().copied();
                let center = mean(entries());
                assert_near(found, mean(entries().map(|x| (x - center).powi(2))), scheme);
            }
            let between = |i: usize, j: usize| streams[i].iter().zip(&streams[j]).map(|(a, b)| cosine(a, b));
            assert_eq!(angles.block_influence().len(), LAYERS);
            for (i, found) in angles.block_influence().into_iter().enumerate() {
                assert_near(found, 1.0 - mean(between(i, i + 1)), scheme);
            }
            let distances = angles.angular_distance();
            assert_eq!(distances.len(), LAYERS);
            for (n, distances) in (1..).zip(distances) {
                assert_eq!(distances.len(), LAYERS + 1 - n);
                for (i, found) in distances.into_iter().enumerate() {
                    let expected = mean(between(i, i + n).map(|cosine| cosine.acos() / PI));
                    assert_near(found, expected, scheme);
                }
            }
        }
    }

    /// Where a cosine in f32 is 1 and its arccosine 0; and of opposite, perpendicular and zero vectors.
    #[test]
    fn small_angles_keep_their_digits() {
        let stream = |x: f32, y: f32| Tensor::<Flex, 3>::from_data([[[x, y]]], &FlexDevice);
        for (a, b, angle) in [
            ((1.0, 0.0), (1.0, 1e-5), 1e-5),
            ((3e25, 0.0), (-2e-25, 2e-30), PI - 1e-5),
            ((0.0, 2.0), (5.0, 0.0), PI / 2.0),
            ((0.0, 0.0), (5.0, 0.0), PI / 2.0),
            ((0.0, 0.0), (0.0, 0.0), 0.0),
        ] {
            let mut angles = StreamAngles::default();
            angles.add(&[stream(a.0, a.1), stream(b.0, b.1)], &[true]);
            let found = angles.angular_distance()[0][0] * PI;
            assert!((found - angle).abs() < 3e-7, "{a:?} {b:?}: {found}");
            let influence = angles.block_influence()[0];
            assert!(
                (influence - (1.0 - angle.cos())).abs() < 1e-9,
                "{a:?} {b:?}: {influence}"
            );
        }
    }

    /// Against a model that does not have the layer.
    #[test]
    fn a_layer_that_is_left_out_is_not_there() {
        for scheme in ["pre_gpas", "post", "prores", "peri"] {
            let model = model(scheme).with_progress(Progress::after(9));
            let (ids, _) = batches().remove(0);
            let targets = Tensor::<Flex, 2, Int>::from_data(
                TensorData::from([[1, 2, 3, -100, 5, 6, 7], [4, 5, -100, 7, 8, 9, 0]]),
                &FlexDevice,
            );
            let streams = model.residual_streams(ids.clone());
            let whole = model.token_losses(ids.clone(), targets.clone()).into_data();
            for (index, stream) in streams.into_iter().enumerate().take(LAYERS) {
                let found = model.token_losses_without(index, stream, targets.clone());
                let mut shorter = model.clone();
                shorter.layers.remove(index);
                let expected = shorter.token_losses(ids.clone(), targets.clone());
                assert_eq!(found.clone().into_data(), expected.into_data(), "{scheme} {index}");
                assert_ne!(found.into_data(), whole, "{scheme} {index}");
            }
        }
    }

    #[test]
    fn weight_norms_are_those_of_the_matrices() {
        let layer = &model("layerscale_gpas").layers[1];
        let norms = weight_norms(layer);
        let names: Vec<String> = norms.keys().map(Projection::to_string).collect();
        let attention = [
            "attention.key",
            "attention.output",
            "attention.query",
            "attention.value",
        ];
        assert_eq!(names, [&attention[..], &["mlp.down", "mlp.gate", "mlp.up"]].concat());
        for (projection, weight) in [
            (Projection::Key, &layer.attention.key),
            (Projection::Down, &layer.mlp.down),
        ] {
            let values = weight.weight.val().into_data();
            let expected = values.iter::<f64>().map(|w| w * w).sum::<f64>().sqrt();
            assert_near(norms[&projection], expected, projection.field());
        }
    }
}
