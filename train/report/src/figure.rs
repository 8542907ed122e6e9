//! What a figure is: drawings of the subjects of a report, their numbers, and how these were computed.

use crate::axis::number;
use crate::compare::Sample;
use crate::ink::Ink;
use crate::plot::Drawing;
use crate::records::RunRecords;

/// What a line in the figures stands for: an arm of a comparison, or a single run.
pub struct Subject<'a> {
    /// Its name.
    pub name: String,
    /// Its look.
    pub ink: Ink,
    /// Its runs: one for each seed.
    pub runs: Vec<&'a RunRecords>,
}

/// Whether a subject has several runs, so that its numbers are means over their seeds.
pub fn has_seeds(subjects: &[Subject<'_>]) -> bool {
    subjects.iter().any(|subject| subject.runs.len() > 1)
}

/// A figure.
pub struct Figure {
    /// What it shows.
    pub title: &'static str,
    /// How that was computed, and how to read it.
    pub caption: String,
    /// Drawings, each with its own title unless there is but one.
    pub panels: Vec<Panel>,
    /// What its lines stand for, where that is not what every other figure's do.
    pub legend: Legend,
    /// Its numbers.
    pub table: Table,
}

/// A drawing of a figure.
pub struct Panel {
    /// Its title.
    pub title: String,
    /// The drawing.
    pub drawing: Drawing,
}

/// What lines stand for.
pub enum Legend {
    /// Nothing that has to be said.
    None,
    /// The subjects.
    Subjects,
    /// These.
    Own(Vec<(String, Ink)>),
}

/// Numbers beside a figure; the first column names the rows.
#[derive(Default)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

/// Where there is no number.
pub const NONE: &str = "–";

/// A number in a table, with four digits that count.
pub fn cell(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => NONE.into(),
        0.0 => "0".into(),
        _ if !(1e-3..1e5).contains(&size) => number(value),
        _ => {
            let digits = (3 - size.log10().floor() as i32).max(0) as usize;
            format!("{value:.digits$}").replace('-', "−")
        }
    }
}

/// A change of the loss, with its sign.
pub fn change(value: f64) -> String {
    match value.is_finite() {
        true => format!("{value:+.4}").replace('-', "−"),
        false => NONE.into(),
    }
}

/// Mean, smallest and largest of the finite numbers.
pub fn spread(values: impl Iterator<Item = f64>) -> Option<(f64, f64, f64)> {
    let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    let mean = Sample::of(&values)?.mean;
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some((mean, low, high))
}

/// Mean of the finite numbers; not a number if there are none.
pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    spread(values).map_or(f64::NAN, |(mean, ..)| mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_tables_have_four_digits_that_count() {
        for (value, text) in [
            (1.0095, "1.010"),
            (742.31, "742.3"),
            (4142.7, "4143"),
            (-0.01234, "−0.01234"),
            (0.0, "0"),
            (2e-4, "2e−4"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(cell(value), text);
        }
    }
}
