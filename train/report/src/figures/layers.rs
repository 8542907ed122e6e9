//! What training recorded of every layer: quantities at three moments, and the gates at every look.

use gpas_model::GateActivation;
use gpas_train::metrics::{LayerFigure, LayerQuantity, LayersRecord};

use crate::axis::Axis;
use crate::figure::{Figure, Legend, Panel, Subject, Table, cell, has_seeds, mean, spread};
use crate::ink::Ink;
use crate::plot::{Line, Words, lines};
use crate::records::RunRecords;

/// Which runs a mean is over, for captions.
fn over_seeds(subjects: &[Subject<'_>]) -> &'static str {
    if has_seeds(subjects) {
        " Lines are means over the seeds."
    } else {
        ""
    }
}

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

/// A quantity of every layer at a step, the mean over the seeds.
fn layer_means(subject: &Subject<'_>, step: u64, values: fn(&LayersRecord) -> &[Option<f64>]) -> Vec<f64> {
    let at_step = |run: &&RunRecords| run.metrics.layers.iter().position(|record| record.step == step);
    let look = |run: &&RunRecords| Some(values(&run.metrics.layers[at_step(run)?]).to_vec());
    let looks: Vec<Vec<Option<f64>>> = subject.runs.iter().filter_map(look).collect();
    let layers = looks.iter().map(Vec::len).max().unwrap_or(0);
    let of_layer = |layer: usize| looks.iter().filter_map(move |look| look.get(layer).copied().flatten());
    (0..layers).map(|layer| mean(of_layer(layer))).collect()
}

/// The numbers of a subject at a moment, layer by layer.
struct Row<'a> {
    subject: &'a Subject<'a>,
    step: u64,
    values: Vec<f64>,
}

impl Row<'_> {
    fn line(&self, ink: Ink) -> Line {
        let points = self.values.iter().enumerate();
        Line {
            points: points.map(|(layer, value)| (layer as f64, *value)).collect(),
            ..Line::new(ink)
        }
    }
}

