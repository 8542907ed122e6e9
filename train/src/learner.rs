//! A training run from its first step to its last: burn-train's [`SupervisedTraining`] with a loop of our own as its strategy.
//!
//! burn-train brings the event processor, the metrics, the display and the interrupter. Its loop (0.21) cannot make an exact run:
//!
//! | burn-train's loop | the loop here |
//! |---|---|
//! | steps the learning rate with every micro-batch | with every optimizer step |
//! | sums the gradients of the micro-batches that it accumulates | takes the gradient of the mean over the step's scored tokens |
//! | drops the micro-batches that are left over at the end of an epoch | a step is all of its sequences, however they are cut |
//! | saves after each epoch, without the place in the data | saves after any step: weights, moments and place, to the last bit |
//! | leaves an interrupted epoch without validation or checkpoint | finishes the step and writes a checkpoint |
//!
//! So [`TrainingStrategy::Custom`] gets `ExactSteps`, whose optimizer is that of the [`Trainer`]. To burn-train an item is an optimizer step,
//! of which its metrics see the [`TrainRecord`], or an evaluation, of which they see the [`EvalRecord`]; an epoch is what lies between two
//! evaluations.

mod components;
mod display;
mod from;
mod metric;
mod records;
mod sound;
mod start;
mod strategy;

use std::path::PathBuf;
use std::sync::Arc;

use burn::optim::AdamConfig;
use burn::tensor::backend::AutodiffBackend;
use burn_train::metric::{Adaptor, Metric, Numeric};
use burn_train::renderer::MetricsRenderer;
use burn_train::{Interrupter, Learner, LearningResult, SupervisedTraining, TrainingStrategy};
use gpas_data::{EvaluationBatches, PreparedData, TrainBatches, Windows};
use gpas_model::LlamaConfig;

use crate::backend::{BackendChoice, BackendTask, Selected};
use crate::checkpoint::{Checkpoint, CheckpointError, Found, RunState, Writer, kept};
use crate::metrics::{EvalRecord, GateRange, Quantity, TrainRecord};
use crate::recipe::Recipe;
use crate::run::{Parent, RunDirectory, RunError, RunLock};
use crate::signals::StopRequest;
use crate::trainer::Trainer;
use crate::training::{Observer, Outcome, TrainingError, check_precision, check_vocabulary, validation_windows};
use components::{Components, Pretraining};
use display::Display;
use from::Inheritance;
use metric::{Held, NotKept, Shown};
use records::Records;
use sound::{largest_sound_loss, newest_sound};
use start::{Opened, Start};
use strategy::{ExactSteps, Session};

type OpenDisplay = Box<dyn FnOnce(&Interrupter) -> Box<dyn MetricsRenderer>>;

/// A run that has everything it needs but a backend.
///
/// # Examples
/// A run from Rust, with an observer and one more metric; `NumericMetric` stands for a [`Metric`] of your own.
/// ```no_run
/// use gpas_data::PreparedData;
/// use gpas_train::backend::BackendChoice;
/// use gpas_train::learner::TrainingRun;
/// use gpas_train::metrics::Record;
/// use gpas_train::recipe::Recipe;
///
/// let recipe = Recipe::preset("nano").with("train.lr", 1e-3).with("train.steps", 200).resolve()?;
/// let data = PreparedData::open("prepared".as_ref())?;
/// let outcome = TrainingRun::new(recipe, data, "runs/first")?
///     .observe(|record: &Record| {
///         if let Record::Eval(record) = record {
///             println!("after {} steps: {:.3}", record.step, record.perplexity);
///         }
///     })
///     .metric_train_numeric(burn_train::metric::IterationSpeedMetric::new())
///     .run(BackendChoice::Auto)?;
/// println!("{}", outcome.run.path().display());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TrainingRun {
    recipe: Recipe,
    config: LlamaConfig,
    data: PreparedData,
    start: Start,
    observers: Vec<Box<dyn Observer>>,
    train_metrics: Vec<Held<TrainRecord>>,
    valid_metrics: Vec<Held<EvalRecord>>,
    display: Option<OpenDisplay>,
    interrupter: Interrupter,
    stop: StopRequest,
}

impl TrainingRun {
    /// A new run in the directory `out`, which [`run`](Self::run) makes. A vocabulary that the recipe leaves to the data is that of its
    /// tokenizer.
    ///
    /// # Errors
    /// If the directory exists, the sizes of the model do not fit together, or the data holds ids that the model has no embedding for.
    pub fn new(recipe: Recipe, data: PreparedData, out: impl Into<PathBuf>) -> Result<Self, TrainingError> {
        let out = out.into();
        if out.exists() {
            return Err(RunError::Exists(out).into());
        }
        let start = Start::new(out, &recipe)?;
        Self::with(recipe, data, start)
    }

