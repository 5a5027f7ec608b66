//! How far two distributions over the vocabulary are apart, and the slopes of that: `T²·KL` of rows of logits, both softened by
//! the temperature `T` (Hinton et al. 2015, arXiv 1503.02531).
//!
//! Of a row first both sums of exponentials are taken, and then in one pass the divergence and its slopes; no logarithm or
//! probability is ever stored.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::device::on_cpu;
use crate::simd::{exp, max, mul_add, simd_fn};

/// Which way round, and how softened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Softened {
    pub temperature: f32,
    /// `KL(q‖p)` of the logits' `q` and the teacher's `p`, in place of `KL(p‖q)`.
    pub reverse: bool,
}

/// `logits` and `teacher` are `[rows, vocabulary]` and track no gradients. Returns the sum over the rows, and its derivatives by the
/// logits: `T·(q − p)`, and reverse `T·q·(log q − log p − KL(q‖p))`.
pub fn divergence(logits: Tensor<2>, teacher: Tensor<2>, how: Softened) -> (f64, Tensor<2>) {
    assert_eq!(logits.dims(), teacher.dims());
    if !on_cpu(&logits) {
        return reference(logits, teacher, how);
    }
    let (shape, device) = (logits.dims(), logits.device());
    let [mut rows, teacher] =
        [logits, teacher].map(|logits| logits.into_data().try_into_vec::<f32>().expect("logits are f32"));
    let of_row = |(row, teacher): (&mut [f32], &[f32])| f64::from(row_divergence(row, teacher, how));
    // In the order of the rows, so that the sum is the same in every run.
    let divergences: Vec<f64> = rows.par_chunks_mut(shape[1]).zip(teacher.par_chunks(shape[1])).map(of_row).collect();
    let temperature = f64::from(how.temperature);
    let sum = temperature * temperature * divergences.iter().sum::<f64>();
    (sum, Tensor::from_data(TensorData::new(rows, shape), &device))
}

/// The same by burn's own ops.
pub fn reference(logits: Tensor<2>, teacher: Tensor<2>, how: Softened) -> (f64, Tensor<2>) {
    let temperature = how.temperature;
    let [log_q, log_p] = [logits, teacher].map(|logits| log_softmax(logits / temperature, 1));
    let (divergences, slopes) = match how.reverse {
        false => {
            let (p, q) = (log_p.clone().exp(), log_q.clone().exp());
            ((p.clone() * (log_p - log_q)).sum_dim(1), q - p)
        }
        true => {
            let (q, apart) = (log_q.clone().exp(), log_q - log_p);
            let divergences = (q.clone() * apart.clone()).sum_dim(1);
            (divergences.clone(), q * (apart - divergences))
        }
    };
    let divergences = divergences.into_data().try_into_vec::<f32>().expect("divergences are f32");
    let sum: f64 = divergences.into_iter().map(f64::from).sum();
    (f64::from(temperature) * f64::from(temperature) * sum, slopes * temperature)
}

/// KL of one row, whose logits become its slopes.
fn row_divergence(logits: &mut [f32], teacher: &[f32], Softened { temperature, reverse }: Softened) -> f32 {
    let cold = 1.0 / temperature;
    let log_sum = |logits: &[f32]| {
        let largest = max(logits) * cold;
        exp_sum(logits, cold, largest).ln() + largest
    };
    let (of_logits, of_teacher) = (log_sum(logits), log_sum(teacher));
    if !reverse {
        return forward(logits, teacher, cold, of_logits, of_teacher);
    }
    let divergence = backward_sum(logits, teacher, cold, of_logits, of_teacher);
    // `log q − log p` less the divergence is the same with both in the teacher's sum.
    backward_slopes(logits, teacher, cold, of_logits, of_teacher - divergence);
    divergence
}

/// Numbers that are worked on side by side.
const LANES: usize = 16;

simd_fn! {
    /// Σ e^(cold · x − shift).
    fn exp_sum(x: &[f32], cold: f32, shift: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += exp::<FMA>(mul_add::<FMA>(cold, x, -shift));
            }
        }
        lanes.iter().sum::<f32>() + rest.iter().map(|&x| exp::<FMA>(mul_add::<FMA>(cold, x, -shift))).sum::<f32>()
    }
}

simd_fn! {
    /// Σ p·(log p − log q); `x` becomes `(q − p) / cold`.
    fn forward(x: &mut [f32], teacher: &[f32], cold: f32, of_x: f32, of_teacher: f32) -> f32 {
        let temperature = 1.0 / cold;
        let mut lanes = [0.0f32; LANES];
        let ((chunks, rest), (others, others_rest)) = (x.as_chunks_mut::<LANES>(), teacher.as_chunks::<LANES>());
        let one = |x: &mut f32, teacher: f32| {
            let (log_q, log_p) = (mul_add::<FMA>(cold, *x, -of_x), mul_add::<FMA>(cold, teacher, -of_teacher));
            let (q, p) = (exp::<FMA>(log_q), exp::<FMA>(log_p));
            *x = temperature * (q - p);
            p * (log_p - log_q)
        };
        for (chunk, others) in chunks.iter_mut().zip(others) {
            for ((lane, x), &teacher) in lanes.iter_mut().zip(chunk).zip(others) {
                *lane += one(x, teacher);
            }
        }
        let rest: f32 = rest.iter_mut().zip(others_rest).map(|(x, &teacher)| one(x, teacher)).sum();
        lanes.iter().sum::<f32>() + rest
    }
}

