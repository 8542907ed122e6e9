//! How rotary frequencies are changed so that a model reads longer texts than it was first trained on.
//!
//! Pair j of a head of size d turns by `f_j = b^(−2j/d)` radians from one position to the next, where b is the base. With s the `factor`, O
//! the `original_max_position_embeddings` and L the length of the sequence:
//!
//! | `rope_type` | pair j turns by | source |
//! |---|---|---|
//! | `default` | `f_j` | arXiv 2104.09864 |
//! | `linear` | `f_j / s` | position interpolation, arXiv 2306.15595 |
//! | `dynamic` | `f_j`; where L > O, with the base `b·(s·L/O − (s − 1))^(d/(d−2))` | NTK-aware scaling by length, arXiv 2309.00071, appendix B |
//! | `llama3` | `f_j·(t + (1 − t)/s)`, `t = clamp((O·f_j/2π − low_freq_factor) / (high_freq_factor − low_freq_factor), 0, 1)` | Llama 3.1 |
//! | `yarn` | `f_j·(e + (1 − e)/s)`, `e = 1 − clamp((j − low)/(high − low), 0, 1)` | YaRN, arXiv 2309.00071 |
//!
//! In `yarn`, `low = max(c(beta_fast), 0)` and `high = min(c(beta_slow), d − 1)`, where `c(r) = d·ln(O/(2πr)) / (2 ln b)` is the pair that makes
//! r full turns in O positions; `c(beta_fast)` is rounded down and `c(beta_slow)` up unless `truncate` is off. Its cosines and sines are
//! multiplied by `attention_factor`, which is `m(1)` where it is not given, with `m(x) = 0.1·x·ln s + 1` (1 for s = 1); where both `mscale` and
//! `mscale_all_dim` are given and not 0, it is `m(mscale) / m(mscale_all_dim)`.
//!
//! The names of types and fields, and what is computed of them, are those of `transformers` 5.

use std::f64::consts::TAU;
use std::fmt;

use serde::{Deserialize, Serialize};
use strum::VariantNames;

/// The most positions that a scaling gives a model.
const MOST_POSITIONS: usize = 1 << 20;

/// A kind of scaling, by the name that it has in configurations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RopeType {
    /// None.
    #[default]
    Default,
    /// Every position divided by the factor.
    Linear,
    /// A base that grows with the sequence.
    Dynamic,
    /// High frequencies as they are, low ones divided by the factor, as in Llama 3.1.
    Llama3,
    /// High frequencies as they are, low ones divided by the factor, as in YaRN.
    Yarn,
}

impl RopeType {
    /// The type of that name.
    ///
    /// # Errors
    /// If none that is computed has it.
    pub fn named(name: &str) -> Result<Self, RopeScalingError> {
        let known = [Self::Default, Self::Linear, Self::Dynamic, Self::Llama3, Self::Yarn];
        let found = known.into_iter().find(|kind| kind.to_string() == name);
        found.ok_or_else(|| RopeScalingError::UnknownType(name.into()))
    }
}

impl fmt::Display for RopeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::VARIANTS[*self as usize])
    }
}

/// How the rotary frequencies of a model are scaled. It is serialized as the table `rope_scaling` of a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// Every position is divided by the factor.
    Linear {
        /// s, at least 1.
        factor: f64,
    },
    /// The base grows with a sequence that is longer than the original positions.
    Dynamic {
        /// s, at least 1.
        factor: f64,
        /// O.
        original_max_position_embeddings: usize,
    },
    /// As in Llama 3.1.
    Llama3 {
        /// s, at least 1.
        factor: f64,
        /// Pairs that make fewer turns than this in O positions turn s times as slowly.
        low_freq_factor: f64,
        /// Pairs that make more turns than this in O positions stay as they are.
        high_freq_factor: f64,
        /// O.
        original_max_position_embeddings: usize,
    },
    /// As in YaRN.
    Yarn(Yarn),
}

