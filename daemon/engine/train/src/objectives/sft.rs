//! Supervised fine-tuning: cross-entropy, every target token alike.

use burn::tensor::Tensor;
use justtrain_kernels::{self as kernels, linear_loss};
use justtrain_model::Head;

use super::{Loss, Objective, RewardSums};
use crate::step::MicroBatch;

/// With what is added to the loss of a token: label smoothing, R-Drop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sft(pub kernels::Loss);

impl Objective for Sft {
    fn units(&self, batch: &MicroBatch) -> usize {
        batch.targets.len()
    }

    fn loss(&self, head: &Head, x: Tensor<2>, batch: &MicroBatch) -> Loss {
        let (hidden, output) = head.normed(x);
        let graph = linear_loss(hidden, output, batch.targets.clone(), self.0);
        let sum = f64::from(graph.clone().inner().into_scalar::<f32>());
        Loss { sum, graph, rewards: RewardSums::default() }
    }
}
