//! `gpas import`: a LLaMA from elsewhere as a run directory.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use gpas_data::PreparedData;

use crate::failure::Result;
use crate::tuning;
use gpas_exchange::import::{Import, ImportOptions, ImportedTokenizer};
use gpas_train::backend::BackendChoice;
use gpas_train::recipe::RecipeOptions;
use gpas_train::run::{RunError, RunInfo};
use gpas_train::training::{TrainingError, check_vocabulary};

/// Make a run directory of a LLaMA-family model from elsewhere
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas import Llama-3.2-1B runs/llama
  gpas import LNS_130m runs/lns --scheme lns_fixed
  gpas import Llama-3.2-1B runs/llama --scheme pre_gpas --data c4 --set train.steps=1000 --set train.lr=1e-4

DIR holds config.json and model.safetensors or pytorch_model.bin, whole or in shards; no file of it is ever executed. The run has a
checkpoint after step 0: `gpas train RUN --resume` trains it further. Until it has made a step, `--data` and every key outside [model] may
still change there. A scheme with gates given for a model without any adds gates that start as the identity.")]
pub struct ImportArgs {
    /// The directory of the model, or a file in it
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The run directory to make
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Normalisation scheme, where the names of the tensors do not tell it, as with LayerNorm Scaling (lns_fixed), or to add gates
    #[arg(long)]
    scheme: Option<String>,
    /// Prepared data to train on
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Tokenizer [default: DIR/tokenizer.json, else that of the data]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// A recipe file, or the name of a shipped one, for the training to come; its [model] does not count
    #[arg(long, value_name = "RECIPE.toml")]
    recipe: Option<PathBuf>,
    /// Any recipe key outside [model], such as train.lr=5e-4; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If the model is damaged or not supported, or does not fit its tokenizer or the data.
pub fn run(args: ImportArgs, backend: BackendChoice) -> Result<()> {
    let directory = model_directory(&args.directory);
    if args.run.symlink_metadata().is_ok() {
        return Err(RunError::Exists(args.run).into());
    }
    let selected = tuning::select(backend)?;
    let request = ImportOptions {
        recipe: args.recipe,
        options: RecipeOptions {
            preset: None,
            scheme: args.scheme,
            data: args.data.clone(),
            set: args.set,
        },
    };
    let import = Import::open(directory, &request)?;
    let data = import
        .recipe()
        .data
        .path
        .as_deref()
        .map(PreparedData::open)
        .transpose()?;
    let ImportedTokenizer { tokenizer, notes } = import.tokenizer(args.tokenizer.as_deref(), data.as_ref())?;
    if let Some(data) = &data {
        if data.tokenizer().sha256() != tokenizer.sha256() {
            return Err(TrainingError::Tokenizer {
                data: data.directory().to_path_buf(),
                run: args.tokenizer.unwrap_or_else(|| directory.join("tokenizer.json")),
            }
            .into());
        }
        check_vocabulary(import.recipe(), data, import.config())?;
    }
    let facts = RunInfo::new(import.recipe(), import.config(), selected);
    let facts = match &data {
        Some(data) => facts.with_data(data)?,
        None => facts,
    };
    let info = RunInfo {
        tokenizer_sha256: tokenizer.sha256().to_string(),
        generation: import.generation_settings()?,
        imported: Some(import.source()),
        ..facts
    };
    let run = import.write(&args.run, &info, &tokenizer)?;
    if !import.taken_off().is_empty() {
        let added = import.taken_off().join("`, `");
        complain!("note: other trainers had added `{added}` to the names of the tensors, which was taken off");
    }
    for note in import.notes().iter().chain(&notes) {
        complain!("note: {note}");
    }
    if let Some(positions) = import.fewer_positions() {
        let sequence = import.config().max_positions;
        complain!("note: the model has {positions} positions; sequences of {sequence} tokens give the run {sequence}");
    }
    writeln!(
        std::io::stdout(),
        "{}: {} parameters and {} gates from {}{}\nrun directory {}",
        import.config().scheme,
        info.parameters,
        info.gates,
        directory.display(),
        assumption(&import),
        run.path().display()
    )?;
    Ok(())
}

/// The directory of a model, which may be named by one of its files.
fn model_directory(path: &Path) -> &Path {
    // The directory of a bare name is the current one.
    let holder = path.parent().map(|directory| match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    });
    let holder = holder.filter(|directory| path.is_file() && directory.join("config.json").is_file());
    holder.unwrap_or(path)
}

/// A line that says what has been assumed where nothing tells the scheme, and how to say otherwise; nothing where something has told it.
fn assumption(import: &Import) -> String {
    let others: Vec<String> = import
        .other_schemes()
        .iter()
        .map(|scheme| format!("`--scheme {scheme}`"))
        .collect();
    if others.is_empty() {
        return String::new();
    }
    let assumed = import.config().scheme;
    let others = others.join(" or ");
    format!("\nassumed to be `{assumed}`, since the names of its tensors do not tell; {others} takes it otherwise")
}
