//! Causal attention against the tensor operations that it stands for, in values and gradients, on Vulkan, whose software driver will do.

use burn::backend::Autodiff;
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Distribution, Tensor, TensorData, Tolerance};
use burn_wgpu::{Vulkan, WgpuDevice};

type Tracked = Autodiff<Vulkan>;

#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: usize,
    seq: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

fn device() -> WgpuDevice {
    WgpuDevice::DefaultDevice
}

impl Shape {
    fn new(batch: usize, seq: usize, [heads, kv_heads, head_dim]: [usize; 3]) -> Self {
        Self {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
        }
    }

    fn projected(self) -> Tensor<Tracked, 2> {
        let width = (self.heads + 2 * self.kv_heads) * self.head_dim;
        Tensor::random(
            [self.batch * self.seq, width],
            Distribution::Normal(0.0, 1.0),
            &device(),
        )
    }

    fn upstream(self) -> Tensor<Tracked, 2> {
        let shape = [self.batch * self.seq, self.heads * self.head_dim];
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device())
    }

    /// Cosines and sines, the latter negative in the first half.
    fn tables(self) -> [Tensor<Tracked, 2>; 2] {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let half = self.head_dim / 2;
        for position in 0..self.seq {
            for column in 0..self.head_dim {
                let angle = position as f64 * 100f64.powf(-((column % half) as f64) / half as f64);
                cos.push(angle.cos() as f32);
                sin.push(if column < half { -angle.sin() } else { angle.sin() } as f32);
            }
        }
        let shape = [self.seq, self.head_dim];
        [cos, sin].map(|table| Tensor::from_data(TensorData::new(table, shape), &device()))
    }

    fn fused(self, projected: &Tensor<Tracked, 2>) -> Tensor<Tracked, 2> {
        let mixed = gpas_cube::causal_attention(projected, &self.tables(), self.heads, self.kv_heads);
        mixed.expect("the kernels run on Vulkan")
    }

    /// In tensor operations, on f32.
    ///
    /// The products are sums of products. With Burn's matmul in their place, what came back to the keys of two heads in two sequences of 20
    /// tokens was wrong on a software driver, as differences of the loss in f64 showed.
    fn plain(self, projected: &Tensor<Tracked, 2>) -> Tensor<Tracked, 2> {
        let Self {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
        } = self;
        let [cos, sin] = self.tables().map(|table| table.reshape([1, 1, seq, head_dim]));
        let part = |first: usize, count: usize| {
            let part = projected.clone().narrow(1, first * head_dim, count * head_dim);
            part.reshape([batch, seq, count, head_dim]).swap_dims(1, 2)
        };
        let turn = |x: Tensor<Tracked, 4>| {
            let half = head_dim / 2;
            let swapped = Tensor::cat(vec![x.clone().narrow(3, half, half), x.clone().narrow(3, 0, half)], 3);
            x * cos.clone() + swapped * sin.clone()
        };
        let repeat = |x: Tensor<Tracked, 4>| {
            let group = heads / kv_heads;
            let repeated = x.unsqueeze_dim::<5>(2).repeat_dim(2, group);
            repeated.reshape([batch, heads, seq, head_dim])
        };
        let query = turn(part(0, heads));
        let key = repeat(turn(part(heads, kv_heads)));
        let value = repeat(part(heads + kv_heads, kv_heads));
        let scores = query.unsqueeze_dim::<5>(3) * key.unsqueeze_dim::<5>(2);
        let scores = scores.sum_dim(4).squeeze_dim::<4>(4) / (head_dim as f64).sqrt();
        let later = Tensor::<Tracked, 2, Bool>::tril_mask([seq, seq], 0, &device()).reshape([1, 1, seq, seq]);
        let later = later.expand([batch, heads, seq, seq]);
        let weights = softmax(scores.mask_fill(later, f32::NEG_INFINITY), 3);
        let mixed = (weights.unsqueeze_dim::<5>(4) * value.unsqueeze_dim::<5>(2)).sum_dim(3);
        mixed
            .squeeze_dim::<4>(3)
            .swap_dims(1, 2)
            .reshape([batch * seq, heads * head_dim])
    }
}

