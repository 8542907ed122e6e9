//! `gpas train`: a run from a recipe, the default run on the built-in corpus, a run that is gone on with, or a new one that begins with the
//! weights and moments of another.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use gpas_data::PreparedData;
use indicatif::HumanDuration;

use super::provenance::data_directory;
use crate::dashboard::{Display, DisplayArgs, Notices};
use crate::failure::{Failure, Result};
use crate::options::RecipeArgs;
use crate::tuning;
use gpas_report::tensorboard::EventFile;
use gpas_report::write_run;
use gpas_train::backend::{BackendChoice, Selected};
use gpas_train::checkpoint::RunState;
use gpas_train::chosen::ChosenCheckpoint;
use gpas_train::learner::TrainingRun;
use gpas_train::recipe::{Beginning, Recipe, RecipeOptions, resolve, resolve_from};
use gpas_train::run::{Parent, RunDirectory, RunLock};
use gpas_train::signals::StopRequest;
use gpas_train::training::{End, Outcome, TrainingError};

/// Train a model; without arguments, a small one on the built-in corpus
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas train
  gpas train 71m --scheme sandwich_gpas --data c4 -o runs/sandwich
  gpas train --preset 9m --data DIR --set train.steps=200 --set train.lr=5e-4 --plain
  gpas train runs/sandwich --resume --set train.micro_batch=16
  gpas train --from runs/sandwich --set train.steps=2000 -o runs/longer
  gpas train --from runs/sandwich@best --set train.lr=1e-4 --set train.steps=2000 -o runs/lower

--resume computes what the run would have computed without the stop, and refuses what would change that. --from begins a new run: any key may
change that leaves the parameters what they are. Its steps are counted on from those of the checkpoint, so that `train.steps` is the total,
and its learning rate follows a schedule of its own over the steps that are left, or with --keep-schedule
that of the other run's recipe with its new total of steps: a rate that depends on the total is another from here on.

Ctrl-C and SIGTERM finish the step, write a checkpoint and leave with 130 or 143; `--resume` goes on from there.")]
pub struct TrainArgs {
    /// A recipe file, or the name of a shipped one: nano, 9m, … 7b; with --resume, a run directory
    #[arg(value_name = "RECIPE.toml|RUN")]
    recipe: Option<PathBuf>,
    /// Go on with a run directory, from its newest valid checkpoint
    #[arg(long, requires = "recipe", conflicts_with = "out")]
    resume: bool,
    /// Begin a new run with the weights and moments of another's newest checkpoint, of the one after a step, or of the best one
    #[arg(long, value_name = "RUN[@STEP|@best]", conflicts_with_all = ["recipe", "resume"])]
    from: Option<PathBuf>,
    /// With --from: the learning rate of a step is what the other run's recipe, with the changes, says of it; without, a schedule begins anew
    #[arg(long, requires = "from")]
    keep_schedule: bool,
    #[command(flatten)]
    options: RecipeArgs,
    /// Directory of the run [default: runs/SCHEME-PRESET-NNN]
    #[arg(short, long, value_name = "RUN")]
    out: Option<PathBuf>,
    #[command(flatten)]
    display: DisplayArgs,
    /// Also write event files for TensorBoard, into RUN/tensorboard
    #[arg(long)]
    tensorboard: bool,
}

/// Runs the command; the code is that of a process stopped by a signal if one stopped the run.
///
/// # Errors
/// Anything wrong with the recipe, the data, the backend or the disk.
pub fn run(args: TrainArgs, backend: Option<BackendChoice>) -> Result<ExitCode> {
    let listening = || Failure::during("cannot listen to signals");
    let display = args.display.display().map_err(listening())?;
    let stop = StopRequest::listen(display.on_leave()).map_err(listening())?;
    let (run, selected) = match (&args.recipe, &args.from) {
        (_, Some(from)) => {
            let chosen = ChosenCheckpoint::of(from);
            inherit(&chosen, &args.options.into(), args.keep_schedule, args.out, backend)?
        }
        (Some(path), None) if args.resume => {
            let run = RunDirectory::open(path)?;
            let lock = run.lock()?;
            let recipe = resolve(Some(&run.recipe_path()), &args.options.into())?;
            let going_on = go_on(run, lock, recipe, backend)?;
            tell_of_completion(&going_on.0);
            going_on
        }
        (recipe, None) => {
            let recipe = resolve(recipe.as_deref(), &args.options.into())?;
            let out = args.out.clone().unwrap_or_else(|| RunDirectory::default_path(&recipe));
            let selected = tuning::select(backend.unwrap_or_default())?;
            (begin(recipe, out)?, selected)
        }
    };
    let outcome = execute(run, selected, display, args.tensorboard, stop)?;
    Ok(match outcome.end {
        End::Complete => ExitCode::SUCCESS,
        End::Stopped(stop) => {
            let run = outcome.run.path().display();
            let _ = writeln!(std::io::stdout(), "`gpas train {run} --resume` goes on from there");
            stop.exit_code().into()
        }
    })
}

