//! Rows of logits: their losses, and in place the gradients of these.

use super::LossRule;
use crate::buffer::uninit;
use crate::simd;

/// The loss of one row, or of two that belong together. With `make_gradients` the logits become its gradient.
pub(super) fn loss(rule: LossRule, logits: &mut [f32], tokens: &[u32], make_gradients: bool) -> f32 {
    let slopes = rule.soft_cap.map(|cap| cap_row(logits, cap)).unwrap_or_default();
    let smoothing = rule.loss.smoothing;
    let loss = match (rule.loss.consistency, tokens) {
        (Some(alpha), &[first, second]) => pair(logits, [first, second], smoothing, alpha),
        _ => single(logits, tokens[0], smoothing, make_gradients),
    };
    logits.iter_mut().zip(&slopes).for_each(|(gradient, slope)| *gradient *= slope);
    loss
}

/// Caps logits; returns the slopes of the cap there.
fn cap_row(logits: &mut [f32], cap: f32) -> Vec<f32> {
    simd::soft_cap(logits, cap);
    let mut slopes = uninit(logits.len());
    simd::cap_slopes(logits, cap, &mut slopes);
    slopes
}

/// `(1 − ε)·(−log p[token]) + ε·mean(−log p)`; its gradient is softmax − the smoothed one-hot.
fn single(logits: &mut [f32], token: u32, smoothing: f32, make_gradients: bool) -> f32 {
    let target = logits[token as usize];
    let mean = if smoothing > 0.0 { mean(logits) } else { 0.0 };
    let largest = simd::max(logits);
    let sum = simd::exp_sum(logits, largest);
    if make_gradients {
        simd::scale(logits, 1.0 / sum);
        smooth(logits, token, smoothing);
    }
    if smoothing == 0.0 {
        return sum.ln() + largest - target;
    }
    sum.ln() + largest - (1.0 - smoothing) * target - smoothing * mean
}

/// Takes the smoothed one-hot of the token from a row of probabilities.
fn smooth(probabilities: &mut [f32], token: u32, smoothing: f32) {
    if smoothing > 0.0 {
        let share = smoothing / probabilities.len() as f32;
        probabilities.iter_mut().for_each(|value| *value -= share);
    }
    probabilities[token as usize] -= 1.0 - smoothing;
}

/// Both rows' losses, and `α·½(KL(p₁‖p₂) + KL(p₂‖p₁))`. The gradient of the latter in the logits of the first row is
/// `α·½(p₁·(log p₁ − log p₂ − KL(p₁‖p₂)) + p₁ − p₂)`, and the other way round.
fn pair(logits: &mut [f32], tokens: [u32; 2], smoothing: f32, alpha: f32) -> f32 {
    let (first, second) = logits.split_at_mut(logits.len() / 2);
    let mut probabilities = [&mut *first, &mut *second].map(log_softmax);
    let rows = [&*first, &*second];
    let mut loss = 0.0;
    for (log_p, token) in rows.iter().zip(tokens) {
        loss -= (1.0 - smoothing) * log_p[token as usize];
        if smoothing > 0.0 {
            loss -= smoothing * mean(log_p);
        }
    }
    let mut divergences = [0.0f64; 2];
    let [p, q] = &probabilities;
    for (((p, q), log_p), log_q) in p.iter().zip(q).zip(rows[0]).zip(rows[1]) {
        let apart = f64::from(log_p - log_q);
        divergences[0] += f64::from(*p) * apart;
        divergences[1] -= f64::from(*q) * apart;
    }
    loss += alpha * 0.5 * (divergences[0] + divergences[1]) as f32;
    let half = 0.5 * alpha;
    let [of_first, of_second] = divergences.map(|divergence| divergence as f32);
    let [p, q] = &mut probabilities;
    for (((p, q), log_p), log_q) in p.iter_mut().zip(q.iter_mut()).zip(&mut *first).zip(&mut *second) {
        let apart = *log_p - *log_q;
        (*log_p, *log_q) =
            (*p + half * (*p * (apart - of_first) + *p - *q), *q + half * (*q * (-apart - of_second) + *q - *p));
    }
    smooth(first, tokens[0], smoothing);
    smooth(second, tokens[1], smoothing);
    loss
}

/// Makes logits the logarithms of their softmax, and returns that.
fn log_softmax(logits: &mut [f32]) -> Vec<f32> {
    let mut probabilities = logits.to_vec();
    let largest = simd::max(logits);
    let sum = simd::exp_sum(&mut probabilities, largest);
    simd::scale(&mut probabilities, 1.0 / sum);
    let log_sum = sum.ln() + largest;
    logits.iter_mut().for_each(|logit| *logit -= log_sum);
    probabilities
}

fn mean(values: &[f32]) -> f32 {
    (values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64) as f32
}
