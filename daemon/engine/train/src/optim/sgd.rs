//! Gradient descent, step by step as `torch.optim.SGD` computes it, with heavy-ball momentum or Nesterov's; weight decay
//! is decoupled as in AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101, algorithm 1).

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::{Optimizer, StateTensor, Update, named, taken};

#[derive(Debug, Clone)]
pub struct Sgd {
    /// 0: the gradient alone, and nothing is remembered.
    momentum: f64,
    nesterov: bool,
    /// Each step takes `learning_rate · weight_decay` of a weight away.
    weight_decay: f64,
    sums: HashMap<String, Vec<f32>>,
}

/// Bytes for a parameter: the decaying sum of gradients in `f32`.
pub(super) fn bytes([rows, cols]: [usize; 2], momentum: f64) -> u64 {
    if momentum > 0.0 { (rows * cols) as u64 * 4 } else { 0 }
}

impl Sgd {
    pub fn new(momentum: f64, nesterov: bool, weight_decay: f64) -> Self {
        Self { momentum, nesterov, weight_decay, sums: HashMap::new() }
    }
}

impl Optimizer for Sgd {
    fn update(&mut self, update: &Update<'_>, weights: &mut [f32], gradient: &[f32]) {
        let (rate, decay) = (update.learning_rate as f32, update.decay(self.weight_decay));
        let numbers = weights.par_iter_mut().zip(gradient).with_min_len(16 * 1024);
        if self.momentum == 0.0 {
            return numbers.for_each(|(weight, &gradient)| *weight = *weight * decay - rate * gradient);
        }
        let sum = self.sums.entry(update.name.to_owned()).or_default();
        sum.resize(gradient.len(), 0.0);
        let (momentum, nesterov) = (self.momentum as f32, self.nesterov);
        numbers.zip(sum).for_each(|((weight, &gradient), sum)| {
            *sum = momentum * *sum + gradient;
            let direction = if nesterov { gradient + momentum * *sum } else { *sum };
            *weight = *weight * decay - rate * direction;
        });
    }

    fn state(&self) -> BTreeMap<String, StateTensor<'_>> {
        named(&self.sums, "momentum").collect()
    }

    fn restore(&mut self, mut state: BTreeMap<String, StateTensor<'static>>) {
        self.sums = taken(&mut state, "momentum");
    }
}
