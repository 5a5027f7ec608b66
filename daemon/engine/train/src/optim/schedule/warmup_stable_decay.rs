//! Warm-up, a plateau at the highest rate, and a decay at the end (Hu et al. 2024, MiniCPM, arXiv 2404.06395), with the
//! curves that transformers has for both slopes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::half_wave;

#[derive(Debug, Clone, PartialEq)]
pub struct WarmupStableDecay {
    /// None: all steps that warm-up and decay leave.
    pub stable_steps: Option<u64>,
    pub decay_steps: u64,
    pub warmup: Curve,
    pub decay: Curve,
    /// The rate at both ends, as a share of the highest.
    pub least: f64,
    /// Waves of a decay that is a cosine.
    pub cycles: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    Linear,
    Cosine,
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

impl WarmupStableDecay {
    pub(super) fn rising(&self, progress: f64) -> f64 {
        self.above_least(match self.warmup {
            Curve::Linear => progress,
            Curve::Cosine => 1.0 - half_wave(progress),
            Curve::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
        })
    }

    /// `steps` of the `remaining` ones that follow the warm-up are done.
    pub(super) fn after_warmup(&self, steps: u64, remaining: u64) -> f64 {
        let stable = self.stable_steps.unwrap_or(remaining.saturating_sub(self.decay_steps));
        let Some(decayed) = steps.checked_sub(stable) else { return 1.0 };
        if decayed >= self.decay_steps {
            return self.least;
        }
        let progress = decayed as f64 / self.decay_steps as f64;
        self.above_least(match self.decay {
            Curve::Linear => 1.0 - progress,
            Curve::Cosine => half_wave(self.cycles * 2.0 * progress),
            Curve::OneMinusSqrt => 1.0 - progress.sqrt(),
        })
    }

    fn above_least(&self, factor: f64) -> f64 {
        factor * (1.0 - self.least) + self.least
    }
}
