//! NEFTune (Jain et al. 2023, arXiv 2310.05914): uniform noise of at most `α/√(L·d)` on the embeddings of a sequence of L
//! tokens, as transformers' `neftune_post_forward_hook`. There L counts padding; here a sequence has none.

use burn::tensor::{Tensor, TensorData};
use justtrain_kernels::random;
use justtrain_model::Input;
use rayon::prelude::*;

/// `x` is `[tokens, hidden]`, what goes into the first block; `scale` is what the rows of the table were multiplied by, and
/// so is the noise.
pub(crate) fn noisy(x: Tensor<2>, input: &Input, alpha: f32, scale: f32, seed: u64) -> Tensor<2> {
    let ([tokens, width], device) = (x.dims(), x.device());
    x + Tensor::from_data(TensorData::new(noise(input, width, alpha * scale, seed), [tokens, width]), &device)
}

fn noise(input: &Input, width: usize, alpha: f32, seed: u64) -> Vec<f32> {
    let mut noise = vec![0.0f32; input.ids.len() * width];
    for rows in input.sequences() {
        let largest = alpha / ((rows.len() * width) as f32).sqrt();
        let first = rows.start * width;
        noise[first..rows.end * width].par_iter_mut().enumerate().with_min_len(4096).for_each(|(index, value)| {
            // 24 bits are uniform in 0..1; an odd constant keeps the seed far from that of a dropout.
            let uniform = (random::at(seed ^ 0xD6E8_FEB8_6659_FD93, first + index) >> 40) as f32 / (1u64 << 24) as f32;
            *value = largest * (2.0 * uniform - 1.0);
        });
    }
    noise
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest is α/√(L·d), the deviation that divided by √3; each sequence by its own length.
    #[test]
    fn noise_is_uniform_and_as_large_as_the_paper_says() {
        let input = Input::packed(vec![0; 1000], &[0, 100, 1000]);
        let noise = noise(&input, 64, 5.0, 7);
        for (rows, values) in [(100, &noise[..6400]), (900, &noise[6400..])] {
            let largest = 5.0 / ((rows * 64) as f64).sqrt();
            let count = values.len() as f64;
            let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
            let square = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / count;
            assert!(values.iter().all(|&value| f64::from(value.abs()) <= largest * (1.0 + 1e-6)));
            // Five standard deviations of a mean.
            assert!(mean.abs() < 5.0 * largest / (3.0 * count).sqrt(), "{mean}");
            assert!((square.sqrt() / (largest / 3f64.sqrt()) - 1.0).abs() < 0.03, "{square}");
        }
        assert_eq!(noise, self::noise(&input, 64, 5.0, 7));
        assert_ne!(noise, self::noise(&input, 64, 5.0, 8));
    }
}
