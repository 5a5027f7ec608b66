//! L2-SP (Li et al. 2018, arXiv 1802.01483): `α/2·‖w − w₀‖²` is added to the loss, where w₀ are the weights that the run
//! began with. A decoder has no new layers, so there is no second term for these.

use justtrain_model::parameters::Parameter;
use rayon::prelude::*;

use super::Start;

#[derive(Debug, Clone)]
pub struct L2Sp {
    pub alpha: f32,
    pub start: Start,
}

impl L2Sp {
    /// Adds the term's gradient, `α·(w − w₀)`.
    pub(crate) fn pull(&self, parameter: &Parameter<'_>, gradient: &mut [f32]) {
        let Some(start) = self.start.get(&parameter.name) else { return };
        let weights = parameter.values();
        let numbers = gradient.par_iter_mut().zip(weights.par_iter().zip(start)).with_min_len(16 * 1024);
        numbers.for_each(|(gradient, (weight, start))| *gradient += self.alpha * (weight - start));
    }
}
