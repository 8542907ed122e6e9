//! The hot operations of a LLaMA-style model with GPAS as kernels, for [Burn](burn) backends that run on CubeCL: CUDA, Vulkan, Metal.
//!
//! A module says in tensor operations what it computes, which any backend runs and autodiff differentiates. On a card those are many
//! launches, each of which reads and writes the whole tensor once more. Here is the same mathematics with one walk over memory for each
//! direction where that is possible. The kernels are generic over the runtime and over the number format of the tensors; what they add up
//! they add up in f32, in an order that depends on the shapes alone, so that the same numbers come out on every run; only which kernel
//! multiplies matrices may be chosen by timing.
//!
//! Each function takes tensors of any `B: Backend` and returns none where it does not run on them, so nothing of this shows in the bounds of
//! a module: it asks first, and else computes as it says. The backends are those of the features; without any, the crate is empty.

#![cfg(feature = "kernels")]

mod adam;
mod attention;
mod autodiff;
mod backends;
#[cfg(feature = "cublas")]
mod cublas;
mod embedding;
mod gate;
mod graph;
mod group;
mod head;
mod kernel;
mod linear;
mod norm;
mod norms;
mod product;
mod products;
mod reduce;
mod rotary;
mod row;
mod rows;
mod softmax;
mod swiglu;
mod table;
mod tensor;

pub use adam::{AdamStep, adam};
pub use attention::causal_attention;
pub use embedding::embed;
pub use gate::gated_sum;
pub use head::{HeadGradients, loss_with_gradients, token_losses};
pub use linear::linear;
pub use norm::norm;
pub use norms::sums_and_squares;
pub use product::{product, product_into, products};
pub use products::{Products, Why};
pub use swiglu::swiglu;
pub use table::runs;
