//! Learning-rate schedules as functions of the step: nothing to save, nothing to restore, but for
//! [`ReduceOnPlateau`], which looks at the validation loss. Formulas are those of transformers (`optimization.py`) and
//! PyTorch, or of the paper that a file names.
//!
//! To add one, write its formula as a [`Shape`] and give it a name and its settings in [`config`].

mod config;
#[cfg(test)]
mod picture;
mod reduce_on_plateau;
mod slanted_triangular;
mod warmup_stable_decay;

use std::f64::consts::PI;

pub(crate) use config::share_or_steps;
pub use config::{SchedulerKwargs, SchedulerType};
pub use reduce_on_plateau::{PlateauState, ReduceOnPlateau, ThresholdMode};
pub use slanted_triangular::SlantedTriangular;
pub use warmup_stable_decay::{Curve, WarmupStableDecay};

#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    pub shape: Shape,
    /// The highest rate.
    pub learning_rate: f64,
    pub warmup_steps: u64,
    pub total_steps: u64,
}

/// What the rate does after the warm-up. Rates are shares of the highest one.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    Constant,
    /// A straight line down to 0.
    Linear,
    /// So many waves from 1 down to `least`; half a one ends there.
    Cosine {
        cycles: f64,
        least: f64,
    },
    /// So many halves of a wave, each from 1 to 0.
    CosineWithRestarts {
        cycles: f64,
    },
    /// (1 − progress)^`power`, down to `end`.
    Polynomial {
        power: f64,
        end: f64,
    },
    /// 1 / √(1 + steps / `timescale`).
    InverseSqrt {
        timescale: f64,
    },
    WarmupStableDecay(WarmupStableDecay),
    SlantedTriangular(SlantedTriangular),
    ReduceOnPlateau(ReduceOnPlateau),
}

impl Schedule {
    /// The rate of the step with this index, from 0. With a warm-up the first rate is 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(step)
    }

    /// The same as a share of the highest rate.
    pub fn factor(&self, step: u64) -> f64 {
        let Some(after) = step.checked_sub(self.warmup_steps) else {
            let progress = step as f64 / self.warmup_steps as f64;
            return match &self.shape {
                Shape::WarmupStableDecay(shape) => shape.rising(progress),
                _ => progress,
            };
        };
        let decaying = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (after as f64 / decaying as f64).min(1.0);
        match &self.shape {
            Shape::Constant | Shape::ReduceOnPlateau(_) => 1.0,
            Shape::Linear => 1.0 - progress,
            Shape::Cosine { cycles, least } => half_wave(cycles * 2.0 * progress) * (1.0 - least) + least,
            Shape::CosineWithRestarts { .. } if progress == 1.0 => 0.0,
            Shape::CosineWithRestarts { cycles } => half_wave((cycles * progress).fract()),
            Shape::Polynomial { power, end } => (1.0 - end) * (1.0 - progress).powf(*power) + end,
            Shape::InverseSqrt { timescale } => 1.0 / ((after as f64 + timescale) / timescale).sqrt(),
            Shape::WarmupStableDecay(shape) => shape.after_warmup(after, decaying),
            Shape::SlantedTriangular(shape) => shape.factor(step, self.total_steps),
        }
    }
}

/// From 1 at 0 to 0 at 1.
fn half_wave(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}
