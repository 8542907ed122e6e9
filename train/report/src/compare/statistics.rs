//! What a few runs say: mean, standard deviation, and the paired difference with its interval.
//!
//! Runs of two arms with the same seed share their initial weights and their data, so what a seed does to both cancels in the difference
//! d_i = a_i − b_i. With n pairs, mean d̄ and standard deviation s, the 95 % interval is d̄ ± t·s/√n, where t is the 0.975 quantile of
//! Student's t distribution with n − 1 degrees of freedom. It holds for each arm by itself: with twenty arms, one interval in twenty misses
//! its true difference.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Mean of some numbers, and their standard deviation with n − 1 in the denominator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// How many.
    pub n: usize,
    /// Mean.
    pub mean: f64,
    /// Standard deviation; none of a single number.
    pub sd: Option<f64>,
}

impl Sample {
    /// The sample of some numbers; none if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        let count = n as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let sd = (n > 1).then(|| (squares / (count - 1.0)).sqrt());
        (n > 0).then_some(Self { n, mean, sd })
    }

    /// Half the width of the 95 % interval of the mean by Student's t; none of a single number.
    pub fn half_interval(&self) -> Option<f64> {
        let freedom = self.n as f64 - 1.0;
        let quantile = StudentsT::new(0.0, 1.0, freedom).ok()?.inverse_cdf(0.975);
        Some(quantile * self.sd? / (self.n as f64).sqrt())
    }
}

/// A paired difference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Mean over the pairs.
    pub mean: f64,
    /// Ends of the 95 % interval; none of a single pair.
    pub interval: Option<[f64; 2]>,
}

impl Difference {
    /// The difference a − b of pairs (a, b); none without pairs, or if a number is not finite.
    pub fn of(pairs: &[(f64, f64)]) -> Option<Self> {
        let differences: Vec<f64> = pairs.iter().map(|(a, b)| a - b).collect();
        let sample = Sample::of(&differences).filter(|sample| sample.mean.is_finite())?;
        let ends = |half: f64| [sample.mean - half, sample.mean + half];
        Some(Self {
            mean: sample.mean,
            interval: sample.half_interval().map(ends),
        })
    }

    /// Whether the interval leaves out 0, so that the sign of the difference is known; none without an interval.
    pub fn resolved(&self) -> Option<bool> {
        self.interval.map(|[low, high]| low > 0.0 || high < 0.0)
    }
}

/// Middle of some numbers, the mean of both if there are two; none of no numbers.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2, 4, 9: mean 5, squares 9 + 1 + 16 = 26, variance 13.
    #[test]
    fn mean_and_standard_deviation() {
        let sample = Sample::of(&[2.0, 4.0, 9.0]).unwrap();
        assert_eq!((sample.n, sample.mean), (3, 5.0));
        assert!((sample.sd.unwrap() - 13f64.sqrt()).abs() < 1e-15);
        assert_eq!(
            Sample::of(&[7.0]),
            Some(Sample {
                n: 1,
                mean: 7.0,
                sd: None
            })
        );
        assert_eq!(Sample::of(&[]), None);
    }

    /// From the table of Student's t: 0.975 quantiles of 1, 2, 4 and 9 degrees of freedom.
    #[test]
    fn intervals_are_those_of_the_table() {
        for (n, quantile) in [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622)] {
            let sample = Sample {
                n,
                mean: 0.0,
                sd: Some(1.0),
            };
            let half = sample.half_interval().unwrap();
            assert!((half - quantile / (n as f64).sqrt()).abs() < 1e-4, "{n}: {half}");
        }
    }

    /// Differences −1, −2, −3: mean −2, sd 1, half 4.3027/√3 = 2.4842.
    #[test]
    fn pairs_take_out_what_they_share() {
        let pairs = [(9.0, 10.0), (18.0, 20.0), (27.0, 30.0)];
        let difference = Difference::of(&pairs).unwrap();
        let [low, high] = difference.interval.unwrap();
        assert_eq!(difference.mean, -2.0);
        assert!(
            (low + 4.4842).abs() < 1e-4 && (high - 0.4842).abs() < 1e-4,
            "{difference:?}"
        );
        assert_eq!(difference.resolved(), Some(false), "it spans 0");
        // Unpaired, the spread of the seeds would drown it; here it is the same in each pair but for a little.
        let clear = Difference::of(&[(9.0, 10.0), (18.99, 20.0), (28.98, 30.0)]).unwrap();
        assert_eq!(clear.resolved(), Some(true), "{clear:?}");
    }

    #[test]
    fn a_single_pair_has_no_interval_and_a_number_that_is_not_finite_no_difference() {
        let difference = Difference::of(&[(1.0, 3.0)]).unwrap();
        assert_eq!(
            (difference.mean, difference.interval, difference.resolved()),
            (-2.0, None, None)
        );
        assert_eq!(Difference::of(&[(1.0, 3.0), (f64::NAN, 3.0)]), None);
        assert_eq!(Difference::of(&[]), None);
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
