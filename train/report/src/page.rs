//! The HTML of a report: one file, whose text maud escapes, whose drawings stand in it, and whose style follows the reader's screen or paper.

use std::path::Path;

use gpas_train::metrics::EvalRecord;
use gpas_train::run::{Parent, RunInfo};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::axis::number;
use crate::compare::{COLUMNS, Comparison, METHOD, cells, median, notes};
use crate::figure::{Figure, Legend, NONE, Subject, Table, cell, change};
use crate::figures::{all, differences};
use crate::ink::{Ink, dark_rules};
use crate::plot::{Drawing, swatch};
use crate::records::RunRecords;

const STYLE: &str = include_str!("page.css");

/// How many of a run's notices are shown: one that diverges has as many as steps.
const NOTICES: usize = 12;

/// Columns of a table that stands beside its figure, at most.
const BESIDE: usize = 5;

/// The report of a run.
pub fn of_run(path: &Path, records: &RunRecords) -> String {
    let name = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned();
    let subject = Subject {
        name: records.recipe.model.scheme.to_string(),
        ink: Ink::of(records.recipe.model.scheme, 0),
        runs: vec![records],
    };
    let subjects = [subject];
    let figures = all(&subjects);
    let body = html! {
        h1 { (name) }
        p.quiet { (model(records)) }
        (summary_of_run(records))
        (sections(&figures, &subjects))
        (layers(records))
        (provenance(records, &[]))
    };
    page(&format!("{name} · gpas"), &body)
}

/// The report of a comparison.
pub fn of_comparison(comparison: &Comparison, records: &[RunRecords], subjects: &[Subject<'_>]) -> String {
    let names: Vec<&str> = comparison.summary.iter().map(|arm| arm.name.as_str()).collect();
    let title = format!("Comparison of {}", names.join(", "));
    let figures = all(subjects);
    let has_differences = comparison.summary.iter().any(|arm| arm.difference_mean.is_some());
    let drawing = has_differences.then(|| differences(comparison, subjects));
    let table = Table {
        head: COLUMNS.map(String::from).to_vec(),
        rows: cells(comparison).into_iter().map(Vec::from).collect(),
    };
    let body = html! {
        h1 { (title) }
        @if let Some(first) = records.first() { p.quiet { (model(first)) } }
        section {
            h2 { "The result" }
            (of_table(&table, "The arms of the comparison"))
            @for note in notes(comparison) { p.note { (note) } }
            @if let Some(drawing) = drawing {
                figure {
                    figcaption {
                        "Difference in validation perplexity from " b { (comparison.baseline) } ", paired by seed: the dot is the mean, the \
                         line the 95 % interval. Left of 0 is better; a line that crosses 0 is not resolved."
                    }
                    div.panels.one { (drawing) }
                }
            }
            details { summary { "How the table was computed" } ul { @for (what, how) in METHOD { li { b { (what) } ": " (how) "." } } } }
        }
        (sections(&figures, subjects))
        (runs(comparison))
        @if let [first, others @ ..] = records { (provenance(first, others)) }
    };
    page(&format!("{title} · gpas"), &body)
}

/// A drawing as a file of its own, with the colours of the page.
pub fn standalone(drawing: &Drawing) -> String {
    drawing.standalone(&format!("@media(prefers-color-scheme:dark){{{}}}", dark_rules()))
}

fn page(title: &str, body: &Markup) -> String {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                // Screens alone are dark.
                style { (PreEscaped(STYLE)) "@media screen and (prefers-color-scheme:dark){" (PreEscaped(dark_rules())) "}" }
            }
            body { main { (body) } }
        }
    };
    markup.into_string()
}

/// What the model is, in a line.
fn model(records: &RunRecords) -> String {
    let (model, train) = (&records.recipe.model, &records.recipe.train);
    format!(
        "{} parameters in {} layers of {}, {} steps of {} × {} tokens, learning rate {}",
        number(records.info.parameters as f64),
        model.layers,
        model.hidden,
        train.steps,
        train.batch,
        records.recipe.data.seq_len,
        train.lr,
    )
}

