//! Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306, equation 8), for answers that are good or bad
//! without another one to compare with: λ·(1 − σ(±β·(r − z))), with + and the weight of good answers for a good one.
//! z, through which no gradient goes, is how far the model has moved on answers to other prompts; in the form for pairs
//! on the answers of the other kind.

use super::{Baseline, Judge, Judged, Scored, sigmoid};

#[derive(Debug, Clone, Copy)]
pub struct Kto {
    pub beta: f64,
    pub chosen_weight: f64,
    pub rejected_weight: f64,
}

/// For pairs: every answer has a loss of its own.
#[derive(Debug, Clone, Copy)]
pub struct KtoPair {
    pub beta: f64,
}

impl Kto {
    fn loss(&self, scored: &Scored) -> Judged<1> {
        let (weight, sign) = match scored.answer.rejected {
            true => (self.rejected_weight, -1.0),
            false => (self.chosen_weight, 1.0),
        };
        let value = sigmoid(sign * self.beta * (scored.ratio() - scored.answer.baseline));
        let loss = weight * (1.0 - value);
        Judged { loss, slopes: [-weight * sign * self.beta * value * (1.0 - value)] }
    }
}

impl Judge for Kto {
    fn reward(&self, answer: &Scored) -> f64 {
        self.beta * answer.ratio()
    }

    fn baseline(&self) -> Baseline {
        Baseline::Mismatched
    }

    fn in_pairs(&self) -> bool {
        false
    }

    fn units(&self, answers: usize) -> usize {
        answers
    }

    fn judge(&self, answers: &[Scored], slopes: &mut [f64]) -> f64 {
        let losses = answers.iter().zip(slopes).map(|(answer, slope)| {
            let Judged { loss, slopes: [added] } = self.loss(answer);
            *slope += added;
            loss
        });
        losses.sum()
    }
}

impl Judge for KtoPair {
    fn reward(&self, answer: &Scored) -> f64 {
        self.beta * answer.ratio()
    }

    fn baseline(&self) -> Baseline {
        Baseline::Others
    }

    fn units(&self, answers: usize) -> usize {
        answers
    }

    fn judge(&self, answers: &[Scored], slopes: &mut [f64]) -> f64 {
        Kto { beta: self.beta, chosen_weight: 1.0, rejected_weight: 1.0 }.judge(answers, slopes)
    }
}
