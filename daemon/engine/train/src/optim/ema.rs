//! A running mean of the weights (Polyak & Juditsky 1992; as `torch.optim.swa_utils.AveragedModel` with
//! `get_ema_avg_fn`), beside any optimiser. Training goes on with the weights themselves; the mean is what is validated
//! and what a run ends with.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::{Optimizer, StateTensor, Update, named, taken};

pub struct Ema {
    decay: f64,
    means: HashMap<String, Vec<f32>>,
    optimizer: Box<dyn Optimizer>,
}

impl Ema {
    pub fn new(decay: f64, optimizer: Box<dyn Optimizer>) -> Self {
        Self { decay, means: HashMap::new(), optimizer }
    }
}

impl Optimizer for Ema {
    fn update(&mut self, update: &Update<'_>, weights: &mut [f32], gradient: &[f32]) {
        self.optimizer.update(update, weights, gradient);
        let Some(mean) = self.means.get_mut(update.name) else {
            self.means.insert(update.name.to_owned(), weights.to_vec());
            return;
        };
        let new = (1.0 - self.decay) as f32;
        let numbers = mean.par_iter_mut().zip(weights).with_min_len(16 * 1024);
        numbers.for_each(|(mean, weight)| *mean += new * (*weight - *mean));
    }

    fn exchange(&mut self, name: &str, weights: &mut [f32]) {
        if let Some(mean) = self.means.get_mut(name) {
            mean.swap_with_slice(weights);
        }
    }

    fn state(&self) -> BTreeMap<String, StateTensor<'_>> {
        named(&self.means, "ema").chain(self.optimizer.state()).collect()
    }

    fn restore(&mut self, mut state: BTreeMap<String, StateTensor<'static>>) {
        self.means = taken(&mut state, "ema");
        self.optimizer.restore(state);
    }
}
