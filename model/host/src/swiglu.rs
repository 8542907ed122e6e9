//! `silu(a) ⊙ b` of rows `[a | b]`: with the gradient `g` of the output and `s = 1/(1 + e⁻ᵃ)`, `∂L/∂a = g·b·s·(1 + a·(1 − s))` and
//! `∂L/∂b = g·a·s`.

use std::mem::MaybeUninit;

use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor};
use rayon::prelude::*;

use crate::memory::{Blank, written};
use crate::numbers::{Number, Numbers, Values};
use crate::operation::{Gradient, Operation, Output, View, Wanted};
use crate::table::{apply, input};
use crate::vector::{sigmoid, vectorised};

/// Rows of one task.
const ROWS: usize = 16;

/// `silu(a) ⊙ b` of the halves of each row.
///
/// # Shapes
/// - both: `[tokens, 2 · width]`
/// - output: `[tokens, width]`
pub fn swiglu<B: Backend>(both: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    apply(SwiGlu, [input(both)?])
}

#[derive(Debug)]
struct SwiGlu;

impl SwiGlu {
    fn gated_rows<E: Number>(x: &[E], width: usize) -> Values {
        let write = |y: &mut Blank<E>| {
            let tasks = x.par_chunks(ROWS * 2 * width).zip(y.par_chunks_mut(ROWS * width));
            tasks.for_each(|(x, y)| gated(x, width, y));
        };
        // SAFETY: the tasks are all the rows.
        E::values(unsafe { written(x.len() / 2, write) })
    }

    fn pull_back_rows<E: Number>(x: &[E], upstream: &[E], width: usize) -> Values {
        let write = |of_x: &mut Blank<E>| {
            let tasks = x.par_chunks(ROWS * 2 * width).zip(upstream.par_chunks(ROWS * width));
            tasks
                .zip(of_x.par_chunks_mut(ROWS * 2 * width))
                .for_each(|((x, upstream), of_x)| pull_back(x, upstream, width, of_x));
        };
        // SAFETY: the tasks are all the rows.
        E::values(unsafe { written(x.len(), write) })
    }
}

impl Operation<1> for SwiGlu {
    fn first_summed(&self) -> usize {
        1
    }

    fn forward(&self, [x]: [View<'_>; 1]) -> Output {
        let (tokens, width) = (x.shape[0], x.width() / 2);
        let values = match x.values {
            Numbers::F32(x) => Self::gated_rows(x, width),
            Numbers::Bf16(x) => Self::gated_rows(x, width),
        };
        Output::new(values, Shape::from([tokens, width]))
    }

    fn backward(
        &self,
        [x]: [View<'_>; 1],
        _kept: &[f32],
        upstream: Numbers<'_>,
        _wanted: [Wanted<'_>; 1],
    ) -> [Gradient; 1] {
        let width = x.width() / 2;
        [Gradient::Values(match (x.values, upstream) {
            (Numbers::Bf16(x), Numbers::Bf16(upstream)) => Self::pull_back_rows(x, upstream, width),
            (x, upstream) => Self::pull_back_rows(&x.widened(), &upstream.widened(), width),
        })]
    }
}

/// Numbers that are handled at once. Results in an array of their own cannot overlap the halves of a row, which the compiler would else have
/// to check for, and would then handle one number at a time.
const BLOCK: usize = 16;

vectorised! {
    fn gated[E: Number](x: &'a [E], width: usize, y: &'a mut Blank<E>) -> () {
        for (x, y) in x.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
            let (a, b) = x.split_at(width);
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<BLOCK>(), b.as_chunks::<BLOCK>());
            let (y, y_rest) = y.as_chunks_mut::<BLOCK>();
            for ((a, b), y) in a.iter().zip(b).zip(y) {
                let mut products = [MaybeUninit::new(E::nearest(0.0)); BLOCK];
                for i in 0..BLOCK {
                    let (a, b) = (a[i].wide(), b[i].wide());
                    products[i] = MaybeUninit::new(E::nearest(a * sigmoid(a) * b));
                }
                *y = products;
            }
            for ((a, b), y) in a_rest.iter().zip(b_rest).zip(y_rest) {
                let (a, b) = (a.wide(), b.wide());
                y.write(E::nearest(a * sigmoid(a) * b));
            }
        }
    }

    fn pull_back[E: Number](x: &'a [E], upstream: &'a [E], width: usize, of_x: &'a mut Blank<E>) -> () {
        let rows = x.chunks_exact(2 * width).zip(upstream.chunks_exact(width));
        for ((x, upstream), of_x) in rows.zip(of_x.chunks_exact_mut(2 * width)) {
            let (a, b) = x.split_at(width);
            let (of_a, of_b) = of_x.split_at_mut(width);
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<BLOCK>(), b.as_chunks::<BLOCK>());
            let (upstream, upstream_rest) = upstream.as_chunks::<BLOCK>();
            let ((of_a, of_a_rest), (of_b, of_b_rest)) = (of_a.as_chunks_mut::<BLOCK>(), of_b.as_chunks_mut::<BLOCK>());
            for ((((a, b), upstream), of_a), of_b) in a.iter().zip(b).zip(upstream).zip(of_a).zip(of_b) {
                let mut products = [[MaybeUninit::new(E::nearest(0.0)); BLOCK]; 2];
                for i in 0..BLOCK {
                    let (to_a, to_b) = slopes(a[i].wide(), b[i].wide());
                    products[0][i] = MaybeUninit::new(E::nearest(upstream[i].wide() * to_a));
                    products[1][i] = MaybeUninit::new(E::nearest(upstream[i].wide() * to_b));
                }
                [*of_a, *of_b] = products;
            }
            let rest = a_rest.iter().zip(b_rest).zip(upstream_rest).zip(of_a_rest).zip(of_b_rest);
            for ((((a, b), upstream), of_a), of_b) in rest {
                let (to_a, to_b) = slopes(a.wide(), b.wide());
                of_a.write(E::nearest(upstream.wide() * to_a));
                of_b.write(E::nearest(upstream.wide() * to_b));
            }
        }
    }
}

/// Slopes of `silu(a)·b` in `a` and in `b`.
#[inline(always)]
fn slopes(a: f32, b: f32) -> (f32, f32) {
    let s = sigmoid(a);
    (b * s * (1.0 + a * (1.0 - s)), a * s)
}
