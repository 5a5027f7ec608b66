//! Inverted dropout that stores no mask.

use rayon::prelude::*;

use crate::buffer::uninit;
use crate::random;

/// Inverted dropout whose mask is a function of `seed` and of the element's index: nothing is stored for the backward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of elements set to 0, in `0..1`.
    pub probability: f32,
    pub seed: u64,
}

impl Dropout {
    /// What the element at `index` is multiplied with: 0 or `1 / (1 − probability)`.
    pub(super) fn factor(self, index: usize) -> f32 {
        // The top 24 bits are uniform in 0..1.
        let uniform = (random::at(self.seed, index) >> 40) as f32 / (1u64 << 24) as f32;
        if uniform < self.probability { 0.0 } else { 1.0 / (1.0 - self.probability) }
    }

    pub(super) fn apply(self, x: &[f32]) -> Vec<f32> {
        let mut output = uninit(x.len());
        output.par_iter_mut().zip(x).enumerate().with_min_len(4096).for_each(|(index, (output, &x))| {
            *output = x * self.factor(index);
        });
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_drops_its_share_and_keeps_the_mean() {
        let dropout = Dropout { probability: 0.25, seed: 7 };
        let output = dropout.apply(&vec![1.0; 100_000]);
        let zeros = output.iter().filter(|&&v| v == 0.0).count() as f32 / 100_000.0;
        let mean = output.iter().sum::<f32>() / 100_000.0;
        // Five standard deviations of a binomial share.
        assert!((zeros - 0.25).abs() < 0.007, "{zeros}");
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        let other = Dropout { seed: 8, ..dropout }.apply(&vec![1.0; 100]);
        assert_ne!(other, output[..100]);
    }
}
