//! Every fused operation on bf16 tensors against itself in f32 on the same numbers. Against tensor operations each is tested in the module that
//! asks for it.

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor, TensorData, bf16};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::NdArray;
use gpas_host::check::{Tracked, assert_close, assert_close_in, random};

const ROUNDED: DType = DType::BF16;

type Matrix = Tensor<Tracked, 2>;

/// Numbers that bf16 holds, as a leaf of f32.
fn leaf<const D: usize>(shape: [usize; D]) -> Tensor<Tracked, D> {
    Tensor::from_inner(random(shape).inner().cast(ROUNDED).cast(DType::F32)).require_grad()
}

/// Compares an operation of bf16 leaves, all or but some of them, with that of the same leaves in f32: output and gradients.
fn agrees<const N: usize>(what: &str, leaves: [Matrix; N], compute: impl Fn([Matrix; N]) -> Matrix, narrow: [bool; N]) {
    let mut index = 0;
    let given = leaves.clone().map(|leaf| {
        index += 1;
        if narrow[index - 1] { leaf.cast(ROUNDED) } else { leaf }
    });
    let (found, expected) = (compute(given), compute(leaves.clone()));
    assert_eq!((found.dtype(), expected.dtype()), (ROUNDED, DType::F32), "{what}");
    let found = found.cast(DType::F32);
    assert_close_in(ROUNDED, found.clone().inner(), expected.clone().inner(), what);
    let upstream = leaf(expected.dims()).detach();
    let gradients = |y: Matrix| (y * upstream.clone()).sum().backward();
    let (of_found, of_expected) = (gradients(found), gradients(expected));
    for (index, leaf) in leaves.iter().enumerate() {
        let gradient =
            |found: &<Tracked as AutodiffBackend>::Gradients| leaf.grad(found).expect("a leaf has a gradient");
        let name = format!("{what}: gradient {index}");
        assert_close_in(ROUNDED, gradient(&of_found), gradient(&of_expected), &name);
    }
}

fn vector(matrix: Matrix) -> Tensor<Tracked, 1> {
    let size = matrix.dims()[1];
    matrix.reshape([size])
}

#[test]
fn operations_on_the_stream() {
    let act = |alpha: f64| [alpha.tanh(), 1.0 - alpha.tanh().powi(2)];
    let (x, branch) = (|| leaf([70, 45]), || leaf([70, 45]));
    for weight in [true, false] {
        let narrow = [true, weight];
        let norm = |[x, w]: [Matrix; 2]| gpas_host::norm(&x, &vector(w), 1e-6, 0.5).unwrap();
        agrees("norm", [x(), leaf([1, 45])], norm, narrow);
        for size in [1, 45] {
            let scale = |[x, w]: [Matrix; 2]| gpas_host::scale(&x, &vector(w)).unwrap();
            agrees("scale", [x(), leaf([1, size])], scale, narrow);
        }
        let gate = |[x, g]: [Matrix; 2]| gpas_host::gate(&x, &vector(g), act, false).unwrap();
        agrees("gate", [x(), leaf([1, 1])], gate, narrow);
        let gated = |[x, b, g]: [Matrix; 3]| gpas_host::gated_sum(&x, &b, &vector(g), act).unwrap();
        agrees("gated sum", [x(), branch(), leaf([1, 1])], gated, [true, true, weight]);
    }
    agrees(
        "sum",
        [x(), branch()],
        |[x, b]| gpas_host::sum(&x, &b).unwrap(),
        [true; 2],
    );
    agrees("SwiGLU", [leaf([70, 74])], |[x]| gpas_host::swiglu(&x).unwrap(), [true]);
}

#[test]
fn products_of_whole_sequences_and_of_single_tokens() {
    for seq in [35, 1] {
        for weights in [true, false] {
            let linear = |[x, a, b, c]: [Matrix; 4]| gpas_host::linear(&x, &[a, b, c], seq).unwrap();
            let leaves = [leaf([70, 45]), leaf([45, 33]), leaf([45, 33]), leaf([45, 7])];
            agrees("linear", leaves, linear, [true, weights, weights, weights]);
        }
    }
    let product = |[a, b]: [Matrix; 2]| gpas_host::product(&a, &b).unwrap();
    agrees("product", [leaf([40, 30]), leaf([30, 50])], product, [true, true]);
}

/// With grouped heads, over sequences of more than one block of rows, one of which is short.
#[test]
fn attention() {
    let angles = Tensor::<Tracked, 2>::random([70, 4], burn::tensor::Distribution::Default, &FlexDevice);
    let angles = Tensor::cat(vec![angles.clone(), angles], 1);
    let signs = Tensor::<Tracked, 2>::from_floats([[-1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]], &FlexDevice);
    let tables = [angles.clone().cos(), angles.sin() * signs];
    for (heads, kv_heads) in [(4, 2), (3, 3)] {
        let attend = |[x]: [Matrix; 1]| gpas_host::causal_attention(&x, &tables, heads, kv_heads).unwrap();
        let x = leaf([140, (heads + 2 * kv_heads) * 8]);
        agrees("attention", [x], attend, [true]);
    }
}

#[test]
fn the_rows_of_a_table() {
    let ids = Tensor::<Tracked, 2, Int>::from_ints([[5, 599, 5], [0, 520, 599]], &FlexDevice);
    let embed = |[table]: [Matrix; 1]| gpas_host::embed(&table, &ids).unwrap().reshape([6, 8]);
    agrees("embedding", [leaf([600, 8])], embed, [true]);
}

