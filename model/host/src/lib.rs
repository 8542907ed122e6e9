//! The hot operations of a LLaMA-style model with GPAS, fused, for [Burn](burn) backends whose tensors lie in the memory of this process.
//!
//! A module says in tensor operations what it computes, which any backend runs and autodiff differentiates. On a processor those cost more
//! between the matrix products than in them: each walks over memory once more, on one thread. Here is the same mathematics as one loop over
//! slices, on all threads, with a backward pass of its own.
//!
//! Each function takes tensors of any `B: Backend` and returns none where it does not run on them, so nothing of this shows in the bounds of
//! a module: it asks first, and else computes as it says. Which backends have the fast operations is a [table](BACKENDS): Flex with the
//! feature `flex`, NdArray with `ndarray`, and any other one by an implementation of [`HostMemory`] and one line, [`backend!`].
//!
//! ```
//! use burn::tensor::Tensor;
//! use burn_flex::{Flex, FlexDevice};
//!
//! let x = Tensor::<Flex, 2>::from_floats([[3.0, 4.0]], &FlexDevice);
//! let weight = Tensor::<Flex, 1>::ones([2], &FlexDevice);
//! // √((9 + 16) / 2) = 3.5355.
//! let y = gpas_host::norm(&x, &weight, 1e-6, 1.0).expect("Flex has the fast operations");
//! y.into_data().assert_approx_eq::<f32>(
//!     &burn::tensor::TensorData::from([[0.848528, 1.131371]]),
//!     burn::tensor::Tolerance::absolute(1e-5),
//! );
//! ```

mod adam;
mod attention;
mod autodiff;
mod backends;
mod cached;
mod cast;
#[cfg(any(test, feature = "check"))]
pub mod check;
mod embedding;
mod gate;
mod head;
mod linear;
mod matrix;
mod memory;
mod norm;
mod numbers;
mod operand;
mod operation;
mod product;
mod scale;
mod storage;
mod swiglu;
mod table;
mod vector;

pub use adam::{AdamStep, sum_of_squares};
pub use attention::causal_attention;
pub use cached::{HostCache, cache, cached_attention, keep};
pub use cast::cast;
pub use embedding::embed;
pub use gate::{gate, gated_sum, sum};
pub use head::{HeadGradients, loss_with_gradients, token_losses};
pub use linear::{few_rows, linear, product};
pub use matrix::{Matrix, Strided};
pub use norm::norm;
pub use scale::scale;
pub use storage::HostMemory;
pub use swiglu::swiglu;
pub use table::{BACKENDS, Row, carry_sum, runs};

#[doc(hidden)]
pub use linkme;
