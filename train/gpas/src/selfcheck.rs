//! Whether a backend computes right on this machine, in numbers, before a long run depends on it.
//!
//! Five questions, each with a tolerance: does the loss stay within its memory; do outputs, gradients and a training agree with
//! [goldens](golden) of an independent implementation; do twenty steps give the losses that they give on flex; are the bfloat16 formats close
//! to f32; does memory stay where it is over two hundred steps, and the pace with it. What a device cannot do is skipped, with the reason.

pub mod golden;
pub mod parity;

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Distribution, Int, Tensor};
use gpas_model::compare::largest_difference;
use gpas_model::loss::loss_with_gradients;
use gpas_model::{LlamaConfig, Precision, Scheme};
use serde::Serialize;

use crate::benchmark::{Benchmark, BenchmarkReport, Candidate};
use crate::memory::{allocated_memory, growth, peak_memory};
use golden::{Golden, HostBatch};
use gpas_train::backend::{BackendError, BackendName, BackendTask, Selected};
use gpas_train::optimizer::OptimizerConfig;
use gpas_train::recipe::RecipeOptions;
use gpas_train::schedule::Schedule;
use gpas_train::trainer::Trainer;
use parity::{Measure, Tolerances, compare};

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::Display)]
#[serde(rename_all = "UPPERCASE")]
#[strum(serialize_all = "UPPERCASE")]
pub enum Status {
    /// The figure is within what is allowed.
    Pass,
    /// The figure is larger, or the check gave none.
    Fail,
    /// The device cannot do what is checked.
    Skipped,
}

/// One figure against its limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// What became of it.
    pub status: Status,
    /// The figure; none where it is no number, or was not taken.
    pub measured: Option<f64>,
    /// The largest figure that is allowed.
    pub allowed: Option<f64>,
    /// The unit of both figures.
    pub unit: &'static str,
    /// Why it was skipped or failed without a figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Check {
    fn at_most(name: impl Into<String>, measured: f64, allowed: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            // A comparison with NaN is false, so NaN fails.
            status: if measured <= allowed {
                Status::Pass
            } else {
                Status::Fail
            },
            measured: measured.is_finite().then_some(measured),
            allowed: Some(allowed),
            unit,
            reason: measured
                .is_nan()
                .then(|| "no number, or nothing to compare with".into()),
        }
    }

    fn without_figure(name: impl Into<String>, status: Status, reason: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status,
            measured: None,
            allowed: None,
            unit: "",
            reason: Some(reason.into()),
        }
    }
}

/// All checks of a backend.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of the program.
    pub version: &'static str,
    /// Commit that it was built from, if any.
    pub commit: &'static str,
    /// The backend and its device's number.
    pub backend: String,
    /// What it computes on.
    pub device: Option<String>,
    /// Who computed the matrix products, where there is more than one who can.
    pub products: Option<String>,
    /// Whether kernels are chosen by timing them; always on a CPU, which has none to choose from.
    pub autotune: bool,
    /// The checks.
    pub checks: Vec<Check>,
    /// Training speed. This is not a check: there is no speed that it should have.
    pub speed: Option<BenchmarkReport>,
    /// Whether none failed.
    pub passed: bool,
}

/// Checks a backend, showing each check as it is done.
///
/// # Errors
/// If the backend is not compiled in.
pub fn check(selected: Selected, show: &mut dyn FnMut(&Check)) -> Result<Report, BackendError> {
    selected.run(SelfCheck { selected, show })
}

struct SelfCheck<'a> {
    selected: Selected,
    show: &'a mut dyn FnMut(&Check),
}

/// Megabytes that memory may grow by over two hundred steps: one activation a step, of 48 tokens of width 32, is 1.2.
const GROWTH: f64 = 1.0;
/// The fastest of the last steps over the fastest of the first.
const SLOWER: f64 = 2.0;

/// How long checks are begun on a card, where each kernel that is new takes seconds. The first one that counts, a golden, is always made.
const TIME: Duration = Duration::from_secs(75);

