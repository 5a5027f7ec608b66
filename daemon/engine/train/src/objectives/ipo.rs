//! Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, equation 17): (rᶜ − rʳ − 1/(2β))², with r in the
//! mean over the tokens of an answer, as TRL and LLaMA-Factory have it after asking the authors.

use super::{Judge, Judged, Scored, sum_of_pairs};

#[derive(Debug, Clone, Copy)]
pub struct Ipo {
    pub beta: f64,
}

impl Judge for Ipo {
    fn reward(&self, answer: &Scored) -> f64 {
        self.beta * answer.ratio() / answer.answer.tokens as f64
    }

    fn judge(&self, answers: &[Scored], slopes: &mut [f64]) -> f64 {
        sum_of_pairs(answers, slopes, |chosen, rejected| {
            let [of_chosen, of_rejected] = [chosen, rejected].map(|answer| answer.answer.tokens as f64);
            let off = chosen.ratio() / of_chosen - rejected.ratio() / of_rejected - 1.0 / (2.0 * self.beta);
            Judged { loss: off * off, slopes: [2.0 * off / of_chosen, -2.0 * off / of_rejected] }
        })
    }
}
