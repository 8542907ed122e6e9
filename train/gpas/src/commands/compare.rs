//! `gpas compare`: many runs, one after another, and the table of what they say of each other.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use gpas_data::PreparedData;
use indicatif::{HumanCount, HumanDuration};

use super::provenance::data_directory;
use super::report;
use super::train::{begin, execute, go_on};
use crate::benchmark::{Benchmark, Candidate};
use crate::dashboard::DisplayArgs;
use crate::failure::{Failure, Result};
use crate::lines::say;
use crate::number::whole;
use crate::options::RecipeArgs;
use crate::tuning;
use gpas_report::compare::{
    CompareError, Comparison, FinishedRun, Plan, PlannedRun, check_directory, may_differ, plain,
};
use gpas_report::write_comparison;
use gpas_train::backend::{BackendChoice, Selected};
use gpas_train::checkpoint::{CheckpointError, RunState, newest_valid};
use gpas_train::recipe::{CompareTable, RecipeFile, parse_values};
use gpas_train::run::{RunDirectory, data_sha256};
use gpas_train::signals::StopRequest;
use gpas_train::training::{End, TrainingError, check_vocabulary};

/// Train the same model by several schemes and seeds, and tell what differs and how surely
#[derive(Debug, Args)]
#[command(
    mut_arg("scheme", |scheme| scheme.hide(true)),
    after_help = "Examples:
  gpas compare compare-quick -o runs/quick
  gpas compare --schemes pre,pre_gpas --seeds 1,2,3 -o runs/gate
  gpas compare 9m --data DIR --schemes pre_gpas --vary model.gate.act=silu,tanh --vary train.lr=5e-4,1e-3 -o runs/acts
  gpas compare compare-small --data DIR --dry-run -o runs/small

Every scheme is combined with every value of every varied key; each combination is an arm, named `pre_gpas+lr=0.001`, and has a run for
each seed in DIR/ARM/seed-N. Runs with the same seed have the same initial weights and the same data in the same order, whatever their
scheme. The same line again goes on where it was interrupted, and makes what has been added; finished runs stay as they are. A recipe's
[compare] table says what the options do not. DIR/compare.json and DIR/compare.md have the table, DIR/report.html has it with figures."
)]
pub struct CompareArgs {
    /// A recipe file, or the name of a shipped one: compare-quick, compare-small, nano, 9m, … 7b
    #[arg(value_name = "RECIPE.toml")]
    recipe: Option<PathBuf>,
    /// Normalisation schemes, such as pre,pre_gpas
    #[arg(long, value_name = "SCHEME,…", value_delimiter = ',')]
    schemes: Vec<String>,
    /// Seeds: each makes a run of every arm [default: the recipe's, else 1,2,3]
    #[arg(long, value_name = "SEED,…", value_delimiter = ',', value_parser = whole(..=i64::MAX as u64))]
    seeds: Vec<u64>,
    /// A recipe key and the values it takes, such as train.lr=5e-4,1e-3; repeatable
    #[arg(long, value_name = "KEY=V1,V2")]
    vary: Vec<String>,
    /// Name of the arm that the others are compared with [default: the first]
    #[arg(long, value_name = "ARM")]
    baseline: Option<String>,
    #[command(flatten)]
    options: RecipeArgs,
    /// Directory of the comparison
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// List the runs, their parameters and tokens, and the time they will take; make none
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    display: DisplayArgs,
}

impl CompareArgs {
    /// What to compare: the recipe's table, and over it the options.
    fn table(&self, file: Option<&RecipeFile>) -> Result<CompareTable> {
        let mut table = file.map(|file| file.compare.clone()).unwrap_or_default();
        if !self.schemes.is_empty() {
            table.schemes.clone_from(&self.schemes);
        }
        if !self.seeds.is_empty() {
            table.seeds.clone_from(&self.seeds);
        }
        for text in &self.vary {
            let (key, values) = parse_values(text).map_err(Failure::during("--vary"))?;
            table.vary.insert(key, values);
        }
        table.baseline = self.baseline.clone().or(table.baseline);
        Ok(table)
    }
}

