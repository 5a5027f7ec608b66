//! Schedules in a recipe: `lr_scheduler_type` and `lr_scheduler_kwargs`, with transformers' names and defaults.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Curve, ReduceOnPlateau, Shape, SlantedTriangular, ThresholdMode, WarmupStableDecay};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// Half a cosine, down to 0.
    #[default]
    Cosine,
    /// A straight line, down to 0.
    Linear,
    /// No warm-up either.
    Constant,
    ConstantWithWarmup,
    /// The cosine again and again.
    CosineWithRestarts,
    /// The cosine down to a rate above 0.
    CosineWithMinLr,
    /// A power of what remains.
    Polynomial,
    /// One over the square root of the step.
    InverseSqrt,
    /// Constant, and a decay at the end.
    WarmupStableDecay,
    /// ULMFiT's: a short rise and a long fall.
    SlantedTriangular,
    /// Constant until the validation loss stops falling.
    ReduceLrOnPlateau,
}

impl SchedulerType {
    pub const ALL: [Self; 11] = [
        Self::Constant,
        Self::ConstantWithWarmup,
        Self::Linear,
        Self::Cosine,
        Self::CosineWithRestarts,
        Self::CosineWithMinLr,
        Self::Polynomial,
        Self::InverseSqrt,
        Self::WarmupStableDecay,
        Self::SlantedTriangular,
        Self::ReduceLrOnPlateau,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Linear => "linear",
            Self::Constant => "constant",
            Self::ConstantWithWarmup => "constant_with_warmup",
            Self::CosineWithRestarts => "cosine_with_restarts",
            Self::CosineWithMinLr => "cosine_with_min_lr",
            Self::Polynomial => "polynomial",
            Self::InverseSqrt => "inverse_sqrt",
            Self::WarmupStableDecay => "warmup_stable_decay",
            Self::SlantedTriangular => "slanted_triangular",
            Self::ReduceLrOnPlateau => "reduce_lr_on_plateau",
        }
    }

    /// The keys of `lr_scheduler_kwargs` that it takes.
    pub fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Linear | Self::Constant | Self::ConstantWithWarmup => &[],
            Self::Cosine | Self::CosineWithRestarts => &["num_cycles"],
            Self::CosineWithMinLr => &["min_lr", "min_lr_rate", "num_cycles"],
            Self::Polynomial => &["lr_end", "power"],
            Self::InverseSqrt => &["timescale"],
            Self::WarmupStableDecay => {
                &["num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"]
            }
            Self::SlantedTriangular => &["cut_frac", "ratio"],
            Self::ReduceLrOnPlateau => {
                &["factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"]
            }
        }
    }

    /// Whether `warmup_steps` and `warmup_ratio` mean something.
    pub fn warms_up(self) -> bool {
        !matches!(self, Self::Constant | Self::SlantedTriangular)
    }
}

/// What a schedule can be told beside its name.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerKwargs {
    /// `cosine`, `cosine_with_min_lr`, `warmup_stable_decay`: waves (default 0.5); `cosine_with_restarts`: how often it starts (default 1).
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub num_cycles: Option<f64>,
    /// `cosine_with_min_lr`, `reduce_lr_on_plateau`: the lowest rate (`reduce_lr_on_plateau`: default 0).
    #[schemars(range(min = 0, max = 1))]
    pub min_lr: Option<f64>,
    /// `cosine_with_min_lr`: the lowest rate as a share of the highest; written in place of `min_lr`.
    #[schemars(range(min = 0, max = 1))]
    pub min_lr_rate: Option<f64>,
    /// `polynomial`: the last rate (default 1e-7).
    #[schemars(range(min = 0, max = 1))]
    pub lr_end: Option<f64>,
    /// `polynomial`: the power (default 1).
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub power: Option<f64>,
    /// `inverse_sqrt`: steps after the warm-up that divide the rate by √2 (default: the warm-up's steps, or 10000 without one).
    #[schemars(range(min = 1))]
    pub timescale: Option<u64>,
    /// `warmup_stable_decay`: steps of the decay, or a share of all steps below 1. Must be written.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub num_decay_steps: Option<f64>,
    /// `warmup_stable_decay`: steps at the highest rate, or a share of all steps below 1 (default: all that warm-up and decay leave).
    #[schemars(range(min = 0))]
    pub num_stable_steps: Option<f64>,
    /// `warmup_stable_decay`: how the rate rises (default `linear`).
    pub warmup_type: Option<Curve>,
    /// `warmup_stable_decay`: how the rate falls (default `cosine`).
    pub decay_type: Option<Curve>,
    /// `warmup_stable_decay`: the lowest rate as a share of the highest (default 0).
    #[schemars(range(min = 0, max = 1))]
    pub min_lr_ratio: Option<f64>,
    /// `slanted_triangular`: share of all steps in which the rate rises (default 0.1).
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub cut_frac: Option<f64>,
    /// `slanted_triangular`: the highest rate is so many times the lowest (default 32).
    #[schemars(range(min = 1))]
    pub ratio: Option<f64>,
    /// `reduce_lr_on_plateau`: what the rate is multiplied by (default 0.1).
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub factor: Option<f64>,
    /// `reduce_lr_on_plateau`: validations without a better loss that are let pass (default 10).
    #[schemars(range(min = 0))]
    pub patience: Option<u64>,
    /// `reduce_lr_on_plateau`: what a loss must be lower by to be better (default 0.0001).
    #[schemars(range(min = 0))]
    pub threshold: Option<f64>,
    /// `reduce_lr_on_plateau`: whether `threshold` is a share of the best loss or a loss (default `rel`).
    pub threshold_mode: Option<ThresholdMode>,
    /// `reduce_lr_on_plateau`: validations after a reduction that do not count (default 0).
    #[schemars(range(min = 0))]
    pub cooldown: Option<u64>,
    /// `reduce_lr_on_plateau`: a smaller reduction is not made (default 1e-8).
    #[schemars(range(min = 0))]
    pub eps: Option<f64>,
}

