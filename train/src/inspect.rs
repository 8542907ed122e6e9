//! A trained model layer by layer: what `gpas inspect` prints and a report shows.
//!
//! The formulas and their sources stand in [`gpas_model::analysis`]; this file takes them over validation text, adds what the weights alone
//! tell, and puts what the run recorded beside them. One batch of streams is in memory at a time.
//!
//! Where [`ModelInspection`] is of a model at the end of training (or wherever its checkpoint is), [`crate::telemetry`] is the short look that
//! training itself takes again and again; its records are the inspection's [`history`](ModelInspection::history).

mod text;

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use gpas_data::{DataError, EvaluationBatches, IGNORE_INDEX, Windows, stack};
use gpas_model::analysis::{StreamAngles, StreamVariance, weight_norms};
use gpas_model::params::Projection;
use gpas_model::scheme::GatePlace;
use gpas_model::{Llama, LlamaConfig, Scheme};
use serde::{Deserialize, Deserializer, Serialize};

use crate::metrics::{LayersRecord, null_is_nan};

/// A model layer by layer, on validation text. As JSON a number that is not finite is `null`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInspection {
    /// Normalisation scheme.
    pub scheme: Scheme,
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens that everything below is a mean over: the scored ones.
    pub tokens: u64,
    /// Mean loss of the whole model, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// The layers, first to last.
    pub layers: Vec<LayerInspection>,
    /// Variance of the residual stream's entries after the last layer, before the final norm.
    #[serde(deserialize_with = "null_is_nan")]
    pub last_variance: f64,
    /// At `[n − 1][i]` the mean of `arccos(cos(h_i, h_{i+n})) / π`, h_i being the residual stream before layer i (from 0) and after the last.
    #[serde(deserialize_with = "rows_of_numbers")]
    pub angular_distance: Vec<Vec<f64>>,
    /// What the run recorded of its layers in training, every `train.inspect_every` steps, as it stands in `metrics.jsonl`.
    pub history: Vec<LayersRecord>,
}

/// One layer of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerInspection {
    /// What each of its sub-layers does to the stream, as `gpas config show` prints it.
    pub formula: String,
    /// Variance of the entries of the residual stream before the layer.
    #[serde(deserialize_with = "null_is_nan")]
    pub variance: f64,
    /// Mean of `1 − cos` between the streams before and after the layer.
    #[serde(deserialize_with = "null_is_nan")]
    pub block_influence: f64,
    /// Mean loss of the model without the layer, less that of the whole model, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss_change: f64,
    /// α of its gates: none, one for both sub-layers, or one of attention and one of the MLP.
    #[serde(deserialize_with = "numbers")]
    pub gates: Vec<f64>,
    /// `1 − act(α)` of each gate.
    #[serde(deserialize_with = "numbers")]
    pub scales: Vec<f64>,
    /// Product of the scales by which the sub-layers up to the end of this one multiply the residual stream. None without gates, where a
    /// gate stands elsewhere than on the stream, and where a norm of the sum takes the scale off again.
    pub running_scale: Option<f64>,
    /// √Σ w² of each matrix by its place in the layer, such as `attention.query`.
    #[serde(deserialize_with = "numbers_of_projections")]
    pub weight_norms: BTreeMap<Projection, f64>,
}

/// A number, `null` where it is not finite.
#[derive(Deserialize)]
#[serde(transparent)]
struct Number(#[serde(deserialize_with = "null_is_nan")] f64);

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let row = Vec::<Number>::deserialize(deserializer)?;
    Ok(row.into_iter().map(|number| number.0).collect())
}

fn rows_of_numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<f64>>, D::Error> {
    let rows = Vec::<Vec<Number>>::deserialize(deserializer)?;
    let read = |row: Vec<Number>| row.into_iter().map(|number| number.0).collect();
    Ok(rows.into_iter().map(read).collect())
}

fn numbers_of_projections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Projection, f64>, D::Error> {
    let numbers = BTreeMap::<Projection, Number>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(|(name, number)| (name, number.0)).collect())
}

