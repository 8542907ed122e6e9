//! For tests: a fused operation against the tensor operations that it stands for.

use std::cell::RefCell;

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// The backend of these tests.
pub type Tracked = Autodiff<Flex>;

thread_local! {
    /// Each test has a thread, and so the same numbers on every run: sums that nearly cancel would now and then differ by more than their
    /// size allows.
    static STREAM: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(1));
}

/// Numbers of N(0, 1), the same ones in every run of a test.
pub fn random<const D: usize>(shape: [usize; D]) -> Tensor<Tracked, D> {
    let count = shape.iter().product();
    let values: Vec<f32> = STREAM.with_borrow_mut(|stream| StandardNormal.sample_iter(stream).take(count).collect());
    Tensor::<Tracked, D>::from_data(TensorData::new(values, shape), &FlexDevice).require_grad()
}

/// The number formats that operations take.
pub const FORMATS: [DType; 2] = [DType::F32, DType::BF16];

/// What an entry may differ by, as a part of the largest expected one: in f32 the rounding of sums, in bf16, whose numbers are rounded by up
/// to 2⁻⁹ of their size, some roundings on the way.
fn tolerance(format: DType) -> f32 {
    match format {
        DType::BF16 => 1.0 / 64.0,
        _ => 1e-5,
    }
}

/// Asserts that no entry differs by more than 1e-5 of the largest expected one. NaN differs from everything.
///
/// # Panics
/// If one does, or an expected entry is infinite, naming `what` was compared.
pub fn assert_close<B: Backend, const D: usize>(found: Tensor<B, D>, expected: Tensor<B, D>, what: &str) {
    assert_close_in(DType::F32, found, expected, what);
}

/// [`assert_close`] of what was computed in a number format: of bf16, no entry differs by more than 2⁻⁶ of the largest expected one.
///
/// # Panics
/// As [`assert_close`].
pub fn assert_close_in<B: Backend, const D: usize>(
    format: DType,
    found: Tensor<B, D>,
    expected: Tensor<B, D>,
    what: &str,
) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let [found, expected] = [found, expected].map(|tensor| tensor.into_data().iter::<f32>().collect::<Vec<_>>());
    let peak = expected.iter().fold(0.0f32, |peak, value| peak.max(value.abs()));
    assert!(peak.is_finite(), "{what}: the largest expected entry is {peak}");
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // Written so that a comparison with NaN, which is false, fails.
        let is_close = (found - expected).abs() <= tolerance(format) * peak;
        assert!(
            is_close,
            "{what}, {format:?}: {found} for {expected} at {at}, where the peak is {peak}"
        );
    }
}

/// What two ways of computing the same send back through random numbers.
pub fn gradients<const D: usize>(
    fused: Tensor<Tracked, D>,
    plain: Tensor<Tracked, D>,
) -> [<Tracked as AutodiffBackend>::Gradients; 2] {
    gradients_in(DType::F32, fused, plain)
}

/// [`gradients`] of a fused result in a number format and of a plain one in f32.
pub fn gradients_in<const D: usize>(
    format: DType,
    fused: Tensor<Tracked, D>,
    plain: Tensor<Tracked, D>,
) -> [<Tracked as AutodiffBackend>::Gradients; 2] {
    assert_eq!(fused.dtype(), format, "the format of the output");
    let fused = fused.cast(DType::F32);
    assert_close_in(format, fused.clone().inner(), plain.clone().inner(), "output");
    // Numbers that the format holds: the gradient of a gate is a sum that nearly cancels, and their rounding would be most of it.
    let upstream = random(plain.dims()).detach().cast(format).cast(DType::F32);
    [fused, plain].map(|y| (y * upstream.clone()).sum().backward())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn are_close(found: [f32; 3], expected: [f32; 3]) -> bool {
        let tensor = |values: [f32; 3]| Tensor::<Flex, 1>::from_floats(values, &FlexDevice);
        std::panic::catch_unwind(|| assert_close(tensor(found), tensor(expected), "numbers")).is_ok()
    }

    #[test]
    fn nan_differs_from_everything() {
        let numbers = [1.0, -2.0, 0.5];
        assert!(are_close(numbers, numbers));
        assert!(are_close([1.000_001, -2.0, 0.5], numbers));
        assert!(!are_close([1.001, -2.0, 0.5], numbers));
        for at in 0..3 {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut damaged = numbers;
                damaged[at] = bad;
                assert!(!are_close(damaged, numbers), "{bad} found at {at}");
                assert!(!are_close(numbers, damaged), "{bad} expected at {at}");
            }
            let mut nan = numbers;
            nan[at] = f32::NAN;
            assert!(!are_close(nan, nan), "{at}");
        }
    }
}
