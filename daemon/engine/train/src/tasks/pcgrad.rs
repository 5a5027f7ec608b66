//! Takes from each task's gradient what points against another's (PCGrad, Yu et al. 2020, arXiv 2001.06782, algorithm 1).

use justtrain_kernels::random;

use super::{TaskGradients, Weighting, weighted_sum};
use crate::gradients::GradientSums;

#[derive(Debug)]
pub struct PcGrad {
    seed: u64,
}

impl PcGrad {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }
}

impl Weighting for PcGrad {
    fn combine(&mut self, step: u64, TaskGradients { gradients, .. }: TaskGradients) -> GradientSums {
        let count = gradients.len();
        let mut projected = Vec::with_capacity(count);
        for (task, original) in gradients.iter().enumerate() {
            let mut gradient = original.clone();
            // The others in a random order, which depends on the step alone.
            let mut others: Vec<usize> = (0..count).filter(|&other| other != task).collect();
            others.sort_by_key(|&other| random::at(self.seed ^ step, task * count + other));
            for other in others {
                let dot = gradient.dot(&gradients[other]);
                if dot < 0.0 {
                    let square = gradients[other].norm().powi(2);
                    gradient.add_scaled(gradients[other].clone(), (-dot / square) as f32);
                }
            }
            projected.push(gradient);
        }
        weighted_sum(projected, &vec![1.0; count])
    }

    fn weights(&self) -> Option<Vec<f64>> {
        None
    }

    fn state(&self) -> Vec<f64> {
        Vec::new()
    }

    fn restore(&mut self, _: &[f64]) {}
}
