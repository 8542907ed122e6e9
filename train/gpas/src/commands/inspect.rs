//! `gpas inspect`: a run's newest checkpoint, layer by layer.

use std::io::Write;
use std::path::PathBuf;

use burn::tensor::backend::AutodiffBackend;
use clap::Args;

use super::opened::RunAndText;
use crate::failure::{Failure, Result};
use gpas_train::backend::{BackendChoice, BackendTask};
use gpas_train::inspect::ModelInspection;
use gpas_train::metrics::{Record, read_records};

/// Look at a run's newest checkpoint layer by layer, on validation text
#[derive(Debug, Args)]
#[command(after_help = "\
h_i is the residual stream before layer i at one token, h_L that after the last of L layers.
Means over the scored tokens:
  variance          mean((h_i − mean(h_i))²) over all entries   arXiv 2506.22049 (GPAS)
  influence         1 − cos(h_i, h_{i+1})                       arXiv 2403.03853 (ShortGPT)
  loss change       loss without the layer, less the loss       arXiv 2403.03853
  angular distance  arccos(cos(h_i, h_{i+n})) / π, every n      arXiv 2403.17887
Of the weights:
  gate, scale       α and 1 − act(α)                            arXiv 2506.22049
  running           product of the scales that multiply the stream up to the layer's end
  weight norms      √Σ w² of each matrix
Of metrics.jsonl, at its first, middle and last record of the layers: gradient norm, variance
and gate of each. `--json` has all records.

Examples:
  gpas inspect runs/pre_gpas-nano-001
  gpas inspect runs/pre_gpas-nano-001 --tokens 20000 --json")]
pub struct InspectArgs {
    /// The run directory, for its newest checkpoint; with @STEP or @best, for another
    #[arg(value_name = "RUN[@STEP|@best]")]
    run: PathBuf,
    /// Prepared data whose validation split is used [default: the run's]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Tokens to look at, at most [default: the recipe's eval.tokens]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tokens: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the run, its checkpoint or its data cannot be read or do not fit each other.
pub fn run(args: InspectArgs, backend: Option<BackendChoice>) -> Result<()> {
    let (selected, asked) = RunAndText::open(&args.run, args.data.as_deref(), args.tokens, backend)?;
    let metrics = asked.opened.run.metrics_path();
    let records = read_records(&metrics).map_err(Failure::during(metrics.display()))?;
    let mut inspection = selected.run(Look(asked))??;
    let layers = records.into_iter().filter_map(|record| match record {
        Record::Layers(layers) => Some(layers),
        _ => None,
    });
    inspection.history = layers.collect();
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&inspection)?)?;
    } else {
        write!(out, "{inspection}")?;
    }
    Ok(())
}

/// The task of looking at a checkpoint.
pub(super) struct Look(pub RunAndText);

impl BackendTask for Look {
    type Output = Result<ModelInspection>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let RunAndText {
            opened,
            windows,
            tokens,
            ..
        } = self.0;
        let model = opened.model::<B>(&device)?;
        let (batch, step) = (opened.recipe.train.micro_batch, opened.checkpoint.state.step);
        Ok(ModelInspection::of(
            &model,
            &opened.config,
            step,
            windows,
            batch,
            tokens,
            &device,
        )?)
    }
}
