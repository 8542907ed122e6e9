//! The loop: evaluate, save, make a step, record it, until the run ends.
//!
//! Everything that a step depends on is in the [`RunState`], the weights and the moments, so a run that goes on from a checkpoint computes
//! what it would have computed without the stop, bit for bit.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use burn::data::dataloader::Progress as Items;
use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn_train::{
    EventProcessorTraining, Interrupter, Learner, LearnerEvent, SupervisedLearningStrategy,
    SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents, TrainingItem, ValidLoader,
};
use gpas_data::Damage;
use gpas_data::tokenizer::ByteLengths;
use gpas_model::{LlamaConfig, TokenBatch};

use super::components::{Components, Pretraining};
use super::records::Records;
use super::sound::{largest_sound_loss, shows_sound_weights};
use crate::checkpoint::{Keep, RunState, Snapshot, Writer};
use crate::evaluate::evaluate;
use crate::metrics::{EvalRecord, LayersRecord, TrainRecord};
use crate::signals::{Stop, StopRequest};
use crate::telemetry::Layers;
use crate::trainer::{StepReport, Trainer};
use crate::training::{End, TrainingError};

type Processor<B> = SupervisedTrainingEventProcessor<Components<B>>;

/// The strategy of a run. It is used once; burn-train wants it shared, and without an error to give back.
pub(super) struct ExactSteps<B: AutodiffBackend> {
    work: Mutex<Work<B>>,
}

/// What becomes of a run.
enum Work<B: AutodiffBackend> {
    Waiting(Box<Session<B>>, Box<Trainer<B>>),
    Done(Box<Session<B>>, Result<End, TrainingError>),
    /// Taken out.
    Nothing,
}

impl<B: AutodiffBackend> ExactSteps<B> {
    pub fn new(session: Session<B>, trainer: Trainer<B>) -> Self {
        Self {
            work: Mutex::new(Work::Waiting(Box::new(session), Box::new(trainer))),
        }
    }

    /// Where the run stands after the learner, and how it ended; none if the learner never came to it.
    pub fn finish(&self) -> Option<(Session<B>, Result<End, TrainingError>)> {
        match self.replace(Work::Nothing) {
            Work::Done(session, end) => Some((*session, end)),
            Work::Waiting(..) | Work::Nothing => None,
        }
    }

    fn replace(&self, work: Work<B>) -> Work<B> {
        std::mem::replace(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner), work)
    }
}

impl<B: AutodiffBackend> SupervisedLearningStrategy<Components<B>> for ExactSteps<B> {
    fn fit(
        &self,
        components: TrainingComponents<Components<B>>,
        learner: Learner<Components<B>>,
        train: TrainLoader<Components<B>>,
        valid: ValidLoader<Components<B>>,
        _starting_epoch: usize,
    ) -> (Pretraining<B>, Processor<B>) {
        let TrainingComponents {
            interrupter,
            mut event_processor,
            ..
        } = components;
        let Work::Waiting(mut session, trainer) = self.replace(Work::Nothing) else {
            return (learner.model(), event_processor);
        };
        // The optimizer changes weights in place that nobody else holds.
        drop(learner);
        let recipe = &session.state.recipe.train;
        let window_of = |step: u64| (step as usize).saturating_mul(recipe.batch);
        let rest = train.slice(window_of(session.state.step), window_of(recipe.steps));
        let mut stage = Stage {
            batches: &mut rest.iter(),
            validation: &valid,
            processor: &mut event_processor,
            interrupter,
        };
        let (trainer, end) = session.run(*trainer, &mut stage);
        self.replace(Work::Done(session, end));
        let llama = trainer.into_model();
        (Pretraining { llama }, event_processor)
    }
}

/// What the learner brings to the loop.
struct Stage<'a, B: AutodiffBackend> {
    /// The micro-batches of the steps that are left.
    batches: &'a mut dyn Iterator<Item = TokenBatch<B>>,
    validation: &'a ValidLoader<Components<B>>,
    processor: &'a mut Processor<B>,
    interrupter: Interrupter,
}

