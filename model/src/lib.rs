#![doc = include_str!("../README.md")]
//!
//! ## Where things are
//!
//! - [`Gpas`]: the scaling, for any residual stream.
//! - [`scheme`]: the table of schemes, as data.
//! - [`LlamaConfig`], [`Llama`]: the decoder with any of them.
//! - [`StepSums`]: the gradient of a step of several micro-batches; [`loss`]: head and loss without whole logits.
//! - [`Cache`]: the keys and values that generation keeps.
//! - [`params`]: what each parameter is; [`weights`]: their names in files.
//! - [`analysis`]: what a trained model does to its residual stream.

pub mod analysis;
mod attention;
mod block;
mod branch;
mod cache;
pub mod compare;
mod config;
mod cost;
pub mod fast;
mod generate;
mod gpas;
mod init;
#[cfg(feature = "train")]
mod learner;
mod llama;
pub mod loss;
mod mlp;
mod norm;
pub mod params;
mod precision;
mod progress;
pub mod rope_scaling;
mod rotary;
pub mod scheme;
mod step;
pub mod traffic;
pub mod weights;

pub use attention::{Attention, AttentionConfig, CausalMask};
pub use block::{Block, NoPlaceForGate, Residual};
pub use branch::BranchScale;
pub use cache::Cache;
pub use config::{ConfigError, GateConfig, Initialisation, LlamaConfig, Preset};
pub use cost::TrainingMemory;
pub use gpas::{GateActivation, Gpas, GpasConfig};
pub use gpas_batch::{BatchError, IGNORE_INDEX, TokenBatch};
#[cfg(feature = "train")]
pub use learner::LossOutput;
pub use llama::Llama;
pub use mlp::{Mlp, MlpConfig};
pub use norm::{RmsNorm, RmsNormConfig};
pub use params::ParameterKind;
pub use precision::Precision;
pub use progress::Progress;
pub use rope_scaling::{RopeScaling, RopeScalingError, RopeType};
pub use rotary::{Rotary, RotaryConfig};
pub use scheme::{GateSite, NormScheme, Scheme, UnknownScheme};
pub use step::{StepGradients, StepSums};
