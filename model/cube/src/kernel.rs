//! What a kernel is: a function from tensors to tensors that a device runs, and the list of all of them.

use std::fmt::Debug;

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use crate::adam::Adam;
use crate::attention::{CausalAttention, CausalAttentionBackward};
use crate::embedding::{Embed, EmbedBackward};
use crate::gate::{GatedSum, GatedSumBackward};
use crate::head::{HeadLoss, TokenLosses};
use crate::linear::{Linear, LinearBackward};
use crate::norm::{Norm, NormBackward};
use crate::norms::Sums;
use crate::swiglu::{SwiGlu, SwiGluBackward};
use crate::tensor::Form;

/// A function from tensors to tensors that a device runs.
pub(crate) trait Kernel: Clone + Debug + Send + Sync + 'static {
    /// Its name in the graph.
    const NAME: &'static str;

    /// What it returns of inputs of these forms.
    fn outputs(&self, inputs: &[Form]) -> Vec<Form>;

    /// Launches it on tensors in whichever order their numbers lie.
    fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>>;
}

/// Declares the kernels.
macro_rules! kernels {
    ($($kernel:ident),* $(,)?) => {
        /// Any of the kernels, for where only the backend of the tensors is known and not the runtime below it.
        #[derive(Clone, Debug)]
        pub(crate) enum AnyKernel {
            $($kernel($kernel),)*
        }

        $(impl From<$kernel> for AnyKernel {
            fn from(kernel: $kernel) -> Self {
                Self::$kernel(kernel)
            }
        })*

        impl AnyKernel {
            pub(crate) fn name(&self) -> &'static str {
                match self {
                    $(Self::$kernel(_) => $kernel::NAME,)*
                }
            }

            pub(crate) fn outputs(&self, inputs: &[Form]) -> Vec<Form> {
                match self {
                    $(Self::$kernel(kernel) => kernel.outputs(inputs),)*
                }
            }

            pub(crate) fn run<R: CubeRuntime>(&self, inputs: Vec<CubeTensor<R>>) -> Vec<CubeTensor<R>> {
                match self {
                    $(Self::$kernel(kernel) => kernel.run(inputs),)*
                }
            }
        }
    };
}

kernels![
    Adam,
    CausalAttention,
    CausalAttentionBackward,
    Embed,
    EmbedBackward,
    GatedSum,
    GatedSumBackward,
    HeadLoss,
    Linear,
    LinearBackward,
    Norm,
    NormBackward,
    Sums,
    SwiGlu,
    SwiGluBackward,
    TokenLosses,
];
