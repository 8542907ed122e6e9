//! How many kernels a training step launches, part by part: what a card spends on it besides computing, counted on any driver of one. And
//! where the time of a step goes, kernel by kernel.
//!
//! A part is run by itself, once unnoticed, since the first time kernels are chosen by running them, and once counted. What goes back
//! through the layers is what forward and backward launch together, less the forward pass and the head; what a layer launches is what the
//! model launches, less what it launches without its last layer.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Distribution, Tensor};
use gpas_model::loss::loss_with_gradients;
use gpas_train::backend::BackendTask;
use gpas_train::kernels::{KernelEvent, listen};
use gpas_train::training::check_precision;
use serde::Serialize;

use super::{BenchmarkError, Candidate, Runner, wait_for};

/// The kernels that were launched, by name, since they were last taken.
#[derive(Debug, Default)]
pub struct Launched {
    kernels: Mutex<Kernels>,
    more: Condvar,
}

type Kernels = BTreeMap<String, Kernel>;

/// What one kernel did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Kernel {
    /// How often it was launched.
    pub launches: u64,
    /// How long it took in all; 0 where that is not told.
    pub seconds: f64,
}

/// How long CubeCL's log may say nothing although kernels are launched.
const PATIENCE: Duration = Duration::from_secs(20);

/// Begins the name of the kernel that flips a tensor, which no training does: the end of what is counted.
const END: &str = "Flip";

impl Launched {
    /// Notes from now on what is launched on a backend that was
    /// [selected](gpas_train::backend::BackendChoice::select_telling) to tell it.
    ///
    /// # Errors
    /// If this process has a logger already.
    pub fn listen() -> Result<Arc<Self>, BenchmarkError> {
        let launched = Arc::new(Self::default());
        let noted = Arc::clone(&launched);
        listen(move |event| match event {
            KernelEvent::Launched(name) => noted.note(name, 0.0),
            KernelEvent::Took(name, seconds) => noted.note(name, seconds),
            _ => (),
        })
        .map_err(|_| BenchmarkError::LoggerIsTaken)?;
        Ok(launched)
    }

    fn note(&self, name: &str, seconds: f64) {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = kernels.entry(name.to_string()).or_default();
        kernel.launches += 1;
        kernel.seconds += seconds;
        self.more.notify_all();
    }

    /// What was launched before a [flip](END), once that has been told; launches are told in their order.
    fn take_to_end(&self) -> Result<Kernels, BenchmarkError> {
        let kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let is_end = |name: &str| name.starts_with(END);
        let has_no_end = |kernels: &mut Kernels| !kernels.keys().any(|name| is_end(name));
        let waited = self.more.wait_timeout_while(kernels, PATIENCE, has_no_end);
        let (mut kernels, time) = waited.unwrap_or_else(PoisonError::into_inner);
        if time.timed_out() {
            return Err(BenchmarkError::NoLaunches);
        }
        let mut taken = std::mem::take(&mut *kernels);
        taken.retain(|name, _| !is_end(name));
        Ok(taken)
    }
}

/// Counts the launches of a step.
pub struct LaunchCount {
    /// The model.
    pub model: Candidate,
    /// Where launches are noted.
    pub launched: Arc<Launched>,
}

/// Launches of one step.
#[derive(Clone, Debug, Serialize)]
pub struct LaunchReport {
    /// Layers of the model.
    pub layers: usize,
    /// Embedding, layers and last norm, of one micro-batch.
    pub forward: i64,
    /// Head and loss with their gradients, of one micro-batch.
    pub head: i64,
    /// Back through the layers to the embedding, of one micro-batch.
    pub backward: i64,
    /// Norms of the gradients, clipping, optimizer, and what a step reports.
    pub update: i64,
    /// All of a step.
    pub step: i64,
    /// The last layer's share of `forward`; none for a model of one layer.
    pub layer_forward: Option<i64>,
    /// The last layer's share of `backward`.
    pub layer_backward: Option<i64>,
    /// The last layer's share of `update`.
    pub layer_update: Option<i64>,
    /// The kernels of the step, the most often launched one first.
    pub kernels: Vec<(String, Kernel)>,
}

/// Launches of the parts of a step.
struct Parts {
    forward: i64,
    head: i64,
    backward: i64,
    update: i64,
    step: Kernels,
}

impl BackendTask for LaunchCount {
    type Output = Result<LaunchReport, BenchmarkError>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let Self { model, launched } = self;
        check_precision::<B>(&model.config, &device)?;
        let whole = parts::<B>(&model, &launched, &device)?;
        let layers = model.config.layers;
        let mut shorter = model;
        shorter.config.post_num = Some(shorter.config.post_num());
        shorter.config.layers -= 1;
        let shorter = match shorter.config.layers {
            0 => None,
            _ => Some(parts::<B>(&shorter, &launched, &device)?),
        };
        let of_layer = |part: fn(&Parts) -> i64| Some(part(&whole) - part(shorter.as_ref()?));
        let mut report = LaunchReport {
            layers,
            forward: whole.forward,
            head: whole.head,
            backward: whole.backward,
            update: whole.update,
            step: sum(&whole.step),
            layer_forward: of_layer(|parts| parts.forward),
            layer_backward: of_layer(|parts| parts.backward),
            layer_update: of_layer(|parts| parts.update),
            kernels: whole.step.into_iter().collect(),
        };
        report
            .kernels
            .sort_by_key(|(_, kernel)| std::cmp::Reverse(kernel.launches));
        Ok(report)
    }
}