impl ModelInspection {
    /// Inspects a model after `step` optimizer steps, on the first windows that hold `tokens` scored tokens, `batch` of them at a time. The
    /// [`history`](Self::history) is left empty.
    ///
    /// # Errors
    /// If there is no window, or the data is damaged.
    pub fn of<B: Backend>(
        model: &Llama<B>,
        config: &LlamaConfig,
        step: u64,
        windows: Windows,
        batch: usize,
        tokens: usize,
        device: &B::Device,
    ) -> Result<Self, DataError> {
        let batches = EvaluationBatches::<B>::new(windows, batch, Some(tokens), device.clone())?;
        let (mut variance, mut angles) = (StreamVariance::default(), StreamAngles::default());
        let mut loss = 0.0;
        let mut losses_without = vec![0.0; model.layers.len()];
        let total = |losses: burn::tensor::Tensor<B, 1>| losses.into_data().iter::<f64>().sum::<f64>();
        for index in 0..batches.batches() {
            let windows = batches.windows_of_batch(index)?;
            let targets = windows.iter().flat_map(|window| &window.targets);
            let scored: Vec<bool> = targets.map(|target| *target != IGNORE_INDEX).collect();
            let batch = stack::<B>(&windows, device)?;
            let mut streams = model.residual_streams(batch.ids);
            variance.add(&streams, &scored);
            angles.add(&streams, &scored);
            if let Some(last) = streams.pop() {
                loss += total(model.losses_of(last, batch.targets.clone()));
            }
            for (layer, (stream, sum)) in streams.into_iter().zip(&mut losses_without).enumerate() {
                *sum += total(model.token_losses_without(layer, stream, batch.targets.clone()));
            }
        }
        let count = batches.scored().max(1) as f64;
        let loss = loss / count;
        let mut variances = variance.values();
        let last_variance = variances.pop().unwrap_or(f64::NAN);
        let measured = variances.into_iter().zip(angles.block_influence()).zip(losses_without);
        let layers = measured.zip(Gates::of_layers(model, config)).enumerate();
        let layers = layers.map(
            |(index, (((variance, block_influence), without), gates))| LayerInspection {
                formula: config.formula(index),
                variance,
                block_influence,
                loss_change: without / count - loss,
                gates: gates.values,
                scales: gates.scales,
                running_scale: gates.running,
                weight_norms: weight_norms(&model.layers[index]),
            },
        );
        Ok(Self {
            scheme: config.scheme,
            step,
            tokens: batches.scored() as u64,
            loss,
            layers: layers.collect(),
            last_variance,
            angular_distance: angles.angular_distance(),
            history: Vec::new(),
        })
    }
}

/// The gates of a layer.
struct Gates {
    values: Vec<f64>,
    scales: Vec<f64>,
    running: Option<f64>,
}

impl Gates {
    fn of_layers<B: Backend>(model: &Llama<B>, config: &LlamaConfig) -> Vec<Self> {
        let mut running = config.scheme.gpas.then_some(1.0);
        let layers = model.layers.iter().enumerate().map(|(index, layer)| {
            let read = |gate: &gpas_model::Gpas<B>| gate.gate.val().into_data().iter::<f64>().next();
            let values: Vec<f64> = layer.gates.iter().filter_map(read).collect();
            let scales: Vec<f64> = values.iter().map(|gate| 1.0 - config.gate.act.value(*gate)).collect();
            let wiring = config.wiring(index);
            let scales_the_stream = matches!(config.gate_place(index), Some(GatePlace::Stream | GatePlace::Before));
            // One gate serves both sub-layers.
            let by = scales.iter().product::<f64>().powi(2 / scales.len().max(1) as i32);
            running = running
                .filter(|_| scales_the_stream && wiring.post_norm.is_none())
                .map(|running| running * by);
            Self {
                values,
                scales,
                running,
            }
        });
        layers.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::tests::{SEQ, STEP, VOCAB, by_hand, prepared};
    use burn::data::dataset::Dataset;
    use burn::module::Param;
    use burn_flex::{Flex, FlexDevice};
    use gpas_data::{Window, WindowMode};
    use gpas_model::{GateConfig, GateSite, Progress};

    const LAYERS: usize = 3;
    const HIDDEN: usize = 16;
    const GATES: [f64; 2 * LAYERS] = [0.4, -0.2, 1.9, 0.7, -0.6, 0.1];

    fn config(scheme: &str) -> LlamaConfig {
        LlamaConfig::new(VOCAB, HIDDEN, 40, 2, LAYERS)
            .with_scheme(scheme.parse().unwrap())
            .with_residual_warmup(5)
    }

    /// A model whose layers do much to the stream and to the loss.
    fn model(config: &LlamaConfig) -> Llama<Flex> {
        let mut model = config.init::<Flex>(5, &FlexDevice).with_progress(Progress::after(STEP));
        for layer in &mut model.layers {
            layer.mlp.down.weight = layer.mlp.down.weight.clone().map(|weight| weight * 400.0);
        }
        let gates = model.layers.iter_mut().flat_map(|layer| &mut layer.gates);
        for (gate, value) in gates.zip(GATES) {
            gate.gate = Param::from_data([value as f32], &FlexDevice);
        }
        if let Some(head) = &mut model.head {
            head.weight = head.weight.clone().map(|weight| weight * 20.0);
        }
        model
    }

    fn inspect(config: &LlamaConfig, model: &Llama<Flex>, windows: Windows, batch: usize) -> ModelInspection {
        ModelInspection::of(model, config, STEP, windows, batch, 150, &FlexDevice).unwrap()
    }

    /// The windows that an inspection of 150 tokens takes.
    fn looked_at(windows: &Windows) -> Vec<Window> {
        let mut scored = 0;
        let mut taken = Vec::new();
        while scored < 150 && taken.len() < windows.len() {
            taken.push(windows.window(taken.len()).unwrap());
            scored += taken.last().unwrap().scored();
        }
        taken
    }

    /// Streams `[stream][token][channel]` of the tokens that are scored.
    fn streams(model: &Llama<Flex>, windows: &[Window]) -> Vec<Vec<Vec<f64>>> {
        let mut found = vec![Vec::new(); LAYERS + 1];
        for window in windows {
            let ids = stack(std::slice::from_ref(window), &FlexDevice).unwrap().ids;
            for (found, stream) in found.iter_mut().zip(model.residual_streams(ids)) {
                let values: Vec<f64> = stream.into_data().iter::<f64>().collect();
                let scored = values.chunks(HIDDEN).zip(&window.targets);
                found.extend(
                    scored
                        .filter(|(_, target)| **target != IGNORE_INDEX)
                        .map(|(row, _)| row.to_vec()),
                );
            }
        }
        found
    }

    fn mean(values: impl Iterator<Item = f64>) -> f64 {
        let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
        sum / f64::from(count)
    }

    fn cosines<'a>(one: &'a [Vec<f64>], other: &'a [Vec<f64>]) -> impl Iterator<Item = f64> + 'a {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = move |(a, b): (&Vec<f64>, &Vec<f64>)| dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt());
        one.iter().zip(other).map(cosine)
    }