/// The checks that were made.
struct Checks<'a> {
    show: &'a mut dyn FnMut(&Check),
    done: Vec<Check>,
    /// When none is begun any more.
    end: Option<Instant>,
}

impl Checks<'_> {
    /// Makes a group of checks. A panic fails this group alone; the others are still made.
    fn group(&mut self, name: &str, found: impl FnOnce() -> Vec<Check>) {
        let found = if self.end.is_some_and(|end| Instant::now() >= end) {
            let why = "left out, for the time is over; another run has more, since kernels are kept";
            vec![Check::without_figure(name, Status::Skipped, why)]
        } else {
            catch_unwind(AssertUnwindSafe(found))
                .unwrap_or_else(|panic| vec![Check::without_figure(name, Status::Fail, message(&*panic))])
        };
        found.iter().for_each(&mut *self.show);
        self.done.extend(found);
    }

    fn have_passed(&self) -> bool {
        self.done.iter().all(|check| check.status != Status::Fail)
    }
}

impl BackendTask for SelfCheck<'_> {
    type Output = Report;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Report {
        let Self { selected, show } = self;
        let tolerances = tolerances(selected);
        let is_card = !selected.is_software();
        let mut checks = Checks {
            show,
            done: Vec::new(),
            end: is_card.then(|| Instant::now() + TIME),
        };
        let memory = |checks: &mut Checks<'_>| {
            checks.group("memory of the loss", || {
                vec![memory_of_the_loss::<B>(selected, &device)]
            });
        };
        // The quickest come first; but the peak memory of a process never falls, and where that is what is measured, it comes before them.
        // A card shows that it computes right before its time can be over.
        let first = if is_card { 1 } else { usize::MAX };
        if !is_card {
            memory(&mut checks);
        }
        check_goldens::<B>(&mut checks, &tolerances, &device, 0..first);
        checks.group("training like flex", || vec![like_flex::<B>(&tolerances, &device)]);
        for precision in [Precision::Bf16, Precision::Bf16Pure] {
            checks.group(precision.name(), || vec![bfloat16::<B>(selected, precision, &device)]);
        }
        checks.group("200 steps", || endurance::<B>(selected, &device));
        if is_card {
            check_goldens::<B>(&mut checks, &tolerances, &device, first..usize::MAX);
            memory(&mut checks);
        }
        let mut speed = None;
        // A device that failed above would fail here too, and take longer.
        if checks.have_passed() {
            checks.group("speed", || match speed_of::<B>(selected, device) {
                Ok(report) => {
                    speed = Some(report);
                    Vec::new()
                }
                Err(error) => vec![Check::without_figure("speed", Status::Fail, error)],
            });
        }
        Report {
            version: env!("CARGO_PKG_VERSION"),
            commit: gpas_train::run::COMMIT,
            backend: selected.to_string(),
            device: selected.device_name(),
            products: selected.products().map(|products| products.to_string()),
            autotune: selected.is_cpu() || cfg!(feature = "autotune"),
            passed: checks.have_passed(),
            checks: checks.done,
            speed,
        }
    }
}

/// Those of the goldens that are part of the program.
fn check_goldens<B: AutodiffBackend>(
    checks: &mut Checks<'_>,
    tolerances: &Tolerances,
    device: &B::Device,
    range: Range<usize>,
) {
    match Golden::embedded() {
        Ok(goldens) => {
            for golden in goldens.iter().take(range.end).skip(range.start) {
                checks.group(&golden.name, || parity_with::<B>(golden, tolerances, device));
            }
        }
        Err(error) => checks.group("goldens", || {
            vec![Check::without_figure("goldens", Status::Fail, error.to_string())]
        }),
    }
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_string()
}

/// What a backend may differ from the goldens by.
fn tolerances(selected: Selected) -> Tolerances {
    match selected.name {
        _ if selected.is_software() => Tolerances::F32,
        BackendName::Cuda => Tolerances::TF32,
        _ => Tolerances::GRAPHICS,
    }
}

