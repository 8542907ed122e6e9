//! Learning-rate schedules: pure functions of the optimizer step.

use serde::{Deserialize, Serialize};
use strum::VariantNames;

/// What the rate does after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, VariantNames)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine down to the floor (the GPAS paper's; Loshchilov & Hutter, arXiv 1608.03983, equation 5, one period).
    #[default]
    Cosine,
    /// A straight line down to the floor.
    Linear,
    /// Equal cosines one after another, each from the peak to the floor (arXiv 1608.03983, periods of one length).
    CosineRestarts,
    /// Warm-up, stable, decay: the peak, then a straight line to the floor (arXiv 2404.06395; the line from arXiv 2405.18392).
    Wsd,
    /// The peak.
    Constant,
}

/// The learning rate of every optimizer step of a run.
///
/// It begins at step `b` and ends at step `e`. With `T = e − b` steps in all, `w` of them warm-up, `step` counted from `b`, floor `m` and
/// `p = (step − w) / (T − w)`, the peak is multiplied by
///
/// | steps | factor |
/// |---|---|
/// | `step < w` | `step / w`: the first update has factor 0 |
/// | cosine | `m + (1 − m) · (1 + cos πp) / 2` |
/// | linear | `1 − (1 − m) · p` |
/// | cosine_restarts | the cosine of the fraction of `p · cycles` |
/// | wsd | 1 until the last `decay_fraction · T` steps, then linear over those |
/// | constant | 1 |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// What the rate does after the warm-up.
    pub kind: ScheduleKind,
    /// Highest rate.
    pub peak: f64,
    /// Steps from rate 0 to the peak.
    pub warmup: u64,
    /// The step that it begins at: 0, or where a run begins with the weights of another.
    pub begin: u64,
    /// The step that it ends at: those of the whole run.
    pub total: u64,
    /// Floor of the rate as a fraction of the peak.
    pub min_lr_ratio: f64,
    /// Number of cosines of `cosine_restarts`.
    pub cycles: u64,
    /// Fraction of its steps in which `wsd` decays.
    pub decay_fraction: f64,
}

