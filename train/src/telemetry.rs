//! A look at every layer of a model: how large its residual stream and its weights are.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};
use gpas_model::{Llama, Progress};

/// What there is to see of the layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Layers {
    /// Variance of the residual stream's entries before each layer and after the last: one more than layers.
    pub variance: Vec<f64>,
    /// Norm of all weights of each layer, gates included.
    pub weight_norm: Vec<f64>,
}

impl Layers {
    /// Of a model on some sequences, after the steps of `progress`.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    pub fn of<B: AutodiffBackend>(model: &Llama<B>, ids: Tensor<B, 2, Int>, progress: Progress) -> Self {
        let model = model.valid();
        let variances = model.residual_streams(ids.inner(), progress).into_iter().map(variance);
        let norms = model.layers.iter().map(|layer| {
            let mut squares = Squares(Vec::new());
            burn::module::Module::visit(layer, &mut squares);
            Tensor::cat(squares.0, 0).sum().sqrt()
        });
        let scalars: Vec<_> = variances.chain(norms).collect();
        let mut variance: Vec<f64> = Tensor::cat(scalars, 0).into_data().iter::<f64>().collect();
        let weight_norm = variance.split_off(model.layers.len() + 1);
        Self { variance, weight_norm }
    }
}

struct Squares<B: Backend>(Vec<Tensor<B, 1>>);

impl<B: Backend> ModuleVisitor<B> for Squares<B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        // Row by row, as every sum that is reported.
        self.0.push(param.val().cast(DType::F32).square().sum_dim(D - 1).sum());
    }
}

/// Variance of all entries, `[1]`, after taking off their mean.
fn variance<B: Backend>(stream: Tensor<B, 3>) -> Tensor<B, 1> {
    let stream = stream.cast(DType::F32);
    let mean = |x: Tensor<B, 3>| x.mean_dim(2).mean();
    let centered = stream.clone() - mean(stream).reshape([1, 1, 1]);
    mean(centered.square())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};
    use gpas_model::LlamaConfig;

    #[test]
    fn the_variance_is_that_of_all_entries() {
        let stream = Tensor::<Flex, 3>::from_floats([[[1.0, 3.0]], [[5.0, 7.0]]], &FlexDevice);
        assert_eq!(variance(stream).into_scalar(), 5.0);
    }

    #[test]
    fn every_layer_is_seen() {
        let model = LlamaConfig::new(24, 16, 32, 2, 3).init::<Autodiff<Flex>>(1, &FlexDevice);
        let ids = Tensor::from_ints([[1, 2, 3]], &FlexDevice);
        let Layers { variance, weight_norm } = Layers::of(&model, ids, Progress::COMPLETE);
        assert_eq!((variance.len(), weight_norm.len()), (4, 3));
        // The embedding starts as N(0, √(2/5)); a layer holds about 2560 numbers of N(0, 0.02) and two norms of sixteen ones.
        assert!((0.1..0.8).contains(&variance[0]), "{variance:?}");
        let expected = (2560.0f64 * 0.02 * 0.02 + 32.0).sqrt();
        assert!(
            weight_norm.iter().all(|norm| (norm / expected - 1.0).abs() < 0.02),
            "{weight_norm:?}"
        );
    }
}
