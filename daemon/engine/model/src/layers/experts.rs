//! A mixture of experts in place of a block's feed-forward network, as in transformers' `Qwen3MoeSparseMoeBlock`: a router
//! scores all experts, and each token goes through the few with the highest scores.
//!
//! No loss balances the load: transformers adds one only where `output_router_logits` asks for it.

use burn::tensor::{Device, Int, Tensor, TensorData};
use justtrain_kernels::{Weight, linear};

use super::Mlp;
use crate::Mode;
use crate::config::ExpertsConfig;
use crate::layers::Projection;
use crate::parameters::Parameter;

#[derive(Debug, Clone)]
pub(crate) struct Experts {
    pub(crate) router: Router,
    pub(crate) networks: Vec<Mlp>,
    pub(crate) config: ExpertsConfig,
}

#[derive(Debug, Clone)]
pub(crate) struct Router {
    /// Such as `model.layers.0.mlp.gate`.
    pub(crate) name: String,
    /// `[experts, hidden]`, always `f32`: it decides, and is small.
    pub(crate) weight: Weight,
}

impl Experts {
    /// `x` is `[tokens, hidden]`.
    pub(crate) fn forward(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        let ([tokens, hidden], device) = (x.dims(), x.device());
        let ExpertsConfig { count, per_token, norm_weights, .. } = self.config;
        let scores = softmax(linear(x.clone(), &self.router.weight, None));
        let numbers: Vec<f32> = scores.clone().into_data().try_into_vec().expect("scores are f32");
        let chosen: Vec<usize> = numbers.chunks(count).flat_map(|scores| highest(scores, per_token)).collect();
        let places = chosen.iter().enumerate().map(|(slot, expert)| slot / per_token * count + expert);
        let weights = scores.reshape([tokens * count]).select(0, indices(places, &device)).reshape([tokens, per_token]);
        let weights = if norm_weights { weights.clone() / weights.sum_dim(1) } else { weights };

        // Slot `token · per_token + rank` is a token's way through one of its experts; they are computed expert by expert.
        let mut order: Vec<usize> = (0..chosen.len()).collect();
        order.sort_by_key(|&slot| chosen[slot]);
        let of_expert = |slots: &[usize]| {
            let rows = indices(slots.iter().map(|slot| slot / per_token), &device);
            self.networks[chosen[slots[0]]].forward(x.clone().select(0, rows), mode)
        };
        let outputs = order.chunk_by(|&a, &b| chosen[a] == chosen[b]).map(of_expert).collect();
        let mut found_at = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, &slot)| found_at[slot] = at);
        let outputs = Tensor::cat(outputs, 0).select(0, indices(found_at.into_iter(), &device));
        let weighted = outputs * weights.reshape([tokens * per_token, 1]);
        weighted.reshape([tokens, per_token, hidden]).sum_dim(1).reshape([tokens, hidden])
    }

    pub(crate) fn parameters_mut(&mut self) -> impl Iterator<Item = Parameter<'_>> {
        let Self { router, networks, .. } = self;
        let router = Parameter::weight(format!("{}.weight", router.name), &mut router.weight);
        let experts = networks.iter_mut().flat_map(Mlp::projections_mut).flat_map(Projection::parameters_mut);
        std::iter::once(router).chain(experts.map(Parameter::not_in_every_batch))
    }
}

/// Of each row. burn's own rounds otherwise where gradients are tracked, and a frozen block must not.
fn softmax(logits: Tensor<2>) -> Tensor<2> {
    let exponentials = (logits.clone() - logits.detach().max_dim(1)).exp();
    exponentials.clone() / exponentials.sum_dim(1)
}

/// The places of the highest scores, the highest first; of equal ones the first.
fn highest(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(count);
    order
}

fn indices(values: impl Iterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.map(|value| value as i64).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_scores_are_chosen_in_their_order() {
        assert_eq!(highest(&[0.1, 0.4, 0.2, 0.3], 2), [1, 3]);
        assert_eq!(highest(&[0.25; 4], 3), [0, 1, 2]);
    }
}
