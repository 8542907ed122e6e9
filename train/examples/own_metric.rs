//! A metric of one's own: a type with burn-train's `Metric` and `Numeric`, and one line that joins it to those of a run.
//!
//! ```sh
//! cargo run --release -p gpas-train --example own_metric
//! ```

mod text;

use std::error::Error;
use std::sync::{Arc, Mutex};

use burn_train::metric::{Metric, MetricMetadata, MetricName, Numeric, NumericEntry, SerializedEntry};
use gpas_train::backend::BackendChoice;
use gpas_train::learner::TrainingRun;
use gpas_train::metrics::TrainRecord;
use gpas_train::recipe::Recipe;

/// The loss without its noise: at every step, a tenth of the way to that step's.
#[derive(Clone, Default)]
struct SmoothLoss {
    course: Arc<Mutex<Vec<f64>>>,
}

impl Metric for SmoothLoss {
    type Input = TrainRecord;

    fn name(&self) -> MetricName {
        Arc::new("Smooth loss".into())
    }

    fn update(&mut self, step: &TrainRecord, _metadata: &MetricMetadata) -> SerializedEntry {
        let mut course = self.course.lock().expect("no thread panics with it");
        let before = course.last().copied().unwrap_or(step.loss);
        let value = before + 0.1 * (step.loss - before);
        course.push(value);
        SerializedEntry::new(format!("{value:.3}"), value.to_string())
    }

    fn clear(&mut self) {}
}

impl Numeric for SmoothLoss {
    fn value(&self) -> NumericEntry {
        let course = self.course.lock().expect("no thread panics with it");
        NumericEntry::Value(course.last().copied().unwrap_or(f64::NAN))
    }

    fn running_value(&self) -> NumericEntry {
        self.value()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let place = tempfile::tempdir()?;
    let data = text::prepared(place.path())?;
    let recipe = Recipe::preset("nano")
        .with("data.seq_len", 32)
        .with("train.batch", 4)
        .with("train.steps", 40)
        .with("train.lr", 1e-2)
        .resolve()?;

    let metric = SmoothLoss::default();
    TrainingRun::new(recipe, data, place.path().join("run"))?
        .metric_train_numeric(metric.clone())
        .run(BackendChoice::Auto)?;

    let course = metric.course.lock().expect("no thread panics with it");
    assert_eq!(course.len(), 40);
    assert!(course[39] < course[0] - 0.5, "{course:?}");
    println!("smooth loss: {:.3} at first, {:.3} at last", course[0], course[39]);
    Ok(())
}
