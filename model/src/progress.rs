//! How far training has come: what a scheme that changes while it trains depends on.

/// Optimizer steps done, t in the [scheme table](crate::scheme).
///
/// A model carries it ([`Llama::progress`](crate::Llama::progress)), and who trains the model sets it once after every step
/// ([`Llama::with_progress`](crate::Llama::with_progress)). It is a plain value, not a clock that clones share: all micro-batches of a step
/// see the steps done before it, an evaluation after step n sees n, and a copy of a model stays where it was copied. A run that goes on
/// from a checkpoint sets it to the checkpoint's step. Skipped steps count, as in the learning rate's schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Progress(u64);

impl Progress {
    /// After every warm-up: all branches have their full weight. For trained weights whose number of steps is not known, and for loops that
    /// count no steps.
    pub const COMPLETE: Self = Self(u64::MAX);

    /// After this many optimizer steps.
    pub fn after(steps: u64) -> Self {
        Self(steps)
    }

    /// One step later.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// `min(t / steps, 1)`; 1 where there are no steps to warm up.
    pub fn warmup(self, steps: u64) -> f64 {
        if self.0 >= steps {
            return 1.0;
        }
        self.0 as f64 / steps as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warmup_rises_from_0_to_1() {
        let at = |steps| Progress::after(steps).warmup(8);
        assert_eq!([at(0), at(2), at(8), at(9)], [0.0, 0.25, 1.0, 1.0]);
        assert_eq!(Progress::after(0).warmup(0), 1.0);
        assert_eq!(Progress::COMPLETE.warmup(u64::MAX), 1.0);
        assert_eq!(Progress::after(2).next(), Progress::after(3));
        assert_eq!(Progress::COMPLETE.next(), Progress::COMPLETE);
    }
}
