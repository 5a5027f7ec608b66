//! Dynamic loss scaling (Micikevicius et al. 2017, arXiv 1710.03740): the loss is multiplied before its gradient is taken, so that
//! small gradients do not vanish in float16, and the gradient is divided again. The factor is halved where a gradient is too large
//! for float16, and doubled after so many steps in which none was, as `torch.amp.GradScaler` does. It is always a power of 2, so that
//! to multiply by it rounds nothing.

use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    pub factor: f32,
    /// Steps since it changed.
    good_steps: u64,
}

impl LossScale {
    /// None where the recipe trains in other numbers.
    pub(crate) fn new(recipe: &Recipe) -> Option<Self> {
        let factor = 2.0f32.powi(recipe.initial_scale_power() as i32);
        recipe.has_loss_scale().then_some(Self { factor, good_steps: 0 })
    }

    /// After a step whose gradients were all finite; `window` is how many of them double the factor.
    pub(crate) fn held(&mut self, window: u64) {
        self.good_steps += 1;
        if self.good_steps >= window {
            let doubled = self.factor * 2.0;
            *self = Self { factor: if doubled.is_finite() { doubled } else { self.factor }, good_steps: 0 };
        }
    }

    /// After one whose gradients were not: false where the factor is 1, and so is not to blame.
    pub(crate) fn overflowed(&mut self) -> bool {
        let can_fall = self.factor > 1.0;
        *self = Self { factor: (self.factor / 2.0).max(1.0), good_steps: 0 };
        can_fall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scripts/golden/loss_scale.py`: what `torch.amp.GradScaler` makes of steps of which some overflow.
    #[test]
    fn it_falls_and_grows_as_pytorchs() {
        #[derive(Deserialize)]
        struct Golden {
            window: u64,
            overflows: Vec<bool>,
            scales: Vec<f32>,
        }
        let golden: Golden = serde_json::from_str(include_str!("../fixtures/loss_scale.json")).unwrap();
        let mut scale = LossScale { factor: 65536.0, good_steps: 0 };
        for (step, (overflows, expected)) in golden.overflows.into_iter().zip(golden.scales).enumerate() {
            match overflows {
                true => assert!(scale.overflowed(), "step {step}"),
                false => scale.held(golden.window),
            }
            assert_eq!(scale.factor, expected, "step {step}");
        }
    }

    #[test]
    fn it_falls_to_one_and_grows_while_it_is_a_number() {
        let mut scale = LossScale { factor: 2.0, good_steps: 0 };
        assert!(scale.overflowed());
        assert!(!scale.overflowed());
        assert_eq!(scale.factor, 1.0);
        (0..200).for_each(|_| scale.held(1));
        assert_eq!(scale.factor, 2.0f32.powi(127));
    }
}