/// Runs the command; the code is that of a process stopped by a signal if one stopped it.
///
/// # Errors
/// Anything wrong with the recipes, the data, the backend or the disk. A run that diverges is no error.
pub fn run(args: CompareArgs, backend: Option<BackendChoice>) -> Result<ExitCode> {
    let file = args.recipe.as_deref().map(RecipeFile::read).transpose()?;
    let table = args.table(file.as_ref())?;
    check_directory(&args.out)?;
    let mut plan = Plan::new(file.as_ref(), &args.options.clone().into(), table, &args.out)?;
    let selected = tuning::select(backend.unwrap_or_default())?;
    // An error in any of the runs ends the command before the first one begins.
    let standings = standings(&mut plan)?;
    if args.dry_run {
        dry_run(&plan, &standings, selected)?;
        return Ok(ExitCode::SUCCESS);
    }

    let listening = || Failure::during("cannot listen to signals");
    let display = args.display.display().map_err(listening())?;
    let stop = StopRequest::listen(display.on_leave()).map_err(listening())?;
    let mut finished = Vec::new();
    for (index, (run, standing)) in plan.runs.iter().zip(&standings).enumerate() {
        let path = plan.path(run);
        let title = format!("[{}/{}] {}", index + 1, plan.runs.len(), plan.name(run));
        if *standing == Standing::Done {
            say(&format!("{title}: done before"));
            // The report is made again: the command may have been interrupted after the run and before its report.
            report::of_run(&RunDirectory::open(&path)?, backend)?;
        } else {
            say(&title);
            let (run_now, on) = match standing {
                Standing::New => (begin(run.recipe.clone(), path.clone())?, selected),
                _ => {
                    let directory = RunDirectory::open(&path)?;
                    let lock = directory.lock()?;
                    go_on(directory, lock, run.recipe.clone(), backend)?
                }
            };
            match execute(run_now, on, display.clone(), false, stop.clone()) {
                Ok(outcome) => {
                    if let End::Stopped(stop) = outcome.end {
                        say("the same command goes on from there");
                        return Ok(stop.exit_code().into());
                    }
                }
                // A run that diverges is a result of the comparison.
                Err(error) if diverged(&error) => say(&format!("{}: {error}", plan.name(run))),
                Err(error) => return Err(Failure::during::<Failure>(plan.name(run))(error)),
            }
        }
        finished.push(FinishedRun::read(index, &RunDirectory::open(&path)?)?);
        let comparison = Comparison::of(&plan, &finished);
        comparison.write(&args.out)?;
        write_comparison(&args.out, &comparison)?;
        if let Some(stop) = stop.requested() {
            say("stopped; the same command goes on from there");
            return Ok(stop.exit_code().into());
        }
    }
    say(&format!("\n{}", plain(&Comparison::of(&plan, &finished)).trim_end()));
    say(&format!("comparison {}", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

fn diverged(error: &Failure) -> bool {
    matches!(error.downcast(), Some(TrainingError::NotFinite { .. }))
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    New,
    Begun,
    Done,
}

/// How far every run has come. Checks that each can be made, and that a run which exists was made as the plan says; writes the vocabulary of
/// the data into the recipes.
fn standings(plan: &mut Plan) -> Result<Vec<Standing>> {
    let mut standings = Vec::new();
    let mut opened: Option<(PathBuf, PreparedData, String)> = None;
    for index in 0..plan.runs.len() {
        let path = plan.path(&plan.runs[index]);
        let directory = data_directory(&plan.runs[index].recipe)?;
        // Most plans have the data of all their runs in common.
        if opened.as_ref().is_none_or(|(path, ..)| *path != directory) {
            let data = PreparedData::open(&directory)?;
            let sha256 = data_sha256(&data)?;
            opened = Some((directory, data, sha256));
        }
        let Some((_, data, sha256)) = &opened else { continue };
        let recipe = plan.runs[index].recipe.clone();
        let config = recipe.llama(data.tokenizer().vocab_size())?;
        check_vocabulary(&recipe, data, &config)?;
        plan.runs[index].recipe = recipe.with_vocab(config.vocab);
        standings.push(if path.exists() {
            standing(&path, &plan.runs[index], sha256)?
        } else {
            Standing::New
        });
    }
    Ok(standings)
}

/// How far a run that exists has come.
fn standing(path: &Path, planned: &PlannedRun, data_sha256: &str) -> Result<Standing> {
    let run = RunDirectory::open(path)?;
    let state = match newest_valid(&run.checkpoints_path()) {
        Ok(found) => Some(found.checkpoint.state),
        Err(CheckpointError::None(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let recipe = match &state {
        Some(state) => state.recipe.clone(),
        None => run.recipe()?,
    };
    let changes = recipe.changes(&planned.recipe);
    if let Some((key, [before, after])) = changes.into_iter().find(|(key, _)| !may_differ(key)) {
        return Err(CompareError::Changed {
            run: path.to_path_buf(),
            key,
            before: before.to_string(),
            after: after.to_string(),
        }
        .into());
    }
    if run.info()?.data_sha256 != data_sha256 {
        return Err(CompareError::DataChanged(path.to_path_buf()).into());
    }
    let is_done = |state: RunState| {
        let is_complete = state.step == recipe.train.steps && state.evaluation.is_some();
        is_complete || state.bad_steps >= recipe.train.max_bad_steps
    };
    Ok(if state.is_some_and(is_done) {
        Standing::Done
    } else {
        Standing::Begun
    })
}

/// Steps of each arm that are timed for an estimate, after one step of warm-up.
const TIMED_STEPS: usize = 8;

/// A forward pass is a third of a training step's work: the backward pass is two more.
const FORWARD_SHARE: f64 = 1.0 / 3.0;

fn dry_run(plan: &Plan, standings: &[Standing], selected: Selected) -> Result<()> {
    let mut seconds = Vec::new();
    let mut parameters = Vec::new();
    for (index, arm) in plan.arms.iter().enumerate() {
        let Some(run) = plan.runs.iter().find(|run| run.arm == index) else {
            continue;
        };
        let recipe = run.recipe.clone();
        let config = recipe.llama(recipe.expected_vocab())?;
        parameters.push(config.parameters());
        let (batch, seq) = (recipe.train.batch as f64, recipe.data.seq_len as f64);
        let evaluations = 1 + recipe.train.steps.div_ceil(recipe.eval.every);
        let evaluated = evaluations as f64 * recipe.eval.tokens as f64 / (batch * seq);
        let steps = recipe.train.steps as f64 + evaluated * FORWARD_SHARE;
        let benchmark = Benchmark {
            model: Candidate { recipe, config },
            versus: None,
            steps: TIMED_STEPS,
            warmup: 1,
            profile: false,
            selected,
        };
        let report = selected.run(benchmark)?.map_err(Failure::during(&arm.name))?;
        seconds.push(steps * report.fastest_step_s);
    }
    let mut out = std::io::stdout().lock();
    let width = plan
        .runs
        .iter()
        .map(|run| run.directory.chars().count())
        .max()
        .unwrap_or(0);
    let mut left = 0.0;
    for (run, standing) in plan.runs.iter().zip(standings) {
        let tokens = run.recipe.train.steps * (run.recipe.train.batch * run.recipe.data.seq_len) as u64;
        let time = seconds[run.arm];
        if *standing != Standing::Done {
            left += time;
        }
        writeln!(
            out,
            "{:<width$}  {} parameters  {} tokens  {}{}",
            run.directory,
            HumanCount(parameters[run.arm]),
            HumanCount(tokens),
            HumanDuration(Duration::from_secs_f64(time)),
            match standing {
                Standing::New => "",
                Standing::Begun => "  (begun)",
                Standing::Done => "  (done)",
            },
        )?;
    }
    writeln!(
        out,
        "{} runs, about {} on {selected}, finished ones not counted",
        plan.runs.len(),
        HumanDuration(Duration::from_secs_f64(left)),
    )?;
    writeln!(
        out,
        "estimated from the fastest of {TIMED_STEPS} steps of each arm on random tokens; an evaluation as a third of as many training tokens"
    )?;
    Ok(())
}