fn summary_of_run(records: &RunRecords) -> Markup {
    let metrics = &records.metrics;
    let (step, tokens) = metrics
        .train
        .last()
        .map_or((0, 0), |record| (record.step, record.tokens));
    let last = metrics.eval.last();
    let finite = |record: &&EvalRecord| record.loss.is_finite();
    let best = metrics
        .eval
        .iter()
        .filter(finite)
        .min_by(|a, b| a.loss.total_cmp(&b.loss));
    let speeds = metrics.train.iter().map(|record| record.tokens_per_s).collect();
    let skipped = metrics.train.iter().filter(|record| record.skipped).count();
    let figure = |record: &EvalRecord| match record.loss.is_finite() {
        true => format!(
            "{:.3} (loss {:.4}) after {} steps",
            record.perplexity, record.loss, record.step
        ),
        false => format!("not finite after {} steps", record.step),
    };
    html! {
        section {
            h2 { "The result" }
            dl {
                @if let Some(last) = last { dt { "validation perplexity" } dd { b { (figure(last)) } } }
                @if let Some(best) = best { dt { "its best" } dd { (figure(best)) } }
                @if let Some(parent) = &records.info.parent {
                    dt { "begun with" } dd { "the weights and moments of " code { (parent.run.display()) } " after step " (parent.step) }
                }
                dt { "trained" } dd { (step) " of " (records.recipe.train.steps) " steps, " (number(tokens as f64)) " tokens" }
                @if let Some(speed) = median(speeds) {
                    dt { "speed" } dd { (format!("{speed:.0}")) " tokens/s, the median over all steps" }
                }
                @if skipped > 0 { dt { "steps without update" } dd { (skipped) } }
            }
            @for notice in metrics.notices.iter().take(NOTICES) { p.note { "Step " (notice.step) ": " (notice.message) } }
            @if metrics.notices.len() > NOTICES { p.note { "And " (metrics.notices.len() - NOTICES) " more, in metrics.jsonl." } }
        }
    }
}

fn sections(figures: &[Figure], subjects: &[Subject<'_>]) -> Markup {
    html! { @for figure in figures { (section(figure, subjects)) } }
}

fn section(figure: &Figure, subjects: &[Subject<'_>]) -> Markup {
    let legend: Vec<(String, Ink)> = match &figure.legend {
        // A single line needs no name.
        Legend::Subjects if subjects.len() > 1 => subjects
            .iter()
            .map(|subject| (subject.name.clone(), subject.ink))
            .collect(),
        Legend::Own(own) => own.clone(),
        _ => Vec::new(),
    };
    let is_alone = figure.panels.len() == 1;
    let fits_beside = is_alone && figure.table.head.len() <= BESIDE;
    html! {
        section {
            h2 { (figure.title) }
            div class=[fits_beside.then_some("beside")] {
                figure {
                    figcaption { (figure.caption) }
                    @if !legend.is_empty() {
                        ul.legend { @for (name, ink) in &legend { li { (swatch(ink)) span { (name) } } } }
                    }
                    div class=(if is_alone { "panels one" } else { "panels" }) {
                        @for panel in &figure.panels {
                            div { @if !is_alone { h3 { (panel.title) } } (panel.drawing) }
                        }
                    }
                }
                details open[is_alone] { summary { "Numbers" } (of_table(&figure.table, figure.title)) }
            }
        }
    }
}

fn of_table(table: &Table, caption: &str) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(caption) {
            table {
                thead { tr { @for name in &table.head { th scope="col" { (name) } } } }
                tbody {
                    @for row in &table.rows {
                        tr { @for (index, cell) in row.iter().enumerate() { @if index == 0 { th scope="row" { (cell) } } @else { td { (cell) } } } }
                    }
                }
            }
        }
    }
}

