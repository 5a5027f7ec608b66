//! Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734, equation 6), without a reference:
//! −log σ(β·(mᶜ − mʳ) − γ), where m is the mean log-probability of an answer's tokens.

use super::{Judge, Judged, Scored, log_sigmoid, sigmoid, sum_of_pairs};

#[derive(Debug, Clone, Copy)]
pub struct SimPo {
    pub beta: f64,
    /// The margin that is aimed at.
    pub gamma: f64,
}

impl Judge for SimPo {
    fn reward(&self, answer: &Scored) -> f64 {
        self.beta * answer.mean()
    }

    fn needs_reference(&self) -> bool {
        false
    }

    fn judge(&self, answers: &[Scored], slopes: &mut [f64]) -> f64 {
        sum_of_pairs(answers, slopes, |chosen, rejected| {
            let x = self.reward(chosen) - self.reward(rejected) - self.gamma;
            let slope = -self.beta * sigmoid(-x);
            let slopes = [slope / chosen.answer.tokens as f64, -slope / rejected.answer.tokens as f64];
            Judged { loss: -log_sigmoid(x), slopes }
        })
    }
}
