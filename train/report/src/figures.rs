//! What a report shows, from the first figure to the last.

mod curves;
mod inspected;
mod layers;

use gpas_train::metrics::{EvalRecord, LayersRecord, TrainRecord};

use crate::axis::Axis;
use crate::compare::Comparison;
use crate::figure::{Figure, Subject};
use crate::plot::{Drawing, Interval, Words, intervals};

/// Every figure for which there are records.
pub fn all(subjects: &[Subject<'_>]) -> Vec<Figure> {
    let validation = EvalRecord::QUANTITIES
        .iter()
        .map(|quantity| curves::validation(quantity, subjects));
    let training = TrainRecord::QUANTITIES
        .iter()
        .map(|quantity| curves::training(quantity, subjects));
    let by_layer = LayersRecord::QUANTITIES
        .iter()
        .map(|quantity| layers::by_layer(quantity, subjects));
    let others = [
        layers::gates(subjects),
        inspected::skipped_layers(subjects),
        inspected::angles(subjects),
    ];
    validation
        .chain(training)
        .chain(by_layer)
        .chain(others)
        .flatten()
        .collect()
}

/// The paired differences of a comparison.
pub fn differences(comparison: &Comparison, subjects: &[Subject<'_>]) -> Drawing {
    let row = |subject: &Subject<'_>| {
        let arm = comparison.summary.iter().find(|arm| arm.name == subject.name)?;
        let ends = arm.difference_low.zip(arm.difference_high);
        Some(Interval {
            name: arm.name.clone(),
            ink: subject.ink,
            mean: arm.difference_mean?,
            ends: ends.map(|(low, high)| [low, high]),
        })
    };
    let rows: Vec<Interval> = subjects.iter().filter_map(row).collect();
    let words = Words {
        title: format!("Difference in validation perplexity from {}", comparison.baseline),
        description: "For each arm the mean of its paired differences as a dot and the 95 % interval as a line; left of 0 is better.".into(),
    };
    let label = format!("perplexity less that of {}", comparison.baseline);
    intervals(words, &Axis::linear(&label), &rows)
}
