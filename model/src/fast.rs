//! The fast operations, where there are any: the only file that names an accelerator.
//!
//! Every module says in tensor operations what it computes, which any backend runs and autodiff differentiates. Before that it asks here. A
//! function returns none where no accelerator that is compiled in takes the tensors, and then the module's own tensor operations run; so
//! nothing of this shows in the bounds of a module, which takes any `B: Backend`. Without features there is no accelerator, and every
//! function returns none.
//!
//! - Feature `host`: [gpas-host](https://docs.rs/gpas-host), for backends whose tensors lie in the memory of this process. Flex is one; with
//!   the feature `ndarray` NdArray is another, and any crate can add its own.
//! - Feature `cube`: [gpas-cube](https://docs.rs/gpas-cube), for backends that run on CubeCL, which are those of its own features: CUDA,
//!   Vulkan, Metal.
//!
//! Each operation is tested against the tensor operations that it stands for, in the module that has them.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
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

/// Declares functions that ask the accelerators of these features, each by a function of the same name, and return what the first one does
/// that takes the tensors. The function of that name in gpas-host says which shapes they have.
macro_rules! ask {
    ($(
        $(#[$attribute:meta])*
        [$($accelerator:ident)*] $visibility:vis fn $name:ident[$($generics:tt)*]($($argument:ident: $type:ty),* $(,)?) -> Option<$output:ty>;
    )*) => {$(
        $(#[$attribute])*
        $visibility fn $name<$($generics)*>($($argument: $type),*) -> Option<$output> {
            ask_each!([$($accelerator)*] $name($($argument),*));
            None
        }
    )*};
}

macro_rules! ask_each {
    ([host] $name:ident($($argument:ident),*)) => {
        #[cfg(feature = "host")]
        if let Some(found) = gpas_host::$name($($argument),*) {
            return Some(found);
        }
        #[cfg(not(feature = "host"))]
        let _ = ($($argument,)*);
    };
    ([host cube] $name:ident($($argument:ident),*)) => {
        #[cfg(feature = "host")]
        if let Some(found) = gpas_host::$name($($argument),*) {
            return Some(found);
        }
        #[cfg(feature = "cube")]
        if let Some(found) = gpas_cube::$name($($argument),*) {
            return Some(found);
        }
        #[cfg(not(any(feature = "host", feature = "cube")))]
        let _ = ($($argument,)*);
    };
}

ask! {
    /// A tensor in another number format.
    [host] pub(crate) fn cast[B: Backend, const D: usize](x: &Tensor<B, D>, format: DType) -> Option<Tensor<B, D>>;

    /// A branch times its scale.
    [host] pub(crate) fn scale[B: Backend, const D: usize](
        branch: &Tensor<B, D>,
        scale: &Tensor<B, 1>,
    ) -> Option<Tensor<B, D>>;

    /// `x + branch`.
    [host] pub(crate) fn sum[B: Backend, const D: usize](x: &Tensor<B, D>, branch: &Tensor<B, D>) -> Option<Tensor<B, D>>;

    /// GPAS of a stream with its gate `[1]`. `act` gives act(α) and act'(α).
    [host] pub(crate) fn gate[B: Backend, const D: usize](
        x: &Tensor<B, D>,
        gate: &Tensor<B, 1>,
        act: impl Fn(f64) -> [f64; 2] + Copy + Send + 'static,
        stop_gradient: bool,
    ) -> Option<Tensor<B, D>>;

    /// `a·b`, as an optimizer step multiplies matrices.
    ///
    /// # Shapes
    /// - a: `[rows, inner]`
    /// - b: `[inner, columns]`
    [host] pub fn product[B: Backend](a: &Tensor<B, 2>, b: &Tensor<B, 2>) -> Option<Tensor<B, 2>>;

    /// `x·W` of few rows, each of which is summed by itself.
    [host] pub(crate) fn few_rows[B: Backend](x: &Tensor<B, 2>, weight: &Tensor<B, 2>) -> Option<Tensor<B, 2>>;

    /// `silu(a) ⊙ b` of the halves of each row.
    [host cube] pub(crate) fn swiglu[B: Backend](both: &Tensor<B, 2>) -> Option<Tensor<B, 2>>;

    /// The rows of a table that ids name.
    [host cube] pub(crate) fn embed[B: Backend](table: &Tensor<B, 2>, ids: &Tensor<B, 2, Int>) -> Option<Tensor<B, 3>>;

    /// Causal attention within sequences of one length; the queries, keys and values of a token stand side by side.
    [host cube] pub(crate) fn causal_attention[B: Backend](
        projected: &Tensor<B, 2>,
        tables: &[Tensor<B, 2>; 2],
        heads: usize,
        kv_heads: usize,
    ) -> Option<Tensor<B, 2>>;

    /// The cache, for [`keep`] and [`cached_attention`], of a sequence that has no token yet and whose tokens are projected as this one.
    [host] pub(crate) fn cache[B: Backend](
        projected: &Tensor<B, 2>,
        heads: usize,
        kv_heads: usize,
    ) -> Option<HostCache>;

    /// Keeps keys and values of the first tokens of a sequence.
    [host] pub(crate) fn keep[B: Backend](
        projected: &Tensor<B, 2>,
        tables: &[Tensor<B, 2>; 2],
        cache: &mut HostCache,
    ) -> Option<()>;

    /// Attention of `count` new tokens of each sequence to the sequence's tokens, themselves included.
    [host] pub(crate) fn cached_attention[B: Backend](
        projected: &Tensor<B, 2>,
        tables: &[Tensor<B, 2>; 2],
        count: usize,
        sequences: &mut [(&mut HostCache, usize)],
    ) -> Option<Tensor<B, 2>>;

    /// The sum of all squares, in f64.
    [host] pub fn sum_of_squares[B: Backend, const D: usize](tensor: &Tensor<B, D>) -> Option<f64>;
}

/// RMSNorm over the last dimension, as [`RmsNorm`](crate::RmsNorm) computes it, in the number format `output`.
pub(crate) fn norm<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    weight: &Tensor<B, 1>,
    epsilon: f64,
    factor: f64,
    output: DType,
) -> Option<Tensor<B, D>> {
    // There the output has the format of the input: what is wider of the two is normalised.
    #[cfg(feature = "host")]
    if gpas_host::runs::<B>() {
        let x = if output == DType::F32 {
            cast(x, output)?
        } else {
            x.clone()
        };
        let y = gpas_host::norm(&x, weight, epsilon, factor)?;
        return cast(&y, output);
    }
    #[cfg(feature = "cube")]
    if let Some(y) = gpas_cube::norm(x, weight, epsilon, factor, output) {
        return Some(y);
    }
    #[cfg(not(any(feature = "host", feature = "cube")))]
    let _ = (x, weight, epsilon, factor, output);
    None
}

/// GPAS, whose scaling is hidden from the gradient, of `x + branch`; the number format of the output is that of x. `act` gives act(α) and
/// act'(α) of a number, `amount` act(α) as autodiff knows it.
pub(crate) fn gated_sum<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    branch: &Tensor<B, D>,
    gate: &Tensor<B, 1>,
    act: impl Fn(f64) -> [f64; 2] + Copy + Send + 'static,
    amount: impl FnOnce() -> Tensor<B, 1>,
) -> Option<Tensor<B, D>> {
    #[cfg(feature = "host")]
    if gpas_host::runs::<B>() {
        return gpas_host::gated_sum(x, &cast(branch, x.dtype())?, gate, act);
    }
    #[cfg(feature = "cube")]
    if gpas_cube::runs::<B>()
        && let Some(y) = gpas_cube::gated_sum(x, branch, &amount())
    {
        return Some(y);
    }
    #[cfg(not(feature = "cube"))]
    let _ = amount;
    let _ = (x, branch, gate, act);
    None
}

