//! `gpas train`: a run from a recipe, the default run on the built-in corpus, or a run that is gone on with.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use gpas_data::PreparedData;
use gpas_model::LlamaConfig;
use indicatif::HumanDuration;

use super::provenance::{data_directory, data_sha256, facts, now};
use crate::dashboard::{Dashboard, covers_terminal};
use crate::failure::{Failure, Result};
use crate::options::RecipeArgs;
use crate::screen::restore;
use gpas_report::tensorboard::EventFile;
use gpas_report::write_run;
use gpas_train::backend::{BackendChoice, Selected};
use gpas_train::checkpoint::{self, CheckpointError, newest_valid};
use gpas_train::metrics::Record;
use gpas_train::recipe::{Recipe, RecipeError, resolve};
use gpas_train::run::{Resume, RunDirectory, RunError, RunInfo, RunLock};
use gpas_train::signals::StopRequest;
use gpas_train::training::{End, Observer, Outcome, Start, TrainingError, TrainingRun, check_vocabulary};

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
    /// Print lines rather than show the dashboard
    #[arg(long)]
    plain: bool,
    /// Also write event files for TensorBoard, into RUN/tensorboard
    #[arg(long)]
    tensorboard: bool,
}

/// Runs the command; the code is that of a process stopped by a signal if one stopped the run.
///
/// # Errors
/// Anything wrong with the recipe, the data, the backend or the disk.
pub fn run(args: TrainArgs, backend: Option<BackendChoice>) -> Result<ExitCode> {
    let on_leave: fn() = if covers_terminal(args.plain) { restore } else { || () };
    let stop = StopRequest::listen(on_leave).map_err(Failure::during("cannot listen to signals"))?;
    let prepared = match &args.recipe {
        Some(path) if args.resume => {
            let run = RunDirectory::open(path)?;
            let lock = run.lock()?;
            let recipe = resolve(Some(&run.recipe_path()), &args.options.into())?;
            go_on(run, lock, recipe, backend)?
        }
        recipe => {
            let recipe = resolve(recipe.as_deref(), &args.options.into())?;
            let out = args.out.clone().unwrap_or_else(|| RunDirectory::default_path(&recipe));
            begin(recipe, out, backend.unwrap_or_default().select()?)?
        }
    };
    let outcome = execute(prepared, args.plain, args.tensorboard, stop)?;
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
pub(super) fn execute(prepared: Prepared, plain: bool, tensorboard: bool, stop: StopRequest) -> Result<Outcome> {
    let Prepared {
        recipe,
        config,
        data,
        selected,
        start,
    } = prepared;
    let after = match &start {
        Start::New { .. } => String::new(),
        Start::Resume { checkpoint, .. } => {
            let step = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.step);
            format!(", going on after step {step}")
        }
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
        data.directory().display(),
    );
    let path = match &start {
        Start::New { out, .. } => out.clone(),
        Start::Resume { run, .. } => run.path().to_path_buf(),
    };
    let begin = Instant::now();
    let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(Dashboard::new(plain, stop.clone()))];
    if tensorboard {
        observers.push(Box::new(EventFile::default()));
    }
    let outcome = selected.run(TrainingRun {
        recipe,
        config,
        data,
        start,
        observers,
        stop,
    })?;
    // Who stops a run wants it to stop: what there is to see of it takes no time, a look at its layers does.
    let reported = match &outcome {
        Ok(outcome) if outcome.end == End::Complete => {
            let backend = BackendChoice::Named(selected.name, selected.index);
            super::report::of_run(&outcome.run, Some(backend)).map(drop)
        }
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

/// A run that can start.
pub(super) struct Prepared {
    recipe: Recipe,
    config: LlamaConfig,
    data: PreparedData,
    selected: Selected,
    start: Start,
}

/// A new run.
pub(super) fn begin(recipe: Recipe, out: PathBuf, selected: Selected) -> Result<Prepared> {
    if out.exists() {
        return Err(RunError::Exists(out).into());
    }
    let data = PreparedData::open(&data_directory(&recipe)?)?;
    let config = recipe.llama(data.tokenizer().vocab_size())?;
    check_vocabulary(&recipe, &data, &config)?;
    let recipe = recipe.with_vocab(config.vocab);
    let info = Box::new(RunInfo {
        data: data.directory().to_path_buf(),
        data_sha256: data_sha256(&data)?,
        tokenizer_sha256: data.tokenizer().sha256().to_string(),
        ..facts(&recipe, &config, selected)
    });
    Ok(Prepared {
        recipe,
        config,
        data,
        selected,
        start: Start::New { out, info },
    })
}

/// A run that is gone on with by a recipe. Nothing is changed before everything has been found in order.
pub(super) fn go_on(
    run: RunDirectory,
    lock: RunLock,
    recipe: Recipe,
    backend: Option<BackendChoice>,
) -> Result<Prepared> {
    let (written, mut info) = (run.recipe()?, run.info()?);
    // On the run's own backend, so that it computes what it would have computed.
    let selected = backend.map_or_else(|| info.backend.parse(), Ok)?.select()?;

    let (checkpoint, passed_over) = match newest_valid(&run.checkpoints_path()) {
        Ok(found) => (Some(Box::new(found.checkpoint)), found.passed_over),
        // Killed before the first one was complete; unless steps were made after it.
        Err(CheckpointError::None(_)) if !has_steps(&run) => (None, Vec::new()),
        Err(error) => return Err(error.into()),
    };
    // The recipe that the checkpoint was computed by: the file beside it may have been edited.
    let computed = checkpoint
        .as_ref()
        .map_or(&written, |checkpoint| &checkpoint.state.recipe);
    let changes = computed.changes(&recipe);
    let step = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.step);
    // Nothing has been computed by its recipe yet but the model, which it did not decide.
    let unstarted = info.imported.is_some() && step == 0 && !has_steps(&run);
    let may_change = |key: &str| Recipe::may_change(key) || (unstarted && !key.starts_with("model."));
    if let Some((key, [before, after])) = changes.iter().find(|(key, _)| !may_change(key)) {
        return Err(RecipeError::Mathematics {
            key: key.clone(),
            before: before.to_string(),
            after: after.to_string(),
        }
        .into());
    }

    let data = PreparedData::open(&data_directory(&recipe)?)?;
    let found = data_sha256(&data)?;
    if unstarted && data.tokenizer().sha256() == info.tokenizer_sha256 {
        (info.data, info.data_sha256) = (data.directory().to_path_buf(), found);
    } else if unstarted {
        return Err(TrainingError::Tokenizer {
            data: data.directory().to_path_buf(),
            run: run.tokenizer_path(),
        }
        .into());
    } else if found != info.data_sha256 {
        return Err(TrainingError::DataChanged(data.directory().to_path_buf()).into());
    }
    let config = recipe.llama(data.tokenizer().vocab_size())?;
    check_vocabulary(&recipe, &data, &config)?;

    for damage in &passed_over {
        eprintln!("warning: {damage}; passed over");
    }
    checkpoint::clear(&run.checkpoints_path(), step)?;
    info.resumes.push(Resume {
        step,
        at: now(),
        gpas: env!("CARGO_PKG_VERSION").into(),
        commit: env!("GPAS_COMMIT").into(),
        backend: selected.to_string(),
        command: std::env::args().collect(),
        changes,
        passed_over: passed_over.iter().map(ToString::to_string).collect(),
    });
    if unstarted && let Some(end) = data.tokenizer().end_of_document() {
        // The data may end its documents otherwise than the model ended its texts.
        let special = run.tokenizer()?.special_tokens().clone();
        run.write_special_tokens(&special.trained_on_documents_with(end))?;
    }
    run.write(&recipe, &info)?;
    Ok(Prepared {
        recipe,
        config,
        data,
        selected,
        start: Start::Resume { run, lock, checkpoint },
    })
}

/// Whether a run's metrics have a step.
fn has_steps(run: &RunDirectory) -> bool {
    let text = std::fs::read_to_string(run.metrics_path()).unwrap_or_default();
    text.lines()
        .any(|line| matches!(serde_json::from_str(line), Ok(Record::Train(_))))
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
