//! Classification: the cross-entropy of a sequence's class, `−log softmax(z)[y]`, as transformers' `ForSequenceClassification`
//! has it; label smoothing takes `ε` of it from the mean over all classes, as in transformers' `LabelSmoother`.

use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData, activation};
use justtrain_kernels::Targets;
use justtrain_model::{Head, Mode};

use super::{Loss, Objective, RewardSums};
use crate::step::MicroBatch;

#[derive(Debug, Clone, Copy)]
pub struct Classification {
    /// ε of label smoothing.
    pub smoothing: f32,
}

impl Objective for Classification {
    fn units(&self, batch: &MicroBatch) -> usize {
        batch.targets.len()
    }

    fn loss(&self, head: &Head, x: Tensor<2>, batch: &MicroBatch) -> Loss {
        let mode = Mode { adapter: true, dropout_seed: batch.dropout_seed };
        let logits = head.classes(x, &batch.input, mode);
        let (count, log_probabilities) = (logits.dims()[1], activation::log_softmax(logits, 1));
        let graph = -of_classes(log_probabilities.clone(), &batch.targets).sum();
        let graph = match self.smoothing {
            0.0 => graph,
            smoothing => graph * (1.0 - smoothing) - log_probabilities.sum() * (smoothing / count as f32),
        };
        let sum = f64::from(graph.clone().inner().into_scalar::<f32>());
        Loss { sum, graph, rewards: RewardSums::default() }
    }
}

/// `[sequences]`: of each row the number of its class.
fn of_classes(rows: Tensor<2>, targets: &Arc<Targets>) -> Tensor<1> {
    let classes: Vec<i64> = targets.tokens.iter().map(|&class| i64::from(class)).collect();
    let classes = Tensor::<1, Int>::from_data(TensorData::new(classes, [targets.len()]), &rows.device());
    rows.gather(1, classes.unsqueeze_dim(1)).flatten(0, 1)
}
