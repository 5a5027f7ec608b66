//! Several tasks in one run: how much each one's gradient counts.
//!
//! One method is one file with a type that implements [`Weighting`], and one line in [`new`]. A step with a method has as many
//! batches of each task, and each task's loss is the mean over its own targets.

mod gradnorm;
mod held_out;
mod pcgrad;
mod uncertainty;

use std::fmt::Debug;

pub use gradnorm::GradNorm;
pub(crate) use held_out::{HeldOut, nothing_to_judge_by};
pub use pcgrad::PcGrad;
pub use uncertainty::Uncertainty;

use crate::gradients::GradientSums;
use crate::recipe::{Recipe, TaskWeighting};

/// What a step's tasks have found: each one's mean loss and its gradient.
pub(crate) struct TaskGradients {
    pub(crate) losses: Vec<f64>,
    pub(crate) gradients: Vec<GradientSums>,
}

/// Makes one gradient of several.
pub(crate) trait Weighting: Debug {
    /// `step` counts from 1. What a method learns by the way is changed too.
    fn combine(&mut self, step: u64, tasks: TaskGradients) -> GradientSums;

    /// What each task's loss counts now, for whoever watches; None where that is no number.
    fn weights(&self) -> Option<Vec<f64>>;

    /// What a resumed run needs.
    fn state(&self) -> Vec<f64>;

    fn restore(&mut self, state: &[f64]);
}

/// What a recipe asks for; None where every target counts alike.
pub(crate) fn new(recipe: &Recipe) -> Option<Box<dyn Weighting>> {
    let (count, learning_rate) = (recipe.tasks.len(), recipe.task_weights_lr);
    match recipe.task_weighting {
        TaskWeighting::None => None,
        TaskWeighting::Uncertainty => Some(Box::new(Uncertainty::new(count, learning_rate))),
        TaskWeighting::Gradnorm => Some(Box::new(GradNorm::new(count, learning_rate, recipe.gradnorm_alpha))),
        TaskWeighting::Pcgrad => Some(Box::new(PcGrad::new(recipe.seed))),
    }
}

/// `Σ factor · gradient`.
fn weighted_sum(gradients: Vec<GradientSums>, factors: &[f64]) -> GradientSums {
    let mut sum = GradientSums::default();
    for (gradient, &factor) in gradients.into_iter().zip(factors) {
        sum.add_scaled(gradient, factor as f32);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(values: &[f32]) -> GradientSums {
        let mut sums = GradientSums::default();
        let (a, b) = values.split_at(values.len() / 2);
        sums.add("a", a.to_vec());
        sums.add("b", b.to_vec());
        sums
    }

    fn values(mut sums: GradientSums) -> Vec<f32> {
        [sums.take("a").unwrap(), sums.take("b").unwrap()].concat()
    }

    fn combined(method: &mut dyn Weighting, losses: &[f64], gradients: &[&[f32]]) -> Vec<f32> {
        let gradients = gradients.iter().map(|gradient| sums(gradient)).collect();
        values(method.combine(1, TaskGradients { losses: losses.to_vec(), gradients }))
    }

    /// With losses that do not change, the weight of a task ends where `e^s = 2 L`: the minimum of `e^−s L + s/2`.
    #[test]
    fn uncertainty_finds_the_weights_of_the_papers_minimum() {
        let mut method = Uncertainty::new(2, 0.02);
        let losses = [0.25, 4.0];
        assert_eq!(combined(&mut method, &losses, &[&[1.0, 0.0], &[0.0, 1.0]]), [1.0, 1.0]);
        (0..4000).for_each(|_| drop(combined(&mut method, &losses, &[&[1.0, 0.0], &[0.0, 1.0]])));
        let weights = method.weights().unwrap();
        for (weight, loss) in weights.iter().zip(losses) {
            assert!((weight * 2.0 * loss - 1.0).abs() < 1e-2, "{weights:?}");
        }
    }

    /// By hand, from the algorithm of the paper (2001.06782).
    #[test]
    fn pcgrad_takes_away_what_conflicts() {
        let mut method = PcGrad::new(7);
        // No conflict: the sum.
        assert_eq!(combined(&mut method, &[1.0, 1.0], &[&[1.0, 2.0], &[3.0, 0.5]]), [4.0, 2.5]);
        // g₁·g₂ = −1; g₁ − (−1/2)·g₂ = (0.5, 0.5), g₂ − (−1/1)·g₁ = (0, 1).
        let got = combined(&mut method, &[1.0, 1.0], &[&[1.0, 0.0], &[-1.0, 1.0]]);
        assert!(got.iter().zip([0.5, 1.5]).all(|(got, want)| (got - want).abs() < 1e-6), "{got:?}");
    }

    #[test]
    fn gradnorm_leaves_equal_tasks_alone_and_keeps_the_sum() {
        let mut method = GradNorm::new(2, 0.025, 1.5);
        for _ in 0..50 {
            combined(&mut method, &[2.0, 2.0], &[&[1.0, 0.0], &[0.0, 1.0]]);
        }
        assert!(method.weights().unwrap().iter().all(|weight| (weight - 1.0).abs() < 1e-9));
        // The second task has ten times the gradient and learns as fast: it counts less.
        let mut method = GradNorm::new(2, 0.025, 1.5);
        for _ in 0..200 {
            combined(&mut method, &[2.0, 2.0], &[&[1.0, 0.0], &[0.0, 10.0]]);
        }
        let weights = method.weights().unwrap();
        assert!((weights.iter().sum::<f64>() - 2.0).abs() < 1e-9 && weights[1] < weights[0], "{weights:?}");
        // Its loss has stayed where the other's has fallen: it counts more than it did.
        let slower = {
            for _ in 0..200 {
                combined(&mut method, &[0.2, 2.0], &[&[1.0, 0.0], &[0.0, 10.0]]);
            }
            method.weights().unwrap()
        };
        assert!(slower[1] > weights[1], "{slower:?} {weights:?}");
    }

    #[test]
    fn a_restored_method_goes_on_as_before() {
        let methods: [fn() -> Box<dyn Weighting>; 3] = [
            || Box::new(Uncertainty::new(2, 0.01)),
            || Box::new(GradNorm::new(2, 0.01, 1.5)),
            || Box::new(PcGrad::new(3)),
        ];
        for new in methods {
            let (mut method, mut other) = (new(), new());
            let step =
                |method: &mut dyn Weighting, loss: f64| combined(method, &[loss, 1.0], &[&[1.0, 0.5], &[-0.5, 1.0]]);
            (0..5).for_each(|i| drop(step(&mut *method, 1.0 + f64::from(i))));
            other.restore(&method.state());
            assert_eq!(step(&mut *other, 0.3), step(&mut *method, 0.3));
            assert_eq!(other.state(), method.state());
        }
    }
}