/// The fields of YaRN. An optional one that is not given has the default of `transformers`, and is not written either.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Yarn {
    /// s, at least 1.
    pub factor: f64,
    /// O.
    pub original_max_position_embeddings: usize,
    /// What cosines and sines are multiplied by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// Turns in O positions above which a pair stays as it is; 32 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_fast: Option<f64>,
    /// Turns in O positions below which a pair turns s times as slowly; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta_slow: Option<f64>,
    /// Factor in the numerator of the attention factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale: Option<f64>,
    /// Factor in its denominator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale_all_dim: Option<f64>,
    /// Whether the ends of the ramp are rounded to whole pairs; they are if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<bool>,
}

/// A scaling that cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum RopeScalingError {
    #[error("rope_type `{0}` is none that is computed here")]
    UnknownType(String),
    #[error("rope_type `{rope_type}` needs `{field}`")]
    Missing { rope_type: RopeType, field: &'static str },
    #[error("rope_type `{rope_type}` has no `{field}`")]
    Superfluous { rope_type: RopeType, field: &'static str },
    #[error("`{field}` must be {allowed}, not {found}")]
    Value {
        field: String,
        allowed: &'static str,
        found: String,
    },
    #[error("`{lower}` = {low} must be less than `{upper}` = {high}")]
    Order {
        lower: &'static str,
        low: String,
        upper: &'static str,
        high: String,
    },
    #[error("rope_type `dynamic` needs heads of more than 2 entries")]
    SmallHead,
}

impl RopeScalingError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::UnknownType(_) => format!("computed are {}", RopeType::VARIANTS.join(", ")),
            Self::Missing { field, .. } => format!("give `{field}` beside `rope_type`"),
            Self::Superfluous { .. } => "leave it out, or name the `rope_type` that has it".into(),
            Self::Value { .. } | Self::Order { .. } => {
                "the model's publisher says which numbers it was trained with".into()
            }
            Self::SmallHead => "another `rope_type` scales heads of any size".into(),
        }
    }
}

/// The fields of a scaling as a configuration gives them, before they are known to be complete.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "they are those of `RopeScaling`")]
pub struct RopeScalingFields {
    pub rope_type: RopeType,
    pub factor: Option<f64>,
    pub original_max_position_embeddings: Option<usize>,
    pub low_freq_factor: Option<f64>,
    pub high_freq_factor: Option<f64>,
    pub attention_factor: Option<f64>,
    pub beta_fast: Option<f64>,
    pub beta_slow: Option<f64>,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    pub truncate: Option<bool>,
}

impl RopeScalingFields {
    /// The fields that are given and that the type does not have.
    pub fn superfluous(&self) -> Vec<&'static str> {
        use RopeType::{Dynamic, Linear, Llama3, Yarn};
        let all: [(&'static str, bool, &[RopeType]); 10] = [
            ("factor", self.factor.is_some(), &[Linear, Dynamic, Llama3, Yarn]),
            (
                "original_max_position_embeddings",
                self.original_max_position_embeddings.is_some(),
                &[Dynamic, Llama3, Yarn],
            ),
            ("low_freq_factor", self.low_freq_factor.is_some(), &[Llama3]),
            ("high_freq_factor", self.high_freq_factor.is_some(), &[Llama3]),
            ("attention_factor", self.attention_factor.is_some(), &[Yarn]),
            ("beta_fast", self.beta_fast.is_some(), &[Yarn]),
            ("beta_slow", self.beta_slow.is_some(), &[Yarn]),
            ("mscale", self.mscale.is_some(), &[Yarn]),
            ("mscale_all_dim", self.mscale_all_dim.is_some(), &[Yarn]),
            ("truncate", self.truncate.is_some(), &[Yarn]),
        ];
        let is_superfluous = |(field, given, types): &(&'static str, bool, &[RopeType])| {
            (*given && !types.contains(&self.rope_type)).then_some(*field)
        };
        all.iter().filter_map(is_superfluous).collect()
    }