/// `[x · W₁ | x · W₂ | …]` of one to three weights in the number format of x, which holds `seq` rows of each sequence. If that is one, as in
/// generation, a row's result does not depend on the other rows on a processor.
pub(crate) fn linear<B: Backend, const N: usize>(
    x: &Tensor<B, 2>,
    weights: &[Tensor<B, 2>; N],
    seq: usize,
) -> Option<Tensor<B, 2>> {
    #[cfg(feature = "host")]
    if let Some(y) = gpas_host::linear(x, weights, seq) {
        return Some(y);
    }
    #[cfg(feature = "cube")]
    if let Some(y) = gpas_cube::linear(x, weights) {
        return Some(y);
    }
    let _ = (x, weights, seq);
    None
}

/// Whether parameters of a backend are best updated all at once, by [`adam`].
pub fn updates_together<B: Backend>() -> bool {
    #[cfg(feature = "cube")]
    return gpas_cube::runs::<B>();
    #[cfg(not(feature = "cube"))]
    false
}

/// The sum of all numbers of each of `sums`, then the sum of all squares of each of `squares`, in f32, `[sums + squares]`.
pub fn sums_and_squares<B: Backend>(sums: Vec<FloatTensor<B>>, squares: Vec<FloatTensor<B>>) -> Option<Tensor<B, 1>> {
    #[cfg(feature = "cube")]
    return gpas_cube::sums_and_squares::<B>(sums, squares);
    #[cfg(not(feature = "cube"))]
    {
        let _ = (sums, squares);
        None
    }
}

