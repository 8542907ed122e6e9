//! The order of training windows, a pure function of (seed, step).

use crate::error::DataError;

/// Which windows come when: a fresh permutation in each epoch, computed and never stored.
///
/// Position k of a run (k = step · batch + j) lies in epoch ⌊k / N⌋ of N windows. Within an epoch, k mod N goes through
/// a Feistel network keyed by (seed, epoch) on the smallest even number of bits that holds N, which permutes all numbers
/// of that many bits, and again until the result is below N: at most four times on average. Integers only, so that
/// every machine agrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOrder {
    seed: u64,
    windows: u64,
}

const FEISTEL_ROUNDS: u64 = 8;

impl BatchOrder {
    /// The order of `windows` windows under `seed`.
    ///
    /// # Errors
    /// When there is no window.
    pub fn new(seed: u64, windows: usize) -> Result<Self, DataError> {
        if windows == 0 {
            return Err(DataError::Range("no window to put in order".into()));
        }
        Ok(Self {
            seed,
            windows: windows as u64,
        })
    }

    /// The window at position `k` of the run.
    pub fn window_at(&self, k: u64) -> usize {
        let (epoch, mut value) = (k / self.windows, k % self.windows);
        let half = ((64 - (self.windows - 1).leading_zeros()).div_ceil(2)).max(1);
        let mask = (1_u64 << half) - 1;
        let key = mix(self.seed ^ mix(epoch));
        loop {
            let (mut left, mut right) = (value >> half, value & mask);
            for round in 0..FEISTEL_ROUNDS {
                let scrambled = mix(key.wrapping_add(round) ^ mix(right)) & mask;
                (left, right) = (right, left ^ scrambled);
            }
            value = left << half | right;
            if value < self.windows {
                return value as usize;
            }
        }
    }

    /// The windows of optimizer step `step` (from 0) with `batch` sequences.
    pub fn indices(&self, step: usize, batch: usize) -> Vec<usize> {
        let first = (step as u64).saturating_mul(batch as u64);
        (0..batch as u64)
            .map(|j| self.window_at(first.saturating_add(j)))
            .collect()
    }
}

/// The output function of SplitMix64, after its increment: a bijection of 64-bit numbers in which each bit of the
/// argument changes about half of the result's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_epoch_is_a_permutation_of_its_own() {
        for count in (1..70).chain([127, 128, 129, 1000, 4096, 5000]) {
            let order = BatchOrder::new(7, count).unwrap();
            for epoch in 0..3 {
                let seen: HashSet<usize> = (0..count as u64)
                    .map(|k| order.window_at(epoch * count as u64 + k))
                    .collect();
                assert_eq!(seen.len(), count);
                assert!(seen.iter().all(|&window| window < count));
            }
        }
        let order = BatchOrder::new(7, 1000).unwrap();
        let epoch = |order: BatchOrder, epoch: usize| order.indices(epoch, 1000);
        let same = |a: &[usize], b: &[usize]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        assert!(same(&epoch(order, 0), &epoch(order, 1)) < 10);
        assert!(same(&epoch(order, 0), &epoch(BatchOrder::new(8, 1000).unwrap(), 0)) < 10);
        // Far from the order on disk: neighbours are rare.
        let first = epoch(order, 0);
        assert!(first.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count() < 15);
        assert!(BatchOrder::new(7, 0).is_err());
    }

    #[test]
    fn the_order_is_the_same_on_every_machine() {
        let order = BatchOrder::new(42, 1_000_003).unwrap();
        assert_eq!(order.indices(0, 4), GOLDEN_ORDER[..4]);
        assert_eq!(order.indices(1_000_000, 4), GOLDEN_ORDER[4..]);
        let huge = BatchOrder::new(42, usize::MAX).unwrap();
        assert!(huge.window_at(u64::MAX) < usize::MAX);
    }

    /// Computed by another program from the definition above.
    const GOLDEN_ORDER: [usize; 8] = [293030, 206090, 384845, 76046, 75120, 953670, 554300, 494686];
}