/// The layers of a run as they are at its end.
fn layers(records: &RunRecords) -> Markup {
    let Some(inspection) = &records.inspection else {
        return html! {};
    };
    let joined = |values: &[f64]| match values {
        [] => NONE.to_string(),
        _ => values.iter().map(|value| cell(*value)).collect::<Vec<_>>().join(" / "),
    };
    let head = [
        "layer",
        "variance before it",
        "block influence",
        "loss change without it",
        "gate α",
        "1 − act(α)",
        "running scale",
    ];
    let table = Table {
        head: head.map(String::from).to_vec(),
        rows: inspection
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| {
                vec![
                    index.to_string(),
                    cell(layer.variance),
                    cell(layer.block_influence),
                    change(layer.loss_change),
                    joined(&layer.gates),
                    joined(&layer.scales),
                    layer.running_scale.map_or(NONE.into(), cell),
                ]
            })
            .collect(),
    };
    html! {
        section {
            h2 { "Layer by layer" }
            p.quiet {
                "After step " (inspection.step) ", means over " (number(inspection.tokens as f64)) " validation tokens. Block influence is 1 − cos between \
                 the streams before and after a layer (arXiv 2403.03853); the running scale is the product of the scales by which the stream \
                 has been multiplied up to the layer's end."
            }
            (of_table(&table, "The layers at the end"))
        }
    }
}

fn runs(comparison: &Comparison) -> Markup {
    html! {
        section {
            h2 { "The runs" }
            div.scroll tabindex="0" role="region" aria-label="The runs" {
                table {
                    thead { tr { @for name in ["arm", "seed", "steps", "tokens", "loss", "perplexity", "tokens/s", "gates α", ""] { th scope="col" { (name) } } } }
                    tbody {
                        @for run in &comparison.runs {
                            tr {
                                th scope="row" { (run.name) }
                                td { a href=(format!("{}/report.html", run.directory)) { (run.seed) } }
                                td { (run.steps) }
                                td { (number(run.tokens as f64)) }
                                td { @if run.loss.is_finite() { (format!("{:.4}", run.loss)) } @else { (NONE) } }
                                td { @if run.perplexity.is_finite() { (format!("{:.3}", run.perplexity)) } @else { (NONE) } }
                                td { @if let Some(speed) = run.tokens_per_s { (format!("{speed:.0}")) } @else { (NONE) } }
                                td { @if let (Some(low), Some(high)) = (run.gate_min, run.gate_max) { (number(low)) " … " (number(high)) } @else { (NONE) } }
                                td { @if run.diverged { "diverged" } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The checkpoint of another run that a run began with, and what it changed in the recipe.
fn inheritance(parent: &Parent) -> Markup {
    let commit = Some(parent.commit.as_str()).filter(|commit| !commit.is_empty());
    html! {
        dt { "begun with" }
        dd {
            (parent.path.display()) " after step " (parent.step) ", begun by commit " (commit.unwrap_or("unknown")) ", SHA-256 of the weights "
            (parent.weights_sha256)
        }
        @if !parent.changes.is_empty() {
            dt { "changed" }
            dd {
                @for (index, (key, [before, after])) in parent.changes.iter().enumerate() {
                    @if index > 0 { ", " }
                    code { (key) } " " (before.to_string()) " → " (after.to_string())
                }
            }
        }
    }
}

/// By what a run was made, and in what the others differ from it.
fn provenance(records: &RunRecords, others: &[RunRecords]) -> Markup {
    let RunInfo {
        gpas,
        commit,
        burn,
        backend,
        device,
        platform,
        command,
        data,
        data_sha256,
        parent,
        ..
    } = &records.info;
    let mut differing: Vec<String> = others
        .iter()
        .flat_map(|other| records.recipe.changes(&other.recipe).into_keys())
        .collect();
    differing.sort();
    differing.dedup();
    // A recipe that was read is one that can be written.
    let recipe = records.recipe.to_toml().unwrap_or_default();
    html! {
        section {
            h2 { "How it was made" }
            dl {
                dt { "command" } dd { code { (command.join(" ")) } }
                dt { "program" } dd { "gpas " (gpas) ", commit " @if commit.is_empty() { "unknown" } @else { (commit) } ", Burn " (burn) }
                dt { "hardware" } dd { @if !device.is_empty() { (device) ", " } (platform) ", backend " (backend) }
                dt { "data" } dd { (data.display()) ", SHA-256 " (data_sha256) }
                @if let Some(parent) = parent { (inheritance(parent)) }
            }
            details open { summary { "Recipe" } pre { (recipe) } }
            @if !differing.is_empty() {
                p.quiet { "The other runs differ from it in " (differing.join(", ")) ", and in nothing else." }
            }
            p.quiet {
                "GPAS: " a href="https://arxiv.org/abs/2506.22049" { "arXiv 2506.22049" } "."
            }
        }
    }
}
