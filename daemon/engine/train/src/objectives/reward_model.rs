//! A reward model (Ouyang et al. 2022, arXiv 2203.02155, equation 1): −log σ(rᶜ − rʳ), where r is what a linear layer
//! makes of the last hidden state of an answer's last token, as transformers' `ForSequenceClassification` has it.

use super::{Judge, Judged, Scored, log_sigmoid, sigmoid, sum_of_pairs};

#[derive(Debug, Clone, Copy)]
pub struct RewardModel;

impl Judge for RewardModel {
    fn reward(&self, answer: &Scored) -> f64 {
        answer.value
    }

    fn has_head(&self) -> bool {
        true
    }

    fn needs_reference(&self) -> bool {
        false
    }

    fn judge(&self, answers: &[Scored], slopes: &mut [f64]) -> f64 {
        sum_of_pairs(answers, slopes, |chosen, rejected| {
            let margin = chosen.value - rejected.value;
            Judged { loss: -log_sigmoid(margin), slopes: [-sigmoid(-margin), sigmoid(-margin)] }
        })
    }
}