    /// The scaling of a model with so many positions, which are its original ones where no field says otherwise. Fields that the type does
    /// not have are not looked at.
    ///
    /// # Errors
    /// If a field is missing or has a value that makes no sense.
    pub fn complete(&self, max_positions: usize) -> Result<RopeScaling, RopeScalingError> {
        let rope_type = self.rope_type;
        let needed =
            |field: &'static str, value: Option<f64>| value.ok_or(RopeScalingError::Missing { rope_type, field });
        let original_max_position_embeddings = self.original_max_position_embeddings.unwrap_or(max_positions);
        let scaling = match rope_type {
            RopeType::Default => RopeScaling::Default,
            RopeType::Linear => RopeScaling::Linear {
                factor: needed("factor", self.factor)?,
            },
            RopeType::Dynamic => RopeScaling::Dynamic {
                factor: needed("factor", self.factor)?,
                original_max_position_embeddings,
            },
            RopeType::Llama3 => RopeScaling::Llama3 {
                factor: needed("factor", self.factor)?,
                low_freq_factor: needed("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: needed("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings,
            },
            RopeType::Yarn => RopeScaling::Yarn(Yarn {
                factor: needed("factor", self.factor)?,
                original_max_position_embeddings,
                attention_factor: self.attention_factor,
                beta_fast: self.beta_fast,
                beta_slow: self.beta_slow,
                mscale: self.mscale,
                mscale_all_dim: self.mscale_all_dim,
                truncate: self.truncate,
            }),
        };
        scaling.check()?;
        Ok(scaling)
    }
}

fn check(field: &str, value: f64, allowed: &'static str, test: impl Fn(f64) -> bool) -> Result<(), RopeScalingError> {
    if value.is_finite() && test(value) {
        return Ok(());
    }
    Err(RopeScalingError::Value {
        field: field.into(),
        allowed,
        found: value.to_string(),
    })
}

fn check_above_zero(field: &str, value: f64) -> Result<(), RopeScalingError> {
    check(field, value, "a number above 0", |value| value > 0.0)
}

fn check_order(lower: (&'static str, f64), upper: (&'static str, f64)) -> Result<(), RopeScalingError> {
    if lower.1 < upper.1 {
        return Ok(());
    }
    Err(RopeScalingError::Order {
        lower: lower.0,
        low: lower.1.to_string(),
        upper: upper.0,
        high: upper.1.to_string(),
    })
}

impl RopeScaling {
    /// Its type.
    pub fn rope_type(&self) -> RopeType {
        match self {
            Self::Default => RopeType::Default,
            Self::Linear { .. } => RopeType::Linear,
            Self::Dynamic { .. } => RopeType::Dynamic,
            Self::Llama3 { .. } => RopeType::Llama3,
            Self::Yarn(_) => RopeType::Yarn,
        }
    }

    /// Whether there is none.
    pub fn is_default(&self) -> bool {
        *self == Self::Default
    }

    /// s; 1 without scaling.
    pub fn factor(&self) -> f64 {
        match *self {
            Self::Default => 1.0,
            Self::Linear { factor } | Self::Dynamic { factor, .. } | Self::Llama3 { factor, .. } => factor,
            Self::Yarn(yarn) => yarn.factor,
        }
    }

    /// The length up to which the frequencies do not depend on that of the sequence, where they do beyond.
    pub fn constant_up_to(&self) -> Option<usize> {
        match *self {
            Self::Dynamic {
                original_max_position_embeddings,
                ..
            } => Some(original_max_position_embeddings),
            _ => None,
        }
    }

    /// Positions of a model whose configuration says `max_positions`, which is the original number for `linear` and `dynamic`, may be either
    /// for `yarn`, and is the scaled one for `llama3`. So it is these times the factor, as in vLLM; of `yarn` at least; a million at most.
    pub fn positions(&self, max_positions: usize) -> usize {
        let times = |positions: usize, factor: f64| ((positions as f64 * factor) as usize).min(MOST_POSITIONS);
        let scaled = match *self {
            Self::Default | Self::Llama3 { .. } => max_positions,
            Self::Linear { factor } => times(max_positions, factor),
            Self::Dynamic {
                factor,
                original_max_position_embeddings,
            } => times(original_max_position_embeddings, factor),
            Self::Yarn(yarn) => times(yarn.original_max_position_embeddings, yarn.factor),
        };
        scaled.max(max_positions)
    }

