//! The rate stays until the validation loss has stopped falling, and is then reduced: `torch.optim.lr_scheduler.
//! ReduceLROnPlateau`, asked after each validation.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq)]
pub struct ReduceOnPlateau {
    /// A reduced rate is so many times the one before.
    pub factor: f64,
    /// Validations without a better loss that are let pass.
    pub patience: u64,
    /// What a loss must be lower by to be better.
    pub threshold: f64,
    pub threshold_mode: ThresholdMode,
    /// Validations after a reduction that do not count.
    pub cooldown: u64,
    pub min_lr: f64,
    /// A smaller reduction is not made.
    pub eps: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    /// A share of the best loss.
    Rel,
    Abs,
}

/// What must be remembered between validations; part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlateauState {
    /// The highest rate as it is now.
    pub learning_rate: f64,
    /// The lowest loss so far.
    best: Option<f64>,
    /// Validations since then.
    bad: u64,
    /// Validations that still do not count.
    cooldown: u64,
}

impl PlateauState {
    pub fn new(learning_rate: f64) -> Self {
        Self { learning_rate, best: None, bad: 0, cooldown: 0 }
    }
}

impl ReduceOnPlateau {
    /// Takes a validation's loss, and reduces the rate when it is time.
    pub fn observe(&self, state: &mut PlateauState, loss: f64) {
        if self.is_better(loss, state.best) {
            state.best = Some(loss);
            state.bad = 0;
        } else {
            state.bad += 1;
        }
        if state.cooldown > 0 {
            state.cooldown -= 1;
            state.bad = 0;
        }
        if state.bad > self.patience {
            let reduced = (state.learning_rate * self.factor).max(self.min_lr);
            if state.learning_rate - reduced > self.eps {
                state.learning_rate = reduced;
            }
            state.cooldown = self.cooldown;
            state.bad = 0;
        }
    }

    fn is_better(&self, loss: f64, best: Option<f64>) -> bool {
        let bound = |best| match self.threshold_mode {
            ThresholdMode::Rel => best * (1.0 - self.threshold),
            ThresholdMode::Abs => best - self.threshold,
        };
        loss < best.map_or(f64::INFINITY, bound)
    }
}