    fn assert_near(found: f64, expected: f64, what: &str) {
        assert!(
            (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
            "{what}: {found} against {expected}"
        );
    }

    /// Each quantity from hidden states, logits and weights in plain loops, one window at a time.
    #[test]
    fn every_quantity_is_its_formula() {
        let place = tempfile::tempdir().unwrap();
        let data = prepared(place.path());
        for (scheme, mode) in [("pre_gpas", WindowMode::Packed), ("prores", WindowMode::Padded)] {
            let config = config(scheme);
            let model = model(&config);
            let windows = Windows::new(data.validation().clone(), mode, SEQ, data.pad()).unwrap();
            let taken = looked_at(&windows);
            assert!(!taken.len().is_multiple_of(4), "a batch is short");
            let found = inspect(&config, &model, windows, 4);

            let loss = |model: &Llama<Flex>| {
                let parts = taken.iter().map(|window| by_hand(model, window.clone()));
                let (loss, tokens) = parts.fold((0.0, 0), |(a, b), (loss, tokens)| (a + loss, b + tokens));
                (loss / tokens as f64, tokens as u64)
            };
            let whole = loss(&model);
            assert_eq!((found.step, found.tokens), (STEP, whole.1));
            assert_near(found.loss, whole.0, scheme);

            let streams = streams(&model, &taken);
            assert_eq!(streams[0].len() as u64, found.tokens);
            let variance = |stream: &Vec<Vec<f64>>| {
                let center = mean(stream.iter().flatten().copied());
                mean(stream.iter().flatten().map(|x| (x - center).powi(2)))
            };
            assert_near(found.last_variance, variance(&streams[LAYERS]), scheme);
            assert_eq!(found.layers.len(), LAYERS);
            for (index, layer) in found.layers.iter().enumerate() {
                assert_near(layer.variance, variance(&streams[index]), scheme);
                let influence = 1.0 - mean(cosines(&streams[index], &streams[index + 1]));
                assert_near(layer.block_influence, influence, scheme);
                let mut shorter = model.clone();
                shorter.layers.remove(index);
                let change = loss(&shorter).0 - whole.0;
                assert!(
                    change.abs() > 1e-3,
                    "{scheme}: layer {index} changes the loss by {change}"
                );
                assert_near(layer.loss_change, change, scheme);
                let weights = model.layers[index].attention.value.weight.val().into_data();
                let norm = weights.iter::<f64>().map(|w| w * w).sum::<f64>().sqrt();
                assert_near(layer.weight_norms[&Projection::Value], norm, scheme);
                assert_eq!(layer.formula, config.formula(index));
            }
            for (n, distances) in (1..).zip(&found.angular_distance) {
                assert_eq!(distances.len(), LAYERS + 1 - n);
                for (from, found) in distances.iter().enumerate() {
                    let cosines = cosines(&streams[from], &streams[from + n]);
                    assert_near(
                        *found,
                        mean(cosines.map(|cosine| cosine.acos() / std::f64::consts::PI)),
                        scheme,
                    );
                }
            }
        }
    }

    /// Where the stream is scaled, its scale is the product of all scales so far; elsewhere there is none.
    #[test]
    fn the_running_scale_is_that_of_the_stream() {
        let silu = |gate: f64| gate / (1.0 + (-gate).exp());
        let running = |scheme: &str, gate: GateConfig| {
            let config = config(scheme).with_gate(gate);
            let layers = Gates::of_layers(&model(&config), &config);
            for layer in &layers {
                for (gate, scale) in layer.values.iter().zip(&layer.scales) {
                    assert_near(*scale, 1.0 - silu(*gate), scheme);
                }
            }
            layers.into_iter().map(|layer| layer.running).collect::<Vec<_>>()
        };
        let check = |found: Vec<Option<f64>>, factors: &dyn Fn(usize) -> f64| {
            let mut expected = 1.0;
            for (index, found) in found.into_iter().enumerate() {
                expected *= factors(index);
                assert_near(found.unwrap(), expected, "running scale");
            }
        };
        let shared = |index: usize| (1.0 - silu(GATES[index])).powi(2);
        let own = |index: usize| (1.0 - silu(GATES[2 * index])) * (1.0 - silu(GATES[2 * index + 1]));
        let gate = GateConfig::new();
        check(running("pre_gpas", gate), &shared);
        check(running("sandwich_gpas", gate.with_site(GateSite::Before)), &shared);
        check(running("pre_gpas", gate.with_per_sublayer(true)), &own);
        for (scheme, site) in [
            ("pre", GateSite::Default),
            ("post_gpas", GateSite::Default),
            ("keel_gpas", GateSite::Before),
            ("pre_gpas", GateSite::AfterModule),
        ] {
            assert_eq!(
                running(scheme, gate.with_site(site)),
                [None; LAYERS],
                "{scheme} {site:?}"
            );
        }
    }

    #[test]
    fn json_reads_back_with_nulls_for_what_is_not_finite() {
        let layer = LayerInspection {
            formula: "x ← x".into(),
            variance: 0.5,
            block_influence: 0.25,
            loss_change: -1.5,
            gates: vec![2.0],
            scales: vec![-0.75],
            running_scale: None,
            weight_norms: [(Projection::Up, 4.0)].into(),
        };
        let whole = ModelInspection {
            scheme: Scheme::default(),
            step: 9,
            tokens: 8,
            loss: 3.5,
            layers: vec![layer],
            last_variance: 1.25,
            angular_distance: vec![vec![0.125]],
            history: vec![LayersRecord {
                step: 1,
                variance: vec![Some(1.0), None],
                grad_norm: vec![Some(2.0)],
                weight_norm: vec![Some(3.0)],
                gate: vec![Some(0.5)],
            }],
        };
        let json = serde_json::to_string(&whole).unwrap();
        assert_eq!(serde_json::from_str::<ModelInspection>(&json).unwrap(), whole);

        let place = tempfile::tempdir().unwrap();
        let data = prepared(place.path());
        let config = config("pre_gpas");
        let windows = Windows::new(data.validation().clone(), WindowMode::Packed, SEQ, data.pad()).unwrap();
        let mut diverged = model(&config);
        diverged.layers[1].mlp.up.weight = diverged.layers[1].mlp.up.weight.clone().map(|weight| weight * f32::NAN);
        let found = inspect(&config, &diverged, windows, 4);
        let json = serde_json::to_string(&found).unwrap();
        assert!(json.contains(r#""loss":null"#), "{json}");
        let read: ModelInspection = serde_json::from_str(&json).unwrap();
        assert!(read.loss.is_nan() && read.last_variance.is_nan() && read.angular_distance[0][1].is_nan());
        assert!(read.layers[1].weight_norms[&Projection::Up].is_nan());
        assert!(read.layers[0].variance.is_finite());
        assert!(found.to_string().contains("NaN"));
    }
}
