//! `gpas train`: a run from a recipe, the default run on the built-in corpus, or a run that is gone on with.

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
use gpas_report::tensorboard::EventFile;
use gpas_report::write_run;
use gpas_train::backend::{BackendChoice, Selected};
use gpas_train::learner::TrainingRun;
use gpas_train::recipe::{Recipe, resolve};
use gpas_train::run::{RunDirectory, RunLock};
use gpas_train::signals::StopRequest;
use gpas_train::training::{End, Outcome, TrainingError};

/// Train a model; without arguments, a small one on the built-in corpus
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas train
  gpas train 71m --scheme sandwich_gpas --data c4 -o runs/sandwich
  gpas train --preset 9m --data DIR --set train.steps=200 --set train.lr=5e-4 --plain
  gpas train runs/sandwich --resume --set train.micro_batch=16

Ctrl-C and SIGTERM finish the step, write a checkpoint and leave with 130 or 143; `--resume` goes on from there.")]
pub struct TrainArgs {
    /// A recipe file, or the name of a shipped one: nano, 9m, … 7b; with --resume, a run directory
    #[arg(value_name = "RECIPE.toml|RUN")]
    recipe: Option<PathBuf>,
    /// Go on with a run directory, from its newest valid checkpoint
    #[arg(long, requires = "recipe", conflicts_with = "out")]
    resume: bool,
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
    let (run, selected) = match &args.recipe {
        Some(path) if args.resume => {
            let run = RunDirectory::open(path)?;
            let lock = run.lock()?;
            let recipe = resolve(Some(&run.recipe_path()), &args.options.into())?;
            go_on(run, lock, recipe, backend)?
        }
        recipe => {
            let recipe = resolve(recipe.as_deref(), &args.options.into())?;
            let out = args.out.clone().unwrap_or_else(|| RunDirectory::default_path(&recipe));
            let selected = backend.unwrap_or_default().select()?;
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
        eprintln!("warning: no report: {error}");
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
    let selected = backend.select()?;
    let data = PreparedData::open(&data_directory(&recipe)?)?;
    let run = TrainingRun::resume(run, lock, recipe, data)?;
    for damage in run.passed_over() {
        eprintln!("warning: {damage}; passed over");
    }
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