/// No number is further from the expected one than `tolerance` times the largest of them.
#[track_caller]
fn assert_close(found: Tensor<Vulkan, 2>, expected: Tensor<Vulkan, 2>, tolerance: f32) {
    let largest = expected.clone().abs().max().into_scalar();
    assert!(largest.is_finite() && largest > 0.0, "{largest}");
    found
        .cast(DType::F32)
        .into_data()
        .assert_approx_eq::<f32>(&expected.into_data(), Tolerance::absolute(tolerance * largest));
}

/// Compares values and the gradient of a loss of both.
fn compare(shape: Shape, format: DType, tolerance: f32) {
    let projected = shape.projected().cast(format).detach().require_grad();
    let upstream = shape.upstream();
    let fused = shape.fused(&projected);
    assert_eq!(fused.dtype(), format);
    let fused = fused.cast(DType::F32);
    let exact = projected.clone().detach().cast(DType::F32).detach().require_grad();
    let plain = shape.plain(&exact);
    assert_close(fused.clone().inner(), plain.clone().inner(), tolerance);
    let fused = (fused * upstream.clone()).sum().backward();
    let plain = (plain * upstream).sum().backward();
    let [fused, plain] =
        [projected.grad(&fused), exact.grad(&plain)].map(|gradient| gradient.expect("a gradient of what is tracked"));
    assert_eq!(fused.dtype(), format);
    assert_close(fused, plain, tolerance);
}

#[test]
fn heads_of_many_widths() {
    for head_dim in [2, 6, 48, 80, 128] {
        compare(Shape::new(2, 20, [2, 2, head_dim]), DType::F32, 1e-5);
    }
}

/// The weights are kept up to a length of six widths of a head where none is shared, and computed again beyond.
#[test]
fn sequences_of_many_lengths() {
    for seq in [1, 7, 33, 48, 49, 300] {
        compare(Shape::new(1, seq, [3, 3, 8]), DType::F32, 1e-5);
    }
}

#[test]
fn query_heads_share_a_key_head() {
    for [heads, kv_heads] in [[4, 2], [6, 1]] {
        for seq in [17, 128] {
            compare(Shape::new(3, seq, [heads, kv_heads, 16]), DType::F32, 1e-5);
        }
    }
}

/// A row of more numbers than the units of a cube hold in registers at once.
#[test]
fn a_long_sequence() {
    compare(Shape::new(1, 2051, [1, 1, 2]), DType::F32, 1e-5);
}

#[test]
fn a_position_does_not_see_later_ones() {
    for seq in [9, 52] {
        let shape = Shape::new(1, seq, [2, 1, 8]);
        let projected = shape.projected();
        let [_, width] = projected.dims();
        let last = shape.projected().narrow(0, seq - 1, 1) * 10.0;
        let changed = projected.clone().slice_assign([seq - 1..seq, 0..width], last);
        let [before, after] = [projected, changed].map(|projected| {
            let projected = projected.detach().require_grad();
            let mixed = shape.fused(&projected).narrow(0, 0, seq - 1);
            let gradients = mixed.clone().sum().backward();
            let of_projected = projected.grad(&gradients).unwrap().narrow(0, 0, seq - 1);
            [mixed.inner(), of_projected].map(|tensor| tensor.into_data())
        });
        assert_eq!(before, after);
    }
}

/// In the row of its position and after it; before it, a weight of 0 makes no number of it either.
#[test]
fn what_is_no_number_shows() {
    let shape = Shape::new(1, 12, [1, 1, 4]);
    for column in [0, 4, 8] {
        let nan = Tensor::full([1, 1], f32::NAN, &device());
        let projected = shape.projected().slice_assign([5..6, column..column + 1], nan);
        let projected = projected.detach().require_grad();
        let mixed = shape.fused(&projected);
        let gradients = mixed.clone().sum().backward();
        let mixed = mixed.into_data().to_vec::<f32>().unwrap();
        assert!(mixed[5 * 4].is_nan(), "{column}");
        assert!(column == 0 || mixed[11 * 4].is_nan(), "{column}");
        let of_projected = projected.grad(&gradients).unwrap().into_data().to_vec::<f32>().unwrap();
        assert!(of_projected.iter().any(|number| number.is_nan()), "{column}");
    }
}

/// Three decimal digits are what f16 has; the weights, what comes back to them, and every result are rounded to it.
#[test]
fn in_numbers_of_two_bytes() {
    for shape in [Shape::new(2, 40, [4, 2, 48]), Shape::new(1, 133, [2, 1, 6])] {
        compare(shape, DType::F16, 4e-3);
    }
}
