//! Mixout (Lee et al. 2020, arXiv 1909.11299): for each batch, every weight of the blocks' matrices is with probability p the one that
//! the run began with, and the others are made larger, so that on average the weights stay:
//! `(M⊙w + (1 − M)⊙u − p·u) / (1 − p)` with M = 1 at probability 1 − p.

use justtrain_kernels::random;
use justtrain_model::Decoder;
use justtrain_model::parameters::{Parameter, Parameters, Trained};
use rayon::prelude::*;

use super::Start;

#[derive(Debug, Clone)]
pub struct Mixout {
    pub probability: f32,
    pub start: Start,
}

impl Mixout {
    /// A decoder with mixed weights; what is not mixed it shares.
    pub(crate) fn mixed(&self, decoder: &Decoder, trained: Trained<'_>, seed: u64) -> Decoder {
        let mut decoder = decoder.clone();
        for mut parameter in decoder.trained_mut(trained) {
            let Some(start) = self.start_of(&parameter) else { continue };
            let (seed, p) = (seed_of(&parameter.name, seed), self.probability);
            parameter.update(0, |weights| {
                let numbers = weights.par_iter_mut().zip(start).enumerate().with_min_len(4096);
                numbers.for_each(|(index, (weight, start))| {
                    *weight = if self.keeps(seed, index) { (*weight - p * start) / (1.0 - p) } else { *start };
                });
            });
        }
        decoder
    }

    /// Makes the gradient of mixed weights that of the weights themselves.
    pub(crate) fn mask(&self, parameter: &Parameter<'_>, seed: u64, gradient: &mut [f32]) {
        if self.start_of(parameter).is_none() {
            return;
        }
        let seed = seed_of(&parameter.name, seed);
        gradient.par_iter_mut().enumerate().with_min_len(4096).for_each(|(index, gradient)| {
            *gradient = if self.keeps(seed, index) { *gradient / (1.0 - self.probability) } else { 0.0 };
        });
    }

    /// Of a matrix in a block.
    fn start_of(&self, parameter: &Parameter<'_>) -> Option<&Vec<f32>> {
        let in_block = parameter.name.split('.').any(|part| part.parse::<u32>().is_ok());
        self.start.get(&parameter.name).filter(|_| in_block && parameter.shape().len() == 2)
    }

    fn keeps(&self, seed: u64, index: usize) -> bool {
        // The top 24 bits are uniform in 0..1.
        (random::at(seed, index) >> 40) as f32 / (1u64 << 24) as f32 >= self.probability
    }
}

/// Another one for each parameter: FNV-1a (Fowler, Noll, Vo) of the name.
fn seed_of(name: &str, seed: u64) -> u64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    name.bytes().fold(seed ^ 0x84E2_2325_CBF2_9CE4, hash)
}
