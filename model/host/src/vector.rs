//! Loops over slices, compiled for the widest vectors that the processor has.

/// Declares functions whose bodies are compiled once for each set of vector instructions, of which the processor's best is taken at run
/// time. A body is plain loops and calls of `#[inline(always)]` functions: a closure or an iterator adaptor that is not inlined would be
/// compiled without those instructions. Type parameters stand in brackets behind the name.
macro_rules! vectorised {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident $([$($generic:ident: $bound:ident),*])? ($($argument:ident: $type:ty),* $(,)?) -> $output:ty $body:block
    )*) => {$(
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name<'a $($(, $generic: $bound)*)?>($($argument: $type),*) -> $output {
            struct Call<'a $($(, $generic: $bound)*)?> {
                $($argument: $type,)*
                lifetime: std::marker::PhantomData<(&'a (), $($($generic,)*)?)>,
            }
            impl<'a $($(, $generic: $bound)*)?> pulp::NullaryFnOnce for Call<'a $($(, $generic)*)?> {
                type Output = $output;

                #[inline(always)]
                #[allow(clippy::needless_range_loop, reason = "an index into lanes of a fixed number is what compiles to vectors")]
                fn call(self) -> $output {
                    let Call { $($argument,)* lifetime: _ } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Call { $($argument,)* lifetime: std::marker::PhantomData })
        }
    )*};
}
pub(crate) use vectorised;

/// Numbers that a loop handles at once: two vectors of AVX-512, or four of AVX2.
pub(crate) const LANES: usize = 32;

/// Numbers that one task handles of a long slice.
pub(crate) const CHUNK: usize = 1 << 15;

/// `eˣ` to a relative error of 2e-7 (Cephes' polynomial): 1.2e-38 below −87.3, NaN of NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding this number rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, of which the first times a small integer is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.3 { -87.3 } else { x };
    let clamped = if clamped > 88.7 { 88.7 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let rest = clamped - power * LN2_HIGH - power * LN2_LOW;
    let mut sum = 1.987_569_1e-4;
    sum = sum * rest + 1.398_199_9e-3;
    sum = sum * rest + 8.333_452e-3;
    sum = sum * rest + 4.166_579_6e-2;
    sum = sum * rest + 0.166_666_65;
    sum = sum * rest + 0.5;
    sum = sum * rest * rest + rest + 1.0;
    let scaled = f32::from_bits(sum.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x.is_nan() { x } else { scaled }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The largest of some numbers; −∞ of none. NaN counts as smallest.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
    }
    let mut largest = f32::NEG_INFINITY;
    for value in rest {
        largest = if *value > largest { *value } else { largest };
    }
    for value in lanes {
        largest = if value > largest { value } else { largest };
    }
    largest
}

/// Adds up lanes, pair by pair.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Puts `exp(x − shift)` in the place of each number, and returns their sum.
#[inline(always)]
pub(crate) fn exp_and_sum(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = values.as_chunks_mut::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            block[i] = exp(block[i] - shift);
            lanes[i] += block[i];
        }
    }
    let mut sum = 0.0;
    for value in rest {
        *value = exp(*value - shift);
        sum += *value;
    }
    sum_lanes(lanes) + sum
}

/// `Σ a·b`.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    let mut sum = 0.0;
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += a * b;
    }
    sum_lanes(lanes) + sum
}

/// `Σ a·b·c`.
#[inline(always)]
pub(crate) fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let (c_blocks, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a_blocks.iter().zip(b_blocks).zip(c_blocks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i] * c[i];
        }
    }
    let mut sum = 0.0;
    for ((a, b), c) in a_rest.iter().zip(b_rest).zip(c_rest) {
        sum += a * b * c;
    }
    sum_lanes(lanes) + sum
}

/// `out += (f₀·r₀ + f₁·r₁) + (f₂·r₂ + f₃·r₃)`.
#[inline(always)]
pub(crate) fn add_four(out: &mut [f32], factors: [f32; 4], rows: [&[f32]; 4]) {
    let [f0, f1, f2, f3] = factors;
    let (out_blocks, out_rest) = out.as_chunks_mut::<LANES>();
    let done = out_blocks.len() * LANES;
    let [(b0, _), (b1, _), (b2, _), (b3, _)] = rows.map(|row| row.as_chunks::<LANES>());
    for ((((out, r0), r1), r2), r3) in out_blocks.iter_mut().zip(b0).zip(b1).zip(b2).zip(b3) {
        for i in 0..LANES {
            out[i] += (f0 * r0[i] + f1 * r1[i]) + (f2 * r2[i] + f3 * r3[i]);
        }
    }
    for (i, out) in (done..).zip(out_rest) {
        *out += (f0 * rows[0][i] + f1 * rows[1][i]) + (f2 * rows[2][i] + f3 * rows[3][i]);
    }
}

/// `out += f·r`.
#[inline(always)]
pub(crate) fn add(out: &mut [f32], factor: f32, row: &[f32]) {
    for (out, value) in out.iter_mut().zip(row) {
        *out += factor * value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_exact_to_its_last_places() {
        for i in -8700..8850 {
            let x = i as f32 * 0.01;
            let expected = f64::from(x).exp();
            let relative = (f64::from(exp(x)) / expected - 1.0).abs();
            assert!(relative < 2e-7, "{x}: {relative}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_and_largest_of_any_length() {
        for length in [0, 1, 31, 32, 33, 100] {
            let values: Vec<f32> = (0..length).map(|i| (i as f32 * 0.7).sin()).collect();
            let ones = vec![1.0; length];
            let expected: f64 = values.iter().map(|value| f64::from(*value)).sum();
            assert!((f64::from(dot(&values, &ones)) - expected).abs() < 1e-5, "{length}");
            assert!(
                (f64::from(dot3(&values, &ones, &ones)) - expected).abs() < 1e-5,
                "{length}"
            );
            assert_eq!(max(&values), values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut exponentials = values.clone();
            let sum = exp_and_sum(&mut exponentials, 0.5);
            let expected: f64 = values.iter().map(|value| (f64::from(*value) - 0.5).exp()).sum();
            assert!((f64::from(sum) - expected).abs() < 1e-5 * expected.max(1.0), "{length}");
        }
        // A NaN among the numbers shows in the sum, whatever the largest is.
        assert!(exp_and_sum(&mut [1.0, f32::NAN], max(&[1.0, f32::NAN])).is_nan());
    }
}
