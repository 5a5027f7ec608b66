//! Weights that have all tasks learn at like rates (Chen et al. 2018, arXiv 1711.02257): the norm of each weighted gradient is
//! drawn to the mean of all, times `r^α`, where `r` is how much of its first loss a task still has, relative to the others.
//!
//! The norm is over all trained parameters; the paper takes the last shared layer to save time, and here the gradients are there
//! anyway.

use super::{TaskGradients, Weighting, weighted_sum};
use crate::gradients::GradientSums;

#[derive(Debug)]
pub struct GradNorm {
    learning_rate: f64,
    alpha: f64,
    /// They add up to the number of tasks.
    weights: Vec<f64>,
    /// Of the first step; empty before.
    first_losses: Vec<f64>,
}

impl GradNorm {
    pub fn new(tasks: usize, learning_rate: f64, alpha: f64) -> Self {
        Self { learning_rate, alpha, weights: vec![1.0; tasks], first_losses: Vec::new() }
    }
}

impl Weighting for GradNorm {
    fn combine(&mut self, _: u64, TaskGradients { losses, gradients }: TaskGradients) -> GradientSums {
        if self.first_losses.is_empty() {
            self.first_losses.clone_from(&losses);
        }
        let factors = self.weights.clone();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let norms: Vec<f64> = gradients.iter().map(GradientSums::norm).collect();
        let weighted: Vec<f64> = norms.iter().zip(&factors).map(|(norm, weight)| norm * weight).collect();
        let left: Vec<f64> = losses.iter().zip(&self.first_losses).map(|(loss, first)| loss / first).collect();
        let (mean_norm, mean_left) = (mean(&weighted), mean(&left));
        for (index, weight) in self.weights.iter_mut().enumerate() {
            let target = mean_norm * (left[index] / mean_left).powf(self.alpha);
            // Of |w·‖g‖ − target|, the target held fast.
            let slope =
                if weighted[index] == target { 0.0 } else { (weighted[index] - target).signum() * norms[index] };
            // A weight that is not positive would turn its task around.
            *weight = (*weight - self.learning_rate * slope).max(1e-3);
        }
        let scale = self.weights.len() as f64 / self.weights.iter().sum::<f64>();
        self.weights.iter_mut().for_each(|weight| *weight *= scale);
        weighted_sum(gradients, &factors)
    }

    fn weights(&self) -> Option<Vec<f64>> {
        Some(self.weights.clone())
    }

    fn state(&self) -> Vec<f64> {
        self.weights.iter().chain(&self.first_losses).copied().collect()
    }

    fn restore(&mut self, state: &[f64]) {
        let tasks = self.weights.len();
        if state.len() >= tasks {
            self.weights.copy_from_slice(&state[..tasks]);
            self.first_losses = state[tasks..].to_vec();
        }
    }
}
