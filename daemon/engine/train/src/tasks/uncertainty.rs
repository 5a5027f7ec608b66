//! Weights by each task's own uncertainty (Kendall, Gal & Cipolla 2018, arXiv 1705.07115): `Σ e^−s·L + s/2` is made smaller in
//! the log variances `s` as well, which start at 0.

use super::{TaskGradients, Weighting, weighted_sum};
use crate::gradients::GradientSums;

#[derive(Debug)]
pub struct Uncertainty {
    learning_rate: f64,
    log_variances: Vec<f64>,
    /// Adam's moments of each.
    moments: Vec<[f64; 2]>,
    updates: f64,
}

const BETAS: [f64; 2] = [0.9, 0.999];

impl Uncertainty {
    pub fn new(tasks: usize, learning_rate: f64) -> Self {
        Self { learning_rate, log_variances: vec![0.0; tasks], moments: vec![[0.0; 2]; tasks], updates: 0.0 }
    }
}

impl Weighting for Uncertainty {
    fn combine(&mut self, _: u64, tasks: TaskGradients) -> GradientSums {
        let factors: Vec<f64> = self.log_variances.iter().map(|s| (-s).exp()).collect();
        self.updates += 1.0;
        let [first, second] = BETAS.map(|beta| 1.0 - beta.powf(self.updates));
        for (index, (loss, factor)) in tasks.losses.iter().zip(&factors).enumerate() {
            let gradient = 0.5 - factor * loss;
            let [mean, square] = &mut self.moments[index];
            *mean += (1.0 - BETAS[0]) * (gradient - *mean);
            *square += (1.0 - BETAS[1]) * (gradient * gradient - *square);
            self.log_variances[index] -= self.learning_rate * (*mean / first) / ((*square / second).sqrt() + 1e-8);
        }
        weighted_sum(tasks.gradients, &factors)
    }

    fn weights(&self) -> Option<Vec<f64>> {
        Some(self.log_variances.iter().map(|s| (-s).exp()).collect())
    }

    fn state(&self) -> Vec<f64> {
        let moments = self.moments.iter().flatten();
        std::iter::once(&self.updates).chain(&self.log_variances).chain(moments).copied().collect()
    }

    fn restore(&mut self, state: &[f64]) {
        let tasks = self.log_variances.len();
        if let [updates, rest @ ..] = state
            && rest.len() == 3 * tasks
        {
            self.updates = *updates;
            self.log_variances.copy_from_slice(&rest[..tasks]);
            self.moments.copy_from_slice(rest[tasks..].as_chunks::<2>().0);
        }
    }
}