impl SchedulerKwargs {
    pub(crate) fn lr_end(&self) -> f64 {
        self.lr_end.unwrap_or(1e-7)
    }

    /// The shape that `kind` and these settings make of a run with this highest rate and these steps.
    pub(crate) fn shape(&self, kind: SchedulerType, learning_rate: f64, warmup_steps: u64, total_steps: u64) -> Shape {
        let cycles = self.num_cycles.unwrap_or(0.5);
        match kind {
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => Shape::Constant,
            SchedulerType::Linear => Shape::Linear,
            SchedulerType::Cosine => Shape::Cosine { cycles, least: 0.0 },
            SchedulerType::CosineWithMinLr => {
                let least = self.min_lr.map(|rate| rate / learning_rate).or(self.min_lr_rate).unwrap_or(0.0);
                Shape::Cosine { cycles, least }
            }
            SchedulerType::CosineWithRestarts => Shape::CosineWithRestarts { cycles: self.num_cycles.unwrap_or(1.0) },
            SchedulerType::Polynomial => {
                Shape::Polynomial { power: self.power.unwrap_or(1.0), end: self.lr_end() / learning_rate }
            }
            SchedulerType::InverseSqrt => {
                let default = if warmup_steps > 0 { warmup_steps } else { 10_000 };
                Shape::InverseSqrt { timescale: self.timescale.unwrap_or(default) as f64 }
            }
            SchedulerType::WarmupStableDecay => Shape::WarmupStableDecay(WarmupStableDecay {
                stable_steps: self.num_stable_steps.map(|steps| share_or_steps(steps, total_steps)),
                decay_steps: share_or_steps(self.num_decay_steps.unwrap_or(0.0), total_steps),
                warmup: self.warmup_type.unwrap_or(Curve::Linear),
                decay: self.decay_type.unwrap_or(Curve::Cosine),
                least: self.min_lr_ratio.unwrap_or(0.0),
                cycles,
            }),
            SchedulerType::SlantedTriangular => Shape::SlantedTriangular(SlantedTriangular {
                cut_frac: self.cut_frac.unwrap_or(0.1),
                ratio: self.ratio.unwrap_or(32.0),
            }),
            SchedulerType::ReduceLrOnPlateau => Shape::ReduceOnPlateau(ReduceOnPlateau {
                factor: self.factor.unwrap_or(0.1),
                patience: self.patience.unwrap_or(10),
                threshold: self.threshold.unwrap_or(1e-4),
                threshold_mode: self.threshold_mode.unwrap_or(ThresholdMode::Rel),
                cooldown: self.cooldown.unwrap_or(0),
                min_lr: self.min_lr.unwrap_or(0.0),
                eps: self.eps.unwrap_or(1e-8),
            }),
        }
    }
}

/// Below 1 a share of all steps, which is rounded up as transformers does.
pub(crate) fn share_or_steps(value: f64, total_steps: u64) -> u64 {
    if value < 1.0 { (value * total_steps as f64).ceil() as u64 } else { value as u64 }
}
