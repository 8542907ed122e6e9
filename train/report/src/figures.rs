//! What a report shows: each figure with its drawings, its numbers, and how they were computed.

use gpas_model::GateActivation;

use crate::RunRecords;
use crate::compare::Comparison;
use crate::compare::statistics::Sample;
use crate::ink::{Ink, ramp};
use crate::plot::{Axis, Interval, Line, PlotError, bars, heat_map, intervals, lines, number};
use gpas_train::inspect::Inspection;
use gpas_train::metrics::LayersRecord;

/// Points of a line of training losses, at most.
const LOSS_POINTS: usize = 120;

/// What a line in the figures stands for: an arm of a comparison, or a single run.
pub struct Subject<'a> {
    /// Its name.
    pub name: String,
    /// Its look.
    pub ink: Ink,
    /// Its runs: one for each seed.
    pub runs: Vec<&'a RunRecords>,
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

/// A drawing.
pub struct Panel {
    /// Its title.
    pub title: String,
    /// The SVG.
    pub svg: String,
}

/// What lines stand for.
pub enum Legend {
    /// Nothing that has to be said.
    None,
    /// The subjects.
    Subjects,
    /// These.
    Own(Vec<(String, Ink, Option<plotters::style::RGBColor>)>),
}

/// Numbers beside a figure; the first column names the rows.
#[derive(Default)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

