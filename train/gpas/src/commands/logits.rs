//! `gpas logits`: the raw logits of some token ids, for checking against other software.

use std::io;
use std::path::PathBuf;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use clap::Args;
use gpas_data::{DataError, aside};
use gpas_model::weights::{HostTensor, NamedTensors, WeightsError, write_safetensors};

use super::opened::OpenedRun;
use crate::failure::{Failure, Result};
use crate::number::number;
use gpas_serve::inference::check_ids;
use gpas_train::backend::{BackendChoice, BackendTask};

/// Write the raw logits of token ids, for checking against other software
#[derive(Debug, Args)]
#[command(after_help = "Example:
  gpas logits runs/pre_gpas-nano-001 --ids 5,17,9 --out logits.safetensors")]
pub struct LogitsArgs {
    /// The run directory, for its newest checkpoint; with @STEP or @best, for another
    #[arg(value_name = "RUN[@STEP|@best]")]
    run: PathBuf,
    /// The ids of one sequence, exactly as the model is to see them
    #[arg(long, value_name = "ID,…", value_delimiter = ',', required = true, value_parser = number::<u32>)]
    ids: Vec<u32>,
    /// New file for the tensor `logits` [tokens, vocab] in f32
    #[arg(long, short, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// Positions that may be used [default: those of a sequence in training; of an imported model all]
    #[arg(long, value_name = "N", value_parser = number::<usize>)]
    context: Option<usize>,
}

/// Runs the command.
///
/// # Errors
/// If the run cannot be read, lacks one of the ids or has fewer positions, or the file cannot be written.
pub fn run(args: LogitsArgs, backend: Option<BackendChoice>) -> Result<()> {
    // Checked before the work. What is neither a file nor a directory, such as /dev/stdout, is written to and not overwritten.
    let is_stream = args
        .out
        .metadata()
        .is_ok_and(|facts| !facts.is_file() && !facts.is_dir());
    if !is_stream && args.out.symlink_metadata().is_ok() {
        return Err(DataError::OutputExists { path: args.out }.into());
    }
    let opened = OpenedRun::open(&args.run, backend)?;
    check_ids(&args.ids, opened.config.vocab, opened.context(args.context)?)?;
    let shape = vec![args.ids.len(), opened.config.vocab];
    let selected = opened.selected;
    let values = selected.run(Logits { opened, ids: args.ids })??;
    let tensors = NamedTensors::from([("logits".to_string(), HostTensor { shape, values })]);
    if is_stream {
        return Ok(write_safetensors(&tensors, &args.out)?);
    }
    let bytes = safetensors::serialize(&tensors, None).map_err(WeightsError::from)?;
    aside::create(&args.out, &bytes).map_err(|cause| match cause.kind() {
        io::ErrorKind::AlreadyExists => DataError::OutputExists { path: args.out }.into(),
        _ => Failure::during(args.out.display())(cause),
    })
}

struct Logits {
    opened: OpenedRun,
    ids: Vec<u32>,
}

impl BackendTask for Logits {
    type Output = Result<Vec<f32>>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output {
        let model = self.opened.model::<B>(&device)?;
        let ids: Vec<i64> = self.ids.into_iter().map(i64::from).collect();
        let shape = [1, ids.len()];
        let ids = Tensor::<B::InnerBackend, 2, Int>::from_data(TensorData::new(ids, shape), &device);
        Ok(model.logits(ids).into_data().iter::<f32>().collect())
    }
}
