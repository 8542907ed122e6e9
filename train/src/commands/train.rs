//! `gpas train`: a run from a recipe, or the default run on the built-in corpus.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use gpas_data::corpus::default_corpus;
use gpas_data::store::PreparedData;
use indicatif::HumanDuration;
use sha2::{Digest, Sha256};

use crate::backend::{BackendChoice, Selected};
use crate::recipe::{Recipe, RecipeArgs, resolve};
use crate::run::{RunDirectory, RunError, RunInfo};
use crate::training::{Outcome, TrainingRun, check_vocabulary};

/// Train a model; without arguments, a small one on the built-in corpus
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas train
  gpas train 71m --scheme sandwich_gpas --data c4 -o runs/sandwich
  gpas train --preset 9m --data DIR --set train.steps=200 --set train.lr=5e-4 --plain")]
pub struct TrainArgs {
    /// A recipe file, or the name of a shipped one: nano, 9m, … 7b
    #[arg(value_name = "RECIPE.toml")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    options: RecipeArgs,
    /// Directory of the run [default: runs/SCHEME-PRESET-NNN]
    #[arg(short, long, value_name = "RUN")]
    out: Option<PathBuf>,
    /// Print lines rather than show the dashboard
    #[arg(long)]
    plain: bool,
}

/// Runs the command.
///
/// # Errors
/// Anything wrong with the recipe, the data, the backend or the disk.
pub fn run(args: TrainArgs, backend: BackendChoice) -> Result<()> {
    let recipe = resolve(args.recipe.as_deref(), &args.options)?;
    let selected = backend.select()?;
    let out = args.out.unwrap_or_else(|| RunDirectory::default_path(&recipe));
    if out.exists() {
        return Err(RunError::Exists(out).into());
    }
    let directory = data_directory(&recipe)?;
    let data = PreparedData::open(&directory)?;
    let config = recipe.llama(data.tokenizer().vocab_size())?;
    check_vocabulary(&recipe, &data, &config)?;
    let recipe = recipe.with_vocab(config.vocab);

    let parameters = config.parameters();
    writeln!(
        std::io::stdout(),
        "{}: {parameters} parameters, {} steps of {} × {} tokens on {selected}, data {}",
        config.scheme,
        recipe.train.steps,
        recipe.train.batch,
        recipe.data.seq_len,
        directory.display(),
    )?;
    let info = facts(&recipe, &data, &config, selected)?;
    let begin = Instant::now();
    let outcome = selected.run(TrainingRun {
        recipe,
        config,
        data,
        info,
        out,
        plain: args.plain,
    })??;
    report(&outcome, begin)
}

/// The prepared data of a recipe; the built-in corpus, made on first use, where it names none.
///
/// # Errors
/// If the corpus cannot be made.
pub fn data_directory(recipe: &Recipe) -> Result<PathBuf> {
    match &recipe.data.path {
        Some(path) => Ok(path.clone()),
        None => Ok(default_corpus(Path::new(env!("CARGO_MANIFEST_DIR")), false)?),
    }
}

/// SHA-256 of the data's manifest, which holds the hashes of its shards.
///
/// # Errors
/// If the manifest cannot be written as JSON.
pub fn data_sha256(data: &PreparedData) -> Result<String> {
    let digest = Sha256::digest(serde_json::to_vec(data.manifest())?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn facts(
    recipe: &Recipe,
    data: &PreparedData,
    config: &gpas_model::LlamaConfig,
    selected: Selected,
) -> Result<RunInfo> {
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    Ok(RunInfo {
        gpas: env!("CARGO_PKG_VERSION").into(),
        commit: env!("GPAS_COMMIT").into(),
        burn: "0.21.0".into(),
        backend: selected.to_string(),
        platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        command: std::env::args().collect(),
        data: data.directory().to_path_buf(),
        data_sha256: data_sha256(data)?,
        tokenizer_sha256: data.tokenizer().sha256().to_string(),
        parameters: config.parameters(),
        gates: config.gates(),
        seed: recipe.train.seed,
        started,
    })
}

fn report(outcome: &Outcome, begin: Instant) -> Result<()> {
    let Outcome {
        run,
        first,
        last,
        complete,
    } = outcome;
    let mut out = std::io::stdout();
    if !complete {
        writeln!(out, "stopped after step {}", last.step)?;
    }
    writeln!(
        out,
        "validation perplexity {:.3} before, {:.3} after {} steps ({} tokens); {}",
        first.perplexity,
        last.perplexity,
        last.step,
        last.tokens,
        HumanDuration(begin.elapsed()),
    )?;
    writeln!(out, "run directory {}", run.path().display())?;
    Ok(())
}
