//! Gradient clipping by the norm over all parameters, as `torch.nn.utils.clip_grad_norm_`.

use rayon::prelude::*;

/// Scales all gradients down so that their common norm is at most `max_norm` (0: no limit). Returns the norm before.
pub fn clip_global_norm(gradients: &mut [Vec<f32>], max_norm: f64) -> f64 {
    let norm = gradients
        .iter()
        .map(|gradient| gradient.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>())
        .sum::<f64>()
        .sqrt();
    let factor = max_norm / (norm + 1e-6);
    if max_norm > 0.0 && factor < 1.0 {
        gradients.par_iter_mut().for_each(|gradient| gradient.iter_mut().for_each(|value| *value *= factor as f32));
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_is_over_all_parameters_together() {
        let mut gradients = vec![vec![3.0, 0.0], vec![4.0]];
        assert_eq!(clip_global_norm(&mut gradients, 10.0), 5.0);
        assert_eq!(gradients, [vec![3.0, 0.0], vec![4.0]]);
        assert_eq!(clip_global_norm(&mut gradients, 1.0), 5.0);
        let left: f32 = gradients.concat().iter().map(|value| value * value).sum();
        assert!((left - 1.0).abs() < 1e-5);
        assert_eq!(clip_global_norm(&mut [vec![2.0]], 0.0), 2.0);
    }
}
