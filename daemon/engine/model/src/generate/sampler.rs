//! Picks the next token from logits: greedy, or by temperature and nucleus (top-p; Holtzman et al. 2019, arXiv
//! 1904.09751).

use justtrain_worker_api::GenerateOptions;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub(super) struct Sampler {
    temperature: f32,
    top_p: f32,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// Samplers of one seed and different streams are independent.
    pub(super) fn new(options: &GenerateOptions, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(stream);
        Self { temperature: options.temperature, top_p: options.top_p, rng }
    }

    pub(super) fn pick(&mut self, logits: &[f32]) -> u32 {
        if self.temperature <= 0.0 {
            return greedy(logits);
        }
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut weights: Vec<(u32, f32)> = (0u32..)
            .zip(logits)
            .map(|(id, &logit)| (id, ((logit - largest) / self.temperature).exp()))
            // Less than a millionth of the most probable token: the sort need not see them.
            .filter(|&(_, weight)| weight > 1e-6)
            .collect();
        weights.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f32 = weights.iter().map(|&(_, weight)| weight).sum();
        let mut kept = 0.0;
        let nucleus = weights.iter().position(|&(_, weight)| {
            kept += weight;
            kept >= self.top_p * total
        });
        weights.truncate(nucleus.map_or(weights.len(), |last| last + 1));
        let kept: f32 = weights.iter().map(|&(_, weight)| weight).sum();
        let mut left = self.rng.random::<f32>() * kept;
        for &(id, weight) in &weights {
            left -= weight;
            if left <= 0.0 {
                return id;
            }
        }
        weights.last().map_or_else(|| greedy(logits), |&(id, _)| id)
    }
}

/// The first of the largest.
fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_p: f32) -> Sampler {
        Sampler::new(&GenerateOptions { temperature, top_p, ..GenerateOptions::default() }, 0)
    }

    #[test]
    fn temperature_zero_takes_the_most_probable() {
        assert_eq!(sampler(0.0, 1.0).pick(&[0.1, 3.0, -1.0, 3.0]), 1);
    }

    #[test]
    fn a_nucleus_keeps_the_most_probable_tokens_only() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let mut sampler = sampler(1.0, 0.7);
        let mut counts = [0; 4];
        for _ in 0..4000 {
            counts[sampler.pick(&logits) as usize] += 1;
        }
        assert_eq!(counts[2..], [0, 0]);
        // 0.5 of 0.8, within five standard deviations.
        assert!((counts[0] as f32 / 4000.0 - 0.625).abs() < 0.04, "{counts:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let run = || {
            let mut sampler = sampler(0.9, 0.95);
            (0..20).map(|_| sampler.pick(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }
}