/// Trains: what every command does that makes a run.
pub(super) fn execute(
    run: TrainingRun,
    selected: Selected,
    display: Display,
    tensorboard: bool,
    stop: StopRequest,
) -> Result<Outcome> {
    let (recipe, config) = (run.recipe(), run.config());
    let after = match run.resumed_at() {
        None => String::new(),
        Some(step) => format!(", going on after step {step}"),
    };
    // Whoever reads this may have gone; the run goes on.
    let _ = writeln!(
        std::io::stdout(),
        "{}: {} parameters, {} steps of {} × {} tokens on {selected}, data {}{after}",
        config.scheme,
        config.parameters(),
        recipe.train.steps,
        recipe.train.batch,
        recipe.data.seq_len,
        run.data().directory().display(),
    );
    if let Some(parent) = run.parent() {
        let _ = writeln!(std::io::stdout(), "{}", origin(parent));
    }
    let (path, steps) = (run.path().to_path_buf(), recipe.train.steps);
    let begin = Instant::now();
    let backend = BackendChoice::Named(selected.name, selected.index);
    let run = run.stop(stop.clone()).observe(Notices::new(&display));
    let run = match tensorboard {
        true => run.observe(EventFile::default()),
        false => run,
    };
    let outcome = run
        .display(move |interrupter| display.open(steps, stop, interrupter))
        .run(backend);
    // Who stops a run wants it to stop: what there is to see of it takes no time, a look at its layers does.
    let reported = match &outcome {
        Ok(outcome) if outcome.end == End::Complete => super::report::of_run(&outcome.run, Some(backend)).map(drop),
        Ok(outcome) => write_run(&outcome.run).map(drop).map_err(Into::into),
        Err(TrainingError::NotFinite { .. }) => RunDirectory::open(&path)
            .map_err(Into::into)
            .and_then(|run| Ok(write_run(&run).map(drop)?)),
        Err(_) => Ok(()),
    };
    // The run is whole without it.
    if let Err(error) = reported {
        complain!("warning: no report: {error}");
    }
    let outcome = outcome?;
    let _ = tell(&outcome, begin);
    Ok(outcome)
}

/// A new run.
pub(super) fn begin(recipe: Recipe, out: PathBuf) -> Result<TrainingRun> {
    let data = PreparedData::open(&data_directory(&recipe)?)?;
    Ok(TrainingRun::new(recipe, data, out)?)
}

/// A new run that begins with a checkpoint of another, on the backend of that unless another is asked for.
fn inherit(
    chosen: &ChosenCheckpoint,
    options: &RecipeOptions,
    keep_schedule: bool,
    out: Option<PathBuf>,
    backend: Option<BackendChoice>,
) -> Result<(TrainingRun, Selected)> {
    let (run, found) = chosen.open()?;
    let RunState {
        step,
        tokens,
        bad_steps,
        best,
        ..
    } = found.checkpoint.state;
    let recipe = resolve_from(&run.recipe()?, Beginning { step, tokens }, options, keep_schedule)?;
    let out = out.unwrap_or_else(|| RunDirectory::default_path(&recipe));
    let backend = match backend {
        Some(backend) => backend,
        None => run.info()?.backend.parse()?,
    };
    let selected = tuning::select(backend)?;
    let data = PreparedData::open(&data_directory(&recipe)?)?;
    let inheriting = TrainingRun::from_checkpoint(&run, found, recipe, data, out)?;
    warn_of_damage(&inheriting);
    let run = run.path().display();
    if inheriting.lacks_moments() {
        complain!("note: {run}@{step} has made no update, so that the moments begin at zero");
    }
    if inheriting.has_other_data() {
        complain!("note: the data is other than that of {run}");
    }
    if bad_steps > 0 {
        let before = best.filter(|best| best.step <= step.saturating_sub(bad_steps));
        let before = before.map_or_else(String::new, |best| format!("; {run}@{} is from before that", best.step));
        complain!("warning: the last {bad_steps} steps of {run}@{step} made no update{before}");
    }
    Ok((inheriting, selected))
}

/// What a run begins with that begins with a checkpoint of another, in a line.
fn origin(parent: &Parent) -> String {
    let changes = parent.changes.iter();
    let changes: Vec<_> = changes
        .map(|(key, [before, after])| format!("{key} {before} → {after}"))
        .collect();
    let changes = match changes.is_empty() {
        true => "no key changed".into(),
        false => changes.join(", "),
    };
    format!("from {parent}: {changes}")
}

/// Says how to train further where every step has been done.
fn tell_of_completion(run: &TrainingRun) {
    let (path, steps) = (run.path().display(), run.recipe().train.steps);
    if run.resumed_at() == Some(steps) {
        complain!(
            "note: all {steps} steps are done; `gpas train --from {path} --set train.steps={} -o NEW` trains as long again",
            steps.saturating_mul(2)
        );
    }
}

fn warn_of_damage(run: &TrainingRun) {
    for damage in run.passed_over() {
        complain!("warning: {damage}; passed over");
    }
}

/// A run that is gone on with by a recipe, on its own backend unless another is asked for, so that it computes what it would have computed.
pub(super) fn go_on(
    run: RunDirectory,
    lock: RunLock,
    recipe: Recipe,
    backend: Option<BackendChoice>,
) -> Result<(TrainingRun, Selected)> {
    let backend = match backend {
        Some(backend) => backend,
        None => run.info()?.backend.parse()?,
    };
    let selected = tuning::select(backend)?;
    let data = PreparedData::open(&data_directory(&recipe)?)?;
    let run = TrainingRun::resume(run, lock, recipe, data)?;
    warn_of_damage(&run);
    Ok((run, selected))
}

fn tell(outcome: &Outcome, begin: Instant) -> std::io::Result<()> {
    let run = outcome.run.path().display();
    let mut out = std::io::stdout();
    if let End::Stopped(_) = outcome.end {
        writeln!(out, "stopped after step {}", outcome.step)?;
    }
    if let (Some(first), Some(last)) = (outcome.first, outcome.last.filter(|last| last.step > 0)) {
        writeln!(
            out,
            "validation perplexity {:.3} before, {:.3} after {} steps ({} tokens); {}",
            first.perplexity,
            last.perplexity,
            last.step,
            last.tokens,
            HumanDuration(begin.elapsed()),
        )?;
    }
    writeln!(out, "run directory {run}, with its report.html")
}
