//! Odds ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691, equations 5 to 7), without a reference:
//! −log p(yᶜ) − β·log σ(log odds(yᶜ) − log odds(yʳ)), where p is the geometric mean over the tokens of an answer and
//! odds(y) = p/(1−p). β is the paper's λ.

use super::{Judge, Judged, Scored, log_sigmoid, sigmoid, sum_of_pairs};

/// A mean log-probability of 0 would have infinite odds.
const MOST: f64 = -1e-7;

#[derive(Debug, Clone, Copy)]
pub struct Orpo {
    pub beta: f64,
}

impl Judge for Orpo {
    fn reward(&self, answer: &Scored) -> f64 {
        self.beta * answer.mean()
    }

    fn needs_reference(&self) -> bool {
        false
    }

    fn judge(&self, answers: &[Scored], slopes: &mut [f64]) -> f64 {
        sum_of_pairs(answers, slopes, |chosen, rejected| {
            // Log-odds, and their derivative by the mean log-probability.
            let odds = |answer: &Scored| {
                let mean = answer.mean().min(MOST);
                let rest = -mean.exp_m1();
                (mean - rest.ln(), 1.0 / rest)
            };
            let ((chosen_odds, by_chosen), (rejected_odds, by_rejected)) = (odds(chosen), odds(rejected));
            let x = chosen_odds - rejected_odds;
            let slope = self.beta * sigmoid(-x);
            Judged {
                loss: -chosen.mean() - self.beta * log_sigmoid(x),
                slopes: [
                    (-1.0 - slope * by_chosen) / chosen.answer.tokens as f64,
                    slope * by_rejected / rejected.answer.tokens as f64,
                ],
            }
        })
    }
}
