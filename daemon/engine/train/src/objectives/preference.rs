//! Learning from judged answers: scores them, has them judged, and weighs their tokens.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use justtrain_data::Sample;
use justtrain_kernels::{OutputLayer, Targets, linear_cross_entropy, score_targets};
use justtrain_model::parameters::constant;
use justtrain_model::{Decoder, Head, Mode};

use super::{Answer, Judge, Loss, Objective, RewardSums, Scored};
use crate::evaluate::in_batches;
use crate::prepare::input_of;
use crate::step::MicroBatch;

#[derive(Debug)]
pub struct Preference {
    pub judge: Box<dyn Judge>,
    /// `pref_ftx`: how much of the chosen answer's own loss, in the mean over its tokens, is added.
    pub chosen_loss: f64,
}

/// What the model says of a batch's answers: a reward for each, or words.
enum Said<'a> {
    Rewards(Tensor<1>),
    Tokens(Tensor<2>, &'a OutputLayer),
}

impl Objective for Preference {
    fn units(&self, batch: &MicroBatch) -> usize {
        self.judge.units(batch.answers.len())
    }

    fn loss(&self, head: &Head, x: Tensor<2>, batch: &MicroBatch) -> Loss {
        let said = match self.judge.has_head() {
            true => {
                let mode = Mode { adapter: true, dropout_seed: batch.dropout_seed };
                Said::Rewards(head.classes(x, &batch.input, mode).flatten(0, 1))
            }
            false => {
                let (hidden, output) = head.normed(x);
                Said::Tokens(hidden, output)
            }
        };
        let mut values = match &said {
            Said::Rewards(rewards) => numbers(rewards.clone()),
            Said::Tokens(hidden, output) => {
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
            Said::Rewards(said) => {
                let slopes: Vec<f32> = slopes.into_iter().map(|slope| slope as f32).collect();
                let slopes = TensorData::new(slopes, [answers.len()]);
                let slopes = constant(Tensor::<1>::from_data(slopes, &said.device().inner()));
                (said * slopes).sum()
            }
            // The op sums −log p: a slope by log p is the opposite of its weight.
            Said::Tokens(hidden, output) => {
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
    in_batches(samples, |_, mut batch| {
        let input = input_of(&mut batch, decoder);
        numbers(decoder.classes(&input, Mode::TUNED).flatten(0, 1))
    })
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
