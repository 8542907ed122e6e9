//! Curves over training: what the runs recorded at their evaluations and at their steps, against the tokens trained on.
//!
//! Which numbers have a curve, and how it is shown, is part of the declaration of each number ([`Quantity`]).

use gpas_train::metrics::{Curve, EvalRecord, Quantity, TrainRecord};

use crate::axis::{Axis, number};
use crate::figure::{Figure, Legend, NONE, Panel, Subject, Table, cell, has_seeds, mean, spread};
use crate::plot::{Line, Words, lines};
use crate::records::RunRecords;

/// Points of a curve of training, at most.
const POINTS: usize = 120;

/// Rows of the table beside a curve of training, about: one of every point would be longer than it is read.
const ROWS: usize = 12;

fn axis(curve: &Curve) -> Axis {
    if curve.is_logarithmic {
        Axis::logarithmic(curve.axis)
    } else {
        Axis::linear(curve.axis)
    }
}

/// A curve of the evaluations: one line for each subject, the mean over its seeds with a band from the smallest to the largest.
pub fn validation(quantity: &Quantity<EvalRecord>, subjects: &[Subject<'_>]) -> Option<Figure> {
    let curve = quantity.curve.as_ref()?;
    let has_value = |record: &&EvalRecord| (quantity.read)(record).is_some();
    let steps_of = |run: &&RunRecords| -> Vec<u64> {
        let shown = run.metrics.eval.iter().filter(has_value);
        shown.map(|record| record.step).collect()
    };
    let runs = subjects.iter().flat_map(|subject| &subject.runs);
    let steps = runs
        .map(steps_of)
        .max_by_key(Vec::len)
        .filter(|steps| !steps.is_empty())?;
    let mut table = Table {
        head: vec!["step".into(), "tokens".into()],
        rows: steps.iter().map(|step| vec![step.to_string()]).collect(),
    };
    let mut drawn = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        table.head.push(subject.name.clone());
        let mut line = Line::new(subject.ink);
        for (step, row) in steps.iter().zip(&mut table.rows) {
            let tokens = mean(subject.runs.iter().filter_map(|run| tokens_after(run, *step)));
            if index == 0 {
                row.push(number(tokens));
            }
            let of_run = |run: &&RunRecords| {
                let record = run.metrics.eval.iter().find(|record| record.step == *step)?;
                (quantity.read)(record)
            };
            let values = spread(subject.runs.iter().filter_map(of_run));
            if let Some((mean, low, high)) = values {
                line.points.push((tokens, mean));
                if subject.runs.len() > 1 {
                    line.band.push((tokens, low, high));
                }
            }
            row.push(cell(values.map_or(f64::NAN, |(mean, ..)| mean)));
        }
        drawn.push(line);
    }
    let band = if has_seeds(subjects) {
        " Lines are means over the seeds, bands reach from the best to the worst of them."
    } else {
        ""
    };
    Some(Figure {
        title: curve.title,
        caption: format!("{}{band} {}", curve.method, curve.reading).trim_end().into(),
        panels: whole_and_second_half(curve, &drawn),
        legend: Legend::Subjects,
        table,
    })
}

/// What remains to be gained at the end is small beside what was gained at the beginning, so the second half is drawn again by itself.
fn whole_and_second_half(curve: &Curve, drawn: &[Line]) -> Vec<Panel> {
    let panel = |what: &str, drawn: &[Line]| {
        let words = Words {
            title: format!("{}, {what}", curve.title),
            description: format!(
                "{} against training tokens, one line for each arm; the table has its numbers.",
                curve.title
            ),
        };
        Panel {
            drawing: lines(words, &Axis::linear("tokens"), &axis(curve), drawn),
            title: what.into(),
        }
    };
    let tokens = drawn.iter().flat_map(|line| &line.points).map(|point| point.0);
    let end = tokens.fold(0.0, f64::max);
    let late: Vec<Line> = drawn.iter().map(|line| line.after(end / 2.0)).collect();
    let mut panels = vec![panel("the whole training", drawn)];
    if late.iter().any(|line| line.points.len() > 1) {
        panels.push(panel("its second half", &late));
    }
    panels
}

/// Tokens scored in training after a step.
fn tokens_after(run: &RunRecords, step: u64) -> Option<f64> {
    let done = run.metrics.train.iter().rev().find(|record| record.step <= step);
    match step {
        0 => Some(0.0),
        _ => done.map(|record| record.tokens as f64),
    }
}

/// A curve of the steps: one line for each subject, whose points are means over some steps and all seeds.
pub fn training(quantity: &Quantity<TrainRecord>, subjects: &[Subject<'_>]) -> Option<Figure> {
    let curve = quantity.curve.as_ref()?;
    let runs = subjects.iter().flat_map(|subject| &subject.runs);
    let longest = runs
        .map(|run| run.metrics.train.len())
        .max()
        .filter(|steps| *steps > 0)?;
    let width = longest.div_ceil(POINTS);
    let points = longest.div_ceil(width);
    let shown: Vec<usize> = (0..points)
        .filter(|point| (point + 1) % points.div_ceil(ROWS) == 0)
        .collect();
    let steps_of = |point: &usize| vec![format!("{}–{}", point * width + 1, (point + 1) * width)];
    let mut table = Table {
        head: vec!["steps".into()],
        rows: shown.iter().map(steps_of).collect(),
    };
    let mut drawn = Vec::new();
    for subject in subjects {
        table.head.push(subject.name.clone());
        let mut line = Line::new(subject.ink.without_marker());
        for point in 0..points {
            let of_run = |run: &&RunRecords| run.metrics.train.chunks(width).nth(point).unwrap_or_default().to_vec();
            let records: Vec<TrainRecord> = subject.runs.iter().flat_map(of_run).collect();
            let value = mean(records.iter().filter_map(quantity.read));
            line.points
                .push((mean(records.iter().map(|record| record.tokens as f64)), value));
            if let Some(row) = shown.iter().position(|shown| *shown == point) {
                table.rows[row].push(if value.is_finite() {
                    quantity.format.text(value)
                } else {
                    NONE.into()
                });
            }
        }
        drawn.push(line);
    }
    let seeds = if has_seeds(subjects) { " and all seeds" } else { "" };
    let words = Words {
        title: curve.title.into(),
        description: format!(
            "{} against training tokens, smoothed, one line for each arm.",
            curve.title
        ),
    };
    Some(Figure {
        title: curve.title,
        caption: format!(
            "{} Smoothed: each point is the mean over {width} steps{seeds}, skipped steps left out. {}",
            curve.method, curve.reading
        )
        .trim_end()
        .into(),
        panels: vec![Panel {
            title: String::new(),
            drawing: lines(words, &Axis::linear("tokens").from_to(0.0, 0.0), &axis(curve), &drawn),
        }],
        legend: Legend::Subjects,
        table,
    })
}
