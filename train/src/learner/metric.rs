//! Burn-train's metrics: those of the declarations, and somebody's own.

use std::sync::Arc;

use burn_train::logger::MetricLogger;
use burn_train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn_train::metric::{
    Adaptor, Metric, MetricAttributes, MetricDefinition, MetricMetadata, MetricName, Numeric, NumericAttributes,
    NumericEntry, SerializedEntry,
};

use crate::metrics::Quantity;

/// A declared number as a metric. It shows the newest value; where a record has none, an empty text.
pub(super) struct Shown<R: 'static> {
    quantity: &'static Quantity<R>,
    value: f64,
}

impl<R> Shown<R> {
    pub fn new(quantity: &'static Quantity<R>) -> Self {
        Self {
            quantity,
            value: f64::NAN,
        }
    }
}

impl<R> Clone for Shown<R> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<R: Send + Sync> Metric for Shown<R> {
    type Input = R;

    fn name(&self) -> MetricName {
        Arc::new(self.quantity.name.into())
    }

    fn attributes(&self) -> MetricAttributes {
        let unit = Some(self.quantity.unit).filter(|unit| !unit.is_empty());
        MetricAttributes::Numeric(NumericAttributes {
            unit: unit.map(str::to_string),
            higher_is_better: self.quantity.higher_is_better,
        })
    }

    fn update(&mut self, record: &R, _metadata: &MetricMetadata) -> SerializedEntry {
        let value = (self.quantity.read)(record);
        self.value = value.unwrap_or(f64::NAN);
        let text = value.map_or(String::new(), |value| self.quantity.format.text(value));
        SerializedEntry::new(text, self.value.to_string())
    }

    fn clear(&mut self) {}
}

impl<R> Numeric for Shown<R> {
    fn value(&self) -> NumericEntry {
        NumericEntry::Value(self.value)
    }

    fn running_value(&self) -> NumericEntry {
        NumericEntry::Value(self.value)
    }
}

/// A metric whose type has been put away, so that a run can hold it before it has a backend.
pub(crate) struct Held<R>(Box<dyn AnyMetric<R>>);

impl<R> Held<R> {
    pub fn new<M: Metric + Numeric + 'static>(metric: M) -> Self
    where
        R: Adaptor<M::Input>,
    {
        Self(Box::new(metric))
    }
}

/// [`Metric`] and [`Numeric`] without what keeps them from being a trait object.
trait AnyMetric<R>: Send + Sync {
    fn boxed(&self) -> Box<dyn AnyMetric<R>>;
    fn name(&self) -> MetricName;
    fn description(&self) -> Option<String>;
    fn attributes(&self) -> MetricAttributes;
    fn update(&mut self, record: &R, metadata: &MetricMetadata) -> SerializedEntry;
    fn clear(&mut self);
    fn value(&self) -> NumericEntry;
    fn running_value(&self) -> NumericEntry;
}

impl<R: Adaptor<M::Input>, M: Metric + Numeric + 'static> AnyMetric<R> for M {
    fn boxed(&self) -> Box<dyn AnyMetric<R>> {
        Box::new(self.clone())
    }

    fn name(&self) -> MetricName {
        Metric::name(self)
    }

    fn description(&self) -> Option<String> {
        Metric::description(self)
    }

    fn attributes(&self) -> MetricAttributes {
        Metric::attributes(self)
    }

    fn update(&mut self, record: &R, metadata: &MetricMetadata) -> SerializedEntry {
        Metric::update(self, &record.adapt(), metadata)
    }

    fn clear(&mut self) {
        Metric::clear(self);
    }

    fn value(&self) -> NumericEntry {
        Numeric::value(self)
    }

    fn running_value(&self) -> NumericEntry {
        Numeric::running_value(self)
    }
}

impl<R> Clone for Held<R> {
    fn clone(&self) -> Self {
        Self(self.0.boxed())
    }
}

impl<R> Metric for Held<R> {
    type Input = R;

    fn name(&self) -> MetricName {
        self.0.name()
    }

    fn description(&self) -> Option<String> {
        self.0.description()
    }

    fn attributes(&self) -> MetricAttributes {
        self.0.attributes()
    }

    fn update(&mut self, record: &R, metadata: &MetricMetadata) -> SerializedEntry {
        self.0.update(record, metadata)
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

impl<R> Numeric for Held<R> {
    fn value(&self) -> NumericEntry {
        self.0.value()
    }

    fn running_value(&self) -> NumericEntry {
        self.0.running_value()
    }
}

/// Keeps nothing: `metrics.jsonl` has every number. Without a logger, burn-train writes a folder for every epoch into the run directory.
pub(super) struct NotKept;

impl MetricLogger for NotKept {
    fn log(&mut self, _update: MetricsUpdate, _epoch: usize, _split: &Split) {}

    fn read_numeric(&mut self, name: &str, _epoch: usize, _split: &Split) -> Result<Vec<NumericEntry>, String> {
        Err(format!("{name} is in metrics.jsonl"))
    }

    fn log_metric_definition(&mut self, _definition: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _summary: EpochSummary) {}
}
