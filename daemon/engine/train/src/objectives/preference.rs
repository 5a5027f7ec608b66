//! Learning from judged answers: scores them, has them judged, and weighs their tokens.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use justtrain_data::{Batch, Sample};
use justtrain_kernels::{Targets, linear_cross_entropy, score_targets};
use justtrain_model::parameters::constant;
use justtrain_model::{Decoder, Head, Input, Mode};

use super::{Answer, Judge, Loss, Objective, RewardSums, Scored};
use crate::evaluate::in_batches;
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

    fn loss(&self, head: &Head, x: Tensor<2>, batch: &MicroBatch) -> Loss {
        let (hidden, output) = head.normed(x);
        let said = self.judge.has_head().then(|| head.rewards(hidden.clone(), &last_tokens(&batch.input)));
        let mut values = match &said {
            Some(said) => numbers(said.clone()),
            None => {
                let scores = score_targets(hidden.clone(), output, batch.targets.clone()).inner().into_data();
                let scores = scores.try_into_vec::<f32>().expect("scores are f32");
                let mut of_tokens = scores.as_chunks::<2>().0.iter().map(|score| -f64::from(score[0]));
                batch.answers.iter().map(|answer| of_tokens.by_ref().take(answer.tokens).sum()).collect()
            }
        }
        .into_iter();
        let scored =
            |answer: &Answer| Scored { answer: answer.clone(), value: values.next().expect("one for each answer") };
        let answers: Vec<Scored> = batch.answers.iter().map(scored).collect();
        let mut slopes = vec![0.0; answers.len()];
        let sum = self.judge(&answers, &mut slopes);
        let graph = match said {
            Some(said) => {
                let slopes: Vec<f32> = slopes.into_iter().map(|slope| slope as f32).collect();
                let slopes = TensorData::new(slopes, [answers.len()]);
                let slopes = constant(Tensor::<1>::from_data(slopes, &said.device().inner()));
                (said * slopes).sum()
            }
            // The op sums −log p: a slope by log p is the opposite of its weight.
            None => {
                let weights = answers.iter().zip(slopes);
                let weights =
                    weights.flat_map(|(scored, slope)| std::iter::repeat_n(-slope as f32, scored.answer.tokens));
                let targets = Targets { weights: Some(weights.collect()), ..Targets::clone(&batch.targets) };
                linear_cross_entropy(hidden, output, Arc::new(targets))
            }
        };
        Loss { sum, graph, rewards: RewardSums::new(&*self.judge, &answers) }
    }

    fn preference(&self) -> Option<&Preference> {
        Some(self)
    }
}

/// What the head of a reward model says of each sample. `decoder` tracks no gradients.
pub(crate) fn rewards_of(decoder: &Decoder, samples: &[Sample]) -> Vec<f64> {
    let head = decoder.head();
    let of_batch = |_: &[&Sample], batch: Batch| {
        let input = Input::packed(batch.ids, &batch.starts);
        let hidden = decoder.hidden_states(&input, None, Mode::TUNED);
        numbers(head.rewards(hidden, &last_tokens(&input)))
    };
    in_batches(samples, of_batch)
}

/// The row of each sequence's last token.
fn last_tokens(input: &Input) -> Vec<usize> {
    let is_last = |&row: &usize| input.positions.get(row + 1).is_none_or(|&position| position == 0);
    (0..input.positions.len()).filter(is_last).collect()
}

fn numbers(tensor: Tensor<1>) -> Vec<f64> {
    let numbers = tensor.into_data().try_into_vec::<f32>().expect("rewards are f32");
    numbers.into_iter().map(f64::from).collect()
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