/// A quantity by layer. The moments of one subject are lines of one drawing, those of several are drawings with a line for each.
pub fn by_layer(quantity: &LayerQuantity<LayersRecord>, subjects: &[Subject<'_>]) -> Option<Figure> {
    let figure = quantity.figure.as_ref()?;
    let moments = moments(subjects);
    let at = |step: u64| subjects.iter().map(move |subject| (step, subject));
    let rows: Vec<Row<'_>> = moments
        .iter()
        .flat_map(|step| at(*step))
        .map(|(step, subject)| Row {
            subject,
            step,
            values: layer_means(subject, step, quantity.read),
        })
        .collect();
    let values = rows.iter().flat_map(|row| &row.values).copied();
    let (_, low, high) = spread(values.filter(|value| *value > 0.0))?;
    let y = Axis::logarithmic(figure.y).from_to(low, high);
    let (panels, legend) = match subjects {
        [_] => of_moments(figure, &y, &rows),
        _ => of_subjects(figure, &y, &moments, &rows),
    };
    Some(Figure {
        title: figure.title,
        caption: format!("{}{}", figure.caption, over_seeds(subjects)),
        panels,
        legend,
        table: layer_table(figure, subjects, &rows),
    })
}

/// One drawing with a line for each moment of a single subject.
fn of_moments(figure: &LayerFigure, y: &Axis, rows: &[Row<'_>]) -> (Vec<Panel>, Legend) {
    let ink = |index: usize| Ink::of_moment(index + 3 - rows.len());
    let drawn: Vec<Line> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| row.line(ink(index)))
        .collect();
    let words = Words {
        title: figure.title.into(),
        description: format!(
            "{} by layer, logarithmic, one line for each of three moments; the table has its numbers.",
            figure.y
        ),
    };
    let panel = Panel {
        title: String::new(),
        drawing: lines(words, &Axis::linear(figure.x), y, &drawn),
    };
    let named = |(index, row): (usize, &Row<'_>)| (format!("step {}", row.step), ink(index));
    (vec![panel], Legend::Own(rows.iter().enumerate().map(named).collect()))
}

/// A drawing for each moment with a line for each subject.
fn of_subjects(figure: &LayerFigure, y: &Axis, moments: &[u64], rows: &[Row<'_>]) -> (Vec<Panel>, Legend) {
    let panel = |step: &u64| {
        let rows = rows.iter().filter(|row| row.step == *step);
        let drawn: Vec<Line> = rows.map(|row| row.line(row.subject.ink)).collect();
        let words = Words {
            title: format!("{} at step {step}", figure.title),
            description: format!(
                "{} by layer, logarithmic, one line for each arm; the table has its numbers.",
                figure.y
            ),
        };
        Panel {
            title: format!("step {step}"),
            drawing: lines(words, &Axis::linear(figure.x), y, &drawn),
        }
    };
    (moments.iter().map(panel).collect(), Legend::Subjects)
}

fn layer_table(figure: &LayerFigure, subjects: &[Subject<'_>], rows: &[Row<'_>]) -> Table {
    let layers = rows.iter().map(|row| row.values.len()).max().unwrap_or(0);
    let first = [figure.x.to_string()].into_iter();
    let row = |row: &Row<'_>| {
        let name = match subjects {
            [_] => format!("step {}", row.step),
            _ => format!("{}, step {}", row.subject.name, row.step),
        };
        let cells = (0..layers).map(|layer| cell(row.values.get(layer).copied().unwrap_or(f64::NAN)));
        [name].into_iter().chain(cells).collect()
    };
    Table {
        head: first.chain((0..layers).map(|layer| layer.to_string())).collect(),
        rows: rows.iter().map(row).collect(),
    }
}

/// The gates of a subject at every look.
struct GateHistory<'a> {
    subject: &'a Subject<'a>,
    /// Step and α of each gate, the means over the seeds.
    looks: Vec<(u64, Vec<f64>)>,
    /// Number of gates.
    count: usize,
}

impl<'a> GateHistory<'a> {
    fn of(subject: &'a Subject<'a>) -> Self {
        let looks = subject.runs.iter().map(|run| &run.metrics.layers);
        let longest = looks.max_by_key(|layers| layers.len()).into_iter().flatten();
        let means = |record: &LayersRecord| (record.step, layer_means(subject, record.step, |record| &record.gate));
        let looks: Vec<_> = longest.map(means).collect();
        let count = looks.iter().map(|(_, gates)| gates.len()).max().unwrap_or(0);
        Self { subject, looks, count }
    }

    fn line(&self, gate: usize) -> Line {
        let at = |(step, gates): &(u64, Vec<f64>)| Some((*step as f64, *gates.get(gate)?));
        Line {
            points: self.looks.iter().filter_map(at).collect(),
            ..Line::new(gate_ink(gate, self.count))
        }
    }

    fn panel(&self, y: &Axis) -> Panel {
        let drawn: Vec<Line> = (0..self.count).map(|gate| self.line(gate)).collect();
        let words = Words {
            title: format!("Gates of {} over training", self.subject.name),
            description: "One line for each gate, from blue for the first layer to orange for the last.".into(),
        };
        Panel {
            drawing: lines(words, &Axis::linear("step"), y, &drawn),
            title: self.subject.name.clone(),
        }
    }
}

fn gate_ink(gate: usize, count: usize) -> Ink {
    Ink::of_place(gate as f64 / count.saturating_sub(1).max(1) as f64)
}

/// The gates over training: a drawing for each subject that has gates, with a line for each gate.
pub fn gates(subjects: &[Subject<'_>]) -> Option<Figure> {
    let histories: Vec<GateHistory<'_>> = subjects.iter().map(GateHistory::of).collect();
    let looks = histories.iter().flat_map(|history| &history.looks);
    let (_, low, high) = spread(looks.flat_map(|(_, gates)| gates).copied())?;
    let y = Axis::linear("gate α").from_to(low.min(0.0), high.max(0.0));
    let gated: Vec<&GateHistory<'_>> = histories.iter().filter(|history| history.count > 0).collect();
    let count = gated.iter().map(|history| history.count).max().unwrap_or(0);
    let mut named = vec![(0, "first gate"), (count / 2, "middle"), (count - 1, "last gate")];
    named.dedup_by_key(|(gate, _)| *gate);
    let legend = named
        .into_iter()
        .map(|(gate, name)| (name.to_string(), gate_ink(gate, count)));
    let mut runs = subjects.iter().flat_map(|subject| &subject.runs);
    let act = match runs.all(|run| run.recipe.model.gate.act == GateActivation::Silu) {
        true => " (act is SiLU)",
        false => "",
    };
    Some(Figure {
        title: "Gates over training",
        caption: format!(
            "α of every gate before each update that was looked at, from the first layer to the last; the stream is multiplied by \
             1 − act(α){act}, so 0 leaves it as it is. One gate per layer, or two where attention and MLP have one each. The table has the \
             last look.{}",
            over_seeds(subjects)
        ),
        panels: gated.iter().map(|history| history.panel(&y)).collect(),
        legend: Legend::Own(legend.collect()),
        table: gate_table(&gated, count),
    })
}

/// The gates at the last look.
fn gate_table(histories: &[&GateHistory<'_>], count: usize) -> Table {
    let mut table = Table {
        head: vec!["gate".into()],
        rows: (0..count).map(|gate| vec![gate.to_string()]).collect(),
    };
    for history in histories {
        let Some((_, last)) = history.looks.last() else {
            continue;
        };
        let first = history.subject.runs.first();
        let act = first.map_or(GateActivation::Silu, |run| run.recipe.model.gate.act);
        let name = &history.subject.name;
        table.head.extend([format!("{name}: α"), format!("{name}: 1 − act(α)")]);
        for (gate, row) in table.rows.iter_mut().enumerate() {
            let gate = last.get(gate).copied().unwrap_or(f64::NAN);
            row.extend([cell(gate), cell(1.0 - act.value(gate))]);
        }
    }
    table
}
