//! Which checkpoint a run can be taken back to when it diverges.
//!
//! A checkpoint does not tell by itself whether its weights are still of use: those of a diverging run are finite long after they have become
//! useless. The loss of the step after it tells, since it is computed with the weights of the checkpoint: if it is more than a nat above the
//! best evaluation so far, or above ln(vocabulary), the loss of a model that guesses evenly, much of what was learned is gone. The newest
//! checkpoint after which the loss was not that high is not deleted, however many are written after it. In a run that goes well it is among
//! the newest anyway.

use std::collections::BTreeSet;

use crate::metrics::{EvalRecord, Record, TrainRecord};

/// What the loss of weights of use may exceed the best evaluation by, in nats. The losses of single steps scatter by less.
const MARGIN: f64 = 1.0;

/// The largest loss of weights that are of use.
pub(super) fn largest_sound_loss(vocab: usize, best: Option<EvalRecord>) -> f64 {
    let of_even_guesses = (vocab as f64).ln();
    best.map_or(of_even_guesses, |best| best.loss.min(of_even_guesses)) + MARGIN
}

/// Whether a step shows that the weights that it began with are of use.
pub(super) fn shows_sound_weights(step: &TrainRecord, largest: f64) -> bool {
    !step.skipped && step.loss <= largest
}

/// The newest of some checkpoints whose weights the records show to be of use.
pub(super) fn newest_sound(checkpoints: impl Iterator<Item = u64>, records: &[Record], largest: f64) -> Option<u64> {
    let shown: BTreeSet<u64> = records
        .iter()
        .filter_map(|record| match record {
            Record::Train(step) if shows_sound_weights(step, largest) => Some(step.step),
            _ => None,
        })
        .collect();
    checkpoints.filter(|step| shown.contains(&(step + 1))).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> Record {
        Record::Train(TrainRecord {
            step,
            loss,
            skipped: loss.is_nan(),
            ..TrainRecord::default()
        })
    }

    #[test]
    fn the_newest_checkpoint_before_divergence_is_found() {
        // ln 100 is 4.6; above 5.6 nothing is left of what was learned.
        let losses = [4.6, 3.0, 2.0, 5.5, 5.7, 900.0, f64::NAN];
        let records: Vec<_> = losses
            .into_iter()
            .enumerate()
            .map(|(at, loss)| step(at as u64 + 1, loss))
            .collect();
        let largest = largest_sound_loss(100, None);
        let newest = |checkpoints: &[u64]| newest_sound(checkpoints.iter().copied(), &records, largest);
        // After step 3 comes one with a loss of 5.5, after step 4 one with 5.7.
        assert_eq!(newest(&[0, 2, 3, 4, 5, 6, 7]), Some(3));
        assert_eq!(newest(&[6, 4, 2]), Some(2));
        assert_eq!(newest(&[5, 6]), None);
        assert_eq!(newest(&[7]), None, "nothing is known of the last one yet");
        // A larger vocabulary has a larger loss to begin with.
        assert_eq!(
            newest_sound([4].into_iter(), &records, largest_sound_loss(200, None)),
            Some(4)
        );
        // After an evaluation of 2.5, a loss of 3.5 is the highest that is no loss of much.
        let best = EvalRecord {
            step: 2,
            loss: 2.5,
            perplexity: 2.5f64.exp(),
            bits_per_byte: None,
            tokens: 1,
        };
        let largest = largest_sound_loss(100, Some(best));
        assert_eq!((largest, newest_sound(0..7, &records, largest)), (3.5, Some(2)));
    }
}
