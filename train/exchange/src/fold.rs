//! GPAS folded into the weights around it, so that a stock LLaMA computes the same logits.
//!
//! RMSNorm does not see the scale of its input. Let `c` be the product of the scales `s = 1 − act(α)` up to some place in a Pre-LN model,
//! and `z = x / c`. Where the gate stands on the stream, `x ← s·(x + F(N(x)))` is
//!
//! ```text
//! z ← z + F(N(z) · sign c) / c          c ← s·c
//! ```
//!
//! so each output projection is divided by the product *before* its own gate, and a norm whose product is negative changes its sign: the
//! final one too. The other sites are simpler still:
//!
//! | site | what is folded |
//! |---|---|
//! | on the stream (default) | output projection `/ c`, then `c ← s·c` |
//! | `before` | `c ← s·c`, then output projection `/ c` |
//! | `after_norm` | norm `· s` |
//! | `after_module` | output projection `· s` |
//!
//! Factors on a branch that have nothing to do with a gate are folded too: the λ of `layerscale` and the warm-up factor that `prores` has
//! reached multiply the rows of the output projection.
//!
//! A scale of 0 on the stream loses what came before it, which no weights of a stock model can do: it is an error. Folding is exact but for
//! the norms' ε, which does not scale with the stream: it acts as `ε / c²` would. Everything is computed in f64 and rounded once.

use gpas_model::params::{NormPlace, ParameterKind, SubLayer};
use gpas_model::scheme::GatePlace;
use gpas_model::weights::{HostTensor, NamedTensors, WeightsError};
use gpas_model::{GateConfig, LlamaConfig, NormScheme, Progress, Scheme};

use crate::ExchangeError;
use crate::config::branch_factor;

/// Why the model is no stock LLaMA even without gates; nothing if it is one.
pub fn not_stock(config: &LlamaConfig) -> Option<String> {
    (0..config.layers).find_map(|index| {
        let wiring = config.wiring(index);
        let why = if config.scheme.norm.embedding_norm().is_some() {
            return Some("the stream starts as a norm of the embedding".into());
        } else if wiring.post_norm.is_some() {
            "normalises the sum of residual and branch"
        } else if wiring.branch_norm.is_some() {
            "normalises what its sub-layers return"
        } else if wiring.pre_norm.is_none() {
            "has no norm before its sub-layers"
        } else if wiring.residual_scale != 1.0 {
            "scales its residual"
        } else {
            return None;
        };
        Some(format!("layer {index} {why}"))
    })
}

/// A stock model.
pub struct Folded {
    /// The same sizes, as plain `pre`.
    pub config: LlamaConfig,
    /// Its weights.
    pub tensors: NamedTensors,
    /// The smallest size of the running product on the stream.
    pub smallest_scale: f64,
}

