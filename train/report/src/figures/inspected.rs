//! What an inspection of the last checkpoint tells of the layers: what each is worth, and how far each turns the residual stream.

use gpas_train::inspect::ModelInspection;

use crate::axis::{Axis, number};
use crate::figure::{Figure, Legend, Panel, Subject, Table, cell, change, has_seeds, mean, spread};
use crate::plot::{Words, bars, heat_map};

/// The inspections of a subject's runs, if every run has one.
fn inspections<'a>(subject: &Subject<'a>) -> Option<Vec<&'a ModelInspection>> {
    subject.runs.iter().map(|run| run.inspection.as_ref()).collect()
}

/// On how many tokens and after which step the layers were inspected, and whether a number is a mean over the seeds; for captions.
fn provenance(subjects: &[Subject<'_>]) -> String {
    let first = subjects.iter().filter_map(inspections).flatten().next();
    let tokens = first.map_or(String::new(), |inspection| {
        let tokens = number(inspection.tokens as f64);
        format!(" On {tokens} validation tokens, after the last step.")
    });
    let seeds = if has_seeds(subjects) {
        " Means over the seeds."
    } else {
        ""
    };
    tokens + seeds
}

/// How the loss changes without each layer: a drawing for each subject, with a bar for each layer.
pub fn skipped_layers(subjects: &[Subject<'_>]) -> Option<Figure> {
    let mut found: Vec<(&Subject<'_>, Vec<f64>)> = Vec::new();
    for subject in subjects {
        let Some(inspections) = inspections(subject) else {
            continue;
        };
        let layers = inspections
            .iter()
            .map(|inspection| inspection.layers.len())
            .max()
            .unwrap_or(0);
        let changes = |layer: usize| {
            let layers = inspections
                .iter()
                .filter_map(move |inspection| inspection.layers.get(layer));
            layers.map(|layer| layer.loss_change)
        };
        found.push((subject, (0..layers).map(|layer| mean(changes(layer))).collect()));
    }
    let (_, low, high) = spread(found.iter().flat_map(|(_, values)| values).copied())?;
    let y = Axis::linear("loss change (nats)").from_to(low.min(0.0), high.max(0.0));
    let layers = found.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    let mut table = Table {
        head: vec!["layer".into()],
        rows: (0..layers).map(|layer| vec![layer.to_string()]).collect(),
    };
    let mut panels = Vec::new();
    for (subject, values) in &found {
        table.head.push(subject.name.clone());
        for (layer, row) in table.rows.iter_mut().enumerate() {
            row.push(change(values.get(layer).copied().unwrap_or(f64::NAN)));
        }
        let words = Words {
            title: format!("Loss change of {} without each layer", subject.name),
            description: "One bar for each layer; the table has its numbers.".into(),
        };
        panels.push(Panel {
            drawing: bars(words, &y, subject.ink, values),
            title: subject.name.clone(),
        });
    }
    Some(Figure {
        title: "What a layer is worth",
        caption: format!(
            "Mean validation loss of the model without the layer, less that of the whole model (arXiv 2403.03853): the higher, the more the \
             layer does; a layer near 0 could be left out.{}",
            provenance(subjects)
        ),
        panels,
        legend: Legend::None,
        table,
    })
}

/// The angular distances between the streams before each two layers: a heat map for each subject.
pub fn angles(subjects: &[Subject<'_>]) -> Option<Figure> {
    let mut found: Vec<(&Subject<'_>, Vec<Vec<f64>>)> = Vec::new();
    for subject in subjects {
        let Some(inspections) = inspections(subject) else {
            continue;
        };
        let Some(first) = inspections.first() else { continue };
        let at = |n: usize, i: usize| {
            let distances = inspections
                .iter()
                .filter_map(|inspection| inspection.angular_distance.get(n)?.get(i));
            mean(distances.copied())
        };
        let row = |(n, row): (usize, &Vec<f64>)| (0..row.len()).map(|i| at(n, i)).collect();
        found.push((subject, first.angular_distance.iter().enumerate().map(row).collect()));
    }
    let (_, _, largest) = spread(found.iter().flat_map(|(_, rows)| rows).flatten().copied())?;
    let count = found.iter().map(|(_, rows)| rows.len()).max().unwrap_or(0);
    let mut table = Table {
        head: vec!["layers on, n".into()],
        rows: (1..=count).map(|n| vec![n.to_string()]).collect(),
    };
    let mut panels = Vec::new();
    for (subject, rows) in &found {
        table.head.push(format!("{}: mean over i", subject.name));
        for (n, row) in table.rows.iter_mut().enumerate() {
            row.push(cell(mean(rows.get(n).into_iter().flatten().copied())));
        }
        let words = Words {
            title: format!("Angular distance in {}", subject.name),
            description: "A cell for each layer i and number of layers on n; the table has the means over i.".into(),
        };
        panels.push(Panel {
            drawing: heat_map(words, rows, largest),
            title: subject.name.clone(),
        });
    }
    Some(Figure {
        title: "Angular distance between layers",
        caption: format!(
            "Mean over tokens of arccos(cos(h_i, h_i+n)) / π, h_i being the residual stream before layer i (arXiv 2403.17887): 0 is the same \
             direction, so dark cells are layers that change little.{}",
            provenance(subjects)
        ),
        panels,
        legend: Legend::None,
        table,
    })
}
