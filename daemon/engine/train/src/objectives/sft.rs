//! Supervised fine-tuning: cross-entropy, every target token alike.

use burn::tensor::Tensor;
use justtrain_kernels::{OutputLayer, linear_cross_entropy};

use super::{Loss, Objective, RewardSums};
use crate::step::MicroBatch;

#[derive(Debug, Clone, Copy)]
pub struct Sft;

impl Objective for Sft {
    fn units(&self, batch: &MicroBatch) -> usize {
        batch.targets.len()
    }

    fn loss(&self, hidden: Tensor<2>, output: &OutputLayer, batch: &MicroBatch) -> Loss {
        let graph = linear_cross_entropy(hidden, output, batch.targets.clone());
        let sum = f64::from(graph.clone().inner().into_scalar::<f32>());
        Loss { sum, graph, rewards: RewardSums::default() }
    }
}