/// Every figure for which there are records.
pub fn all(subjects: &[Subject<'_>]) -> Result<Vec<Figure>, PlotError> {
    let figures = [
        perplexity(subjects)?,
        training_loss(subjects)?,
        by_layer(subjects, &VARIANCE)?,
        by_layer(subjects, &GRADIENT_NORM)?,
        gates(subjects)?,
        skipped_layers(subjects)?,
        angles(subjects)?,
    ];
    Ok(figures.into_iter().flatten().collect())
}

/// The paired differences of a comparison.
pub fn differences(comparison: &Comparison, subjects: &[Subject<'_>]) -> Result<String, PlotError> {
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
    let label = format!("perplexity less that of {}", comparison.baseline);
    intervals(
        &format!("Difference in validation perplexity from {}", comparison.baseline),
        "For each arm the mean of its paired differences as a dot and the 95 % interval as a line; left of 0 is better.",
        &Axis::linear(&label),
        &rows,
    )
}

/// Mean, smallest and largest of the finite numbers.
fn spread(values: impl Iterator<Item = f64>) -> Option<(f64, f64, f64)> {
    let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    let mean = Sample::of(&values)?.mean;
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some((mean, low, high))
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    spread(values).map_or(f64::NAN, |(mean, ..)| mean)
}

/// Which runs a mean is over, for captions.
fn over_seeds(subjects: &[Subject<'_>]) -> &'static str {
    if subjects.iter().any(|subject| subject.runs.len() > 1) {
        " Lines are means over the seeds."
    } else {
        ""
    }
}

/// A number in a table, with four digits that count.
pub fn cell(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "–".into(),
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
        false => "–".into(),
    }
}

fn perplexity(subjects: &[Subject<'_>]) -> Result<Option<Figure>, PlotError> {
    let steps_of = |run: &RunRecords| run.metrics.eval.iter().map(|record| record.step).collect::<Vec<_>>();
    let runs = || subjects.iter().flat_map(|subject| &subject.runs);
    let steps = runs().map(|run| steps_of(run)).max_by_key(Vec::len).unwrap_or_default();
    if steps.is_empty() {
        return Ok(None);
    }
    let mut table = Table {
        head: vec!["step".into(), "tokens".into()],
        rows: steps.iter().map(|step| vec![step.to_string()]).collect(),
    };
    let mut drawn = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        table.head.push(subject.name.clone());
        let mut line = line(subject.ink);
        for (step, row) in steps.iter().zip(&mut table.rows) {
            let tokens = mean(subject.runs.iter().filter_map(|run| tokens_after(run, *step)));
            if index == 0 {
                row.push(number(tokens));
            }
            let of_run = |run: &&RunRecords| {
                run.metrics
                    .eval
                    .iter()
                    .find(|record| record.step == *step)
                    .map(|r| r.perplexity)
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
    let band = if subjects.iter().any(|subject| subject.runs.len() > 1) {
        " Lines are means over the seeds, bands reach from the best to the worst of them."
    } else {
        ""
    };
    let title = "Validation perplexity";
    let draw = |what: &str, drawn: &[Line]| {
        let svg = lines(
            &format!("{title}, {what}"),
            "Validation perplexity against training tokens, one line for each arm; the table has its numbers.",
            &Axis::linear("tokens"),
            &Axis::log("perplexity"),
            drawn,
        )?;
        Ok(Panel {
            title: what.into(),
            svg,
        })
    };
    // What remains at the end is small beside what was gained at the beginning.
    let end = drawn
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.0)
        .fold(0.0, f64::max);
    let late: Vec<Line> = drawn.iter().map(|line| line.after(end / 2.0)).collect();
    let mut panels = vec![draw("the whole training", &drawn)?];
    if late.iter().any(|line| line.points.len() > 1) {
        panels.push(draw("its second half", &late)?);
    }
    Ok(Some(Figure {
        title,
        caption: format!(
            "exp of the mean loss over the validation tokens, at every evaluation, against the tokens trained on.{band} \
             The scale is logarithmic, so that equal distances are equal differences of loss."
        ),
        panels,
        legend: Legend::Subjects,
        table,
    }))
}

fn line(ink: Ink) -> Line {
    Line {
        ink,
        colour: None,
        points: Vec::new(),
        band: Vec::new(),
    }
}

/// Tokens scored in training after a step.
fn tokens_after(run: &RunRecords, step: u64) -> Option<f64> {
    let done = run.metrics.train.iter().rev().find(|record| record.step <= step);
    match step {
        0 => Some(0.0),
        _ => done.map(|record| record.tokens as f64),
    }
}

fn training_loss(subjects: &[Subject<'_>]) -> Result<Option<Figure>, PlotError> {
    let runs = || subjects.iter().flat_map(|subject| &subject.runs);
    let longest = runs().map(|run| run.metrics.train.len()).max().unwrap_or(0);
    if longest == 0 {
        return Ok(None);
    }
    let width = longest.div_ceil(LOSS_POINTS);
    let buckets = longest.div_ceil(width);
    let mut table = Table::default();
    table.head.push("steps".into());
    // A table of every point would be longer than it is read.
    let shown: Vec<usize> = (0..buckets)
        .filter(|bucket| (bucket + 1) % buckets.div_ceil(12) == 0)
        .collect();
    table.rows = shown
        .iter()
        .map(|bucket| vec![format!("{}–{}", bucket * width + 1, (bucket + 1) * width)])
        .collect();
    let mut drawn = Vec::new();
    for subject in subjects {
        table.head.push(subject.name.clone());
        let mut line = line(subject.ink.plain());
        for bucket in 0..buckets {
            let records = || {
                let of_run = |run: &&'_ RunRecords| run.metrics.train.chunks(width).nth(bucket).map(<[_]>::to_vec);
                subject.runs.iter().filter_map(of_run).flatten()
            };
            let loss = mean(records().map(|record| record.loss));
            line.points
                .push((mean(records().map(|record| record.tokens as f64)), loss));
            if let Some(row) = shown.iter().position(|shown| *shown == bucket) {
                table.rows[row].push(if loss.is_finite() {
                    format!("{loss:.4}")
                } else {
                    "–".into()
                });
            }
        }
        drawn.push(line);
    }
    let title = "Training loss";
    Ok(Some(Figure {
        title,
        caption: format!(
            "Mean loss in nats per scored token, before each update, against the tokens trained on. Smoothed: each point is the mean over \
             {width} steps{}, skipped steps left out.",
            if subjects.iter().any(|subject| subject.runs.len() > 1) {
                " and all seeds"
            } else {
                ""
            },
        ),
        panels: vec![Panel {
            title: String::new(),
            svg: lines(
                title,
                "Training loss against training tokens, smoothed, one line for each arm.",
                &Axis::linear("tokens").with_range(Some((0.0, 0.0))),
                &Axis::linear("loss (nats)"),
                &drawn,
            )?,
        }],
        legend: Legend::Subjects,
        table,
    }))
}

/// A quantity that training records of every layer.
struct Quantity {
    title: &'static str,
    caption: &'static str,
    x: &'static str,
    y: &'static str,
    of: fn(&LayersRecord) -> &Vec<Option<f64>>,
}

const VARIANCE: Quantity = Quantity {
    title: "Variance of the residual stream",
    caption: "Variance of all entries of the residual stream before each layer, and after the last, over the first micro-batch of a step, \
              at three moments of training: the first, the middle and the last look that was recorded (arXiv 2506.22049).",
    x: "before layer",
    y: "variance",
    of: |record| &record.variance,
};

const GRADIENT_NORM: Quantity = Quantity {
    title: "Gradient norm by layer",
    caption: "√Σ g² over all parameters of each layer, before clipping, at the same three moments.",
    x: "layer",
    y: "gradient norm",
    of: |record| &record.grad_norm,
};

/// First, middle and last step at which the layers were looked at.
fn moments(subjects: &[Subject<'_>]) -> Vec<u64> {
    let runs = subjects.iter().flat_map(|subject| &subject.runs);
    let looks = runs.map(|run| &run.metrics.layers).max_by_key(|layers| layers.len());
    let steps: Vec<u64> = looks.into_iter().flatten().map(|record| record.step).collect();
    let mut moments: Vec<u64> = match steps.len() {
        0 => Vec::new(),
        count => [0, count / 2, count - 1].map(|index| steps[index]).to_vec(),
    };
    moments.dedup();
    moments
}

/// Of every layer, the mean over the seeds at a step.
fn layer_means(subject: &Subject<'_>, step: u64, of: fn(&LayersRecord) -> &Vec<Option<f64>>) -> Vec<f64> {
    let looks = || {
        let at = |run: &&'_ RunRecords| run.metrics.layers.iter().position(|record| record.step == step);
        subject
            .runs
            .iter()
            .filter_map(move |run| Some(&run.metrics.layers[at(run)?]))
    };
    let layers = looks().map(|record| of(record).len()).max().unwrap_or(0);
    let value = |layer: usize| looks().map(move |record| of(record).get(layer).copied().flatten().unwrap_or(f64::NAN));
    (0..layers).map(|layer| mean(value(layer))).collect()
}

fn by_layer(subjects: &[Subject<'_>], quantity: &Quantity) -> Result<Option<Figure>, PlotError> {
    let moments = moments(subjects);
    let values: Vec<Vec<Vec<f64>>> = moments
        .iter()
        .map(|step| {
            subjects
                .iter()
                .map(|subject| layer_means(subject, *step, quantity.of))
                .collect()
        })
        .collect();
    let all = || values.iter().flatten().flatten().copied();
    let Some((_, low, high)) = spread(all().filter(|value| *value > 0.0)) else {
        return Ok(None);
    };
    let points = |values: &[f64]| {
        values
            .iter()
            .enumerate()
            .map(|(layer, value)| (layer as f64, *value))
            .collect()
    };
    let y = Axis::log(quantity.y).with_range(Some((low, high)));
    let x = Axis::linear(quantity.x);
    let describe = |what: &str| {
        format!(
            "{} by layer, logarithmic, {what}; the table has its numbers.",
            quantity.y
        )
    };
    let (panels, legend) = match subjects {
        // The moments of one subject are lines of one drawing, those of several are drawings with a line for each.
        [_] => {
            let of_moment = |index: usize| Ink::of_moment(index + 3 - moments.len());
            let drawn: Vec<Line> = values
                .iter()
                .enumerate()
                .map(|(index, values)| Line {
                    points: points(&values[0]),
                    ..line(of_moment(index))
                })
                .collect();
            let svg = lines(
                quantity.title,
                &describe("one line for each of three moments"),
                &x,
                &y,
                &drawn,
            )?;
            let named = |(index, step): (usize, &u64)| (format!("step {step}"), of_moment(index), None);
            let legend = moments.iter().enumerate().map(named).collect();
            (
                vec![Panel {
                    title: String::new(),
                    svg,
                }],
                Legend::Own(legend),
            )
        }
        _ => {
            let mut panels = Vec::new();
            for (step, values) in moments.iter().zip(&values) {
                let drawn: Vec<Line> = subjects
                    .iter()
                    .zip(values)
                    .map(|(subject, values)| Line {
                        points: points(values),
                        ..line(subject.ink)
                    })
                    .collect();
                let title = format!("step {step}");
                let alone = format!("{} at {title}", quantity.title);
                panels.push(Panel {
                    svg: lines(&alone, &describe("one line for each arm"), &x, &y, &drawn)?,
                    title,
                });
            }
            (panels, Legend::Subjects)
        }
    };
    let layers = values.iter().flatten().map(Vec::len).max().unwrap_or(0);
    let first = [quantity.x.to_string()].into_iter();
    let mut table = Table {
        head: first.chain((0..layers).map(|layer| layer.to_string())).collect(),
        rows: Vec::new(),
    };
    for (step, values) in moments.iter().zip(&values) {
        for (subject, values) in subjects.iter().zip(values) {
            let name = match subjects {
                [_] => format!("step {step}"),
                _ => format!("{}, step {step}", subject.name),
            };
            let cells = (0..layers).map(|layer| cell(values.get(layer).copied().unwrap_or(f64::NAN)));
            table.rows.push([name].into_iter().chain(cells).collect());
        }
    }
    Ok(Some(Figure {
        title: quantity.title,
        caption: format!("{}{}", quantity.caption, over_seeds(subjects)),
        panels,
        legend,
        table,
    }))
}

/// The gates of a subject at every look: step and α, the means over the seeds.
fn gate_history(subject: &Subject<'_>) -> Vec<(u64, Vec<f64>)> {
    let looks = subject.runs.iter().map(|run| &run.metrics.layers);
    let longest = looks.max_by_key(|layers| layers.len()).into_iter().flatten();
    longest
        .map(|record| (record.step, layer_means(subject, record.step, |record| &record.gate)))
        .collect()
}

fn gates(subjects: &[Subject<'_>]) -> Result<Option<Figure>, PlotError> {
    let histories: Vec<_> = subjects.iter().map(gate_history).collect();
    let all = histories.iter().flatten().flat_map(|(_, gates)| gates).copied();
    let Some((_, low, high)) = spread(all) else {
        return Ok(None);
    };
    let y = Axis::linear("gate α").with_range(Some((low.min(0.0), high.max(0.0))));
    let ink = Ink::of_moment(2).plain();
    let count_of = |history: &[(u64, Vec<f64>)]| history.iter().map(|(_, gates)| gates.len()).max().unwrap_or(0);
    let count = histories.iter().map(|history| count_of(history)).max().unwrap_or(0);
    let colour = |gate: usize, count: usize| Some(ramp(gate as f64 / (count - 1).max(1) as f64));
    let mut table = Table {
        head: vec!["gate".into()],
        rows: (0..count).map(|gate| vec![gate.to_string()]).collect(),
    };
    let mut panels = Vec::new();
    for (subject, history) in subjects.iter().zip(&histories) {
        let count = count_of(history);
        let Some((_, last)) = history.last().filter(|_| count > 0) else {
            continue;
        };
        let points = |gate: usize| {
            let at = |(step, gates): &(u64, Vec<f64>)| Some((*step as f64, *gates.get(gate)?));
            history.iter().filter_map(at).collect()
        };
        let drawn: Vec<Line> = (0..count)
            .map(|gate| Line {
                colour: colour(gate, count),
                points: points(gate),
                ..line(ink)
            })
            .collect();
        panels.push(Panel {
            svg: lines(
                &format!("Gates of {} over training", subject.name),
                "One line for each gate, from blue for the first layer to orange for the last.",
                &Axis::linear("step"),
                &y,
                &drawn,
            )?,
            title: subject.name.clone(),
        });
        let act = subject
            .runs
            .first()
            .map_or(GateActivation::Silu, |run| run.recipe.model.gate.act);
        table
            .head
            .extend([format!("{}: α", subject.name), format!("{}: 1 − act(α)", subject.name)]);
        for (gate, row) in table.rows.iter_mut().enumerate() {
            let gate = last.get(gate).copied().unwrap_or(f64::NAN);
            row.extend([cell(gate), cell(1.0 - act.value(gate))]);
        }
    }
    let mut named = vec![(0, "first gate"), (count / 2, "middle"), (count - 1, "last gate")];
    named.dedup_by_key(|(gate, _)| *gate);
    let legend = named
        .into_iter()
        .map(|(gate, name)| (name.to_string(), ink, colour(gate, count)));
    Ok(Some(Figure {
        title: "Gates over training",
        caption: format!(
            "α of every gate before each update that was looked at, from the first layer to the last; the stream is multiplied by \
             1 − act(α){}, so 0 leaves it as it is. One gate per layer, or two where attention and MLP have one each. The table has the last \
             look.{}",
            act(subjects),
            over_seeds(subjects)
        ),
        panels,
        legend: Legend::Own(legend.collect()),
        table,
    }))
}

/// What `act` is, if it is that of the paper everywhere.
fn act(subjects: &[Subject<'_>]) -> &'static str {
    let mut runs = subjects.iter().flat_map(|subject| &subject.runs);
    match runs.all(|run| run.recipe.model.gate.act == GateActivation::Silu) {
        true => " (act is SiLU)",
        false => "",
    }
}

/// The inspections of a subject's runs, if every run has one.
fn inspections<'a>(subject: &Subject<'a>) -> Option<Vec<&'a Inspection>> {
    subject.runs.iter().map(|run| run.inspection.as_ref()).collect()
}

/// On how many tokens and after which step the looks were taken.
fn looked_at(subjects: &[Subject<'_>]) -> String {
    let first = subjects.iter().filter_map(inspections).flatten().next();
    first.map_or(String::new(), |look| {
        format!(
            " On {} validation tokens, after the last step.",
            number(look.tokens as f64)
        )
    })
}

fn skipped_layers(subjects: &[Subject<'_>]) -> Result<Option<Figure>, PlotError> {
    let mut found: Vec<(&Subject<'_>, Vec<f64>)> = Vec::new();
    for subject in subjects {
        let Some(looks) = inspections(subject) else { continue };
        let layers = looks.iter().map(|look| look.layers.len()).max().unwrap_or(0);
        let of = |layer: usize| {
            looks
                .iter()
                .filter_map(move |look| look.layers.get(layer))
                .map(|layer| layer.loss_change)
        };
        found.push((subject, (0..layers).map(|layer| mean(of(layer))).collect()));
    }
    let Some((_, low, high)) = spread(found.iter().flat_map(|(_, values)| values).copied()) else {
        return Ok(None);
    };
    let y = Axis::linear("loss change (nats)").with_range(Some((low.min(0.0), high.max(0.0))));
    let mut table = Table::default();
    table.head.push("layer".into());
    let mut panels = Vec::new();
    let layers = found.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    table.rows = (0..layers).map(|layer| vec![layer.to_string()]).collect();
    for (subject, values) in &found {
        table.head.push(subject.name.clone());
        for (layer, row) in table.rows.iter_mut().enumerate() {
            let value = values.get(layer).copied().unwrap_or(f64::NAN);
            row.push(change(value));
        }
        panels.push(Panel {
            svg: bars(
                &format!("Loss change of {} without each layer", subject.name),
                "One bar for each layer; the table has its numbers.",
                &y,
                subject.ink,
                values,
            )?,
            title: subject.name.clone(),
        });
    }
    Ok(Some(Figure {
        title: "What a layer is worth",
        caption: format!(
            "Mean validation loss of the model without the layer, less that of the whole model (arXiv 2403.03853): the higher, the more the \
             layer does; a layer near 0 could be left out.{}{}",
            looked_at(subjects),
            mean_of_seeds(subjects)
        ),
        panels,
        legend: Legend::None,
        table,
    }))
}

fn mean_of_seeds(subjects: &[Subject<'_>]) -> &'static str {
    if subjects.iter().any(|subject| subject.runs.len() > 1) {
        " Means over the seeds."
    } else {
        ""
    }
}

fn angles(subjects: &[Subject<'_>]) -> Result<Option<Figure>, PlotError> {
    let mut found: Vec<(&Subject<'_>, Vec<Vec<f64>>)> = Vec::new();
    for subject in subjects {
        let Some(looks) = inspections(subject) else { continue };
        let Some(first) = looks.first() else { continue };
        let at = |n: usize, i: usize| {
            mean(
                looks
                    .iter()
                    .filter_map(|look| look.angular_distance.get(n)?.get(i))
                    .copied(),
            )
        };
        let shape = first.angular_distance.iter().enumerate();
        found.push((
            subject,
            shape
                .map(|(n, row)| (0..row.len()).map(|i| at(n, i)).collect())
                .collect(),
        ));
    }
    let all = found.iter().flat_map(|(_, rows)| rows).flatten().copied();
    let Some((_, _, largest)) = spread(all) else {
        return Ok(None);
    };
    let mut panels = Vec::new();
    let count = found.iter().map(|(_, rows)| rows.len()).max().unwrap_or(0);
    let mut table = Table {
        head: vec!["layers on, n".into()],
        rows: (1..=count).map(|n| vec![n.to_string()]).collect(),
    };
    for (subject, rows) in &found {
        table.head.push(format!("{}: mean over i", subject.name));
        for (n, row) in table.rows.iter_mut().enumerate() {
            row.push(cell(mean(rows.get(n).into_iter().flatten().copied())));
        }
        panels.push(Panel {
            svg: heat_map(
                &format!("Angular distance in {}", subject.name),
                "A cell for each layer i and number of layers on n; the table has the means over i.",
                rows,
                largest,
            )?,
            title: subject.name.clone(),
        });
    }
    Ok(Some(Figure {
        title: "Angular distance between layers",
        caption: format!(
            "Mean over tokens of arccos(cos(h_i, h_i+n)) / π, h_i being the residual stream before layer i (arXiv 2403.17887): 0 is the same \
             direction, so dark cells are layers that change little.{}{}",
            looked_at(subjects),
            mean_of_seeds(subjects)
        ),
        panels,
        legend: Legend::None,
        table,
    }))
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
