//! The fast operations, where there are any: the only file that names an accelerator.
//!
//! Every module says in tensor operations what it computes, which any backend runs and autodiff differentiates. Before that it asks here. A
//! function returns none where no accelerator that is compiled in takes the tensors, and then the module's own tensor operations run; so
//! nothing of this shows in the bounds of a module, which takes any `B: Backend`. Without features there is no accelerator, and every
//! function returns none.
//!
//! - Feature `host`: [gpas-host](https://docs.rs/gpas-host), for backends whose tensors lie in the memory of this process. Flex is one; with
//!   the feature `ndarray` NdArray is another, and any crate can add its own.
//!
//! Each operation is tested against the tensor operations that it stands for, in the module that has them.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};
#[cfg(feature = "host")]
pub use gpas_host::AdamStep;
#[cfg(feature = "host")]
pub(crate) use gpas_host::HostCache;

/// What [`cache`] would return: no such cache without an accelerator.
#[cfg(not(feature = "host"))]
#[derive(Clone, Debug)]
pub(crate) enum HostCache {}

/// Whether the tensors of a backend lie in the memory of this process, where to look at their values is to wait for nothing.
pub(crate) fn is_in_memory<B: Backend>() -> bool {
    #[cfg(feature = "host")]
    return gpas_host::runs::<B>();
    #[cfg(not(feature = "host"))]
    false
}

/// Declares functions that ask the accelerators one after the other, each by a function of the same name, and return what the first one does
/// that takes the tensors. The function of that name in gpas-host says which shapes they have.
macro_rules! ask {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident[$($generics:tt)*]($($argument:ident: $type:ty),* $(,)?) -> Option<$output:ty>;
    )*) => {$(
        $(#[$attribute])*
        $visibility fn $name<$($generics)*>($($argument: $type),*) -> Option<$output> {
            #[cfg(feature = "host")]
            if let Some(found) = gpas_host::$name($($argument),*) {
                return Some(found);
            }
            #[cfg(not(feature = "host"))]
            let _ = ($($argument,)*);
            None
        }
    )*};
}