    /// A new run in the directory `out` that begins with a checkpoint of `run`: with its weights, its moments and its place, by `recipe`, which
    /// may differ from the run's own in all that leaves the parameters what they are. [`resolve_from`](crate::recipe::resolve_from) makes such
    /// a recipe. Nothing is ever written to `run`.
    ///
    /// # Errors
    /// If the directory exists, no steps are left to do, the parameters are others, or the data was prepared with another tokenizer.
    ///
    /// # Examples
    /// ```no_run
    /// use gpas_data::PreparedData;
    /// use gpas_train::chosen::ChosenCheckpoint;
    /// use gpas_train::learner::TrainingRun;
    /// use gpas_train::recipe::{Beginning, RecipeOptions, resolve_from};
    ///
    /// let (run, found) = ChosenCheckpoint::of("runs/first@best".as_ref()).open()?;
    /// let state = &found.checkpoint.state;
    /// let beginning = Beginning { step: state.step, tokens: state.tokens };
    /// let options = RecipeOptions { set: vec!["train.steps=3000".into()], ..RecipeOptions::default() };
    /// let recipe = resolve_from(&run.recipe()?, beginning, &options, false)?;
    /// let info = run.info()?;
    /// let data = PreparedData::open(&info.data)?;
    /// TrainingRun::from_checkpoint(&run, found, recipe, data, "runs/longer")?.run(info.backend.parse()?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_checkpoint(
        run: &RunDirectory,
        found: Found,
        recipe: Recipe,
        data: PreparedData,
        out: impl Into<PathBuf>,
    ) -> Result<Self, TrainingError> {
        let out = out.into();
        if out.exists() {
            return Err(RunError::Exists(out).into());
        }
        let inheritance = Inheritance::new(run, found, &recipe, &data, out)?;
        Self::with(recipe, data, Start::From(Box::new(inheritance)))
    }

    /// A run that goes on from its newest valid checkpoint, by `recipe`, which may differ from the run's own in what cannot change the
    /// mathematics. Nothing is written before [`run`](Self::run).
    ///
    /// # Errors
    /// If the recipe or the data is another, or no checkpoint is valid.
    ///
    /// # Examples
    /// ```no_run
    /// use gpas_data::PreparedData;
    /// use gpas_train::learner::TrainingRun;
    /// use gpas_train::run::RunDirectory;
    ///
    /// let run = RunDirectory::open("runs/first".as_ref())?;
    /// let lock = run.lock()?;
    /// let (recipe, info) = (run.recipe()?, run.info()?);
    /// let data = PreparedData::open(&info.data)?;
    /// TrainingRun::resume(run, lock, recipe, data)?.run(info.backend.parse()?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn resume(run: RunDirectory, lock: RunLock, recipe: Recipe, data: PreparedData) -> Result<Self, TrainingError> {
        let start = Start::resume(run, lock, &recipe, &data)?;
        Self::with(recipe, data, start)
    }

    fn with(recipe: Recipe, data: PreparedData, start: Start) -> Result<Self, TrainingError> {
        let config = recipe.llama(data.tokenizer().vocab_size())?;
        check_vocabulary(&recipe, &data, &config)?;
        Ok(Self {
            recipe: recipe.with_vocab(config.vocab),
            config,
            data,
            start,
            observers: Vec::new(),
            train_metrics: Vec::new(),
            valid_metrics: Vec::new(),
            display: None,
            interrupter: Interrupter::new(),
            stop: StopRequest::default(),
        })
    }

    /// Tells `observer` of every record; a closure over [`Record`](crate::metrics::Record)s is one.
    pub fn observe(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Registers a metric of the optimizer steps: one whose input is a [`TrainRecord`], or one that has none, such as burn-train's of the
    /// processor. Its name must not be that of another.
    pub fn metric_train_numeric<M: Metric + Numeric + 'static>(mut self, metric: M) -> Self
    where
        TrainRecord: Adaptor<M::Input>,
    {
        self.train_metrics.push(Held::new(metric));
        self
    }

    /// Registers a metric of the evaluations: one whose input is an [`EvalRecord`], or one that has none.
    pub fn metric_valid_numeric<M: Metric + Numeric + 'static>(mut self, metric: M) -> Self
    where
        EvalRecord: Adaptor<M::Input>,
    {
        self.valid_metrics.push(Held::new(metric));
        self
    }

    /// Shows the run on a display of burn-train's or of one's own, which opens when everything is ready for the first step. Without one,
    /// nothing is shown.
    pub fn display(mut self, open: impl FnOnce(&Interrupter) -> Box<dyn MetricsRenderer> + 'static) -> Self {
        self.display = Some(Box::new(open));
        self
    }

    /// Lets `stop` end the run after a step, as the run's [interrupter](Self::interrupter) does.
    pub fn stop(mut self, stop: StopRequest) -> Self {
        self.stop = stop;
        self
    }

    /// burn-train's handle that ends the run after a step.
    pub fn interrupter(&self) -> Interrupter {
        self.interrupter.clone()
    }

    /// The recipe, its vocabulary decided.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The model.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The data.
    pub fn data(&self) -> &PreparedData {
        &self.data
    }

    /// Where it writes.
    pub fn path(&self) -> &std::path::Path {
        self.start.path()
    }

    /// The checkpoint of another run that it begins with, or began with.
    pub fn parent(&self) -> Option<&Parent> {
        self.start.parent()
    }

    /// Whether its moments begin at zero though its weights come from another run, which has made no update.
    pub fn lacks_moments(&self) -> bool {
        self.start.lacks_moments()
    }

    /// Whether its data is other than that of the run whose checkpoint it begins with, be it under the same path.
    pub fn has_other_data(&self) -> bool {
        self.start.has_other_data()
    }

    /// Steps done before it goes on; none of a new run.
    pub fn resumed_at(&self) -> Option<u64> {
        self.start.resumed_at()
    }

    /// What is wrong with the checkpoints that are newer than the one that it goes on from.
    pub fn passed_over(&self) -> &[CheckpointError] {
        self.start.passed_over()
    }

    /// Trains on a backend until all steps are done or a stop is asked for.
    ///
    /// # Errors
    /// If the backend is not there or does not compute in the recipe's precision, the data is damaged, the disk does not take a record or
    /// a checkpoint, or too many steps in a row were not finite.
    pub fn run(self, backend: BackendChoice) -> Result<Outcome, TrainingError> {
        let selected = backend.select()?;
        selected.run(Launch { run: self, selected })?
    }
}