/// A run on its device.
pub(super) struct Session<B: AutodiffBackend> {
    pub state: RunState,
    /// Steps done before the run's first: 0, or those of the checkpoint of another run.
    pub begin: u64,
    pub config: LlamaConfig,
    /// Where the run directory lies, for messages.
    pub path: PathBuf,
    /// Where the training data tells that it is damaged.
    pub damage: Damage,
    /// Where the validation data does.
    pub validation_damage: Damage,
    /// The bytes of text that each token stands for, where the tokenizer tells.
    pub bytes: Option<ByteLengths>,
    pub device: B::Device,
    pub records: Records,
    pub writer: Writer,
    /// Step of the newest checkpoint.
    pub saved: Option<u64>,
    /// Step of the newest checkpoint whose weights were found to be of use.
    pub sound: Option<u64>,
    pub stop: StopRequest,
}

impl<B: AutodiffBackend> Session<B> {
    fn run(&mut self, mut trainer: Trainer<B>, stage: &mut Stage<'_, B>) -> (Trainer<B>, Result<End, TrainingError>) {
        loop {
            match self.between_steps(&trainer, stage) {
                Ok(None) => {}
                Ok(Some(end)) => return (trainer, Ok(end)),
                Err(error) => return (trainer, Err(error)),
            }
            let made;
            (trainer, made) = self.step(trainer, stage);
            if let Err(error) = made {
                return (trainer, Err(error));
            }
        }
    }

    /// Evaluates, saves and ends the run, each where it is due.
    fn between_steps(&mut self, trainer: &Trainer<B>, stage: &mut Stage<'_, B>) -> Result<Option<End>, TrainingError> {
        self.hear(stage);
        self.evaluate(trainer, stage)?;
        self.hear(stage);
        let end = self.end();
        self.save(trainer, end.is_some())?;
        end.transpose()
    }

    /// A stop that was asked of the learner is asked of the run, and the other way round.
    fn hear(&self, stage: &Stage<'_, B>) {
        if stage.interrupter.should_stop() {
            self.stop.request(Stop::Interrupt);
        } else if self.stop.requested().is_some() {
            stage.interrupter.stop(Some("a stop was asked for"));
        }
    }

    /// What ends the run here, if anything does. A stop that comes later is seen after the next step.
    fn end(&self) -> Option<Result<End, TrainingError>> {
        let state = &self.state;
        if state.step == state.recipe.train.steps && state.evaluation.is_some() {
            return Some(Ok(End::Complete));
        }
        if let Some(stop) = self.stop.requested() {
            return Some(Ok(End::Stopped(stop)));
        }
        (state.bad_steps >= state.recipe.train.max_bad_steps).then(|| {
            Err(TrainingError::NotFinite {
                step: state.step,
                count: state.bad_steps,
                first: state.first_bad.clone().unwrap_or_default(),
                back: self.sound.map(|step| format!("{}@{step}", self.path.display())),
            })
        })
    }

    fn evaluate(&mut self, trainer: &Trainer<B>, stage: &mut Stage<'_, B>) -> Result<(), TrainingError> {
        let (step, recipe) = (self.state.step, &self.state.recipe);
        let is_due = step == self.begin || step == recipe.train.steps || step.is_multiple_of(recipe.eval.every);
        if !is_due || self.state.evaluation.is_some() {
            return Ok(());
        }
        let model = trainer.model().valid();
        let stops = || self.stop.requested().is_some() || stage.interrupter.should_stop();
        let (batches, damage, bytes) = (stage.validation, &self.validation_damage, self.bytes.as_ref());
        self.state.evaluation = evaluate(&model, batches.as_ref(), damage, bytes, step, stops)?;
        if let Some(record) = self.state.evaluation {
            self.records.evaluation(&record)?;
            let place = Place::of(&self.state);
            if step > self.begin {
                stage
                    .processor
                    .process_train(LearnerEvent::EndEpoch(place.epoch.items_processed));
            }
            stage.processor.process_valid(place.whole(record));
            stage
                .processor
                .process_valid(LearnerEvent::EndEpoch(place.epoch.items_processed));
        }
        // What evaluation allocated in other sizes than training goes back to the device.
        B::memory_cleanup(&self.device);
        Ok(())
    }

