//! How far training has come: what a scheme that changes while it trains depends on.

/// Optimizer steps done, t in the [scheme table](crate::scheme).
///
/// It is an argument of every forward pass, so that a model has no clock of its own: all micro-batches of a step see the steps done before
/// it, an evaluation after step n sees n, and a run that goes on from a checkpoint sees what it would have seen without the stop. Skipped
/// steps count, as in the learning rate's schedule.
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
    }
}
