//! Pairs one after the other (O-LoRA, Wang et al. 2023, arXiv 2310.14152): those of earlier stages stay as they are and take
//! part in every pass, and beside them a new pair is trained. What keeps the new one out of their way is part of the loss, and
//! so the trainer's business.
//!
//! On the disk they are one plain adapter, `[A₁; A₂; …]` and `[B₁, B₂, …]`, of all ranks together and with the same scale.

use burn::tensor::{Tensor, TensorData};
use justtrain_worker_api::Problem;

use super::{LoraConfig, Patterns, attach_lora};
use crate::Decoder;
use crate::layers::Lora;

/// The pairs of earlier stages on a layer, joined; scaled as the pair beside them.
#[derive(Debug, Clone)]
pub struct Earlier {
    /// `[ranks, inputs]`.
    pub a: Tensor<2>,
    /// `[outputs, ranks]`.
    pub b: Tensor<2>,
}

impl Earlier {
    /// A and B of all pairs, the newest last.
    pub(crate) fn joined(&self, a: &Tensor<2>, b: &Tensor<2>) -> [Tensor<2>; 2] {
        let join = |earlier: &Tensor<2>, new: &Tensor<2>, dim| Tensor::cat(vec![earlier.clone(), new.clone()], dim);
        [join(&self.a, a, 0), join(&self.b, b, 1)]
    }
}

/// Makes the decoder's pairs earlier ones and puts a fresh adapter beside them, so that the model's output is unchanged. They
/// are plain pairs on the layers that `config` targets. Errors are those of [`attach_lora`].
pub fn attach_beside(decoder: &mut Decoder, config: &LoraConfig, seed: u64) -> Result<(), Problem> {
    let before: Vec<Option<Lora>> = decoder.projections_mut().map(|projection| projection.lora.take()).collect();
    let ranks = before.iter().flatten().map(|lora| lora.a.dims()[0] as u64).max().unwrap_or(0);
    // Pairs of several stages are not to start in the same place.
    attach_lora(decoder, config, seed.wrapping_add(ranks.wrapping_mul(0x9E37_79B9_7F4A_7C15)))?;
    for (projection, before) in decoder.projections_mut().zip(before) {
        if let (Some(lora), Some(before)) = (&mut projection.lora, before) {
            let scale = before.scale / lora.scale;
            let b = if scale == 1.0 { before.b } else { before.b * scale };
            lora.earlier = Some(Earlier { a: before.a, b });
        }
    }
    Ok(())
}

/// Makes plain pairs of all that lie side by side, and returns their configuration.
pub(super) fn join(decoder: &mut Decoder, config: &LoraConfig) -> LoraConfig {
    for projection in decoder.projections_mut() {
        let Some(lora) = &mut projection.lora else { continue };
        let Some(earlier) = lora.earlier.take() else { return config.clone() };
        [lora.a, lora.b] = earlier.joined(&lora.a, &lora.b);
    }
    of_joined(decoder, config)
}

/// The configuration of pairs that were of `config` before others were joined to them, as many to each.
pub(super) fn of_joined(decoder: &Decoder, config: &LoraConfig) -> LoraConfig {
    let alpha = |scale: f32, rank: usize| f64::from(scale) * rank as f64;
    let adapted = || decoder.projections().filter_map(|projection| Some((projection, projection.lora.as_ref()?)));
    if adapted().next().is_none() {
        return config.clone();
    }
    let times = adapted().next().map_or(1, |(layer, lora)| lora.a.dims()[0] / config.rank_of(&layer.name));
    let (rank, scale) = (times * config.rank, config.scale(config.alpha, config.rank));
    let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
    for (projection, lora) in adapted() {
        let joined = lora.a.dims()[0];
        if (joined, lora.scale) != (rank, scale) {
            ranks.push((projection.name.clone(), joined));
            alphas.push((projection.name.clone(), alpha(lora.scale, joined)));
        }
    }
    LoraConfig {
        rank,
        alpha: alpha(scale, rank),
        rslora: false,
        rank_pattern: Patterns::new(ranks).unwrap_or_default(),
        alpha_pattern: Patterns::new(alphas).unwrap_or_default(),
        ..config.clone()
    }
}

/// How many ranks of each layer's pairs are earlier ones, in the order of the layers.
pub(super) fn earlier_ranks(decoder: &Decoder) -> Vec<usize> {
    let earlier = decoder.projections().map(|layer| layer.lora.as_ref().and_then(|lora| lora.earlier.as_ref()));
    earlier.map(|earlier| earlier.map_or(0, |earlier| earlier.a.dims()[0])).collect()
}

/// Takes plain pairs apart, which [`join`] has made: the first `ranks` of each are earlier ones.
pub(super) fn take_apart(decoder: &mut Decoder, ranks: &[usize]) {
    let device = decoder.device();
    for (projection, &rank) in decoder.projections_mut().zip(ranks) {
        let Some(lora) = projection.lora.as_mut().filter(|_| rank > 0) else { continue };
        let part = |tensor: &Tensor<2>, dim: usize, from: usize, len: usize| {
            let part: TensorData = tensor.clone().narrow(dim, from, len).into_data();
            Tensor::<2>::from_data(part, &device)
        };
        let own = lora.a.dims()[0] - rank;
        lora.earlier = Some(Earlier { a: part(&lora.a, 0, 0, rank), b: part(&lora.b, 1, 0, rank) });
        (lora.a, lora.b) = (part(&lora.a, 0, rank, own), part(&lora.b, 1, rank, own));
    }
}
