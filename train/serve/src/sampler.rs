//! From the logits of a position to the token that follows, as pure functions.
//!
//! The steps, their meaning and their order are those of `transformers`:
//!
//! 1. **repetition penalty** θ (arXiv 1909.05858): the logit of every token that the sequence has, prompt included, is divided by θ where it
//!    is positive and multiplied by θ where it is negative
//! 2. **temperature** T: logits are divided by T; with T = 0 the most probable token is taken, and none of the steps below
//! 3. **top-k**: the k most probable tokens stay
//! 4. **top-p** (arXiv 1904.09751): the fewest most probable tokens stay whose probabilities, as shares of what the steps before have left,
//!    add up to p or more
//! 5. **min-p** (arXiv 2407.01082): tokens stay whose probability is at least min-p times the largest one
//!
//! The token is then drawn from those that are left, in proportion to their probabilities. Where tokens are equally probable, the lower id
//! counts as more probable. llama.cpp has the same steps but by default divides by the temperature last, so that its top-p and min-p see
//! probabilities at T = 1; `temp` first in its `--samplers` gives the order above.
//!
//! ```
//! use std::collections::HashSet;
//! use gpas_serve::sampler::{Sampling, distribution, draw};
//!
//! // Probabilities 1/8, 2/8, 5/8, of which top-k leaves two.
//! let logits = [0.0, std::f32::consts::LN_2, 1.609_438];
//! let sampling = Sampling { top_k: 2, ..Sampling::default() };
//! sampling.validate()?;
//! let candidates = distribution(&logits, &HashSet::new(), &sampling);
//! assert_eq!(candidates.len(), 2);
//! assert!((candidates[0].1 - 5.0 / 7.0).abs() < 1e-6);
//! assert_eq!(draw(&candidates, 0.7), 2);
//! assert_eq!(draw(&candidates, 0.8), 1);
//! # Ok::<(), gpas_serve::sampler::SamplingError>(())
//! ```

use std::cmp::Ordering;
use std::collections::HashSet;

/// How a token is drawn; [the head of the file](self) says in which order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// T, 0 or more; 0 always takes the most probable token.
    pub temperature: f64,
    /// k, the most tokens to draw from; 0 for any number.
    pub top_k: usize,
    /// p, above 0 and at most 1; 1 for all tokens.
    pub top_p: f64,
    /// min-p, from 0 to 1: the smallest probability, as a share of the largest one; 0 for any.
    pub min_p: f64,
    /// θ, above 0; 1 for none.
    pub repetition_penalty: f64,
}

impl Default for Sampling {
    /// Settings that leave the model's own distribution as it is.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
        }
    }
}

/// A setting whose value is not allowed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} = {value} is not {expected}")]
pub struct SamplingError {
    /// The setting.
    pub name: &'static str,
    /// What it was set to.
    pub value: f64,
    /// What it may be.
    pub expected: &'static str,
}

impl Sampling {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting whose value is not allowed.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |name, value: f64, fits: bool, expected| {
            if fits {
                Ok(())
            } else {
                Err(SamplingError { name, value, expected })
            }
        };
        let share = "from 0 to 1";
        check(
            "temperature",
            self.temperature,
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "0 or more",
        )?;
        check(
            "top_p",
            self.top_p,
            self.top_p > 0.0 && self.top_p <= 1.0,
            "above 0 and at most 1",
        )?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), share)?;
        let penalty = self.repetition_penalty;
        check(
            "repetition_penalty",
            penalty,
            penalty > 0.0 && penalty.is_finite(),
            "above 0",
        )
    }
}

/// A token with its probability.
pub type Candidate = (u32, f64);