fn parity_with<B: AutodiffBackend>(golden: &Golden, tolerances: &Tolerances, device: &B::Device) -> Vec<Check> {
    match compare::<B>(golden, tolerances, device) {
        Ok(measures) => {
            let check = |Measure { what, found, allowed }| {
                Check::at_most(format!("{}: {what}", golden.name), found, allowed, "difference")
            };
            measures.into_iter().map(check).collect()
        }
        Err(error) => vec![Check::without_figure(&golden.name, Status::Fail, error.to_string())],
    }
}

/// The loss of many tokens over a large vocabulary takes less than half the memory of its logits.
fn memory_of_the_loss<B: AutodiffBackend>(selected: Selected, device: &B::Device) -> Check {
    const VOCAB: usize = 32_000;
    const WIDTH: usize = 16;
    // A card's allocator takes pages of up to a quarter of its memory: the logits must be larger than those.
    let tokens = if selected.is_software() { 8192 } else { 131_072 };
    let whole = (tokens * VOCAB * size_of::<f32>()) as f64;
    let random =
        |shape: [usize; 2]| Tensor::<B::InnerBackend, 2>::random(shape, Distribution::Normal(0.0, 1.0), device);
    let (hidden, weight) = (random([tokens, WIDTH]), random([WIDTH, VOCAB]));
    let targets = Tensor::<B::InnerBackend, 1, Int>::zeros([tokens], device);
    let used = || match selected.is_cpu() {
        true => Some(peak_memory()).filter(|bytes| *bytes > 0),
        false => selected.device_memory().map(|memory| memory.reserved),
    };
    let before = used();
    let found = loss_with_gradients(hidden, weight, targets, tokens, tokens, None, Precision::F32);
    // Reading the values waits until they have been computed.
    let sums = [found.loss, found.hidden.sum(), found.weight.sum()];
    let sums: Vec<f64> = sums
        .into_iter()
        .flat_map(|sum| sum.into_data().iter::<f64>().collect::<Vec<_>>())
        .collect();
    let name = "memory of the loss over that of its logits";
    if sums.iter().any(|sum| !sum.is_finite()) {
        return Check::without_figure(
            name,
            Status::Fail,
            format!("loss and sums of its gradients are {sums:?}"),
        );
    }
    match before.zip(used()) {
        Some((before, after)) => Check::at_most(name, (after - before) as f64 / whole, 0.5, "share"),
        None => Check::without_figure(name, Status::Skipped, "the system does not tell how much is used"),
    }
}

/// The model of the training checks: 36 thousand parameters, with the scheme that most runs have.
fn model(precision: Precision) -> LlamaConfig {
    let scheme: Scheme = "pre_gpas".parse().expect("a scheme of the table");
    LlamaConfig::new(64, 32, 88, 2, 4)
        .with_scheme(scheme)
        .with_precision(precision)
}

/// `count` losses of training it on a sentence that repeats, with what `after` makes of each step.
fn train<B: AutodiffBackend>(
    precision: Precision,
    count: usize,
    device: &B::Device,
    mut after: impl FnMut(usize),
) -> Vec<f64> {
    const SEQ: usize = 24;
    let text = b"the quick brown fox jumps over the lazy dog and runs away; ";
    let id = |position: usize| text[position % text.len()] % 64;
    let optimizer = OptimizerConfig {
        clip: 1.0,
        ..OptimizerConfig::ADAM
    };
    let schedule = Schedule::cosine(3e-3, 3, count as u64, 0.1);
    let mut trainer = Trainer::<B>::new(model(precision).init(3, device), optimizer, schedule.rates())
        .expect("parameters that have been drawn have ids of their own");
    let mut losses = Vec::new();
    for step in 0..count {
        // Two micro-batches of one row each.
        let row = |start: usize| {
            let ids = (start..start + SEQ).map(|at| u32::from(id(at))).collect();
            let targets = (start + 1..=start + SEQ).map(|at| i32::from(id(at))).collect();
            HostBatch::new([1, SEQ], ids, targets).expect("as many ids as positions")
        };
        let rows = [row(step), row(step + SEQ)].map(|row| row.on::<B>(device));
        let (next, report) = trainer.step(rows, 2 * SEQ);
        trainer = next;
        losses.push(report.loss);
        after(step);
    }
    losses
}