/// A run that has its backend.
struct Launch {
    run: TrainingRun,
    selected: Selected,
}

impl BackendTask for Launch {
    type Output = Result<Outcome, TrainingError>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let Launch { run, selected } = self;
        check_precision::<B>(&run.config, &device)?;
        let loaders = Loaders::<B>::open(&run, &device)?;
        let Opened {
            run: directory,
            lock: _lock,
            checkpoint,
            begin,
        } = run.start.open(&run.recipe, &run.config, &run.data, selected)?;
        let (trainer, state) = trainer::<B>(&run.recipe, &run.config, checkpoint.as_ref(), &device)?;
        let (records, history) = Records::open(&directory, run.observers, begin, &state)?;
        let checkpoints = kept(&directory.checkpoints_path())?;
        let steps = checkpoints.into_iter().map(|(step, _)| step);
        let session = Session {
            records,
            begin,
            path: directory.path().to_path_buf(),
            writer: Writer::new(directory.checkpoints_path()),
            sound: newest_sound(steps, &history, largest_sound_loss(run.config.vocab, state.best)),
            saved: checkpoint.map(|checkpoint| checkpoint.state.step),
            state,
            config: run.config,
            damage: loaders.train.damage().clone(),
            validation_damage: loaders.valid.damage().clone(),
            bytes: run.data.tokenizer().byte_lengths(),
            device,
            stop: run.stop,
        };

        let step = example_step(&session.config);
        let evaluation = example_evaluation(session.bytes.is_some());
        // burn-train asks for an optimizer and a rate; those of the run are the trainer's.
        let (optimizer, rate) = (AdamConfig::new().init::<B, Pretraining<B>>(), run.recipe.train.lr);
        let llama = trainer.model().clone();
        let learner = Learner::new(Pretraining { llama }, optimizer, rate);
        let strategy = Arc::new(ExactSteps::new(session, trainer));
        let epochs = run.recipe.train.steps.div_ceil(run.recipe.eval.every);
        let mut training = SupervisedTraining::<Components<B>>::new(directory.path(), loaders.train, loaders.valid)
            .with_training_strategy(TrainingStrategy::Custom(strategy.clone()))
            .num_epochs(epochs as usize)
            .with_interrupter(run.interrupter.clone())
            // Every number is in metrics.jsonl; burn-train's own files and its log would be strangers in the run directory.
            .with_metric_logger(NotKept)
            .with_application_logger(None)
            .renderer(Display(run.display.map(|open| open(&run.interrupter))));
        for metric in shown(TrainRecord::QUANTITIES, &step, run.train_metrics) {
            training = training.metric_train_numeric(metric);
        }
        for metric in shown(EvalRecord::QUANTITIES, &evaluation, run.valid_metrics) {
            training = training.metric_valid_numeric(metric);
        }
        let LearningResult { renderer, .. } = training.launch(learner);
        // The display goes before the observers, who may have kept what they say until the terminal is free.
        drop(renderer);
        let (session, end) = strategy.finish().expect("burn-train's learner comes to its strategy");
        Ok(Outcome {
            run: directory,
            step: session.state.step,
            first: session.records.first,
            last: session.records.last,
            end: end?,
        })
    }
}