/// Adam's update of many parameters: of each its step with weight, m, v and gradient, and then the next weight, m and v of each.
///
/// What is given is written over, unless somebody else holds it.
#[cfg(feature = "host")]
pub fn adam<B: Backend>(parameters: Vec<(AdamStep, [FloatTensor<B>; 4])>) -> Option<Vec<[FloatTensor<B>; 3]>> {
    #[cfg(feature = "cube")]
    return gpas_cube::adam::<B>(
        parameters
            .into_iter()
            .map(|(step, own)| (cube_step(step), own))
            .collect(),
    );
    #[cfg(not(feature = "cube"))]
    {
        let _ = parameters;
        None
    }
}

#[cfg(all(feature = "host", feature = "cube"))]
fn cube_step(step: AdamStep) -> gpas_cube::AdamStep {
    let AdamStep {
        factor,
        decay,
        keep,
        betas,
        rest,
        step_size,
        epsilon,
    } = step;
    gpas_cube::AdamStep {
        factor,
        decay,
        keep,
        betas,
        rest,
        step_size,
        epsilon,
    }
}

/// Loss of every row outside of autodiff, 0 where the target is `ignored`, with products in the number format `products`.
pub(crate) fn token_losses<B: Backend>(
    hidden: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    targets: &Tensor<B, 1, Int>,
    ignored: i64,
    products: DType,
) -> Option<Tensor<B, 1>> {
    #[cfg(feature = "host")]
    if gpas_host::runs::<B>() {
        return gpas_host::token_losses(&cast(hidden, products)?, weight, targets, ignored);
    }
    #[cfg(feature = "cube")]
    if let Some(losses) = gpas_cube::token_losses(hidden, weight, targets, ignored, products) {
        return Some(losses);
    }
    let _ = (hidden, weight, targets, ignored, products);
    None
}

/// The loss, the gradient of the hidden states and that of the head.
pub(crate) type HeadGradients<B> = (Tensor<B, 1>, Tensor<B, 2>, Tensor<B, 2>);

/// What is scored of some hidden states, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scoring {
    /// The target of a row that is not scored.
    pub(crate) ignored: i64,
    /// What the sum of the losses is divided by.
    pub(crate) scored: usize,
    /// Rows of a sequence.
    pub(crate) seq: usize,
    /// Number format of the products.
    pub(crate) products: DType,
}

/// Loss and gradients of the head at once, outside of autodiff, as `gpas_host::loss_with_gradients` computes them.
///
/// # Errors
/// `sum` as it was, where no accelerator takes the tensors.
pub(crate) fn loss_with_gradients<B: Backend>(
    hidden: &Tensor<B, 2>,
    weight: &Tensor<B, 2>,
    targets: &Tensor<B, 1, Int>,
    scoring: Scoring,
    sum: Option<Tensor<B, 2>>,
) -> Result<HeadGradients<B>, Option<Tensor<B, 2>>> {
    let Scoring {
        ignored,
        scored,
        seq,
        products,
    } = scoring;
    #[cfg(feature = "host")]
    let sum = match cast(hidden, products) {
        Some(rounded) => match gpas_host::loss_with_gradients(&rounded, weight, targets, ignored, scored, seq, sum) {
            Ok(found) => {
                let of_hidden = cast(&found.hidden, hidden.dtype()).expect("it came from there");
                return Ok((found.loss, of_hidden, found.weight));
            }
            Err(sum) => sum,
        },
        None => sum,
    };
    #[cfg(feature = "cube")]
    let sum = match gpas_cube::loss_with_gradients(hidden, weight, targets, ignored, scored, products, sum) {
        Ok(found) => return Ok((found.loss, found.hidden, found.weight)),
        Err(sum) => sum,
    };
    let _ = (hidden, weight, targets, ignored, scored, seq, products);
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
