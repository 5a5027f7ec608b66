//! Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7): −log σ(β·(rᶜ − rʳ)) with
//! r = log π(y|x) − log π₀(y|x). With label smoothing ε the conservative form of Eric Mitchell's note (2023) for
//! preferences of which a share ε is the wrong way round: (1−ε)·−log σ(x) + ε·−log σ(−x).

use super::{Judge, Judged, Scored, log_sigmoid, sigmoid, sum_of_pairs};

#[derive(Debug, Clone, Copy)]
pub struct Dpo {
    pub beta: f64,
    pub label_smoothing: f64,
}

impl Judge for Dpo {
    fn reward(&self, answer: &Scored) -> f64 {
        self.beta * answer.ratio()
    }

    fn judge(&self, answers: &[Scored], slopes: &mut [f64]) -> f64 {
        let flipped = self.label_smoothing;
        sum_of_pairs(answers, slopes, |chosen, rejected| {
            let x = self.reward(chosen) - self.reward(rejected);
            let slope = self.beta * (flipped * sigmoid(x) - (1.0 - flipped) * sigmoid(-x));
            let loss = -(1.0 - flipped) * log_sigmoid(x) - flipped * log_sigmoid(-x);
            Judged { loss, slopes: [slope, -slope] }
        })
    }
}