/// What a run reads its batches from.
struct Loaders<B: AutodiffBackend> {
    train: Arc<TrainBatches<B>>,
    valid: Arc<EvaluationBatches<B::InnerBackend>>,
}

impl<B: AutodiffBackend> Loaders<B> {
    /// Damage that only reading shows is found here, before anything is written.
    fn open(run: &TrainingRun, device: &B::Device) -> Result<Self, TrainingError> {
        let TrainingRun { recipe, data, .. } = run;
        let windows = Windows::new(data.train().clone(), recipe.data.mode, recipe.data.seq_len, data.pad())?;
        let (seed, batch, micro_batch) = (recipe.train.seed, recipe.train.batch, recipe.train.micro_batch);
        let steps = recipe.train.steps as usize;
        let train =
            TrainBatches::<B>::new(windows, seed, batch, 0..steps, device.clone())?.with_micro_batch(micro_batch)?;
        train.windows_of_step(0)?;
        let tokens = Some(recipe.eval.tokens as usize);
        let valid = EvaluationBatches::new(validation_windows(recipe, data)?, micro_batch, tokens, device.clone())?;
        for index in 0..valid.batches() {
            valid.windows_of_batch(index)?;
        }
        Ok(Self {
            train: Arc::new(train),
            valid: Arc::new(valid),
        })
    }
}

/// The trainer and the place of a run: those of its checkpoint, or those of its first step.
fn trainer<B: AutodiffBackend>(
    recipe: &Recipe,
    config: &LlamaConfig,
    checkpoint: Option<&Checkpoint>,
    device: &B::Device,
) -> Result<(Trainer<B>, RunState), TrainingError> {
    let new = |model| Trainer::new(model, recipe.optimizer(), recipe.schedule().rates());
    let Some(checkpoint) = checkpoint else {
        let model = config.init(recipe.train.seed, device);
        return Ok((new(model)?, RunState::new(recipe.clone())));
    };
    let state = RunState {
        recipe: recipe.clone(),
        ..checkpoint.state.clone()
    };
    let trainer = new(checkpoint.model(config, device)?)?
        .resume(checkpoint.moments()?, state.updates, state.step)
        .map_err(CheckpointError::from)?;
    Ok((trainer, state))
}