/// Folds gates and factors into the weights of a Pre-LN model at some progress of its run.
///
/// # Errors
/// If the model has other norms, a scale on the stream is 0, or a weight would be no finite number.
pub fn fold(config: &LlamaConfig, mut tensors: NamedTensors, progress: Progress) -> Result<Folded, ExchangeError> {
    if let Some(why) = not_stock(config) {
        let scheme = config.scheme;
        return Err(ExchangeError::NotStock { scheme, why });
    }
    let mut running = Running {
        product: 1.0,
        smallest: 1.0,
    };
    for index in 0..config.layers {
        let wiring = config.wiring(index);
        let place = config.gate_place(index);
        let gates = gate_values(config, index, &mut tensors)?;
        for (sub_layer, gate) in SubLayer::BOTH.into_iter().zip(gates) {
            let scale = gate.map_or(1.0, |gate| 1.0 - config.gate.act.value(gate));
            if place == Some(GatePlace::Before) {
                running.pass(scale, index)?;
            }
            let on = |here: GatePlace| if place == Some(here) { scale } else { 1.0 };
            let factor = wiring.pre_norm.map_or(1.0, |norm| norm.factor);
            let norm = factor * on(GatePlace::AfterNorm);
            let pre_norm = ParameterKind::Norm {
                layer: index,
                sub_layer,
                place: NormPlace::Pre,
            };
            multiply(
                &mut tensors,
                &released(config, pre_norm)?,
                norm * running.product.signum(),
            )?;
            let output = ParameterKind::Projection {
                layer: index,
                projection: sub_layer.output(),
            };
            let output = released(config, output)?;
            let branch = branch_factor(wiring.branch_scale, progress) * on(GatePlace::AfterModule);
            multiply(&mut tensors, &output, branch / running.product)?;
            let trained = wiring.branch_scale.and_then(|scaling| scaling.trained(config.hidden));
            if trained.is_some() {
                let scale = ParameterKind::BranchScale {
                    layer: index,
                    sub_layer,
                };
                multiply_rows(&mut tensors, &output, &released(config, scale)?)?;
            }
            if place == Some(GatePlace::Stream) {
                running.pass(scale, index)?;
            }
        }
    }
    let final_norm = released(config, ParameterKind::FinalNorm)?;
    multiply(&mut tensors, &final_norm, running.product.signum())?;
    let plain = Scheme {
        norm: NormScheme::PRE,
        gpas: false,
    };
    let config = config.clone().with_scheme(plain).with_gate(GateConfig::new());
    Ok(Folded {
        config,
        tensors,
        smallest_scale: running.smallest,
    })
}

/// The product of the scales that the stream has passed.
struct Running {
    product: f64,
    smallest: f64,
}

impl Running {
    fn pass(&mut self, scale: f64, layer: usize) -> Result<(), ExchangeError> {
        self.product *= scale;
        self.smallest = self.smallest.min(self.product.abs());
        if self.product.is_normal() {
            return Ok(());
        }
        Err(ExchangeError::Fold(match scale {
            0.0 => format!("the gate of layer {layer} scales the stream by 0"),
            _ => format!("up to layer {layer} the stream is scaled by {:e}", self.product),
        }))
    }
}

/// The name of a parameter among the tensors.
fn released(config: &LlamaConfig, kind: ParameterKind) -> Result<String, ExchangeError> {
    Ok(config.released_name(kind).ok_or(WeightsError::Unnamed(kind))?)
}

/// The gates of attention and MLP, which are taken out of the tensors.
fn gate_values(
    config: &LlamaConfig,
    index: usize,
    tensors: &mut NamedTensors,
) -> Result<[Option<f64>; 2], ExchangeError> {
    let gates = SubLayer::BOTH.map(|sub_layer| config.gate_of(index, sub_layer));
    let [Some(of_attention), Some(of_mlp)] = gates else {
        return Ok([None, None]);
    };
    let mut take = |kind: ParameterKind| {
        let name = released(config, kind)?;
        let gate = tensors.remove(&name).and_then(|tensor| tensor.values.first().copied());
        gate.map(f64::from).ok_or(ExchangeError::Missing { names: vec![name] })
    };
    let attention = take(of_attention)?;
    let mlp = if of_mlp == of_attention {
        attention
    } else {
        take(of_mlp)?
    };
    Ok([Some(attention), Some(mlp)])
}

fn multiply(tensors: &mut NamedTensors, name: &str, factor: f64) -> Result<(), ExchangeError> {
    // Weights that need no change keep their bits.
    if factor == 1.0 {
        return Ok(());
    }
    let Some(HostTensor { values, .. }) = tensors.get_mut(name) else {
        return Err(ExchangeError::Missing {
            names: vec![name.into()],
        });
    };
    scale(values, factor, name)
}

/// Multiplies each row of a projection `[out, in]` by one number of another tensor, which is taken out.
fn multiply_rows(tensors: &mut NamedTensors, name: &str, factors: &str) -> Result<(), ExchangeError> {
    let missing = |name: &str| ExchangeError::Missing {
        names: vec![name.into()],
    };
    let factors = tensors.remove(factors).ok_or_else(|| missing(factors))?.values;
    let HostTensor { values, .. } = tensors.get_mut(name).ok_or_else(|| missing(name))?;
    let width = values.len() / factors.len().max(1);
    for (row, factor) in values.chunks_exact_mut(width.max(1)).zip(factors.iter().cycle()) {
        scale(row, f64::from(*factor), name)?;
    }
    Ok(())
}

