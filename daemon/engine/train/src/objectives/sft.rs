//! Supervised fine-tuning: cross-entropy, every target token alike.

use burn::tensor::Tensor;
use justtrain_kernels::linear_cross_entropy;
use justtrain_model::Head;

use super::{Loss, Objective, RewardSums};
use crate::step::MicroBatch;

#[derive(Debug, Clone, Copy)]
pub struct Sft;

impl Objective for Sft {
    fn units(&self, batch: &MicroBatch) -> usize {
        batch.targets.len()
    }

    fn loss(&self, head: &Head, x: Tensor<2>, batch: &MicroBatch) -> Loss {
        let (hidden, output) = head.normed(x);
        let graph = linear_cross_entropy(hidden, output, batch.targets.clone());
        let sum = f64::from(graph.clone().inner().into_scalar::<f32>());
        Loss { sum, graph, rewards: RewardSums::default() }
    }
}