/// The metrics of the declared numbers that a record such as `example` has, and then somebody's own.
fn shown<R>(quantities: &'static [Quantity<R>], example: &R, own: Vec<Held<R>>) -> Vec<Held<R>>
where
    R: Adaptor<R> + Send + Sync + 'static,
{
    let declared = quantities
        .iter()
        .filter(|quantity| quantity.on_dashboard && (quantity.read)(example).is_some());
    declared
        .map(|quantity| Held::new(Shown::new(quantity)))
        .chain(own)
        .collect()
}

/// A record that has the numbers that every step of a model has.
fn example_step(config: &LlamaConfig) -> TrainRecord {
    TrainRecord {
        gates: GateRange::of(&vec![0.0; config.gates() as usize]),
        ..TrainRecord::default()
    }
}

/// A record that has the numbers that every evaluation has; whether bits per byte are among them is for the tokenizer to say.
fn example_evaluation(has_bytes: bool) -> EvalRecord {
    EvalRecord {
        bits_per_byte: has_bytes.then_some(0.0),
        ..EvalRecord::default()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;
    use std::path::Path;
    use std::rc::Rc;
    use std::sync::Mutex;

    use burn_train::metric::{MetricMetadata, MetricName, NumericEntry, SerializedEntry};

    use super::*;
    use crate::backend::BackendName;
    use crate::evaluate::tests::{SEQ, prepared};
    use crate::metrics::Record;
    use crate::signals::Stop;
    use crate::training::End;

    const STEPS: u64 = 12;
    const FLEX: BackendChoice = BackendChoice::Named(BackendName::Flex, 0);

    fn recipe() -> Recipe {
        Recipe::preset("nano")
            .with("model.scheme", "pre_gpas")
            .with("model.hidden", 16)
            .with("model.intermediate", 32)
            .with("model.heads", 2)
            .with("model.layers", 2)
            .with("data.seq_len", SEQ)
            .with("train.steps", STEPS)
            .with("train.batch", 4)
            .with("train.micro_batch", 2)
            .with("train.lr", 1e-2)
            .with("eval.every", 4)
            .resolve()
            .unwrap()
    }

    /// Counts what it is shown.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<f64>>>);

    macro_rules! metric_of {
        ($name:ident, $record:ty) => {
            #[derive(Clone, Default)]
            struct $name(Seen);

            impl Metric for $name {
                type Input = $record;

                fn name(&self) -> MetricName {
                    Arc::new(stringify!($name).into())
                }

                fn update(&mut self, record: &$record, metadata: &MetricMetadata) -> SerializedEntry {
                    assert_eq!(metadata.iteration, Some(record.step as usize));
                    self.0.0.lock().unwrap().push(record.loss);
                    SerializedEntry::new(String::new(), String::new())
                }

                fn clear(&mut self) {}
            }

            impl Numeric for $name {
                fn value(&self) -> NumericEntry {
                    NumericEntry::Value(0.0)
                }

                fn running_value(&self) -> NumericEntry {
                    self.value()
                }
            }
        };
    }

    metric_of!(OfSteps, TrainRecord);
    metric_of!(OfEvaluations, EvalRecord);

    fn losses(run: &Path) -> Vec<u64> {
        let metrics = crate::metrics::Metrics::read(&run.join("metrics.jsonl")).unwrap();
        metrics.train.iter().map(|record| record.loss.to_bits()).collect()
    }

    #[test]
    fn observers_and_metrics_see_every_step_and_nothing_else_is_written() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("run");
        let observed = Rc::new(RefCell::new(Vec::new()));
        let (of_steps, of_evaluations) = (OfSteps::default(), OfEvaluations::default());
        let outcome = TrainingRun::new(recipe(), prepared(place.path()), &out)
            .unwrap()
            .observe({
                let observed = observed.clone();
                move |record: &Record| {
                    if let Record::Train(record) = record {
                        observed.borrow_mut().push(record.loss);
                    }
                }
            })
            .metric_train_numeric(of_steps.clone())
            .metric_valid_numeric(of_evaluations.clone())
            .run(FLEX)
            .unwrap();
        assert_eq!((outcome.end, outcome.step), (End::Complete, STEPS));
        let seen = of_steps.0.0.lock().unwrap().clone();
        assert_eq!((seen.len(), &seen), (STEPS as usize, &*observed.borrow()));
        assert!(
            seen.iter().all(|loss| loss.is_finite()) && seen[11] < seen[0],
            "{seen:?}"
        );
        assert_eq!(of_evaluations.0.0.lock().unwrap().len(), 4);

        let mut names: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let expected = [
            "checkpoints",
            "lock",
            "metrics.jsonl",
            "recipe.toml",
            "run.json",
            "special_tokens.json",
            "tokenizer.json",
        ];
        assert_eq!(names, expected);
        let info = RunDirectory::open(&out).unwrap().info().unwrap();
        assert_eq!((info.backend.as_str(), info.gates), ("flex", 2));
    }

    #[test]
    fn an_interrupter_stops_a_run_that_then_goes_on_exactly() {
        let place = tempfile::tempdir().unwrap();
        let data = prepared(place.path());
        let whole = place.path().join("whole");
        TrainingRun::new(recipe(), data.clone(), &whole)
            .unwrap()
            .run(FLEX)
            .unwrap();

        let out = place.path().join("stopped");
        let run = TrainingRun::new(recipe(), data.clone(), &out).unwrap();
        let interrupter = run.interrupter();
        let outcome = run
            .observe(move |record: &Record| {
                if record.step() == 5 {
                    interrupter.stop(None);
                }
            })
            .run(FLEX)
            .unwrap();
        assert_eq!((outcome.end, outcome.step), (End::Stopped(Stop::Interrupt), 5));

        let directory = RunDirectory::open(&out).unwrap();
        let (lock, recipe) = (directory.lock().unwrap(), directory.recipe().unwrap());
        let run = TrainingRun::resume(directory, lock, recipe, data).unwrap();
        assert_eq!(run.resumed_at(), Some(5));
        let outcome = run.run(FLEX).unwrap();
        assert_eq!(outcome.end, End::Complete);
        assert_eq!(losses(&out), losses(&whole));
        let weights = |run: &Path| fs::read(run.join("checkpoints/step-12/model.safetensors")).unwrap();
        assert!(weights(&out) == weights(&whole));
    }
}