simd_fn! {
    /// Σ q·(log q − log p).
    fn backward_sum(x: &[f32], teacher: &[f32], cold: f32, of_x: f32, of_teacher: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let ((chunks, rest), (others, others_rest)) = (x.as_chunks::<LANES>(), teacher.as_chunks::<LANES>());
        let one = |x: f32, teacher: f32| {
            let (log_q, log_p) = (mul_add::<FMA>(cold, x, -of_x), mul_add::<FMA>(cold, teacher, -of_teacher));
            exp::<FMA>(log_q) * (log_q - log_p)
        };
        for (chunk, others) in chunks.iter().zip(others) {
            for ((lane, &x), &teacher) in lanes.iter_mut().zip(chunk).zip(others) {
                *lane += one(x, teacher);
            }
        }
        let rest: f32 = rest.iter().zip(others_rest).map(|(&x, &teacher)| one(x, teacher)).sum();
        lanes.iter().sum::<f32>() + rest
    }
}

simd_fn! {
    /// `x` becomes `q·(log q − log p) / cold`.
    fn backward_slopes(x: &mut [f32], teacher: &[f32], cold: f32, of_x: f32, of_teacher: f32) {
        let temperature = 1.0 / cold;
        for (x, &teacher) in x.iter_mut().zip(teacher) {
            let (log_q, log_p) = (mul_add::<FMA>(cold, *x, -of_x), mul_add::<FMA>(cold, teacher, -of_teacher));
            *x = temperature * exp::<FMA>(log_q) * (log_q - log_p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::testing::at_every_level;
    use crate::testing::{assert_close, random, track, values};

    const ALL: [Softened; 4] = [
        Softened { temperature: 1.0, reverse: false },
        Softened { temperature: 2.5, reverse: false },
        Softened { temperature: 1.0, reverse: true },
        Softened { temperature: 2.5, reverse: true },
    ];

    #[test]
    fn sum_and_slopes_equal_the_reference() {
        for shape in [[1, 1], [3, 7], [5, 211], [2, 49_152]] {
            let [logits, teacher] = [1, 2].map(|seed| random(shape, seed) * 6.0);
            for how in ALL {
                let (sum, slopes) = reference(logits.clone(), teacher.clone(), how);
                let slopes = values(slopes);
                let largest = slopes.iter().fold(1.0f32, |largest, slope| largest.max(slope.abs()));
                at_every_level(|level| {
                    let (got, of_row) = divergence(logits.clone(), teacher.clone(), how);
                    assert!((got - sum).abs() <= 1e-5 * sum + 1e-6, "{level:?} {how:?} {shape:?}: {got} {sum}");
                    let worst = values(of_row).iter().zip(&slopes).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst <= 1e-6 * largest, "{level:?} {how:?} {shape:?}: {worst}");
                });
            }
        }
    }

    /// Of the sum as burn's own autodiff has it.
    #[test]
    fn slopes_are_the_gradient_of_the_sum() {
        let [logits, teacher] = [3, 4].map(|seed| random([4, 37], seed) * 3.0);
        for how in ALL {
            let leaf = track(&logits);
            let [log_q, log_p] = [leaf.clone(), track(&teacher)].map(|logits| log_softmax(logits / how.temperature, 1));
            let sum = match how.reverse {
                false => (log_p.clone().exp() * (log_p - log_q)).sum(),
                true => (log_q.clone().exp() * (log_q - log_p)).sum(),
            } * (how.temperature * how.temperature);
            let gradients = sum.backward();
            let (_, slopes) = divergence(logits.clone(), teacher.clone(), how);
            assert_close(slopes, leaf.grad(&gradients).unwrap(), 1e-5, "slopes");
        }
    }

    #[test]
    fn what_is_the_same_is_not_apart_and_impossible_tokens_give_no_nan() {
        for how in ALL {
            let mut numbers = vec![-1e4f32; 40];
            numbers[3] = 50.0;
            let logits = Tensor::<2>::from_data(TensorData::new(numbers, [1, 40]), &burn::tensor::Device::flex());
            let (sum, slopes) = divergence(logits.clone(), logits.clone(), how);
            assert!(sum.abs() < 1e-6 && values(slopes).iter().all(|slope| slope.abs() < 1e-6), "{how:?}");
            let (sum, slopes) = divergence(logits.clone(), -logits, how);
            assert!(sum.is_finite() && values(slopes).iter().all(|slope| slope.is_finite()), "{how:?}: {sum}");
        }
    }
}
