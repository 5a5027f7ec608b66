//! What keeps a model from learning its rows by heart, beside the optimiser's weight decay and mean of weights.
//!
//! | file | holds |
//! |---|---|
//! | `neftune.rs` | noise on the embeddings |
//! | `r_drop.rs` | each batch twice, with other dropout masks |
//! | `l2_sp.rs` | a pull back to the weights that the run began with |
//! | `mixout.rs` | some weights put back to these for a batch |
//!
//! Label smoothing and R-Drop's divergence are a part of the loss (`objectives/sft.rs`, `kernels/src/cross_entropy`), dropout in
//! `kernels/src/dropout.rs` and `attention.rs`. Every random choice is a function of the batch's seed: there is nothing to
//! save. None of this acts on a validation.

mod l2_sp;
mod mixout;
mod neftune;
mod r_drop;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use justtrain_model::Decoder;
use justtrain_model::parameters::{Parameter, Parameters, Trained};

use crate::continual::{Ewc, OLora};
use crate::recipe::Recipe;

pub use l2_sp::L2Sp;
pub use mixout::Mixout;
pub(crate) use neftune::noisy;
pub(crate) use r_drop::twice;

/// Numbers of parameters by name, as a run began with them.
pub type Start = Arc<BTreeMap<String, Vec<f32>>>;

/// By default there are none.
#[derive(Debug, Clone, Default)]
pub struct Regularizers {
    /// Each batch stands twice in itself: R-Drop.
    pub in_pairs: bool,
    /// α of NEFTune.
    pub noise: Option<f32>,
    pub l2_sp: Option<L2Sp>,
    pub mixout: Option<Mixout>,
    /// A pull to what an earlier stage has left.
    pub ewc: Option<Ewc>,
    /// A push away from what pairs of earlier stages read.
    pub olora: Option<OLora>,
}

impl Regularizers {
    /// `decoder` has the weights that training starts from.
    pub(crate) fn new(recipe: &Recipe, decoder: &Decoder, trained: Trained<'_>) -> Self {
        let start = || -> Start {
            let mut decoder = decoder.clone();
            let parameters = decoder.trained_mut(trained);
            Arc::new(parameters.into_iter().map(|parameter| (parameter.name.clone(), parameter.values())).collect())
        };
        let start = if recipe.remembers_start() { start() } else { Start::default() };
        Self {
            in_pairs: recipe.rdrop_alpha.is_some(),
            noise: recipe.neftune_noise_alpha.map(|alpha| alpha as f32),
            l2_sp: recipe.l2sp_alpha.map(|alpha| L2Sp { alpha: alpha as f32, start: start.clone() }),
            mixout: recipe.mixout_p.map(|probability| Mixout { probability: probability as f32, start: start.clone() }),
            ewc: None,
            olora: OLora::new(recipe, decoder),
        }
    }

    /// Adds the gradients of what is added to the loss for a parameter's own sake.
    pub(crate) fn pull(&self, parameter: &Parameter<'_>, gradient: &mut [f32]) {
        self.l2_sp.iter().for_each(|l2_sp| l2_sp.pull(parameter, gradient));
        self.ewc.iter().for_each(|ewc| ewc.pull(parameter, gradient));
        self.olora.iter().for_each(|olora| olora.pull(parameter, gradient));
    }

    pub(crate) fn pulls(&self) -> bool {
        self.l2_sp.is_some() || self.ewc.is_some() || self.olora.is_some()
    }
}
