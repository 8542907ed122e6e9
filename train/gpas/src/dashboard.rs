//! What a person sees of a run: a dashboard on a terminal, else one readable line now and then.
//!
//! Both are [`MetricsRenderer`]s of burn-train, which the training loop drives itself: burn-train's own loop counts iterations rather
//! than optimizer steps, and its event processor cannot be made outside it.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use burn::data::dataloader::Progress;
use burn_train::LearnerSummary;
use burn_train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry,
};
use burn_train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};

use crate::screen::Screen;
use gpas_train::metrics::{EvalRecord, NoticeRecord, Record, TrainRecord};
use gpas_train::recipe::Recipe;
use gpas_train::run::RunDirectory;
use gpas_train::signals::StopRequest;
use gpas_train::training::Observer;

const LOSS: &str = "Loss";
const PERPLEXITY: &str = "Perplexity";
const LEARNING_RATE: &str = "Learning rate";
const TOKENS_PER_SECOND: &str = "Tokens per second";
const GRADIENT_NORM: &str = "Gradient norm";
const GATE_GRADIENT_NORM: &str = "Gate gradient norm";
const GATE_MIN: &str = "Gate, smallest";
const GATE_MEAN: &str = "Gate, mean";
const GATE_MAX: &str = "Gate, largest";

/// Metric, unit, whether higher is better.
const METRICS: [(&str, &str, bool); 9] = [
    (LOSS, "nats", false),
    (PERPLEXITY, "", false),
    (LEARNING_RATE, "", true),
    (TOKENS_PER_SECOND, "", true),
    (GRADIENT_NORM, "", false),
    (GATE_GRADIENT_NORM, "", false),
    (GATE_MIN, "", true),
    (GATE_MEAN, "", true),
    (GATE_MAX, "", true),
];

/// The display of a run: the dashboard if standard output is a terminal and lines are not asked for; else lines.
pub struct Dashboard {
    plain: bool,
    /// Whom the keys of the dashboard ask to stop.
    stop: StopRequest,
    display: Option<Display>,
}

impl Dashboard {
    /// A display that opens when its run begins.
    pub fn new(plain: bool, stop: StopRequest) -> Self {
        Self {
            plain,
            stop,
            display: None,
        }
    }
}

impl Observer for Dashboard {
    fn begin(&mut self, _run: &RunDirectory, recipe: &Recipe, _records: &[Record]) -> io::Result<()> {
        self.display = Some(Display::open(self.plain, recipe.train.steps, &self.stop));
        Ok(())
    }

    fn record(&mut self, record: &Record) -> io::Result<()> {
        let Some(display) = &mut self.display else {
            return Ok(());
        };
        match record {
            Record::Train(record) => display.step(record),
            Record::Eval(record) => display.evaluation(record),
            Record::Notice(record) => display.notice(record),
            Record::Layers(_) => {}
        }
        Ok(())
    }
}

/// The display of a run in progress.
struct Display {
    renderer: Box<dyn MetricsRenderer>,
    total_steps: usize,
    /// What is said when the dashboard no longer covers the terminal; none where lines are printed.
    notices: Option<Vec<String>>,
}

impl Display {
    fn open(plain: bool, total_steps: u64, stop: &StopRequest) -> Self {
        let screen = if covers_terminal(plain) {
            Screen::open(stop.clone()).ok()
        } else {
            None
        };
        let notices = screen.is_some().then(Vec::new);
        let mut renderer: Box<dyn MetricsRenderer> = match screen {
            Some(screen) => Box::new(screen),
            None => Box::new(PlainLines::default()),
        };
        for (name, unit, higher_is_better) in METRICS {
            let unit = Some(unit.to_string()).filter(|unit| !unit.is_empty());
            renderer.register_metric(MetricDefinition {
                metric_id: id(name),
                name: name.to_string(),
                description: None,
                attributes: MetricAttributes::Numeric(NumericAttributes { unit, higher_is_better }),
            });
        }
        Self {
            renderer,
            total_steps: total_steps as usize,
            notices,
        }
    }

    /// Shows a finished step.
    fn step(&mut self, record: &TrainRecord) {
        let mut values = vec![
            (LOSS, record.loss, format!("{:.4}", record.loss)),
            (LEARNING_RATE, record.lr, format!("{:.3e}", record.lr)),
            (
                TOKENS_PER_SECOND,
                record.tokens_per_s,
                format!("{:.0}", record.tokens_per_s),
            ),
            (GRADIENT_NORM, record.grad_norm, format!("{:.4}", record.grad_norm)),
        ];
        if let Some(gates) = record.gates {
            values.push((
                GATE_GRADIENT_NORM,
                record.gate_grad_norm,
                format!("{:.4}", record.gate_grad_norm),
            ));
            for (name, value) in [(GATE_MIN, gates.min), (GATE_MEAN, gates.mean), (GATE_MAX, gates.max)] {
                values.push((name, value, format!("{value:+.4}")));
            }
        }
        for (name, value, text) in values {
            self.renderer.update_train(state(name, value, text));
        }
        let (progress, indicators) = self.progress(record.step);
        self.renderer.render_train(progress, indicators);
    }