    /// Checks every number.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn check(&self) -> Result<(), RopeScalingError> {
        check("factor", self.factor(), "a number of at least 1", |factor| {
            factor >= 1.0
        })?;
        let original = match *self {
            Self::Default | Self::Linear { .. } => 1,
            Self::Dynamic {
                original_max_position_embeddings,
                ..
            } => original_max_position_embeddings,
            Self::Llama3 {
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
                ..
            } => {
                check_above_zero("low_freq_factor", low_freq_factor)?;
                check_above_zero("high_freq_factor", high_freq_factor)?;
                check_order(
                    ("low_freq_factor", low_freq_factor),
                    ("high_freq_factor", high_freq_factor),
                )?;
                original_max_position_embeddings
            }
            Self::Yarn(yarn) => {
                yarn.check()?;
                yarn.original_max_position_embeddings
            }
        };
        check(
            "original_max_position_embeddings",
            original as f64,
            "at least 1",
            |original| original >= 1.0,
        )
    }

    /// Checks what only a head can tell.
    pub(crate) fn check_head(&self, head_dim: usize) -> Result<(), RopeScalingError> {
        match self {
            Self::Dynamic { .. } if head_dim <= 2 => Err(RopeScalingError::SmallHead),
            _ => self.check(),
        }
    }

    /// Radians by which each pair of a head of size `head_dim` turns from one position to the next, in a sequence of `length` tokens.
    pub fn frequencies(&self, base: f64, head_dim: usize, length: usize) -> Vec<f64> {
        let half = head_dim / 2;
        let base = match *self {
            Self::Dynamic {
                factor,
                original_max_position_embeddings: original,
            } if length > original => {
                let grown = factor * length as f64 / original as f64 - (factor - 1.0);
                base * grown.powf(head_dim as f64 / (head_dim as f64 - 2.0))
            }
            _ => base,
        };
        let plain = (0..half).map(|j| base.powf(-(j as f64) / half as f64));
        match *self {
            Self::Default | Self::Dynamic { .. } => plain.collect(),
            Self::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => {
                let kept = |frequency: f64| ((original as f64 * frequency / TAU - low) / (high - low)).clamp(0.0, 1.0);
                plain
                    .map(|frequency| blend(frequency, kept(frequency), factor))
                    .collect()
            }
            Self::Yarn(yarn) => {
                let [low, high] = yarn.ramp(base, head_dim);
                let kept = |j: usize| 1.0 - ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
                let pairs = plain.enumerate();
                pairs
                    .map(|(j, frequency)| blend(frequency, kept(j), yarn.factor))
                    .collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn(yarn) => yarn.attention_factor(),
            _ => 1.0,
        }
    }
}

/// A frequency of which a part stays as it is and the rest is divided by the factor.
fn blend(frequency: f64, kept: f64, factor: f64) -> f64 {
    frequency * (kept + (1.0 - kept) / factor)
}

impl Yarn {
    fn check(&self) -> Result<(), RopeScalingError> {
        if let Some(factor) = self.attention_factor {
            check_above_zero("attention_factor", factor)?;
        }
        for (field, value) in [("mscale", self.mscale), ("mscale_all_dim", self.mscale_all_dim)] {
            if let Some(value) = value {
                check(field, value, "a number of at least 0", |value| value >= 0.0)?;
            }
        }
        let (fast, slow) = self.betas();
        check_above_zero("beta_fast", fast)?;
        check_above_zero("beta_slow", slow)?;
        if slow != fast {
            check_order(("beta_slow", slow), ("beta_fast", fast))?;
        }
        // Cosines and sines are kept in f32.
        check(
            "attention_factor",
            self.attention_factor(),
            "a number above 0 that f32 holds",
            |factor| (factor as f32).is_normal(),
        )
    }