/// Losses of twenty steps of that training on flex in f32, as `cargo test -p gpas-train the_losses_are -- --nocapture` prints them.
const LOSSES: [f64; 20] = [
    4.164183, 4.166271, 4.142312, 4.095505, 4.032250, 3.953286, 3.888420, 3.814551, 3.742151, 3.676518, 3.620746,
    3.558671, 3.484504, 3.436116, 3.401256, 3.371878, 3.353267, 3.348316, 3.346725, 3.348045,
];

fn like_flex<B: AutodiffBackend>(tolerances: &Tolerances, device: &B::Device) -> Check {
    let losses = train::<B>(Precision::F32, LOSSES.len(), device, |_| ());
    let name = "20 steps: losses against those of flex";
    Check::at_most(
        name,
        largest_difference(&losses, &LOSSES),
        tolerances.loss,
        "difference",
    )
}

/// Training in a format with bfloat16 against that in f32, on the same device.
fn bfloat16<B: AutodiffBackend>(selected: Selected, precision: Precision, device: &B::Device) -> Check {
    let name = format!("20 steps: losses in {} against f32", precision.name());
    if !precision.is_supported::<B>(device) {
        return Check::without_figure(
            name,
            Status::Skipped,
            format!("{selected} does not compute in bfloat16"),
        );
    }
    // On flex the first differs by 4e-4, the second, whose weights are rounded too, by 0.02.
    let allowed = if precision == Precision::Bf16 { 5e-3 } else { 0.1 };
    let losses = |precision| train::<B>(precision, LOSSES.len(), device, |_| ());
    match largest_difference(&losses(precision), &losses(Precision::F32)) {
        0.0 => Check::without_figure(
            name,
            Status::Fail,
            "the very losses of f32: nothing was rounded to bfloat16",
        ),
        found => Check::at_most(name, found, allowed, "difference"),
    }
}

/// Memory and pace over two hundred steps, after some in which caches fill.
fn endurance<B: AutodiffBackend>(selected: Selected, device: &B::Device) -> Vec<Check> {
    const WARM: usize = 40;
    const STEPS: usize = 200;
    const LAST: usize = WARM + STEPS;
    const PART: usize = 50;
    let used = || (allocated_memory(), selected.device_memory().map(|memory| memory.in_use));
    let (mut begin, mut end) = (used(), used());
    let (mut times, mut last) = (Vec::new(), Instant::now());
    let losses = train::<B>(Precision::F32, WARM + STEPS, device, |step| {
        if step >= WARM {
            times.push(last.elapsed().as_secs_f64());
        }
        match step + 1 {
            WARM => begin = used(),
            LAST => end = used(),
            _ => (),
        }
        last = Instant::now();
    });
    let grown = |name: &str, bytes: Option<f64>| match bytes {
        Some(bytes) => Check::at_most(name, bytes / 1e6, GROWTH, "MB"),
        None => Check::without_figure(name, Status::Skipped, "the system does not tell"),
    };
    let process = begin.0.zip(end.0).map(|(begin, end)| f64::from(growth(begin, end)));
    let mut checks = vec![grown("200 steps: growth of the process", process)];
    if !selected.is_cpu() {
        let device = begin.1.zip(end.1).map(|(begin, end)| end as f64 - begin as f64);
        checks.push(grown("200 steps: growth of the device's memory", device));
    }
    // Compared by the fastest step of each stretch, since another program may slow all the others.
    let fastest = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let pace = fastest(&times[STEPS - PART..]) / fastest(&times[..PART]);
    checks.push(Check::at_most(
        "200 steps: fastest of the last 50 over that of the first 50",
        pace,
        SLOWER,
        "ratio",
    ));
    // By now the model knows the sentence by heart.
    let learnt = losses.last().copied().unwrap_or(f64::NAN) / losses[0];
    checks.push(Check::at_most(
        "240 steps: last loss over the first",
        learnt,
        0.25,
        "ratio",
    ));
    checks
}

