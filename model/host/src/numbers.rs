//! The number formats that the fast operations read and write: f32, and bf16, which is the upper half of an f32.
//!
//! Operations compute in f32, whatever the format of their tensors: bf16 is widened where it is read, and a result that belongs to a bf16
//! tensor is rounded where it is written, half way to even. Products alone are different: they round what they read.

use std::borrow::Cow;
use std::fmt::Debug;

use burn::tensor::{DType, Shape, TensorData, bf16};
use rayon::prelude::*;

use crate::memory::{Blank, written};
use crate::vector::{CHUNK, vectorised};

/// A number in one of the formats.
pub(crate) trait Number: Copy + Debug + Send + Sync + 'static {
    /// Whether more can be added to sums of this format.
    const IS_SUM: bool;

    /// As f32, exactly.
    fn wide(self) -> f32;

    /// The nearest number of this format.
    fn nearest(x: f32) -> Self;

    /// The numbers themselves where they are f32, so that nothing is copied.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;

    /// A buffer of this format as what an operation returns.
    fn values(values: Vec<Self>) -> Values;
}

impl Number for f32 {
    const IS_SUM: bool = true;

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn nearest(x: f32) -> Self {
        x
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }

    fn values(values: Vec<Self>) -> Values {
        Values::F32(values)
    }
}

impl Number for bf16 {
    const IS_SUM: bool = false;

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// In plain arithmetic, of which a loop becomes vector instructions.
    #[inline(always)]
    fn nearest(x: f32) -> Self {
        const QUIET: u32 = 1 << 22;
        let bits = x.to_bits();
        // Half of the last place, and a little less where that place is even.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let rounded = if x.is_nan() { bits | QUIET } else { rounded };
        bf16::from_bits((rounded >> 16) as u16)
    }

    fn as_f32(_values: &[Self]) -> Option<&[f32]> {
        None
    }

    fn values(values: Vec<Self>) -> Values {
        Values::Bf16(values)
    }
}

/// The numbers of a tensor, to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Numbers<'a> {
    pub(crate) fn format(&self) -> DType {
        match self {
            Numbers::F32(_) => DType::F32,
            Numbers::Bf16(_) => DType::BF16,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Numbers::F32(values) => values.len(),
            Numbers::Bf16(values) => values.len(),
        }
    }

    /// As f32; copied only where they are not.
    pub(crate) fn widened(self) -> Cow<'a, [f32]> {
        match self {
            Numbers::F32(values) => Cow::Borrowed(values),
            Numbers::Bf16(values) => Cow::Owned(converted(values)),
        }
    }
}

/// Numbers of a tensor to be made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Values {
    fn numbers(&self) -> Numbers<'_> {
        match self {
            Values::F32(values) => Numbers::F32(values),
            Values::Bf16(values) => Numbers::Bf16(values),
        }
    }

    /// In a format, that of the tensor that they are for.
    pub(crate) fn in_format(self, format: DType) -> Self {
        match (self, format) {
            (Values::F32(values), DType::BF16) => Values::Bf16(converted(&values)),
            (Values::Bf16(values), DType::F32) => Values::F32(converted(&values)),
            (values, _) => {
                assert_eq!(
                    values.numbers().format(),
                    format,
                    "operations have tensors of two formats"
                );
                values
            }
        }
    }

    pub(crate) fn into_data(self, shape: Shape) -> TensorData {
        match self {
            Values::F32(values) => TensorData::new(values, shape),
            Values::Bf16(values) => TensorData::new(values, shape),
        }
    }
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        Values::F32(values)
    }
}

/// Numbers in the other format.
pub(crate) fn converted<F: Number, T: Number>(from: &[F]) -> Vec<T> {
    let write = |to: &mut Blank<T>| {
        let tasks = from.par_chunks(CHUNK).zip(to.par_chunks_mut(CHUNK));
        tasks.for_each(|(from, to)| convert(from, to));
    };
    // SAFETY: the tasks are all of it.
    unsafe { written(from.len(), write) }
}

vectorised! {
    /// Each number in the format of the place that it goes to.
    pub(crate) fn convert[F: Number, T: Number](from: &'a [F], to: &'a mut Blank<T>) -> () {
        for (from, to) in from.iter().zip(to) {
            to.write(T::nearest(from.wide()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against `half`, over every kind of number, with ties either way.
    #[test]
    fn rounding_is_to_the_nearest_and_half_way_to_even() {
        let bits = (0..1u64 << 32).step_by(65_521 * 8).map(|bits| bits as u32);
        let ties = (0..1u32 << 16).flat_map(|high| [0x7fff, 0x8000, 0x8001].map(|low| high << 16 | low));
        for bits in bits.chain(ties) {
            let x = f32::from_bits(bits);
            let (found, expected) = (<bf16 as Number>::nearest(x), bf16::from_f32(x));
            assert_eq!(found.to_bits(), expected.to_bits(), "{bits:#x}");
            assert_eq!(found.wide().to_bits(), expected.to_f32().to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn what_is_widened_is_rounded_to_itself() {
        let values: Vec<bf16> = (0..100_000).map(|i| bf16::from_f32((i as f32 * 0.37).sin())).collect();
        let wide: Vec<f32> = converted(&values);
        assert!(wide.iter().zip(&values).all(|(wide, value)| *wide == value.to_f32()));
        assert_eq!(converted::<f32, bf16>(&wide), values);
    }
}
