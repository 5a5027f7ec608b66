//! Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2): every number moves by the learning rate, in the direction of
//! a running mean of its gradients. It wants a rate three to ten times lower than AdamW.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::{Optimizer, StateTensor, Update, named, taken};

#[derive(Debug, Clone)]
pub struct Lion {
    beta1: f64,
    beta2: f64,
    /// Decoupled: each step takes `learning_rate · weight_decay` of a weight away.
    weight_decay: f64,
    means: HashMap<String, Vec<f32>>,
}

/// Bytes for a parameter: the mean in `f32`.
pub(super) fn bytes([rows, cols]: [usize; 2]) -> u64 {
    (rows * cols) as u64 * 4
}

impl Lion {
    pub fn new(beta1: f64, beta2: f64, weight_decay: f64) -> Self {
        Self { beta1, beta2, weight_decay, means: HashMap::new() }
    }
}

impl Optimizer for Lion {
    fn update(&mut self, update: &Update<'_>, weights: &mut [f32], gradient: &[f32]) {
        let mean = self.means.entry(update.name.to_owned()).or_default();
        mean.resize(weights.len(), 0.0);
        let [(keep1, new1), (keep2, new2)] = [self.beta1, self.beta2].map(|beta| (beta as f32, (1.0 - beta) as f32));
        let (rate, decay) = (update.learning_rate as f32, update.decay(self.weight_decay));
        let numbers = weights.par_iter_mut().zip(gradient).zip(mean).with_min_len(16 * 1024);
        numbers.for_each(|((weight, &gradient), mean)| {
            let direction = keep1 * *mean + new1 * gradient;
            *mean = keep2 * *mean + new2 * gradient;
            // The sign of a zero is zero: what has no gradient stays.
            let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
            *weight = *weight * decay - rate * sign;
        });
    }

    fn state(&self) -> BTreeMap<String, StateTensor<'_>> {
        named(&self.means, "mean").collect()
    }

    fn restore(&mut self, mut state: BTreeMap<String, StateTensor<'static>>) {
        self.means = taken(&mut state, "mean");
    }
}