/// Runs every part of a step of one model.
fn parts<B: AutodiffBackend>(
    candidate: &Candidate,
    launched: &Launched,
    device: &B::Device,
) -> Result<Parts, BenchmarkError> {
    let mut runner = Runner::<B>::new(candidate, device)?;
    let (batch, seq) = (runner.micro_batch.min(runner.batch), runner.seq);
    let micro_batches = runner.batch.div_ceil(runner.micro_batch) as i64;
    let tokens = batch * seq;
    let end = End::<B>::new(launched, device);
    let count = |work: &mut dyn FnMut()| {
        work();
        end.wait()?;
        work();
        end.wait()
    };

    let input = runner.ids.batch::<B>(batch, seq, device);
    let model = runner.trainer.model().clone();
    let forward = sum(&count(&mut || drop(model.forward(input.ids.clone())))?);
    let found = count(&mut || drop(model.backward(input.ids.clone(), input.targets.clone(), tokens)))?;
    let gradients = sum(&found);
    let hidden = Tensor::<B::InnerBackend, 2>::random(
        [tokens, candidate.config.hidden],
        Distribution::Normal(0.0, 1.0),
        device,
    );
    let hidden = hidden.cast(candidate.config.precision.parameters());
    let head = sum(&count(&mut || {
        let targets = input.targets.clone().inner().flatten(0, 1);
        let precision = candidate.config.precision;
        let weight = model.head_weight().inner();
        drop(loss_with_gradients(
            hidden.clone(),
            weight,
            targets,
            tokens,
            seq,
            None,
            precision,
        ));
    })?);
    // The parameters that this holds would have to be copied before they are updated.
    drop(model);
    let mut stepping = Some(runner);
    let step = count(&mut || stepping = stepping.take().map(|runner| runner.step(device)))?;
    Ok(Parts {
        forward,
        head,
        backward: gradients - forward - head,
        update: sum(&step) - micro_batches * gradients,
        step,
    })
}

fn sum(kernels: &Kernels) -> i64 {
    kernels
        .values()
        .map(|kernel| kernel.launches)
        .sum::<u64>()
        .cast_signed()
}

/// Times the kernels of a step.
pub struct KernelTimes {
    /// The model.
    pub model: Candidate,
    /// Where times are noted.
    pub launched: Arc<Launched>,
}

impl BackendTask for KernelTimes {
    type Output = Result<Vec<(String, Kernel)>, BenchmarkError>;

    /// The kernels of the third step, the one that took longest first.
    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let Self { model, launched } = self;
        check_precision::<B>(&model.config, &device)?;
        let mut runner = Runner::<B>::new(&model, &device)?;
        let end = End::<B>::new(&launched, &device);
        for _ in 0..2 {
            runner = runner.step(&device);
        }
        end.wait()?;
        runner.step(&device);
        let mut kernels: Vec<_> = end.wait()?.into_iter().collect();
        kernels.sort_by(|(_, a), (_, b)| b.seconds.total_cmp(&a.seconds));
        Ok(kernels)
    }
}

/// Tells where something ends that is counted.
struct End<'a, B: AutodiffBackend> {
    launched: &'a Launched,
    device: &'a B::Device,
    flipped: Tensor<B::InnerBackend, 1>,
}

impl<'a, B: AutodiffBackend> End<'a, B> {
    fn new(launched: &'a Launched, device: &'a B::Device) -> Self {
        let flipped = Tensor::ones([2], device);
        Self {
            launched,
            device,
            flipped,
        }
    }

    /// What was launched since the last end.
    fn wait(&self) -> Result<Kernels, BenchmarkError> {
        wait_for::<B>(self.device);
        let _ = self.flipped.clone().flip([0]).into_data();
        self.launched.take_to_end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_launched_is_taken_up_to_the_end() {
        let launched = Launched::default();
        for name in ["Add", "Matmul", "Add", "FlipKernel | f32"] {
            launched.note(name, 0.25);
        }
        let kernel = |launches, seconds| Kernel { launches, seconds };
        let taken = launched.take_to_end().unwrap();
        let expected = [("Add".into(), kernel(2, 0.5)), ("Matmul".into(), kernel(1, 0.25))];
        assert_eq!(taken, Kernels::from(expected));
        assert_eq!(sum(&taken), 3);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                launched.note("Mul", 0.0);
                launched.note("FlipKernel", 0.0);
            });
            let taken = launched.take_to_end().unwrap();
            assert_eq!(taken, Kernels::from([("Mul".into(), kernel(1, 0.0))]));
        });
    }
}
