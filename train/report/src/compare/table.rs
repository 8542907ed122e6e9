//! The table of a comparison, the same in a terminal, in `compare.md` and in a report.

use std::fmt::Write as _;

use super::comparison::{ArmSummary, Comparison, RunSummary};

/// Names of the columns.
pub const COLUMNS: [&str; 7] = [
    "arm",
    "runs",
    "perplexity",
    "difference (95 % interval)",
    "to the baseline's loss",
    "tokens/s",
    "gates α",
];

/// Where there is no figure.
const NONE: &str = "–";

/// One row of cells for every arm.
pub fn cells(comparison: &Comparison) -> Vec<[String; COLUMNS.len()]> {
    let row = |arm: &ArmSummary| {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.into());
        [
            arm.name.clone(),
            match arm.diverged {
                0 => arm.n.to_string(),
                count => format!("{} ({count} diverged)", arm.n),
            },
            or_none(perplexity(arm)),
            if arm.name == comparison.baseline {
                "baseline".into()
            } else {
                or_none(difference(arm))
            },
            arrival(arm),
            or_none(arm.tokens_per_s.map(|speed| format!("{speed:.0}"))),
            or_none(
                arm.gate_min
                    .zip(arm.gate_max)
                    .map(|(min, max)| format!("{} … {}", signed(min, 3), signed(max, 3))),
            ),
        ]
    };
    comparison.summary.iter().map(row).collect()
}

fn perplexity(arm: &ArmSummary) -> Option<String> {
    let mean = arm.perplexity_mean?;
    Some(match arm.perplexity_sd {
        Some(sd) => format!("{mean:.3} ± {sd:.3}"),
        None => format!("{mean:.3}"),
    })
}

fn difference(arm: &ArmSummary) -> Option<String> {
    let mean = signed(arm.difference_mean?, 3);
    let Some((low, high)) = arm.difference_low.zip(arm.difference_high) else {
        return Some(format!("{mean} (no interval)"));
    };
    let verdict = if arm.resolved == Some(true) {
        ""
    } else {
        ", not resolved"
    };
    Some(format!("{mean} ({} … {}){verdict}", signed(low, 3), signed(high, 3)))
}

fn arrival(arm: &ArmSummary) -> String {
    match (arm.steps_to_baseline, arm.tokens_to_baseline) {
        (Some(steps), Some(tokens)) => {
            let speedup = arm
                .acceleration
                .map_or(String::new(), |factor| format!(", {factor:.2}×"));
            format!("{steps:.0} steps, {} tokens{speedup}", short(tokens))
        }
        _ => format!("in {} of {}", arm.reached, arm.pairs),
    }
}

/// A number with its sign; a minus is as long as a plus.
fn signed(value: f64, digits: usize) -> String {
    format!("{value:+.digits$}").replace('-', "−")
}

/// `1.23M`.
fn short(count: f64) -> String {
    match count {
        large if large >= 1e9 => format!("{:.2}B", large / 1e9),
        large if large >= 1e6 => format!("{:.2}M", large / 1e6),
        large if large >= 1e3 => format!("{:.1}k", large / 1e3),
        small => format!("{small:.0}"),
    }
}

/// What has to be said beside the table, one line each.
pub fn notes(comparison: &Comparison) -> Vec<String> {
    let mut notes = Vec::new();
    if comparison.runs.len() < comparison.planned {
        notes.push(format!(
            "Not complete: {} of {} runs are done.",
            comparison.runs.len(),
            comparison.planned
        ));
    }
    let diverged = |run: &&RunSummary| run.diverged;
    for run in comparison.runs.iter().filter(diverged) {
        let how = if run.loss.is_finite() {
            format!("ended with a validation loss of {:.3}", run.loss)
        } else {
            format!("was no longer finite at step {}", run.steps)
        };
        notes.push(format!("Diverged: {} seed {} {how}.", run.name, run.seed));
    }
    if comparison.summary.iter().any(|arm| arm.n == 1) {
        notes.push(
            "Of a single run there is no standard deviation and no interval: what its seed did and what its scheme did cannot be told apart."
                .into(),
        );
    }
    notes
}

/// How the figures of the columns came about.
pub const METHOD: [(&str, &str); 5] = [
    (
        "perplexity",
        "validation perplexity after the last step, mean ± standard deviation over the seeds",
    ),
    (
        "difference",
        "from the baseline's run with the same seed, hence the same initial weights and data; mean over the seeds and its 95 % interval by \
         Student's t. “Not resolved”: the interval spans 0. Each interval stands for itself, uncorrected for the number of arms",
    ),
    (
        "to the baseline's loss",
        "where the validation loss first falls to the final one of the baseline's run with the same seed, on straight lines between \
         evaluations, mean over the seeds; × is the baseline's steps over those. “in 1 of 3”: only so many of the runs got there",
    ),
    ("tokens/s", "median over all steps"),
    ("gates", "the smallest and the largest α at the last step of any run"),
];

/// `compare.md`.
pub fn markdown(comparison: &Comparison) -> String {
    let mut text = String::new();
    let mut line = |cells: &[String]| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    };
    line(&COLUMNS.map(String::from));
    line(&COLUMNS.map(|_| "---".into()));
    for row in cells(comparison) {
        line(&row.map(|cell| cell.replace('|', "\\|")));
    }
    for note in notes(comparison) {
        let _ = write!(text, "\n{note}\n");
    }
    text.push('\n');
    for (what, how) in METHOD {
        let _ = writeln!(text, "- {what}: {how}.");
    }
    text
}

/// The table for a terminal.
pub fn plain(comparison: &Comparison) -> String {
    let rows: Vec<_> = [COLUMNS.map(String::from)]
        .into_iter()
        .chain(cells(comparison))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(text, "{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    }
    for note in notes(comparison) {
        let _ = writeln!(text, "{note}");
    }
    text
}
