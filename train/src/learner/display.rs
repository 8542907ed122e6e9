//! The display of a run, whatever it is, as the one type that burn-train's learner takes.

use std::error::Error;

use burn_train::LearnerSummary;
use burn_train::metric::MetricDefinition;
use burn_train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};

/// Somebody's display, or none.
pub(super) struct Display(pub Option<Box<dyn MetricsRenderer>>);

impl MetricsRendererTraining for Display {
    fn update_train(&mut self, state: MetricState) {
        if let Some(shown) = &mut self.0 {
            shown.update_train(state);
        }
    }

    fn update_valid(&mut self, state: MetricState) {
        if let Some(shown) = &mut self.0 {
            shown.update_valid(state);
        }
    }

    fn render_train(&mut self, item: TrainingProgress, indicators: Vec<ProgressType>) {
        if let Some(shown) = &mut self.0 {
            shown.render_train(item, indicators);
        }
    }

    fn render_valid(&mut self, item: TrainingProgress, indicators: Vec<ProgressType>) {
        if let Some(shown) = &mut self.0 {
            shown.render_valid(item, indicators);
        }
    }

    fn on_train_end(&mut self, summary: Option<LearnerSummary>) -> Result<(), Box<dyn Error>> {
        self.0.as_mut().map_or(Ok(()), |shown| shown.on_train_end(summary))
    }
}

impl MetricsRendererEvaluation for Display {
    fn update_test(&mut self, name: EvaluationName, state: MetricState) {
        if let Some(shown) = &mut self.0 {
            shown.update_test(name, state);
        }
    }

    fn render_test(&mut self, item: EvaluationProgress, indicators: Vec<ProgressType>) {
        if let Some(shown) = &mut self.0 {
            shown.render_test(item, indicators);
        }
    }

    fn on_test_end(&mut self, summary: Option<LearnerSummary>) -> Result<(), Box<dyn Error>> {
        self.0.as_mut().map_or(Ok(()), |shown| shown.on_test_end(summary))
    }
}

impl MetricsRenderer for Display {
    fn manual_close(&mut self) {
        if let Some(shown) = &mut self.0 {
            shown.manual_close();
        }
    }

    fn register_metric(&mut self, definition: MetricDefinition) {
        if let Some(shown) = &mut self.0 {
            shown.register_metric(definition);
        }
    }
}
