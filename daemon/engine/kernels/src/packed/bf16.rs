//! bfloat16: the upper half of an `f32`.
//!
//! Weights that are trained are rounded by chance: up or down, each as likely as it is near. A step of less than half
//! the distance between two neighbours then moves a weight now and then by a whole distance, instead of never (Gupta et
//! al. 2015, arXiv 1502.02551).

use std::ops::Range;
use std::sync::Arc;

use bytemuck::cast_slice;
use half::bf16;
use rayon::prelude::*;

use super::{Builder, Form};
use crate::bf16::{GROUP, Terms, prefetch};
use crate::random;
use crate::simd::widen;

#[derive(Debug)]
pub(super) struct Bf16(Vec<bf16>);

impl Bf16 {
    pub(super) fn with_capacity(len: usize) -> Self {
        Self(Vec::with_capacity(len))
    }

    pub(super) fn rounded_by_chance(weights: &[f32], seed: u64) -> Self {
        let mut rounded = Self(vec![bf16::ZERO; weights.len()]);
        rounded.set_by_chance(weights, seed);
        rounded
    }
}

impl Form for Bf16 {
    fn set_by_chance(&mut self, weights: &[f32], seed: u64) -> bool {
        /// As many chances as a random number holds.
        const GROUP: usize = 4;
        let groups = self.0.par_chunks_mut(GROUP).zip(weights.par_chunks(GROUP)).enumerate();
        groups.with_min_len(4096).for_each(|(index, (rounded, weights))| {
            let mut chances = random::at(seed, index);
            for (rounded, &weight) in rounded.iter_mut().zip(weights) {
                *rounded = round_by_chance(weight, chances as u16);
                chances >>= 16;
            }
        });
        true
    }

    fn decode(&self, start: usize, output: &mut [f32]) {
        widen(cast_slice(&self.0[start..][..output.len()]), output);
    }

    fn decode_terms(&self, range: Range<usize>, terms: Terms, output: &mut [u16]) {
        match terms {
            Terms::One => output.copy_from_slice(cast_slice(&self.0[range])),
            // One is the number itself.
            Terms::Three => {
                for (numbers, output) in self.0[range].chunks(GROUP).zip(output.chunks_mut(3 * GROUP)) {
                    let (first, rest) = output.split_at_mut(numbers.len());
                    first.copy_from_slice(cast_slice(numbers));
                    rest.fill(0);
                }
            }
        }
    }

    fn prefetch(&self, range: Range<usize>) {
        prefetch(&self.0[range]);
    }

    fn bytes(&self) -> usize {
        self.0.len() * 2
    }

    #[cfg(feature = "gpu")]
    fn upload(&self, _: usize, device: &burn::tensor::Device) -> Box<dyn super::on_gpu::OnGpu> {
        Box::new(super::on_gpu::Plain::narrow(&self.0, device))
    }
}

/// Up, away from zero, where the lower half of the bits and `chance` overflow.
fn round_by_chance(weight: f32, chance: u16) -> bf16 {
    if !weight.is_finite() {
        return bf16::from_f32(weight);
    }
    bf16::from_bits(((weight.to_bits() + u32::from(chance)) >> 16) as u16)
}

impl Builder for Bf16 {
    fn push(&mut self, weights: &[f32]) {
        self.0.par_extend(weights.par_iter().map(|&weight| bf16::from_f32(weight)));
    }

    fn finish(self: Box<Self>) -> Arc<dyn Form> {
        Arc::new(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean over many places is the number itself; what bfloat16 can hold stays as it is.
    #[test]
    fn rounding_by_chance_keeps_the_mean() {
        const LEN: usize = 200_000;
        for (weight, below, above) in [(1.002f32, 1.0f32, 1.007_812_5), (-0.3001, -0.300_781_25, -0.298_828_13)] {
            let rounded = Bf16::rounded_by_chance(&vec![weight; LEN], 5);
            let mut numbers = vec![0.0; LEN];
            rounded.decode(0, &mut numbers);
            assert!(numbers.iter().all(|&number| number == below || number == above));
            let mean = numbers.iter().map(|&number| f64::from(number)).sum::<f64>() / LEN as f64;
            // Five standard deviations of the mean, at most.
            let tolerance = 2.5 * f64::from(above - below) / (LEN as f64).sqrt();
            assert!((mean - f64::from(weight)).abs() < tolerance, "{mean} for {weight}");
        }
        let whole = [1.5f32, -0.0, 0.0, f32::INFINITY, 3.0e38f32];
        let whole = whole.map(|number| bf16::from_f32(number).to_f32());
        let mut numbers = [0.0; 5];
        Bf16::rounded_by_chance(&whole, 9).decode(0, &mut numbers);
        assert_eq!(numbers.map(f32::to_bits), whole.map(f32::to_bits));
        let mut number = [0.0];
        Bf16::rounded_by_chance(&[f32::NAN], 1).decode(0, &mut number);
        assert!(number[0].is_nan());
    }
}