/// The tokens that may come next, with probabilities that add up to 1. They are ordered by id, or with the most probable first where top-k or
/// top-p has taken some away. `seen` are the tokens that the repetition penalty moves.
pub fn distribution(logits: &[f32], seen: &HashSet<u32>, sampling: &Sampling) -> Vec<Candidate> {
    let logits = penalised(logits, seen, sampling.repetition_penalty);
    if sampling.temperature == 0.0 {
        return vec![(most_probable(&logits), 1.0)];
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| (f64::from(logit - largest) / sampling.temperature).exp();
    let mut candidates: Vec<Candidate> = (0..).zip(logits.iter().map(|logit| weight(*logit))).collect();
    if sampling.top_k > 0 && sampling.top_k < candidates.len() {
        keep_most_probable(&mut candidates, sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        keep_share(&mut candidates, sampling.top_p);
    }
    // The largest weight is 1.
    candidates.retain(|(_, weight)| *weight >= sampling.min_p);
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    for (_, weight) in &mut candidates {
        *weight /= total;
    }
    candidates
}

/// The candidate on which `uniform` falls, a number from 0 to 1, when the probabilities are laid end to end.
///
/// # Panics
/// If there are no candidates.
pub fn draw(candidates: &[Candidate], uniform: f64) -> u32 {
    let mut sum = 0.0;
    for (id, probability) in candidates {
        sum += probability;
        if uniform < sum {
            return *id;
        }
    }
    // The probabilities add up to a little less than 1 in floating point, and the number lies above their sum.
    let possible = candidates.iter().rev().find(|(_, probability)| *probability > 0.0);
    possible.or(candidates.last()).expect("there is a token").0
}

/// The logits after the repetition penalty, which makes seen tokens less probable.
fn penalised(logits: &[f32], seen: &HashSet<u32>, penalty: f64) -> Vec<f32> {
    let mut logits = logits.to_vec();
    if penalty != 1.0 {
        for id in seen {
            if let Some(logit) = logits.get_mut(*id as usize) {
                let factor = if *logit > 0.0 { 1.0 / penalty } else { penalty };
                *logit = (f64::from(*logit) * factor) as f32;
            }
        }
    }
    logits
}

/// The id of the largest logit, and the lowest such id where several are equally large.
pub fn most_probable(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The order in which the more probable candidate comes first, and among equally probable ones the lower id.
fn more_probable(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the `count` most probable candidates, the most probable first.
fn keep_most_probable(candidates: &mut Vec<Candidate>, count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, more_probable);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(more_probable);
}

/// Keeps the fewest most probable candidates that have at least `share` of the sum of all, the most probable first.
fn keep_share(candidates: &mut Vec<Candidate>, share: f64) {
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    // As a rule a few tokens of a large vocabulary are enough, so only a few are sorted at first.
    let mut count = 64;
    loop {
        let mut head = candidates.clone();
        keep_most_probable(&mut head, count);
        let mut sum = 0.0;
        let end = head.iter().position(|(_, weight)| {
            sum += weight;
            sum >= share * total
        });
        if let Some(end) = end {
            head.truncate(end + 1);
            *candidates = head;
            return;
        }
        if count >= candidates.len() {
            *candidates = head;
            return;
        }
        count *= 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1, out of order.
    const LOGITS: [f32; 4] = [-2.079_441_5, -std::f32::consts::LN_2, -1.386_294_4, -2.079_441_5];

    fn of(sampling: Sampling) -> Vec<Candidate> {
        distribution(&LOGITS, &HashSet::new(), &sampling)
    }

    fn assert_is(found: &[Candidate], expected: &[Candidate]) {
        let ids = |candidates: &[Candidate]| candidates.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(found), ids(expected), "{found:?}");
        for ((_, found), (_, expected)) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    #[test]
    fn plain_is_the_softmax() {
        assert_is(&of(Sampling::default()), &[(0, 0.125), (1, 0.5), (2, 0.25), (3, 0.125)]);
    }

    /// Halving the temperature squares the probabilities: 16 : 4 : 1 : 1.
    #[test]
    fn temperature_sharpens() {
        let cold = Sampling {
            temperature: 0.5,
            ..Sampling::default()
        };
        let part = 1.0 / 22.0;
        assert_is(&of(cold), &[(0, part), (1, 16.0 * part), (2, 4.0 * part), (3, part)]);
    }

    #[test]
    fn temperature_0_takes_the_most_probable_and_the_first_of_equals() {
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        assert_is(&of(greedy), &[(1, 1.0)]);
        assert_is(&distribution(&[1.0, 3.0, 3.0], &HashSet::new(), &greedy), &[(1, 1.0)]);
    }

    #[test]
    fn top_k_keeps_the_most_probable() {
        let top_k = |top_k| {
            of(Sampling {
                top_k,
                ..Sampling::default()
            })
        };
        assert_is(&top_k(1), &[(1, 1.0)]);
        assert_is(&top_k(2), &[(1, 2.0 / 3.0), (2, 1.0 / 3.0)]);
        // Where two ids are equally probable, the lower one is kept.
        assert_is(&top_k(3), &[(1, 4.0 / 7.0), (2, 2.0 / 7.0), (0, 1.0 / 7.0)]);
        assert_eq!(top_k(9).len(), 4);
    }

    #[test]
    fn top_p_keeps_the_one_that_gets_there() {
        let top_p = |top_p| {
            of(Sampling {
                top_p,
                ..Sampling::default()
            })
        };
        assert_is(&top_p(0.1), &[(1, 1.0)]);
        assert_is(&top_p(0.6), &[(1, 2.0 / 3.0), (2, 1.0 / 3.0)]);
        assert_eq!(top_p(0.9999).len(), 4);
        // More than are put in order at first.
        let flat = distribution(
            &[0.0; 1000],
            &HashSet::new(),
            &Sampling {
                top_p: 0.7,
                ..Sampling::default()
            },
        );
        assert!((700..=701).contains(&flat.len()), "{}", flat.len());
        assert_eq!(flat[0].0, 0);
    }

    /// After top-k has left 4/7, 2/7, 1/7, the first two add up to 6/7.
    #[test]
    fn top_p_looks_at_what_top_k_has_left() {
        let both = Sampling {
            top_k: 3,
            top_p: 0.85,
            ..Sampling::default()
        };
        assert_is(&of(both), &[(1, 2.0 / 3.0), (2, 1.0 / 3.0)]);
    }

    #[test]
    fn min_p_is_relative_to_the_largest() {
        let min_p = |min_p, temperature| {
            of(Sampling {
                min_p,
                temperature,
                ..Sampling::default()
            })
        };
        assert_is(&min_p(0.4, 1.0), &[(1, 2.0 / 3.0), (2, 1.0 / 3.0)]);
        // After the temperature: there 4/16 is too little.
        assert_is(&min_p(0.4, 0.5), &[(1, 1.0)]);
    }

    /// A positive logit is divided, a negative one multiplied.
    #[test]
    fn the_penalty_moves_seen_tokens_down() {
        let penalty = Sampling {
            repetition_penalty: 2.0,
            ..Sampling::default()
        };
        let found = distribution(&[2.0, -1.0, 0.5], &HashSet::from([0, 1, 77]), &penalty);
        let weights = [1f64.exp(), (-2f64).exp(), 0.5f64.exp()];
        let total: f64 = weights.iter().sum();
        let expected: Vec<Candidate> = (0..).zip(weights.map(|weight| weight / total)).collect();
        assert_is(&found, &expected);
        let greedy = Sampling {
            temperature: 0.0,
            ..penalty
        };
        assert_is(
            &distribution(&[2.0, -1.0, 1.5], &HashSet::from([0]), &greedy),
            &[(2, 1.0)],
        );
    }

    #[test]
    fn a_draw_is_the_inverse_of_the_distribution() {
        let candidates = [(7, 0.25), (2, 0.5), (5, 0.25)];
        for (uniform, id) in [
            (0.0, 7),
            (0.249, 7),
            (0.25, 2),
            (0.749, 2),
            (0.75, 5),
            (0.999, 5),
            (1.0, 5),
        ] {
            assert_eq!(draw(&candidates, uniform), id, "{uniform}");
        }
        assert_eq!(draw(&[(1, 1.0 - 1e-12), (2, 0.0)], 1.0 - 1e-16), 1);
    }

    #[test]
    fn settings_without_a_meaning_are_named() {
        let said = |sampling: Sampling| sampling.validate().unwrap_err().to_string();
        let default = Sampling::default();
        assert_eq!(default.validate(), Ok(()));
        let wrong = Sampling {
            temperature: -0.1,
            ..default
        };
        assert_eq!(said(wrong), "temperature = -0.1 is not 0 or more");
        assert_eq!(
            said(Sampling { top_p: 0.0, ..default }),
            "top_p = 0 is not above 0 and at most 1"
        );
        assert_eq!(
            said(Sampling { min_p: 1.5, ..default }),
            "min_p = 1.5 is not from 0 to 1"
        );
        let wrong = Sampling {
            repetition_penalty: f64::NAN,
            ..default
        };
        assert_eq!(said(wrong), "repetition_penalty = NaN is not above 0");
    }
}
