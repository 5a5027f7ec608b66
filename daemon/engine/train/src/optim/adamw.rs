//! AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), step by step as `torch.optim.AdamW` computes it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::{Optimizer, StateTensor, Update};

#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    /// Decoupled: each step takes `learning_rate · weight_decay` of a weight away.
    weight_decay: f64,
    moments: HashMap<String, Moments>,
}

/// Running means of one parameter's gradient and of its square.
#[derive(Debug, Clone, Default, PartialEq)]
struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// Bytes for a parameter: both moments in `f32`.
pub(super) fn bytes([rows, cols]: [usize; 2]) -> u64 {
    (rows * cols) as u64 * 8
}

impl AdamW {
    pub fn new(beta1: f64, beta2: f64, epsilon: f64, weight_decay: f64) -> Self {
        Self { beta1, beta2, epsilon, weight_decay, moments: HashMap::new() }
    }

    pub(super) fn rates(&self, update: &Update<'_>) -> Rates {
        let correction1 = 1.0 - self.beta1.powi(update.step as i32);
        let correction2 = 1.0 - self.beta2.powi(update.step as i32);
        Rates {
            step_size: (update.learning_rate / correction1) as f32,
            decay: update.decay(self.weight_decay),
            beta2: self.beta2 as f32,
            keep1: (1.0 - self.beta1) as f32,
            keep2: (1.0 - self.beta2) as f32,
            correction2_sqrt: correction2.sqrt() as f32,
            epsilon: self.epsilon as f32,
        }
    }
}

/// What is the same for all numbers of a parameter in one step.
#[derive(Clone, Copy)]
pub(super) struct Rates {
    step_size: f32,
    decay: f32,
    beta2: f32,
    keep1: f32,
    keep2: f32,
    correction2_sqrt: f32,
    epsilon: f32,
}

impl Rates {
    #[inline]
    pub(super) fn apply(&self, weight: &mut f32, gradient: f32, mean: &mut f32, square: &mut f32) {
        *mean += self.keep1 * (gradient - *mean);
        *square = self.beta2 * *square + self.keep2 * gradient * gradient;
        *weight *= self.decay;
        *weight -= self.step_size * *mean / (square.sqrt() / self.correction2_sqrt + self.epsilon);
    }
}

impl Optimizer for AdamW {
    fn update(&mut self, update: &Update<'_>, weights: &mut [f32], gradient: &[f32]) {
        let rates = self.rates(update);
        let moments = self.moments.entry(update.name.to_owned()).or_default();
        moments.mean.resize(weights.len(), 0.0);
        moments.square.resize(weights.len(), 0.0);
        weights
            .par_iter_mut()
            .zip(gradient)
            .zip(moments.mean.par_iter_mut().zip(&mut moments.square))
            .with_min_len(16 * 1024)
            .for_each(|((weight, &gradient), (mean, square))| rates.apply(weight, gradient, mean, square));
    }

    fn state(&self) -> BTreeMap<String, StateTensor<'_>> {
        let mut state = BTreeMap::new();
        for (name, Moments { mean, square }) in &self.moments {
            for (part, numbers) in [("mean", mean), ("square", square)] {
                state.insert(format!("{name}.{part}"), StateTensor::F32(Cow::Borrowed(numbers.as_slice())));
            }
        }
        state
    }

    fn restore(&mut self, state: BTreeMap<String, StateTensor<'static>>) {
        self.moments.clear();
        for (name, tensor) in state {
            let StateTensor::F32(numbers) = tensor else { continue };
            if let Some(name) = name.strip_suffix(".mean") {
                self.moments.entry(name.to_owned()).or_default().mean = numbers.into_owned();
            } else if let Some(name) = name.strip_suffix(".square") {
                self.moments.entry(name.to_owned()).or_default().square = numbers.into_owned();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.optim.AdamW([w], lr=0.1, weight_decay=0.1)` on gradients w² for three steps from w = [1, −2] (PyTorch 2.15).
    #[test]
    fn three_steps_equal_torch() {
        let mut adamw = AdamW::new(0.9, 0.999, 1e-8, 0.1);
        let mut weights = vec![1.0f32, -2.0];
        for step in 1..=3 {
            let gradient: Vec<f32> = weights.iter().map(|w| w * w).collect();
            let update = Update { name: "w", shape: &[2], decays: true, step, learning_rate: 0.1 };
            adamw.update(&update, &mut weights, &gradient);
        }
        for (got, want) in weights.iter().zip(TORCH) {
            assert!((got - want).abs() < 1e-6, "{weights:?}");
        }
    }
    const TORCH: [f32; 2] = [0.678_091, -2.238_07];
}