    /// Shows an evaluation.
    fn evaluation(&mut self, record: &EvalRecord) {
        let values = [
            (LOSS, record.loss, format!("{:.4}", record.loss)),
            (PERPLEXITY, record.perplexity, format!("{:.3}", record.perplexity)),
        ];
        for (name, value, text) in values {
            self.renderer.update_valid(state(name, value, text));
        }
        let (progress, indicators) = self.progress(record.step);
        self.renderer.render_valid(progress, indicators);
    }

    /// Says something: at once, or when the dashboard no longer covers the terminal.
    fn notice(&mut self, record: &NoticeRecord) {
        let line = format!("step {:>6}  {}", record.step, record.message);
        match &mut self.notices {
            Some(notices) => notices.push(line),
            None => eprintln!("{line}"),
        }
    }

    fn progress(&self, step: u64) -> (TrainingProgress, Vec<ProgressType>) {
        let progress = TrainingProgress {
            progress: None,
            global_progress: Progress::new(step as usize, self.total_steps),
            iteration: Some(step as usize),
        };
        let indicators = vec![ProgressType::Value {
            tag: "Step".into(),
            value: step as usize,
        }];
        (progress, indicators)
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        let Some(notices) = self.notices.take() else {
            return;
        };
        // The screen goes first, so that the lines stay.
        self.renderer = Box::new(PlainLines::default());
        for line in notices {
            eprintln!("{line}");
        }
    }
}

/// Whether the dashboard covers the terminal.
pub fn covers_terminal(plain: bool) -> bool {
    !plain && io::stdout().is_terminal()
}

fn id(name: &str) -> MetricId {
    MetricId::new(name.to_string().into())
}

fn state(name: &str, value: f64, text: String) -> MetricState {
    let entry = MetricEntry::new(id(name), SerializedEntry::new(text, value.to_string()));
    MetricState::Numeric(entry, NumericEntry::Value(value))
}

/// Lines for a log file or a pipe: the first step, then one every few seconds, and every evaluation.
#[derive(Default)]
struct PlainLines {
    train: HashMap<MetricId, String>,
    valid: HashMap<MetricId, String>,
    last: Option<Instant>,
}

/// Prints a line. A run goes on when whoever read its lines has gone; `metrics.jsonl` has them all.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Time between two lines.
const PAUSE: Duration = Duration::from_secs(5);

impl PlainLines {
    fn keep(values: &mut HashMap<MetricId, String>, state: MetricState) {
        let entry = match state {
            MetricState::Generic(entry) | MetricState::Numeric(entry, _) => entry,
        };
        values.insert(entry.metric_id, entry.serialized_entry.formatted);
    }
}

impl MetricsRendererTraining for PlainLines {
    fn update_train(&mut self, state: MetricState) {
        Self::keep(&mut self.train, state);
    }

    fn update_valid(&mut self, state: MetricState) {
        Self::keep(&mut self.valid, state);
    }

    fn render_train(&mut self, item: TrainingProgress, _progress_indicators: Vec<ProgressType>) {
        let Progress {
            items_processed: step,
            items_total: total,
        } = item.global_progress;
        let due = self.last.is_none_or(|last| last.elapsed() >= PAUSE) || step == total;
        if due {
            self.last = Some(Instant::now());
            let value = |name: &str| self.train.get(&id(name)).map_or("", String::as_str);
            let mut line = format!(
                "step {step:>6}/{total}  loss {}  lr {}  {} tokens/s  gradient norm {}",
                value(LOSS),
                value(LEARNING_RATE),
                value(TOKENS_PER_SECOND),
                value(GRADIENT_NORM),
            );
            if self.train.contains_key(&id(GATE_MEAN)) {
                line += &format!(
                    "  gates {} … {} … {}",
                    value(GATE_MIN),
                    value(GATE_MEAN),
                    value(GATE_MAX)
                );
            }
            say(&line);
        }
    }

    fn render_valid(&mut self, item: TrainingProgress, _progress_indicators: Vec<ProgressType>) {
        let Progress {
            items_processed: step,
            items_total: total,
        } = item.global_progress;
        let value = |name: &str| self.valid.get(&id(name)).map_or("", String::as_str);
        say(&format!(
            "step {step:>6}/{total}  validation loss {}  perplexity {}",
            value(LOSS),
            value(PERPLEXITY)
        ));
    }

    fn on_train_end(&mut self, _summary: Option<LearnerSummary>) -> Result<(), Box<dyn std::error::Error>> {
        Ok(())
    }
}

impl MetricsRendererEvaluation for PlainLines {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}

    fn render_test(&mut self, _item: EvaluationProgress, _progress_indicators: Vec<ProgressType>) {}
}

impl MetricsRenderer for PlainLines {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, _definition: MetricDefinition) {}
}
