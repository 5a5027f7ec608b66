//! Learning from judged answers: scores them, has them judged, and weighs their tokens.

use std::sync::Arc;

use burn::tensor::Tensor;
use justtrain_kernels::{OutputLayer, Targets, linear_cross_entropy, score_targets};

use super::{Answer, Judge, Loss, Objective, RewardSums, Scored};
use crate::step::MicroBatch;

#[derive(Debug)]
pub struct Preference {
    pub judge: Box<dyn Judge>,
    /// `pref_ftx`: how much of the chosen answer's own loss, in the mean over its tokens, is added.
    pub chosen_loss: f64,
}

impl Objective for Preference {
    fn units(&self, batch: &MicroBatch) -> usize {
        self.judge.units(batch.answers.len())
    }

    fn loss(&self, hidden: Tensor<2>, output: &OutputLayer, batch: &MicroBatch) -> Loss {
        let scores = score_targets(hidden.clone(), output, batch.targets.clone()).inner().into_data();
        let scores = scores.try_into_vec::<f32>().expect("scores are f32");
        let mut log_probabilities = scores.as_chunks::<2>().0.iter().map(|score| -f64::from(score[0]));
        let scored = |answer: &Answer| Scored {
            answer: answer.clone(),
            log_probability: log_probabilities.by_ref().take(answer.tokens).sum(),
        };
        let answers: Vec<Scored> = batch.answers.iter().map(scored).collect();
        let mut slopes = vec![0.0; answers.len()];
        let sum = self.judge(&answers, &mut slopes);
        // The op sums −log p: a slope by log p is the opposite of its weight.
        let weights = answers.iter().zip(slopes);
        let weights = weights.flat_map(|(scored, slope)| std::iter::repeat_n(-slope as f32, scored.answer.tokens));
        let targets = Targets { weights: Some(weights.collect()), ..Targets::clone(&batch.targets) };
        let graph = linear_cross_entropy(hidden, output, Arc::new(targets));
        Loss { sum, graph, rewards: RewardSums::new(&*self.judge, &answers) }
    }

    fn preference(&self) -> Option<&Preference> {
        Some(self)
    }
}

impl Preference {
    /// As [`Judge::judge`], with the chosen answers' own losses.
    pub(crate) fn judge(&self, answers: &[Scored], slopes: &mut [f64]) -> f64 {
        let mut sum = self.judge.judge(answers, slopes);
        for (scored, slope) in answers.iter().zip(slopes).filter(|(scored, _)| !scored.answer.rejected) {
            sum -= self.chosen_loss * scored.mean();
            *slope -= self.chosen_loss / scored.answer.tokens as f64;
        }
        sum
    }
}