    /// Writes a checkpoint where one is due, and says so if one could not be written.
    fn save(&mut self, trainer: &Trainer<B>, ends: bool) -> Result<(), TrainingError> {
        let state = &mut self.state;
        let better = |new: &EvalRecord| new.loss.is_finite() && state.best.is_none_or(|best| new.loss < best.loss);
        let best = state.evaluation.filter(better);
        let is_due = state.step == 0 || state.step.is_multiple_of(state.recipe.checkpoint.every);
        let is_kept = state.recipe.train.keep_best && best.is_some();
        let is_saved = self.saved == Some(state.step);
        if ends || is_due || is_kept || is_saved {
            state.best = best.or(state.best);
        }
        if (ends || is_due || is_kept) && !is_saved {
            // A checkpoint on the disk has the lines up to it on the disk.
            self.records.sync()?;
            let keep = Keep {
                sound: self.sound,
                ..Keep::of(&state.recipe)
            };
            self.writer
                .submit(Snapshot::of(trainer, &self.config, state.clone())?, keep)?;
            self.saved = Some(state.step);
        }
        // The first one is whole before the first step is made, so that there is always one to go on from.
        if ends || state.step == 0 {
            self.writer.finish()?;
        } else {
            self.writer.poll()?;
        }
        Ok(())
    }

    /// The micro-batches of the next step. Damage ends a loader as the end of the data does, which does not come before the last step.
    fn micro_batches(&self, stage: &mut Stage<'_, B>) -> Result<Vec<TokenBatch<B>>, TrainingError> {
        let recipe = &self.state.recipe.train;
        let count = recipe.batch.div_ceil(recipe.micro_batch);
        let found = stage.batches.take(count).collect();
        self.damage.check()?;
        Ok(found)
    }

    /// One optimizer step, and what it has to tell.
    fn step(&mut self, trainer: Trainer<B>, stage: &mut Stage<'_, B>) -> (Trainer<B>, Result<(), TrainingError>) {
        let begin = Instant::now();
        let micro_batches = match self.micro_batches(stage) {
            Ok(micro_batches) => micro_batches,
            Err(error) => return (trainer, Err(error)),
        };
        let recipe = &self.state.recipe;
        let positions = recipe.train.batch * recipe.data.seq_len;
        let scored = micro_batches.iter().map(|batch| batch.scored).sum();
        let looks = (self.state.step + 1).is_multiple_of(recipe.train.inspect_every);
        let layers = micro_batches
            .first()
            .filter(|_| looks)
            .map(|first| Layers::of(trainer.model(), first.ids.clone()));
        let (trainer, report) = trainer.step(micro_batches, scored);
        let speed = positions as f64 / begin.elapsed().as_secs_f64();
        advance(&mut self.state, &report, scored, trainer.updates());
        let recorded = self.record(&report, layers, speed, stage);
        (trainer, recorded)
    }

    fn record(
        &mut self,
        report: &StepReport,
        layers: Option<Layers>,
        speed: f64,
        stage: &mut Stage<'_, B>,
    ) -> Result<(), TrainingError> {
        let record = report.record(self.state.step, self.state.tokens, speed);
        self.records.step(&record)?;
        let largest = largest_sound_loss(self.config.vocab, self.state.best);
        if self.saved == Some(record.step - 1) && shows_sound_weights(&record, largest) {
            self.sound = self.saved;
        }
        stage.processor.process_train(Place::of(&self.state).item(record));
        if let Some(layers) = layers {
            self.records.layers(&layers_record(self.state.step, report, layers))?;
        }
        for message in notices(&mut self.state, report) {
            self.records.notice(self.state.step, message)?;
        }
        Ok(())
    }
}

/// Where a step lies, as burn-train counts: an epoch is what lies between two evaluations, an item a step.
struct Place {
    epoch: Items,
    items: Items,
    step: usize,
}