ask! {
    /// RMSNorm over the last dimension, as [`RmsNorm`](crate::RmsNorm) computes it.
    pub(crate) fn norm[B: Backend, const D: usize](
        x: &Tensor<B, D>,
        weight: &Tensor<B, 1>,
        epsilon: f64,
        factor: f64,
    ) -> Option<Tensor<B, D>>;

    /// A tensor in another number format.
    pub(crate) fn cast[B: Backend, const D: usize](x: &Tensor<B, D>, format: DType) -> Option<Tensor<B, D>>;

    /// A branch times its scale.
    pub(crate) fn scale[B: Backend, const D: usize](
        branch: &Tensor<B, D>,
        scale: &Tensor<B, 1>,
    ) -> Option<Tensor<B, D>>;

    /// `x + branch`.
    pub(crate) fn sum[B: Backend, const D: usize](x: &Tensor<B, D>, branch: &Tensor<B, D>) -> Option<Tensor<B, D>>;

    /// GPAS of a stream with its gate `[1]`. `act` gives act(α) and act'(α).
    pub(crate) fn gate[B: Backend, const D: usize](
        x: &Tensor<B, D>,
        gate: &Tensor<B, 1>,
        act: impl Fn(f64) -> [f64; 2] + Copy + Send + 'static,
        stop_gradient: bool,
    ) -> Option<Tensor<B, D>>;

    /// GPAS, whose scaling is hidden from the gradient, of `x + branch`.
    pub(crate) fn gated_sum[B: Backend, const D: usize](
        x: &Tensor<B, D>,
        branch: &Tensor<B, D>,
        gate: &Tensor<B, 1>,
        act: impl Fn(f64) -> [f64; 2] + Copy + Send + 'static,
    ) -> Option<Tensor<B, D>>;

    /// `[x · W₁ | x · W₂ | …]` of one to three weights; `x` holds `seq` rows of each sequence. If that is one, as in generation, a row's
    /// result does not depend on the other rows.
    pub(crate) fn linear[B: Backend, const N: usize](
        x: &Tensor<B, 2>,
        weights: &[Tensor<B, 2>; N],
        seq: usize,
    ) -> Option<Tensor<B, 2>>;

    /// `a·b`, as an optimizer step multiplies matrices.
    ///
    /// # Shapes
    /// - a: `[rows, inner]`
    /// - b: `[inner, columns]`
    pub fn product[B: Backend](a: &Tensor<B, 2>, b: &Tensor<B, 2>) -> Option<Tensor<B, 2>>;

    /// `x·W` of few rows, each of which is summed by itself.
    pub(crate) fn few_rows[B: Backend](x: &Tensor<B, 2>, weight: &Tensor<B, 2>) -> Option<Tensor<B, 2>>;

    /// `silu(a) ⊙ b` of the halves of each row.
    pub(crate) fn swiglu[B: Backend](both: &Tensor<B, 2>) -> Option<Tensor<B, 2>>;

    /// The rows of a table that ids name.
    pub(crate) fn embed[B: Backend](table: &Tensor<B, 2>, ids: &Tensor<B, 2, Int>) -> Option<Tensor<B, 3>>;

    /// Causal attention within sequences of one length; the queries, keys and values of a token stand side by side.
    pub(crate) fn causal_attention[B: Backend](
        projected: &Tensor<B, 2>,
        tables: &[Tensor<B, 2>; 2],
        heads: usize,
        kv_heads: usize,
    ) -> Option<Tensor<B, 2>>;

    /// The cache, for [`keep`] and [`cached_attention`], of a sequence that has no token yet and whose tokens are projected as this one.
    pub(crate) fn cache[B: Backend](
        projected: &Tensor<B, 2>,
        heads: usize,
        kv_heads: usize,
    ) -> Option<HostCache>;

    /// Keeps keys and values of the first tokens of a sequence.
    pub(crate) fn keep[B: Backend](
        projected: &Tensor<B, 2>,
        tables: &[Tensor<B, 2>; 2],
        cache: &mut HostCache,
    ) -> Option<()>;

    /// Attention of `count` new tokens of each sequence to the sequence's tokens, themselves included.
    pub(crate) fn cached_attention[B: Backend](
        projected: &Tensor<B, 2>,
        tables: &[Tensor<B, 2>; 2],
        count: usize,
        sequences: &mut [(&mut HostCache, usize)],
    ) -> Option<Tensor<B, 2>>;

    /// Loss of every row outside of autodiff, 0 where the target is `ignored`.
    pub(crate) fn token_losses[B: Backend](
        hidden: &Tensor<B, 2>,
        weight: &Tensor<B, 2>,
        targets: &Tensor<B, 1, Int>,
        ignored: i64,
    ) -> Option<Tensor<B, 1>>;

    /// The sum of all squares, in f64.
    pub fn sum_of_squares[B: Backend, const D: usize](tensor: &Tensor<B, D>) -> Option<f64>;
}

/// The loss, the gradient of the hidden states and that of the head.
pub(crate) type HeadGradients<B> = (Tensor<B, 1>, Tensor<B, 2>, Tensor<B, 2>);

/// Loss and gradients of the head at once, outside of autodiff, as `gpas_host::loss_with_gradients` computes them.
///
/// # Errors
/// `sum` as it was, where no accelerator takes the tensors.
pub(crate) fn loss_with_gradients<B: Backend>(
    hidden: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    targets: &Tensor<B, 1, Int>,
    ignored: i64,
    scored: usize,
    seq: usize,
    sum: Option<Tensor<B, 2>>,
) -> Result<HeadGradients<B>, Option<Tensor<B, 2>>> {
    #[cfg(feature = "host")]
    let sum = match gpas_host::loss_with_gradients(hidden, weight, targets, ignored, scored, seq, sum) {
        Ok(found) => return Ok((found.loss, found.hidden, found.weight)),
        Err(sum) => sum,
    };
    #[cfg(not(feature = "host"))]
    let _ = (hidden, weight, targets, ignored, scored, seq);
    Err(sum)
}

/// `y` as it is. Going back, `sum` is where the gradient of `weight` comes together before anything that led to `y` adds to it.
///
/// # Errors
/// `sum`, where no accelerator adds up the gradients of a backend's weights sequence by sequence.
pub(crate) fn carry_sum<B: AutodiffBackend, const D: usize, const E: usize>(
    y: &Tensor<B, D>,
    weight: &Tensor<B, E>,
    sum: Tensor<B::InnerBackend, E>,
) -> Result<Tensor<B, D>, Tensor<B::InnerBackend, E>> {
    #[cfg(feature = "host")]
    let sum = match gpas_host::carry_sum(y, weight, sum) {
        Ok(y) => return Ok(y),
        Err(sum) => sum,
    };
    #[cfg(not(feature = "host"))]
    let _ = (y, weight);
    Err(sum)
}