impl Schedule {
    /// The rate of every step as a function, as [`Trainer::new`](crate::trainer::Trainer::new) takes it.
    pub fn rates(self) -> impl FnMut(u64) -> f64 + Send + 'static {
        move |step| self.rate(step)
    }

    /// Linear warm-up, then half a cosine down to `min_lr_ratio · peak`.
    pub fn cosine(peak: f64, warmup: u64, total: u64, min_lr_ratio: f64) -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            peak,
            warmup,
            begin: 0,
            total,
            min_lr_ratio,
            cycles: 1,
            decay_fraction: 0.0,
        }
    }

    /// The learning rate of optimizer step `step`, from 0. At `total` and past it, the rate stays where the schedule ends; before `begin`, it is
    /// that of `begin`.
    pub fn rate(&self, step: u64) -> f64 {
        self.peak * self.factor(step.saturating_sub(self.begin))
    }

    /// What the peak is multiplied by at a step counted from where the schedule begins.
    fn factor(&self, step: u64) -> f64 {
        let total = self.total.saturating_sub(self.begin);
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let span = total.saturating_sub(self.warmup).max(1);
        let done = (step - self.warmup).min(span);
        let floor = self.min_lr_ratio;
        let cosine = |p: f64| floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * p).cos());
        let linear = |p: f64| 1.0 - (1.0 - floor) * p;
        match self.kind {
            ScheduleKind::Cosine => cosine(done as f64 / span as f64),
            ScheduleKind::Linear => linear(done as f64 / span as f64),
            ScheduleKind::CosineRestarts if done == span => floor,
            ScheduleKind::CosineRestarts => {
                // In whole numbers, so that no rounding moves a restart by a step.
                let within = u128::from(done) * u128::from(self.cycles) % u128::from(span);
                cosine(within as f64 / span as f64)
            }
            ScheduleKind::Wsd => {
                let decay = ((self.decay_fraction * total as f64).round() as u64).min(span);
                let stable = span - decay;
                linear(done.saturating_sub(stable) as f64 / decay.max(1) as f64)
            }
            ScheduleKind::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_KIND: [ScheduleKind; 5] = [
        ScheduleKind::Cosine,
        ScheduleKind::Linear,
        ScheduleKind::CosineRestarts,
        ScheduleKind::Wsd,
        ScheduleKind::Constant,
    ];

    fn schedule(kind: ScheduleKind) -> Schedule {
        Schedule {
            kind,
            peak: 1e-3,
            warmup: 10,
            begin: 0,
            total: 110,
            min_lr_ratio: 0.1,
            cycles: 4,
            decay_fraction: 0.2,
        }
    }

    fn assert_rates(kind: ScheduleKind, expected: &[(u64, f64)]) {
        for &(step, rate) in expected {
            let got = schedule(kind).rate(step);
            assert!((got - rate).abs() < 1e-12, "{kind:?} at {step}: {got} against {rate}");
        }
    }

    /// The released trainer's schedule, written as its PyTorch statement has it.
    fn reference(step: u64, warmup: u64, total: u64, floor: f64) -> f64 {
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let p = (step - warmup) as f64 / (total - warmup).max(1) as f64;
        floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * p).cos())
    }

    #[test]
    fn cosine_is_the_published_schedule() {
        for (warmup, total) in [(0, 1), (0, 7), (2, 6), (10, 110), (1000, 10_000), (5, 5)] {
            let schedule = Schedule {
                warmup,
                total,
                ..schedule(ScheduleKind::Cosine)
            };
            for step in [0, 1, 2, 3, 4, 5, 9, 10, 60, 999, 1000, 5500, 9999] {
                if step < total {
                    assert_eq!(schedule.rate(step), 1e-3 * reference(step, warmup, total, 0.1));
                }
            }
        }
        let rates = [(0, 0.0), (5, 5e-4), (10, 1e-3), (60, 5.5e-4), (110, 1e-4), (500, 1e-4)];
        assert_rates(ScheduleKind::Cosine, &rates);
    }

    #[test]
    fn linear_falls_evenly_to_the_floor() {
        let rates = [
            (0, 0.0),
            (9, 9e-4),
            (10, 1e-3),
            (35, 7.75e-4),
            (60, 5.5e-4),
            (110, 1e-4),
        ];
        assert_rates(ScheduleKind::Linear, &rates);
    }

    #[test]
    fn restarts_return_to_the_peak_once_per_cycle_and_end_at_the_floor() {
        let quarter = 0.1 + 0.9 * 0.5 * (1.0 + (0.96 * std::f64::consts::PI).cos());
        let rates = [
            (10, 1e-3),
            (34, 1e-3 * quarter),
            (35, 1e-3),
            (60, 1e-3),
            (85, 1e-3),
            (109, 1e-3 * quarter),
            (110, 1e-4),
        ];
        assert_rates(ScheduleKind::CosineRestarts, &rates);
    }

    #[test]
    fn wsd_holds_the_peak_and_decays_at_the_end() {
        // The last 20 % of 110 steps are 22: from 88 on.
        let rates = [(5, 5e-4), (10, 1e-3), (50, 1e-3), (88, 1e-3), (99, 5.5e-4), (110, 1e-4)];
        assert_rates(ScheduleKind::Wsd, &rates);
    }

    #[test]
    fn constant_stays_at_the_peak_after_the_warm_up() {
        assert_rates(ScheduleKind::Constant, &[(0, 0.0), (5, 5e-4), (10, 1e-3), (109, 1e-3)]);
    }

    /// A schedule that begins at step 300 has at step 300 + n what one that begins at 0 has at n.
    #[test]
    fn a_schedule_begins_where_it_is_told_to() {
        for kind in EVERY_KIND {
            let fresh = schedule(kind);
            let later = Schedule {
                begin: 300,
                total: 410,
                ..fresh
            };
            for step in 0..=120 {
                assert_eq!(later.rate(300 + step), fresh.rate(step), "{kind:?} at {step}");
            }
            assert_eq!(later.rate(7), fresh.rate(0));
        }
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_peak() {
        for kind in EVERY_KIND {
            let schedule = Schedule {
                warmup: 0,
                ..schedule(kind)
            };
            assert_eq!(schedule.rate(0), 1e-3);
        }
    }
}
