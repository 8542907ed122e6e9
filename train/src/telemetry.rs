//! A look at every layer of a model in training: how large its residual stream and its weights are. It is cheap enough to be taken every
//! so many steps; what takes a pass over validation text is in [`crate::inspect`].

use burn::module::AutodiffModule;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};
use gpas_model::Llama;
use gpas_model::analysis::StreamVariance;
use gpas_model::params::ParameterValue;

/// What there is to see of the layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Layers {
    /// Variance of the residual stream's entries before each layer and after the last: one more than layers.
    pub variance: Vec<f64>,
    /// Norm of all weights of each layer, gates included.
    pub weight_norm: Vec<f64>,
}

impl Layers {
    /// Of a model on some sequences.
    ///
    /// # Shapes
    /// - ids: `[batch, seq]`
    pub fn of<B: AutodiffBackend>(model: &Llama<B>, ids: Tensor<B, 2, Int>) -> Self {
        let model = model.valid();
        let streams = model.residual_streams(ids.inner());
        let mut variance = StreamVariance::default();
        let [batch, seq, _] = streams[0].dims();
        variance.add(&streams, &vec![true; batch * seq]);
        let norms = model.layers.iter().enumerate().map(|(index, layer)| {
            let squares = layer
                .parameters(index)
                .into_iter()
                .map(|parameter| match parameter.value {
                    ParameterValue::Vector(weight) => squared_norm(weight.val()),
                    ParameterValue::Matrix(weight) => squared_norm(weight.val()),
                });
            Tensor::cat(squares.collect(), 0).sum().sqrt()
        });
        let norms = Tensor::cat(norms.collect(), 0).into_data();
        Self {
            variance: variance.values(),
            weight_norm: norms.iter::<f64>().collect(),
        }
    }
}

/// Summed row by row, as every sum that is reported.
fn squared_norm<B: Backend, const D: usize>(weight: Tensor<B, D>) -> Tensor<B, 1> {
    weight.cast(DType::F32).square().sum_dim(D - 1).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};
    use gpas_model::LlamaConfig;

    #[test]
    fn every_layer_is_seen() {
        let model = LlamaConfig::new(24, 16, 32, 2, 3).init::<Autodiff<Flex>>(1, &FlexDevice);
        let ids = Tensor::from_ints([[1, 2, 3]], &FlexDevice);
        let Layers { variance, weight_norm } = Layers::of(&model, ids);
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
