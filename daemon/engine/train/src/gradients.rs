//! Gradients of a whole step, where they must be kept: summed over an accumulation window, or until their common norm
//! is known.

use std::collections::BTreeMap;

use rayon::prelude::*;

/// One sum for each parameter, by name.
#[derive(Debug, Default, Clone)]
pub(crate) struct GradientSums(BTreeMap<String, Vec<f32>>);

impl GradientSums {
    pub(crate) fn add(&mut self, name: &str, gradient: Vec<f32>) {
        match self.0.get_mut(name) {
            None => drop(self.0.insert(name.to_owned(), gradient)),
            Some(sum) => {
                sum.par_iter_mut().zip(gradient).with_min_len(16 * 1024).for_each(|(sum, value)| *sum += value)
            }
        }
    }

    /// Adds another sum's numbers, each times `factor`.
    pub(crate) fn add_scaled(&mut self, other: Self, factor: f32) {
        for (name, mut gradient) in other.0 {
            if factor != 1.0 {
                multiply(&mut gradient, factor);
            }
            self.add(&name, gradient);
        }
    }

    /// Of all numbers that both have.
    pub(crate) fn dot(&self, other: &Self) -> f64 {
        let pairs = self.0.iter().filter_map(|(name, gradient)| Some((gradient, other.0.get(name)?)));
        pairs.map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()).sum()
    }

    pub(crate) fn change(&mut self, name: &str, change: impl FnOnce(&mut [f32])) {
        if let Some(sum) = self.0.get_mut(name) {
            change(sum);
        }
    }

    /// The norm over all parameters together.
    pub(crate) fn norm(&self) -> f64 {
        self.0.values().map(|gradient| square_sum(gradient)).sum::<f64>().sqrt()
    }

    /// A parameter's sum, which is kept no longer.
    pub(crate) fn take(&mut self, name: &str) -> Option<Vec<f32>> {
        self.0.remove(name)
    }
}

pub(crate) fn multiply(values: &mut [f32], factor: f32) {
    values.par_iter_mut().with_min_len(16 * 1024).for_each(|value| *value *= factor);
}

/// Σ v², summed up in parts of a fixed size, so that the number of threads does not change it.
pub(crate) fn square_sum(values: &[f32]) -> f64 {
    let part = |values: &[f32]| values.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>();
    values.par_chunks(64 * 1024).map(part).collect::<Vec<_>>().into_iter().sum()
}