impl Place {
    fn of(state: &RunState) -> Self {
        let (step, steps, every) = (state.step, state.recipe.train.steps, state.recipe.eval.every);
        // The evaluation before the first step belongs to no epoch.
        let epoch = step.div_ceil(every);
        let first = epoch.saturating_sub(1) * every;
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            epoch: Items::new(count(epoch), count(steps.div_ceil(every))),
            items: Items::new(count(step - first), count(every.min(steps - first))),
            step: count(step),
        }
    }

    /// A step of the epoch.
    fn item(self, record: TrainRecord) -> LearnerEvent<TrainRecord> {
        let rate = record.lr;
        LearnerEvent::ProcessedItem(TrainingItem::new(
            record,
            self.items,
            self.epoch,
            Some(self.step),
            Some(rate),
        ))
    }

    /// An evaluation, which is one item.
    fn whole(&self, record: EvalRecord) -> LearnerEvent<EvalRecord> {
        let epoch = self.epoch.clone();
        LearnerEvent::ProcessedItem(TrainingItem::new(
            record,
            Items::new(1, 1),
            epoch,
            Some(self.step),
            None,
        ))
    }
}

/// Moves a run on by a step.
fn advance(state: &mut RunState, report: &StepReport, scored: usize, updates: u64) {
    state.step += 1;
    state.updates = updates;
    state.tokens += scored as u64;
    state.evaluation = None;
    match &report.skipped {
        None => (state.bad_steps, state.first_bad) = (0, None),
        Some(what) => {
            state.bad_steps += 1;
            let step = state.step;
            state.first_bad.get_or_insert_with(|| format!("{what} at step {step}"));
        }
    }
}

fn layers_record(step: u64, report: &StepReport, layers: Layers) -> LayersRecord {
    let finite = |values: Vec<f64>| {
        values
            .into_iter()
            .map(|value| Some(value).filter(|v| v.is_finite()))
            .collect()
    };
    let mut squares = vec![0.0; layers.weight_norm.len()];
    for (kind, norm) in &report.parameter_norms {
        if let Some(sum) = kind.layer().and_then(|layer| squares.get_mut(layer)) {
            *sum += norm * norm;
        }
    }
    LayersRecord {
        step,
        variance: finite(layers.variance),
        grad_norm: finite(squares.into_iter().map(f64::sqrt).collect()),
        weight_norm: finite(layers.weight_norm),
        gate: finite(report.gates.clone()),
    }
}

/// What a step has for its owner to know: that it was skipped, and, once for each gate, that the scale has changed its sign.
fn notices(state: &mut RunState, report: &StepReport) -> Vec<String> {
    let mut messages = Vec::new();
    if let Some(what) = &report.skipped {
        messages.push(format!("no update: {what} is not finite"));
    }
    let act = state.recipe.model.gate.act;
    for (index, gate) in report.gates.iter().enumerate() {
        if 1.0 - act.value(*gate) <= 0.0 && !state.reported_gates.contains(&index) {
            state.reported_gates.push(index);
            let per_layer = if state.recipe.model.gate.per_sublayer { 2 } else { 1 };
            messages.push(format!(
                "the gate {gate:.4} of layer {} is past the zero of 1 − act(α): the stream changes its sign there",
                index / per_layer
            ));
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn an_epoch_is_what_lies_between_two_evaluations() {
        let recipe = Recipe::preset("nano")
            .with("train.steps", 10)
            .with("eval.every", 4)
            .resolve()
            .unwrap();
        let place = |step| {
            let place = Place::of(&RunState {
                step,
                ..RunState::new(recipe.clone())
            });
            let Place { epoch, items, .. } = place;
            assert_eq!(epoch.items_total, 3);
            (epoch.items_processed, items.items_processed, items.items_total)
        };
        let places = [1, 4, 5, 8, 9, 10].map(place);
        assert_eq!(
            places,
            [(1, 1, 4), (1, 4, 4), (2, 1, 4), (2, 4, 4), (3, 1, 2), (3, 2, 2)]
        );
        assert_eq!(place(0).0, 0, "the evaluation before the first step");
    }
}
