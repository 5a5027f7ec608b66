//! The hinge loss of SLiC-HF (Zhao et al. 2023, arXiv 2305.10425) on DPO's margin, as TRL has it:
//! max(0, 1 − β·(rᶜ − rʳ)).

use super::{Judge, Judged, Scored, sum_of_pairs};

#[derive(Debug, Clone, Copy)]
pub struct Hinge {
    pub beta: f64,
}

impl Judge for Hinge {
    fn reward(&self, answer: &Scored) -> f64 {
        self.beta * answer.ratio()
    }

    fn judge(&self, answers: &[Scored], slopes: &mut [f64]) -> f64 {
        sum_of_pairs(answers, slopes, |chosen, rejected| {
            let missing = 1.0 - (self.reward(chosen) - self.reward(rejected));
            let slope = if missing > 0.0 { -self.beta } else { 0.0 };
            Judged { loss: missing.max(0.0), slopes: [slope, -slope] }
        })
    }
}