fn scale(values: &mut [f32], factor: f64, name: &str) -> Result<(), ExchangeError> {
    for value in values {
        let product = f64::from(*value) * factor;
        *value = product as f32;
        if !value.is_finite() {
            return Err(ExchangeError::Fold(format!(
                "{name} times {factor:e} has {product:e}, which f32 does not hold"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Int, Tensor};
    use burn_flex::{Flex, FlexDevice};
    use gpas_model::compare::{largest_difference, largest_magnitude};
    use gpas_model::{GateActivation, GateSite, Llama};

    /// With an ε so small that only rounding is left as a difference.
    fn config(scheme: &str) -> LlamaConfig {
        LlamaConfig::new(40, 16, 48, 4, 5)
            .with_kv_heads(Some(2))
            .with_norm_epsilon(1e-10)
            .with_residual_warmup(2)
            .with_scheme(scheme.parse().unwrap())
    }

    /// Weights large enough for every sub-layer to count, and gates one after the other.
    fn tensors(config: &LlamaConfig, gates: &[f32]) -> NamedTensors {
        let mut tensors = config.init::<Flex>(3, &FlexDevice).to_tensors(config).unwrap();
        let mut gates = gates.iter().cycle();
        for (name, tensor) in &mut tensors {
            if name.ends_with(".gate") {
                tensor.values = vec![*gates.next().unwrap()];
            } else if name == "lm_head.weight" {
                tensor.values.iter_mut().for_each(|value| *value *= 2.0);
            } else if name.ends_with("proj.weight") {
                tensor.values.iter_mut().for_each(|value| *value *= 15.0);
            } else if name.ends_with("norm.weight") || name.contains("branch_scale") {
                let wave = |(at, value): (usize, &mut f32)| *value *= 1.0 + 0.3 * (at as f32).sin();
                tensor.values.iter_mut().enumerate().for_each(wave);
            }
        }
        tensors
    }

    fn logits(config: &LlamaConfig, tensors: &NamedTensors) -> Vec<f32> {
        let model = Llama::<Flex>::from_tensors(config, tensors, &FlexDevice).unwrap();
        let model = model.with_progress(progress());
        let ids: Vec<i32> = (0..24).map(|at| at * 7 % 40).collect();
        let ids = Tensor::<Flex, 1, Int>::from_ints(ids.as_slice(), &FlexDevice).reshape([2, 12]);
        model.logits(ids).into_data().into_vec().unwrap()
    }

    /// Within the warm-up of some layers of `prores`, and past that of others.
    fn progress() -> Progress {
        Progress::after(5)
    }

    /// Scales of both signs: SiLU passes 1 at 1.28.
    const GATES: [f32; 5] = [0.6, 2.0, -0.8, 1.9, 2.4];
    /// tanh of 2 scales the stream by 0.04, so that soon ε of the norms is no longer small.
    const OPEN_GATES: [f32; 3] = [0.6, -0.8, 0.3];

    #[test]
    fn every_foldable_model_is_a_stock_llama_with_the_same_logits() {
        for scheme in [
            "pre_gpas",
            "lns_gpas",
            "lns_fixed",
            "lns_fixed_gpas",
            "scale_pre_gpas",
            "prores",
            "prores_gpas",
            "layerscale",
            "layerscale_gpas",
        ] {
            for site in [
                GateSite::Default,
                GateSite::Before,
                GateSite::AfterNorm,
                GateSite::AfterModule,
            ] {
                for (per_sublayer, act, gates) in [
                    (false, GateActivation::Silu, &GATES[..]),
                    (true, GateActivation::Silu, &GATES[..]),
                    (true, GateActivation::Tanh, &OPEN_GATES[..]),
                ] {
                    let gate = GateConfig::new()
                        .with_site(site)
                        .with_per_sublayer(per_sublayer)
                        .with_act(act);
                    let config = config(scheme).with_gate(gate);
                    let tensors = tensors(&config, gates);
                    let before = logits(&config, &tensors);
                    let folded = fold(&config, tensors, progress()).unwrap();
                    assert_eq!(folded.config.scheme.to_string(), "pre");
                    let after = logits(&folded.config, &folded.tensors);
                    let difference = largest_difference(&after, &before);
                    assert!(
                        difference < 2e-5,
                        "{scheme} {site:?} {per_sublayer} {act:?}: {difference}"
                    );
                    let size = largest_magnitude(&before);
                    assert!(size > 0.3, "{size}: there is something to compare");
                    let mut broken = after;
                    broken[7] = f32::NAN;
                    assert!(largest_difference(&broken, &before).is_nan());
                }
            }
        }
    }

    /// The sign of the last product reaches the final norm.
    #[test]
    fn a_negative_product_at_the_end_turns_the_final_norm() {
        let config = config("pre_gpas").with_gate(GateConfig::new().with_per_sublayer(true));
        let mut tensors = tensors(&config, &[0.0]);
        tensors.get_mut("model.layers.4.gpas_block_mlp.gate").unwrap().values = vec![2.0];
        let (before, norm) = (logits(&config, &tensors), tensors["model.norm.weight"].values.clone());
        let folded = fold(&config, tensors, progress()).unwrap();
        let turned: Vec<f32> = norm.iter().map(|weight| -weight).collect();
        assert_eq!(folded.tensors["model.norm.weight"].values, turned);
        assert!(largest_difference(&logits(&folded.config, &folded.tensors), &before) < 1e-5);
    }

    #[test]
    fn a_plain_model_keeps_its_bits_and_a_tied_head_its_embedding() {
        let config = config("pre").with_tied_head(true);
        let tensors = tensors(&config, &[]);
        assert_eq!(fold(&config, tensors.clone(), progress()).unwrap().tensors, tensors);
    }

    #[test]
    fn what_cannot_be_folded_says_why() {
        let refused = |config: LlamaConfig, gates: &[f32]| {
            let tensors = tensors(&config, gates);
            fold(&config, tensors, progress())
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default()
        };
        for (scheme, why) in [
            ("sandwich_gpas", "layer 0 normalises what its sub-layers return"),
            ("peri", "the stream starts as a norm of the embedding"),
            ("keel_gpas", "layer 0 normalises the sum of residual and branch"),
            ("rezero", "layer 0 has no norm before its sub-layers"),
            ("post_gpas", "layer 0 normalises the sum of residual and branch"),
            ("deeppost", "layer 0 normalises the sum of residual and branch"),
            ("post_pre_gpas", "layer 0 normalises the sum of residual and branch"),
        ] {
            let said = refused(config(scheme), &GATES);
            assert_eq!(said, format!("a stock LLaMA cannot be `{scheme}`: {why}"));
        }
        let relu = GateConfig::new().with_act(GateActivation::Relu);
        let zero = refused(config("pre_gpas").with_gate(relu), &[0.0, 0.5, 1.0, 0.0, 0.0]);
        assert_eq!(
            zero,
            "the gates cannot be folded: the gate of layer 2 scales the stream by 0"
        );
        // A scale of 0 that is not on the stream can be folded.
        let branch = relu.with_site(GateSite::AfterModule);
        assert_eq!(refused(config("pre_gpas").with_gate(branch), &[1.0]), "");
        let tiny = refused(config("pre_gpas").with_gate(relu), &[1.0 - 1e-7]);
        assert!(tiny.contains("which f32 does not hold"), "{tiny}");
    }

    /// Mix-LN without a Post-LN layer is Pre-LN.
    #[test]
    fn the_wiring_decides_not_the_name() {
        let config = config("post_pre_gpas").with_post_num(Some(0));
        let tensors = tensors(&config, &GATES);
        let before = logits(&config, &tensors);
        let folded = fold(&config, tensors, progress()).unwrap();
        assert!(largest_difference(&logits(&folded.config, &folded.tensors), &before) < 1e-4);
    }
}