/// The numbers of a tensor, rounded. Flex's own cast goes by way of f64 and drops its lowest bits, so that what lies just off the middle of
/// two numbers is rounded as if it lay there.
fn rounded<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    let values = tensor.into_data().iter::<f32>().collect::<Vec<_>>();
    values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

#[test]
fn a_cast_rounds_there_and_back() {
    let x = random([300, 500]);
    let y = gpas_host::cast(&x, ROUNDED).unwrap();
    assert_eq!(y.dtype(), ROUNDED);
    assert_eq!(values(y.clone()), rounded(x.clone()));
    let wide = gpas_host::cast(&y, DType::F32).unwrap();
    assert_eq!(values(wide.clone()), rounded(x.clone()));
    let upstream = random([300, 500]).detach();
    let gradients = (wide * upstream.clone()).sum().backward();
    assert_eq!(values(x.grad(&gradients).unwrap()), rounded(upstream));
    assert!(gpas_host::cast(&x, DType::F64).is_none());
}

#[test]
fn the_optimizer_computes_in_f32_and_rounds_what_it_keeps() {
    let count = 70_000;
    let tensor = || random([count]).inner().cast(ROUNDED);
    let step = gpas_host::AdamStep {
        factor: 0.5,
        decay: 0.01,
        keep: 0.99,
        betas: [0.9, 0.95],
        rest: [0.1, 0.05],
        step_size: 1e-3,
        epsilon: 1e-8,
    };
    let (weight, first, second, gradient) = (tensor(), tensor(), tensor().abs(), tensor());
    let wide = |x: &Tensor<Flex, 1>| x.clone().cast(DType::F32);
    let expected = step
        .apply([wide(&weight), wide(&first), wide(&second)], &wide(&gradient))
        .unwrap();
    assert_eq!(
        gpas_host::sum_of_squares(&gradient),
        gpas_host::sum_of_squares(&wide(&gradient))
    );
    // In tensors of two formats nothing is done.
    let mixed = step
        .apply([weight.clone(), first.clone(), wide(&second)], &gradient)
        .unwrap_err();
    assert_eq!(mixed[0].to_data(), weight.to_data());
    let found = step.apply([weight, first, second], &gradient).unwrap();
    for (found, expected) in found.into_iter().zip(expected) {
        assert_eq!(found.dtype(), ROUNDED);
        assert_eq!(values(found), rounded(expected));
    }
}

/// Hidden states in bf16, the head in either format and either order; the gradient of an f32 head is added to an f32 sum.
#[test]
fn head_and_loss() {
    let (tokens, width, vocab) = (300, 20, 600);
    let inner = |shape: [usize; 2]| leaf(shape).inner();
    let hidden = inner([tokens, width]);
    let ids: Vec<i32> = (0..tokens as i32)
        .map(|row| if row % 7 == 3 { -100 } else { row * 7 % vocab as i32 })
        .collect();
    let targets = Tensor::<Flex, 1, Int>::from_ints(ids.as_slice(), &FlexDevice);
    for weight in [inner([width, vocab]), inner([vocab, width]).transpose()] {
        let loss = |hidden: &Tensor<Flex, 2>, weight: &Tensor<Flex, 2>, sum| {
            gpas_host::loss_with_gradients(hidden, weight, &targets, -100, 250, 100, sum).unwrap()
        };
        let expected = loss(&hidden, &weight, None);
        let narrow = hidden.clone().cast(ROUNDED);
        for head in [weight.clone(), weight.clone().cast(ROUNDED)] {
            let found = loss(&narrow, &head, None);
            assert_eq!((found.hidden.dtype(), found.weight.dtype()), (ROUNDED, head.dtype()));
            assert_close(found.loss, expected.loss.clone(), "loss");
            assert_close_in(
                ROUNDED,
                found.hidden.cast(DType::F32),
                expected.hidden.clone(),
                "hidden",
            );
            assert_close_in(
                ROUNDED,
                found.weight.cast(DType::F32),
                expected.weight.clone(),
                "weight",
            );
            let losses = |hidden, head| gpas_host::token_losses(hidden, head, &targets, -100).unwrap();
            assert_close(losses(&narrow, &head), losses(&hidden, &weight), "losses");
        }
        let sum = weight.clone();
        let found = loss(&narrow, &weight, Some(sum.clone()));
        assert_close_in(ROUNDED, found.weight, expected.weight + sum, "sum");
        // Products in f32 do not take a rounded head.
        let narrow = weight.cast(ROUNDED);
        assert!(gpas_host::loss_with_gradients(&hidden, &narrow, &targets, -100, 250, 100, None).is_err());
        assert!(gpas_host::token_losses(&hidden, &narrow, &targets, -100).is_none());
    }
}

/// What does not fit together is left to the module: products in f32 with a rounded weight, a sum of two formats, a backend without bf16.
#[test]
fn what_does_not_fit_is_left_to_tensor_operations() {
    let (wide, narrow) = (leaf([4, 4]), leaf([4, 4]).cast(ROUNDED));
    assert!(gpas_host::linear(&wide, std::array::from_ref(&narrow), 4).is_none());
    assert!(gpas_host::sum(&wide, &narrow).is_none() && gpas_host::sum(&narrow, &wide).is_none());
    let gate = leaf([1, 1]).reshape([1]);
    assert!(gpas_host::gated_sum(&wide, &narrow, &gate, |alpha| [alpha, 1.0]).is_none());
    let x = Tensor::<Autodiff<NdArray>, 2>::from_data(TensorData::from([[1.0f32]]), &Default::default());
    assert!(gpas_host::cast(&x, ROUNDED).is_none());
}
