//! Gradient-Preserving Activation Scaling (GPAS, arXiv 2506.22049) and every normalisation scheme it is compared with, as
//! [Burn](burn) modules that are generic over the backend.
//!
//! - [`Gpas`]: `x − act(α)·detach(x)`, for any residual stream.
//! - [`scheme`]: the table of schemes, as data.
//! - [`LlamaConfig`], [`Llama`]: a LLaMA-style decoder with any of them.
//! - [`params`]: what each of its parameters is; [`weights`]: their names in files.
//! - [`analysis`]: what a trained model does to its residual stream.
//!
//! # GPAS in a model of your own
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
//! use burn::tensor::{Tensor, backend::Backend};
//! use gpas_model::{Gpas, GpasConfig};
//!
//! /// A Pre-LN layer whose residual stream is scaled after the addition.
//! #[derive(Module, Debug)]
//! struct Layer<B: Backend> {
//!     norm: LayerNorm<B>,
//!     linear: Linear<B>,
//!     gpas: Gpas<B>,
//! }
//!
//! impl<B: Backend> Layer<B> {
//!     fn new(width: usize, device: &B::Device) -> Self {
//!         Self {
//!             norm: LayerNormConfig::new(width).init(device),
//!             linear: LinearConfig::new(width, width).init(device),
//!             gpas: GpasConfig::new().init(device),
//!         }
//!     }
//!
//!     fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
//!         let branch = self.linear.forward(self.norm.forward(x.clone()));
//!         self.gpas.forward(x + branch)
//!     }
//! }
//!
//! let device = Default::default();
//! let layer = Layer::<burn_flex::Flex>::new(8, &device);
//! let x = Tensor::ones([2, 3, 8], &device);
//! assert_eq!(layer.forward(x).dims(), [2, 3, 8]);
//! ```

pub mod analysis;
mod attention;
mod block;
mod branch;
mod cache;
pub mod compare;
mod config;
mod cost;
pub mod fast;
mod gpas;
mod init;
mod llama;
pub mod loss;
mod mlp;
mod norm;
pub mod params;
mod precision;
mod progress;
mod rotary;
pub mod scheme;
pub mod weights;

pub use attention::{Attention, AttentionConfig, CausalMask};
pub use block::{Block, NoPlaceForGate, Residual};
pub use branch::BranchScale;
pub use cache::Cache;
pub use config::{ConfigError, Initialisation, LlamaConfig, Preset};
pub use cost::TrainingMemory;
pub use gpas::{GateActivation, GateSite, Gpas, GpasConfig};
pub use gpas_batch::{BatchError, IGNORE_INDEX, TokenBatch};
#[cfg(feature = "train")]
pub use llama::LossOutput;
pub use llama::{Llama, StepGradients, StepSums};
pub use mlp::{Mlp, MlpConfig};
pub use norm::{RmsNorm, RmsNormConfig};
pub use params::ParameterKind;
pub use precision::Precision;
pub use progress::Progress;
pub use rotary::{Rotary, RotaryConfig};
pub use scheme::{NormScheme, Scheme, UnknownScheme};
