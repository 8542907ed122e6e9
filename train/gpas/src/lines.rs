//! Lines of a run for a log file, a pipe, or a job in the background: the first step, then one every few seconds, and every evaluation.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use burn_train::LearnerSummary;
use burn_train::metric::{MetricDefinition, MetricId};
use burn_train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};
use gpas_train::metrics::{EvalRecord, Quantity, TrainRecord};

use crate::shown::{declared_names, step};

/// Lines, as a display of burn-train's learner.
pub struct PlainLines {
    steps: u64,
    /// Metrics that nobody has declared: somebody's own.
    own: Vec<(String, MetricId)>,
    train: HashMap<MetricId, String>,
    valid: HashMap<MetricId, String>,
    last: Option<Instant>,
}

/// Prints a line. A run goes on when whoever read its lines has gone; `metrics.jsonl` has them all.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Time between two lines.
const PAUSE: Duration = Duration::from_secs(5);

impl PlainLines {
    /// Lines of a run of `steps` steps.
    pub fn new(steps: u64) -> Self {
        Self {
            steps,
            own: Vec::new(),
            train: HashMap::new(),
            valid: HashMap::new(),
            last: None,
        }
    }

    /// The numbers of a step or of an evaluation, as their declarations put them into a line, and then somebody's own.
    fn line<R>(&self, step: usize, values: &HashMap<MetricId, String>, quantities: &[Quantity<R>]) -> String {
        let mut line = format!("step {step:>6}/{}", self.steps);
        let text = |id: &MetricId| values.get(id).filter(|text| !text.is_empty());
        for quantity in quantities {
            if let Some(text) = text(&MetricId::new(quantity.name.to_string().into())) {
                line += &quantity.in_a_line.replace("{}", text);
            }
        }
        for (name, id) in &self.own {
            if let Some(text) = text(id) {
                line += &format!("  {name} {text}");
            }
        }
        line
    }

    /// Keeps a number for the next line.
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
        let step = step(&item);
        if self.last.is_none_or(|last| last.elapsed() >= PAUSE) || step as u64 == self.steps {
            self.last = Some(Instant::now());
            say(&self.line(step, &self.train, TrainRecord::QUANTITIES));
        }
    }

    fn render_valid(&mut self, item: TrainingProgress, _progress_indicators: Vec<ProgressType>) {
        say(&self.line(step(&item), &self.valid, EvalRecord::QUANTITIES));
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

    fn register_metric(&mut self, definition: MetricDefinition) {
        if declared_names().all(|name| name != definition.name) {
            self.own.push((definition.name, definition.metric_id));
            // They come in no order.
            self.own.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_train::metric::{MetricEntry, NumericEntry, SerializedEntry};

    fn state(name: &str, text: &str) -> MetricState {
        let entry = MetricEntry::new(
            MetricId::new(name.to_string().into()),
            SerializedEntry::new(text.into(), text.into()),
        );
        MetricState::Numeric(entry, NumericEntry::Value(0.0))
    }

    #[test]
    fn a_line_has_what_is_declared_for_it_and_somebodys_own() {
        let mut lines = PlainLines::new(1500);
        let own = MetricId::new("Tokens per parameter".to_string().into());
        lines.own.push(("Tokens per parameter".into(), own));
        for (name, text) in [("Loss", "4.2684"), ("Perplexity", "71.405"), ("Bits per byte", "1.9")] {
            lines.update_valid(state(name, text));
        }
        let line = lines.line(1500, &lines.valid, EvalRecord::QUANTITIES);
        assert_eq!(line, "step   1500/1500  validation loss 4.2684  perplexity 71.405");
        for (name, text) in [
            ("Loss", "8.1000"),
            ("Learning rate", "1.000e-3"),
            ("Tokens per second", "9000"),
            ("Gradient norm", "1.2000"),
            ("Gate, smallest", "-0.1000"),
            ("Gate, mean", "+0.0000"),
            ("Gate, largest", "+0.1000"),
            ("Tokens per parameter", "0.03"),
        ] {
            lines.update_train(state(name, text));
        }
        let line = lines.line(7, &lines.train, TrainRecord::QUANTITIES);
        assert_eq!(
            line,
            "step      7/1500  loss 8.1000  lr 1.000e-3  9000 tokens/s  gradient norm 1.2000  \
             gates -0.1000 … +0.0000 … +0.1000  Tokens per parameter 0.03"
        );
    }
}
