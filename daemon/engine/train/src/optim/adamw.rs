//! AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), step by step as `torch.optim.AdamW` computes it.

use rayon::prelude::*;

/// Settings that stay the same over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// Decoupled: each step takes `learning_rate · weight_decay` of a weight away.
    pub weight_decay: f64,
}

/// Running means of one parameter's gradient and of its square.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    pub mean: Vec<f32>,
    pub square: Vec<f32>,
}

impl Moments {
    pub fn zeros(len: usize) -> Self {
        Self { mean: vec![0.0; len], square: vec![0.0; len] }
    }
}

impl AdamW {
    /// Updates the weights in place; `step` counts from 1.
    pub fn update(&self, step: u64, learning_rate: f64, weights: &mut [f32], gradient: &[f32], moments: &mut Moments) {
        let correction1 = 1.0 - self.beta1.powi(step as i32);
        let correction2_sqrt = (1.0 - self.beta2.powi(step as i32)).sqrt();
        let step_size = (learning_rate / correction1) as f32;
        let decay = (1.0 - learning_rate * self.weight_decay) as f32;
        let beta2 = self.beta2 as f32;
        let (keep1, keep2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let (epsilon, correction2_sqrt) = (self.epsilon as f32, correction2_sqrt as f32);
        weights
            .par_iter_mut()
            .zip(gradient)
            .zip(moments.mean.par_iter_mut().zip(&mut moments.square))
            .with_min_len(16 * 1024)
            .for_each(|((weight, &gradient), (mean, square))| {
                *mean += keep1 * (gradient - *mean);
                *square = beta2 * *square + keep2 * gradient * gradient;
                *weight *= decay;
                *weight -= step_size * *mean / (square.sqrt() / correction2_sqrt + epsilon);
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.optim.AdamW([w], lr=0.1, weight_decay=0.1)` on gradients w² for three steps from w = [1, −2] (PyTorch 2.15).
    #[test]
    fn three_steps_equal_torch() {
        let adamw = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
        let (mut weights, mut moments) = (vec![1.0f32, -2.0], Moments::zeros(2));
        for step in 1..=3 {
            let gradient: Vec<f32> = weights.iter().map(|w| w * w).collect();
            adamw.update(step, 0.1, &mut weights, &gradient, &mut moments);
        }
        for (got, want) in weights.iter().zip(TORCH) {
            assert!((got - want).abs() < 1e-6, "{weights:?}");
        }
    }
    const TORCH: [f32; 2] = [0.678_091, -2.238_07];
}