    fn betas(&self) -> (f64, f64) {
        (self.beta_fast.unwrap_or(32.0), self.beta_slow.unwrap_or(1.0))
    }

    fn attention_factor(&self) -> f64 {
        let magnitude = |scale: f64| {
            if self.factor <= 1.0 {
                return 1.0;
            }
            0.1 * scale * self.factor.ln() + 1.0
        };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => magnitude(mscale) / magnitude(all),
            (None, _, _) => magnitude(1.0),
        }
    }

    /// The pairs between which frequencies go over from as they are to divided.
    fn ramp(&self, base: f64, head_dim: usize) -> [f64; 2] {
        let original = self.original_max_position_embeddings as f64;
        let pair = |turns: f64| head_dim as f64 * (original / (turns * TAU)).ln() / (2.0 * base.ln());
        let (fast, slow) = self.betas();
        let (low, high) = match self.truncate.unwrap_or(true) {
            true => (pair(fast).floor(), pair(slow).ceil()),
            false => (pair(fast), pair(slow)),
        };
        let (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        // A ramp without a width would divide by 0.
        if low == high { [low, high + 0.001] } else { [low, high] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// What `transformers` computes, in f32: `xtask/verify_hf.py rope model/golden/rope.json` has written it, and `cargo xtask verify-hf --cases
    /// rope` compares it with the release that is installed.
    const GOLDEN: &str = include_str!("../golden/rope.json");

    fn number(value: &Value) -> f64 {
        value.as_f64().unwrap()
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        let golden: Value = serde_json::from_str(GOLDEN).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        let mut seen = Vec::new();
        for case in cases {
            let scaling: RopeScaling = serde_json::from_value(case["rope_scaling"].clone()).unwrap();
            scaling.check().unwrap();
            let [head_dim, length] = ["head_dim", "length"].map(|key| case[key].as_u64().unwrap() as usize);
            let found = scaling.frequencies(number(&case["rope_theta"]), head_dim, length);
            let expected = case["frequencies"].as_array().unwrap();
            assert_eq!((found.len(), expected.len()), (head_dim / 2, head_dim / 2), "{case}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found / number(expected) - 1.0).abs() < 3e-6,
                    "{found} is not {expected} in {case}"
                );
            }
            let attention = scaling.attention_factor() / number(&case["attention_factor"]);
            assert!((attention - 1.0).abs() < 1e-12, "{case}");
            seen.push(scaling.rope_type().to_string());
        }
        for rope_type in RopeType::VARIANTS {
            assert!(seen.iter().any(|seen| seen == rope_type), "{rope_type}");
        }
    }

    fn fields(rope_type: RopeType) -> RopeScalingFields {
        RopeScalingFields {
            rope_type,
            factor: Some(4.0),
            ..RopeScalingFields::default()
        }
    }

    #[test]
    fn what_is_missing_or_makes_no_sense_is_named() {
        let said = |fields: RopeScalingFields| {
            let error = fields.complete(64).unwrap_err();
            assert!(!error.hint().is_empty());
            error.to_string()
        };
        let without = RopeScalingFields {
            factor: None,
            ..fields(RopeType::Yarn)
        };
        assert_eq!(said(without), "rope_type `yarn` needs `factor`");
        assert_eq!(
            said(fields(RopeType::Llama3)),
            "rope_type `llama3` needs `low_freq_factor`"
        );
        for (factor, found) in [(0.5, "0.5"), (f64::NAN, "NaN"), (f64::INFINITY, "inf"), (-2.0, "-2")] {
            let wrong = RopeScalingFields {
                factor: Some(factor),
                ..fields(RopeType::Linear)
            };
            assert_eq!(
                said(wrong),
                format!("`factor` must be a number of at least 1, not {found}")
            );
        }
        let crossed = RopeScalingFields {
            low_freq_factor: Some(4.0),
            high_freq_factor: Some(1.0),
            ..fields(RopeType::Llama3)
        };
        assert_eq!(
            said(crossed),
            "`low_freq_factor` = 4 must be less than `high_freq_factor` = 1"
        );
        let yarn = |change: fn(&mut RopeScalingFields)| {
            let mut yarn = fields(RopeType::Yarn);
            change(&mut yarn);
            said(yarn)
        };
        assert_eq!(
            yarn(|yarn| yarn.attention_factor = Some(0.0)),
            "`attention_factor` must be a number above 0, not 0"
        );
        let huge = yarn(|yarn| (yarn.mscale, yarn.mscale_all_dim) = (Some(1e300), Some(1.0)));
        assert!(
            huge.starts_with("`attention_factor` must be a number above 0 that f32 holds, not 1"),
            "{huge}"
        );
        assert_eq!(
            yarn(|yarn| yarn.beta_slow = Some(40.0)),
            "`beta_slow` = 40 must be less than `beta_fast` = 32"
        );
        assert_eq!(
            yarn(|yarn| yarn.original_max_position_embeddings = Some(0)),
            "`original_max_position_embeddings` must be at least 1, not 0"
        );
        assert_eq!(
            RopeType::named("longrope").unwrap_err().to_string(),
            "rope_type `longrope` is none that is computed here"
        );
        let dynamic = fields(RopeType::Dynamic).complete(64).unwrap();
        assert_eq!(dynamic.check_head(2), Err(RopeScalingError::SmallHead));
    }

    #[test]
    fn fields_that_a_type_does_not_have_are_named() {
        let linear = RopeScalingFields {
            beta_fast: Some(1.0),
            truncate: Some(true),
            ..fields(RopeType::Linear)
        };
        assert_eq!(linear.superfluous(), ["beta_fast", "truncate"]);
        assert_eq!(fields(RopeType::Default).superfluous(), ["factor"]);
        assert!(fields(RopeType::Yarn).superfluous().is_empty());
    }

    /// Ratios are those of the original positions, or the model's where no field says otherwise.
    #[test]
    fn a_scaling_says_how_many_positions_a_model_has() {
        let positions = |rope_type: RopeType, original: Option<usize>, max: usize| {
            let fields = RopeScalingFields {
                original_max_position_embeddings: original,
                low_freq_factor: Some(1.0),
                high_freq_factor: Some(4.0),
                ..fields(rope_type)
            };
            fields.complete(max).unwrap().positions(max)
        };
        assert_eq!(positions(RopeType::Default, None, 64), 64);
        assert_eq!(positions(RopeType::Linear, None, 64), 256);
        assert_eq!(positions(RopeType::Dynamic, None, 64), 256);
        assert_eq!(positions(RopeType::Llama3, Some(64), 300), 300);
        assert_eq!(positions(RopeType::Yarn, Some(64), 64), 256);
        assert_eq!(positions(RopeType::Yarn, Some(64), 300), 300);
        let endless = RopeScaling::Linear { factor: 1e300 };
        assert_eq!(endless.positions(64), MOST_POSITIONS);
    }

    #[test]
    fn a_scaling_reads_back_as_it_is_written() {
        let yarn = RopeScaling::Yarn(Yarn {
            factor: 4.0,
            original_max_position_embeddings: 64,
            attention_factor: None,
            beta_fast: Some(16.0),
            beta_slow: None,
            mscale: None,
            mscale_all_dim: None,
            truncate: Some(false),
        });
        let written = serde_json::to_value(yarn).unwrap();
        assert_eq!(
            written,
            serde_json::json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "truncate": false})
        );
        assert_eq!(serde_json::from_value::<RopeScaling>(written).unwrap(), yarn);
        let plain = serde_json::to_value(RopeScaling::Default).unwrap();
        assert_eq!(plain, serde_json::json!({"rope_type": "default"}));
        assert_eq!(
            serde_json::from_value::<RopeScaling>(plain).unwrap(),
            RopeScaling::Default
        );
    }
}
