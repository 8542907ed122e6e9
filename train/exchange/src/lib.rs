//! Models in and out.
#![doc = include_str!("../README.md")]
//!
//! - [`export`]: a run's newest checkpoint as a Hugging Face directory; [`fold`](mod@fold) takes its gates into the weights.
//! - [`import`]: a Hugging Face directory, or one of the GPAS authors', as a run directory.

mod archive;
mod card;
mod config;
pub mod export;
mod files;
pub mod fold;
pub mod import;
mod pickle;
mod rope;
mod tokens;
#[cfg(test)]
#[path = "../../../tests/torch.rs"]
mod torch;
mod wrappers;

use std::io;
use std::path::{Path, PathBuf};

use gpas_data::DataError;
use gpas_model::weights::WeightsError;
use gpas_model::{ConfigError, RopeScalingError, Scheme};

use gpas_train::checkpoint::CheckpointError;
use gpas_train::recipe::RecipeError;
use gpas_train::run::RunError;

/// Why a model cannot be exported or imported.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ExchangeError {
    #[error("{path}: {cause}")]
    Io { path: PathBuf, cause: io::Error },
    #[error("{path}: {what}")]
    Damaged { path: PathBuf, what: String },
    #[error("{0} already exists")]
    Exists(PathBuf),
    #[error("{0} is a file")]
    AFile(PathBuf),
    #[error("{0} holds no weights: neither model.safetensors nor pytorch_model.bin, whole or in shards")]
    NoWeights(PathBuf),
    #[error("{path}: {what} is not supported")]
    NotSupported { path: PathBuf, what: String },
    #[error("{path}: rotary positions: {cause}")]
    Rope { path: PathBuf, cause: RopeScalingError },
    #[error("the tensors of {0} are those of `post` and of `deeppost`, which differ in a factor that no file holds")]
    Ambiguous(PathBuf),
    #[error("scheme `{given}` is another function of the same weights than `{found}`, which {path} holds")]
    Scheme {
        path: PathBuf,
        given: Scheme,
        found: Scheme,
    },
    #[error("{path} does not hold scheme `{scheme}`, which {because}")]
    OtherTensors {
        path: PathBuf,
        scheme: Scheme,
        because: String,
        held: Scheme,
    },
    #[error("{path}: the branches of scheme `{scheme}` follow from steps that a new run has not made")]
    WarmsUp { path: PathBuf, scheme: Scheme },
    #[error("`{key}` = {given} is not the model in {path}, whose value is {found}")]
    Contradiction {
        path: PathBuf,
        key: String,
        given: String,
        found: String,
    },
    #[error("gates that are added start as the identity, and `model.gate.init` = {0} does not")]
    AddedGate(f64),
    #[error("{path}: `{key}` is {found}, which is no token id")]
    TokenId {
        path: PathBuf,
        key: &'static str,
        found: String,
    },
    #[error("{0} has no tokenizer.json")]
    NoTokenizer(PathBuf),
    #[error("a stock LLaMA cannot be `{scheme}`: {why}")]
    NotStock { scheme: Scheme, why: String },
    #[error("the gates cannot be folded: {0}")]
    Fold(String),
    #[error(
        "the largest difference of a logit between the model and its export is {largest:.1e}, more than {limit:.0e}{because}"
    )]
    Differs { largest: f64, limit: f64, because: String },
    #[error("{0} does not read back as it was written")]
    ReadBack(String),
    #[error("no tensor {names:?}")]
    Missing { names: Vec<String> },
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Data(#[from] DataError),
}

impl ExchangeError {
    fn damaged(path: &Path, what: impl Into<String>) -> Self {
        let what = what.into();
        Self::Damaged {
            path: path.to_path_buf(),
            // Messages of other libraries may run over several lines.
            what: what.split_whitespace().collect::<Vec<_>>().join(" "),
        }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |cause| Self::Io { path, cause }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Exists(_) => "name another directory; nothing is ever replaced".into(),
            Self::NoWeights(_) | Self::AFile(_) => "a model is a directory as `save_pretrained` of transformers writes it".into(),
            Self::NotSupported { .. } => {
                "what is imported: LlamaForCausalLM without biases, with silu and heads that rotary positions turn whole, and what `gpas export` writes".into()
            }
            Self::Rope { cause, .. } => cause.hint(),
            Self::Ambiguous(_) => "say which with `--scheme post` or `--scheme deeppost`, `_gpas` added if it has gates".into(),
            Self::Scheme { found, .. } => {
                let gated = Scheme { gpas: true, ..*found };
                format!("leave `--scheme` out, or take `--scheme {gated}`, which adds gates that start as the identity")
            }
            Self::OtherTensors { held, .. } => format!("leave `--scheme` out to take it as `{held}`, which its tensors fit"),
            Self::WarmsUp { .. } => {
                "after its warm-up such a model is `pre`, or `pre_gpas` with its gates: name that".into()
            }
            Self::Contradiction { .. } => "leave it out: the model decides".into(),
            Self::AddedGate(_) => "leave it out; `gpas train` moves the gates".into(),
            Self::TokenId { .. } => {
                "write the number of the token, a list of numbers where several end a text, or null".into()
            }
            Self::NoTokenizer(_) => "name the file with `--tokenizer`, or data prepared with it with `--data`".into(),
            Self::NotStock { .. } | Self::Fold(_) => {
                "without `--fold` it is exported as an architecture of its own, for `trust_remote_code=True`".into()
            }
            Self::Differs { .. } => "without `--fold` it is exported as an architecture of its own, which is exact".into(),
            Self::Damaged { .. } => GET_AGAIN.into(),
            Self::Weights(error) => return weights_hint(error),
            Self::Recipe(error) => return error.hint(),
            Self::Run(error) => return error.hint(),
            Self::Checkpoint(error) => return error.hint(),
            Self::Data(error) => return error.hint(),
            _ => return None,
        })
    }
}

const GET_AGAIN: &str = "get the file again from where it came from; nothing was written";

fn weights_hint(error: &WeightsError) -> Option<String> {
    match error {
        WeightsError::Mismatch { .. } => {
            Some("the names decide the scheme unless `--scheme` does; `config.json` decides the sizes".into())
        }
        WeightsError::Format(_) | WeightsError::Damaged(_) => Some(GET_AGAIN.into()),
        WeightsError::Within { cause, .. } => weights_hint(cause),
        WeightsError::File { .. }
        | WeightsError::Unnamed(_)
        | WeightsError::SameName { .. }
        | WeightsError::Shared(_)
        | WeightsError::Config(_)
        | WeightsError::Unreadable(_) => None,
    }
}
