//! `gpas export`: a run's model as a directory that transformers, and where it is a stock LLaMA any LLaMA runtime, loads.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use gpas_data::PreparedData;

use super::opened::OpenedRun;
use super::provenance::data_directory;
use crate::failure::Result;
use crate::number::whole;
use gpas_exchange::ExchangeError;
use gpas_exchange::export::{Export, NumberFormat, SHARD_BYTES};
use gpas_train::backend::BackendChoice;
use gpas_train::recipe::Recipe;
use gpas_train::run::{RunInfo, data_sha256};

/// Write a run's model as a directory that transformers loads
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas export runs/pre_gpas-nano-001 exported --fold
  gpas export runs/sandwich_gpas-nano-001 exported --dtype bf16

A model that is a stock LLaMA is written as one: `pre`, `lns`, `lns_fixed`, `scale_pre`, and with --fold their `_gpas`. Any other is an
architecture of its own, for `AutoModelForCausalLM.from_pretrained(OUT, trust_remote_code=True)`.")]
pub struct ExportArgs {
    /// The run directory, for its newest checkpoint; with @STEP or @best, for another
    #[arg(value_name = "RUN[@STEP|@best]")]
    run: PathBuf,
    /// The directory to make
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Fold the gates into the weights, so that the model is a stock LLaMA
    #[arg(long)]
    fold: bool,
    /// Number format of the weights
    #[arg(long, value_enum, ignore_case = true, default_value = "f32")]
    dtype: Dtype,
    /// Largest file of weights, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = SHARD_BYTES, value_parser = whole(1..))]
    shard_bytes: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Number format of the weights, as the command line spells it.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

impl From<Dtype> for NumberFormat {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => NumberFormat::F32,
            Dtype::Bf16 => NumberFormat::Bf16,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// If the run cannot be read, its model cannot be folded, or what would be written does not compute the same.
pub fn run(args: ExportArgs, backend: Option<BackendChoice>) -> Result<()> {
    if args.out.symlink_metadata().is_ok() {
        return Err(ExchangeError::Exists(args.out).into());
    }
    let OpenedRun {
        info,
        recipe,
        config,
        checkpoint,
        tokenizer,
        selected,
        ..
    } = OpenedRun::open(&args.run, backend)?;
    let data = found_data(&recipe, &info);
    let exported = selected.run(Export {
        config,
        info,
        checkpoint,
        tokenizer,
        data,
        out: args.out.clone(),
        fold: args.fold,
        format: args.dtype.into(),
        shard_bytes: args.shard_bytes,
    })??;
    for note in &exported.notes {
        complain!("note: {note}");
    }
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&exported)?)?;
    } else {
        writeln!(out, "{}\n{} in {}", exported, exported.architecture, args.out.display())?;
    }
    Ok(())
}

/// The run's data, if it is still there and is what the run was trained on.
fn found_data(recipe: &Recipe, info: &RunInfo) -> Option<PreparedData> {
    let data = PreparedData::open(&data_directory(recipe).ok()?).ok()?;
    (data_sha256(&data).ok()? == info.data_sha256).then_some(data)
}