/// Tokens per second of a model of a size that suits the device.
fn speed_of<B: AutodiffBackend>(selected: Selected, device: B::Device) -> Result<BenchmarkReport, String> {
    let on_software = selected.is_software() && !selected.is_cpu();
    let (preset, batch, vocab) = if on_software {
        ("nano", 1, 1024)
    } else {
        ("20m", 8, 32_000)
    };
    let options = RecipeOptions {
        preset: Some(preset.into()),
        scheme: Some("pre_gpas".into()),
        set: vec![
            format!("train.batch={batch}"),
            format!("model.vocab={vocab}"),
            "data.seq_len=256".into(),
        ],
        ..Default::default()
    };
    let benchmark = Benchmark {
        model: Candidate::new(&options, vocab).map_err(|error| format!("{error:#}"))?,
        versus: None,
        steps: 3,
        warmup: 2,
        profile: false,
        selected,
    };
    benchmark.run::<B>(device).map_err(|error| error.to_string())
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use gpas_model::compare::largest;

    type Flex = burn::backend::Autodiff<burn_flex::Flex>;

    /// A check that panics and one that has no time are in the table like the others, each with its reason.
    #[test]
    fn no_check_is_left_out_without_a_word() {
        let mut shown = Vec::new();
        let mut show = |check: &Check| shown.push(check.status);
        let mut checks = Checks {
            show: &mut show,
            done: Vec::new(),
            end: None,
        };
        checks.group("a", || vec![Check::at_most("a", 1.0, 2.0, "")]);
        checks.group("b", || panic!("it broke"));
        assert!(!checks.have_passed());
        checks.end = Some(Instant::now());
        checks.group("c", || panic!("begun"));
        let reasons = checks.done.iter().map(|check| check.reason.as_deref().unwrap_or(""));
        assert_eq!(
            reasons.collect::<Vec<_>>(),
            [
                "",
                "it broke",
                "left out, for the time is over; another run has more, since kernels are kept"
            ]
        );
        assert_eq!(shown, [Status::Pass, Status::Fail, Status::Skipped]);
    }

    #[test]
    fn the_losses_are_those_of_flex() {
        let losses = train::<Flex>(Precision::F32, LOSSES.len(), &burn_flex::FlexDevice, |_| ());
        println!("{losses:?}");
        assert!(
            largest_difference(&losses, &LOSSES) < 0.5 * Tolerances::F32.loss,
            "{losses:?}"
        );
    }

    /// Products in bfloat16 are eight times as coarse as in TF32, which no processor has: what is allowed for TF32 is more than an eighth of
    /// what those differ by, and not more than that itself.
    #[test]
    fn the_tolerances_of_tf32_are_between_an_eighth_of_those_of_bfloat16_and_them() {
        let mut shares = BTreeMap::<String, f64>::new();
        for mut golden in Golden::embedded().unwrap() {
            golden.config.precision = Precision::Bf16;
            for measure in compare::<Flex>(&golden, &Tolerances::TF32, &burn_flex::FlexDevice).unwrap() {
                // One limit for both kinds of losses.
                let share = shares
                    .entry(measure.what.replace("training losses", "loss"))
                    .or_default();
                *share = largest([*share, measure.found / measure.allowed]);
            }
        }
        println!("{shares:?}");
        assert!(shares.values().all(|share| (1.0..8.0).contains(share)), "{shares:?}");
    }

    #[test]
    fn what_is_no_number_fails_and_has_a_reason() {
        let check = Check::at_most("x", f64::NAN, 1.0, "");
        assert_eq!((check.status, check.measured), (Status::Fail, None));
        assert!(check.reason.is_some());
        assert_eq!(Check::at_most("x", f64::INFINITY, 1.0, "").status, Status::Fail);
        assert_eq!(Check::at_most("x", 1.0, 1.0, "").status, Status::Pass);
    }
}
