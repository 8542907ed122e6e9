//! `gpas eval`: loss and perplexity of a run's newest checkpoint.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use clap::Args;
use gpas_data::batch::Windows;
use gpas_data::store::PreparedData;
use gpas_model::LlamaConfig;

use super::train::{data_directory, data_sha256};
use crate::backend::{BackendChoice, BackendTask};
use crate::checkpoint::{Checkpoint, newest_valid};
use crate::evaluate::evaluate;
use crate::metrics::{EvalRecord, Record};
use crate::recipe::Recipe;
use crate::run::RunDirectory;
use crate::training::{TrainingError, check_precision, check_vocabulary, validation_windows};

/// Evaluate a run's newest checkpoint on validation text
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  gpas eval runs/pre_gpas-nano-001
  gpas eval runs/pre_gpas-nano-001 --tokens 1000000 --json")]
pub struct EvalArgs {
    /// The run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Prepared data whose validation split is used [default: the run's]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Tokens to score, at most [default: the recipe's eval.tokens]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tokens: Option<u64>,
    /// Print one JSON object, as it stands in metrics.jsonl
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the run, its checkpoint or its data cannot be read or do not fit each other.
pub fn run(args: EvalArgs, backend: Option<BackendChoice>) -> Result<()> {
    let run = RunDirectory::open(&args.run)?;
    let (recipe, info) = (run.recipe()?, run.info()?);
    // On the run's own backend, so that the figures are the run's to the last digit.
    let selected = backend.map_or_else(|| info.backend.parse(), Ok)?.select()?;
    let data = match &args.data {
        Some(directory) => PreparedData::open(directory)?,
        None => PreparedData::open(&data_directory(&recipe)?)?,
    };
    if data.tokenizer().sha256() != info.tokenizer_sha256 {
        return Err(TrainingError::Tokenizer {
            data: data.directory().to_path_buf(),
            run: run.tokenizer_path(),
        }
        .into());
    }
    if args.data.is_none() && data_sha256(&data)? != info.data_sha256 {
        return Err(TrainingError::DataChanged(data.directory().to_path_buf()).into());
    }
    let config = recipe.llama(data.tokenizer().vocab_size())?;
    check_vocabulary(&recipe, &data, &config)?;
    let found = newest_valid(&run.checkpoints_path())?;
    for damage in &found.passed_over {
        eprintln!("warning: {damage}; passed over");
    }
    let windows = validation_windows(&recipe, &data)?;
    let tokens = args.tokens.unwrap_or(recipe.eval.tokens);
    let task = Evaluation {
        recipe,
        config,
        checkpoint: found.checkpoint,
        windows,
        tokens,
    };
    let record = selected.run(task)??;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&Record::Eval(record))?)?;
    } else {
        let EvalRecord {
            step,
            loss,
            perplexity,
            tokens,
        } = record;
        writeln!(
            out,
            "step {step}  validation loss {loss:.6}  perplexity {perplexity:.6}  {tokens} tokens"
        )?;
    }
    Ok(())
}

struct Evaluation {
    recipe: Recipe,
    config: LlamaConfig,
    checkpoint: Checkpoint,
    windows: Windows,
    tokens: u64,
}

impl BackendTask for Evaluation {
    type Output = Result<EvalRecord, TrainingError>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        check_precision::<B>(&self.config, &device)?;
        let model = self.checkpoint.model::<B::InnerBackend>(&self.config, &device)?;
        let tokens = Some(self.tokens as usize);
        let (micro_batch, step) = (self.recipe.train.micro_batch, self.checkpoint.state.step);
        let record = evaluate(&model, self.windows, micro_batch, tokens, step, &device, || false)?;
        Ok(record.expect("nothing asks an evaluation of its own to stop"))
    }
}
