//! GPAS in a module of one's own, trained by burn-train's learner as it is: four Pre-LN layers learn to sort eight numbers.
use burn::backend::Autodiff;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder, batcher::Batcher};
use burn::data::dataset::InMemDataset;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_flex::Flex;
use burn_train::metric::LossMetric;
use burn_train::{InferenceStep, Learner, RegressionOutput, SupervisedTraining, TrainOutput, TrainStep};
use gpas_model::{Gpas, GpasConfig};

#[derive(Module, Debug)]
struct Sorter<B: Backend> {
    layers: Vec<(LayerNorm<B>, Linear<B>, Linear<B>, Gpas<B>)>,
}

impl<B: Backend> Sorter<B> {
    fn forward(&self, [numbers, sorted]: [Tensor<B, 2>; 2]) -> RegressionOutput<B> {
        let mut stream = numbers;
        for (norm, up, down, gpas) in &self.layers {
            let hidden = up.forward(norm.forward(stream.clone()));
            stream = gpas.forward(stream + down.forward(burn::tensor::activation::gelu(hidden)));
        }
        RegressionOutput::new((stream.clone() - sorted.clone()).square().mean(), stream, sorted)
    }
}

impl<B: AutodiffBackend> TrainStep for Sorter<B> {
    type Input = [Tensor<B, 2>; 2];
    type Output = RegressionOutput<B>;
    fn step(&self, batch: Self::Input) -> TrainOutput<Self::Output> {
        let output = self.forward(batch);
        TrainOutput::new(self, output.loss.backward(), output)
    }
}

impl<B: Backend> InferenceStep for Sorter<B> {
    type Input = [Tensor<B, 2>; 2];
    type Output = RegressionOutput<B>;
    fn step(&self, batch: Self::Input) -> Self::Output {
        self.forward(batch)
    }
}

/// Multiples of the golden ratio without their integers, eight of them for each seed; and the same sorted.
struct Numbers;

impl<B: Backend> Batcher<B, u32, [Tensor<B, 2>; 2]> for Numbers {
    fn batch(&self, seeds: Vec<u32>, device: &B::Device) -> [Tensor<B, 2>; 2] {
        let row = |seed: &u32| [1, 3, 5, 7, 11, 13, 17, 19].map(|k| (seed * k) as f32 * 0.618_034 % 1.0);
        let rows: Vec<[f32; 8]> = seeds.iter().map(row).collect();
        let mut sorted = rows.clone();
        sorted.iter_mut().for_each(|row| row.sort_by(f32::total_cmp));
        [rows, sorted].map(|rows| Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), 8]), device))
    }
}

fn loader<B: Backend>(seeds: std::ops::Range<u32>) -> std::sync::Arc<dyn DataLoader<B, [Tensor<B, 2>; 2]>> {
    let seeds = InMemDataset::new(seeds.collect());
    DataLoaderBuilder::new(Numbers).batch_size(32).shuffle(1).build(seeds)
}

fn main() {
    let device = Default::default();
    let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(&device);
    let norm = || LayerNormConfig::new(8).init(&device);
    let layer = |_| (norm(), linear(8, 32), linear(32, 8), GpasConfig::new().init(&device));
    let layers = (0..4).map(layer).collect();
    let adam = burn::optim::AdamConfig::new().init();
    let learner = Learner::new(Sorter::<Autodiff<Flex>> { layers }, adam, 3e-3);
    let place = std::env::temp_dir().join("gpas-stock-learner");
    let training = SupervisedTraining::new(place, loader(1..2048), loader(2048..2300))
        .metric_train_numeric(LossMetric::new())
        .metric_valid_numeric(LossMetric::new());
    for (index, (.., gpas)) in training.num_epochs(3).launch(learner).model.layers.iter().enumerate() {
        println!("layer {index} scales the stream by {:.3}", gpas.scale());
    }
}
