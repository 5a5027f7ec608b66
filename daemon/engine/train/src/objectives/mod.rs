//! What a run minimises. One file a method; a new one is a file, a line in `new`, and a name in the recipe.
//!
//! An [`Objective`] makes of a batch's hidden states the loss, and a tensor with that loss's gradient. Supervised
//! fine-tuning sums over tokens ([`Sft`]). The others judge whole answers: each is reduced to one number, its
//! log-probability or what a head says ([`Preference`]), and a method is a function of those numbers with its derivatives
//! ([`Judge`]). So the vocabulary-wide logits never exist whole: the derivative of an answer's number weighs each of its
//! tokens in the fused output layer.
//!
//! | file | method |
//! |---|---|
//! | `sft.rs` | cross-entropy of the target tokens |
//! | `classification.rs` | cross-entropy of a sequence's class, `stage: cls` |
//! | `distillation.rs` | the same, and a teacher's distributions, `teacher` |
//! | `dpo.rs` | DPO and its conservative form, `pref_loss: sigmoid` |
//! | `hinge.rs` | SLiC-HF's hinge, `pref_loss: hinge` |
//! | `ipo.rs` | IPO, `pref_loss: ipo` |
//! | `orpo.rs` | ORPO, `pref_loss: orpo` |
//! | `simpo.rs` | SimPO, `pref_loss: simpo` |
//! | `reward_model.rs` | a reward model, `stage: rm` |
//! | `kto.rs` | KTO, `stage: kto`; and its form for pairs, `pref_loss: kto_pair` |
//!
//! `preference.rs` has answers judged, `background.rs` holds what they are compared with.

mod background;
mod classification;
mod distillation;
mod dpo;
mod hinge;
mod ipo;
mod kto;
mod orpo;
mod preference;
mod reward_model;
mod sft;
mod simpo;

use std::fmt::Debug;

use burn::tensor::Tensor;
use justtrain_model::Head;
use justtrain_worker_api::Rewards;

pub use background::Background;
pub use classification::Classification;
pub(crate) use distillation::LOGITS_BYTES;
pub use distillation::{Direction, Distillation, Divergence};
pub use dpo::Dpo;
pub use hinge::Hinge;
pub use ipo::Ipo;
pub use kto::{Kto, KtoPair};
pub use orpo::Orpo;
pub use preference::Preference;
pub(crate) use preference::rewards_of;
pub use reward_model::RewardModel;
pub use sft::Sft;
pub use simpo::SimPo;

use crate::recipe::{PrefLoss, Recipe, Stage};
use crate::step::MicroBatch;

pub trait Objective: Debug + Sync {
    /// How many losses of a batch are averaged.
    fn units(&self, batch: &MicroBatch) -> usize;

    /// The sum of a batch's losses. `x` is what comes out of the last block.
    fn loss(&self, head: &Head, x: Tensor<2>, batch: &MicroBatch) -> Loss;

    /// None where it learns from tokens alone.
    fn preference(&self) -> Option<&Preference> {
        None
    }
}

#[derive(Debug)]
pub struct Loss {
    pub sum: f64,
    /// A number whose gradient is that of `sum`.
    pub graph: Tensor<1>,
    pub rewards: RewardSums,
}

/// An answer as its batch has it. Judged answers of a batch are in the order of its sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// How many of the batch's targets are its tokens. They follow those of the answers before.
    pub tokens: usize,
    /// It is the worse one of a pair, or one that is not good.
    pub rejected: bool,
    /// Its log-probability under the model that the run began with.
    pub reference: f64,
    /// What the method compares with: for KTO how far the model has moved on answers that are none.
    pub baseline: f64,
}

/// An answer with the one number that the model as it is gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub answer: Answer,
    /// Its log-probability, summed over its tokens; of a reward model, what its head says.
    pub value: f64,
}

impl Scored {
    /// How much more probable the answer has become.
    fn ratio(&self) -> f64 {
        self.value - self.answer.reference
    }

    /// Log-probability of one token.
    fn mean(&self) -> f64 {
        self.value / self.answer.tokens as f64
    }
}

/// A loss, and its derivative by the number of each of the answers that it is of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged<const N: usize> {
    pub loss: f64,
    pub slopes: [f64; N],
}

/// A method as a function of one number for each answer.
pub trait Judge: Debug + Sync {
    /// What an answer is worth to the model.
    fn reward(&self, answer: &Scored) -> f64;

    /// Whether the number of an answer is what the head of a reward model says; else it is the log-probability.
    fn has_head(&self) -> bool {
        false
    }

    /// Whether answers are compared with what the model said before the run.
    fn needs_reference(&self) -> bool {
        true
    }

    /// What each answer's [`Answer::baseline`] is made of.
    fn baseline(&self) -> Baseline {
        Baseline::None
    }

    /// How many losses so many answers have.
    fn units(&self, answers: usize) -> usize {
        answers / 2
    }

    /// Whether answers come in pairs, the chosen one first.
    fn in_pairs(&self) -> bool {
        true
    }

    /// The sum of the losses of a batch's answers; adds the derivative by each one's number to `slopes`.
    fn judge(&self, answers: &[Scored], slopes: &mut [f64]) -> f64;
}

/// What an answer is compared with besides the reference: how much more probable other answers have become, in the mean
/// over all batches of a step and never below 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    None,
    /// Answers to other prompts (KTO).
    Mismatched,
    /// The rejected answers for a chosen one, the chosen for a rejected one.
    Others,
}

/// The loss of pairs, chosen and rejected one after the other.
fn sum_of_pairs(answers: &[Scored], slopes: &mut [f64], loss: impl Fn(&Scored, &Scored) -> Judged<2>) -> f64 {
    let pairs = answers.as_chunks::<2>().0.iter().zip(slopes.as_chunks_mut::<2>().0);
    let losses = pairs.map(|([chosen, rejected], slopes)| {
        let judged = loss(chosen, rejected);
        slopes.iter_mut().zip(judged.slopes).for_each(|(slope, added)| *slope += added);
        judged.loss
    });
    losses.sum()
}

/// Sums of rewards, from which means over several batches are made.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RewardSums {
    chosen: f64,
    chosen_count: usize,
    rejected: f64,
    rejected_count: usize,
    right: usize,
    judged: usize,
}

impl RewardSums {
    pub(crate) fn new(judge: &dyn Judge, answers: &[Scored]) -> Self {
        let mut sums = Self::default();
        let rewards: Vec<f64> = answers.iter().map(|answer| judge.reward(answer)).collect();
        for (answer, reward) in answers.iter().zip(&rewards) {
            match answer.answer.rejected {
                true => (sums.rejected, sums.rejected_count) = (sums.rejected + reward, sums.rejected_count + 1),
                false => (sums.chosen, sums.chosen_count) = (sums.chosen + reward, sums.chosen_count + 1),
            }
        }
        (sums.right, sums.judged) = match judge.in_pairs() {
            true => (rewards.chunks(2).filter(|pair| pair[0] > pair[1]).count(), rewards.len() / 2),
            false => {
                let right = answers.iter().zip(&rewards).filter(|(answer, reward)| match answer.answer.rejected {
                    true => **reward < 0.0,
                    false => **reward > 0.0,
                });
                (right.count(), rewards.len())
            }
        };
        sums
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.chosen += other.chosen;
        self.chosen_count += other.chosen_count;
        self.rejected += other.rejected;
        self.rejected_count += other.rejected_count;
        self.right += other.right;
        self.judged += other.judged;
    }

    /// None where nothing was judged.
    pub fn means(&self) -> Option<Rewards> {
        let mean = |sum: f64, count: usize| (count > 0).then(|| sum / count as f64);
        Some(Rewards {
            chosen: mean(self.chosen, self.chosen_count),
            rejected: mean(self.rejected, self.rejected_count),
            accuracy: mean(self.right as f64, self.judged)?,
        })
    }
}

/// What a recipe asks for, but for its teacher's part.
pub fn new(recipe: &Recipe) -> Box<dyn Objective> {
    let (beta, chosen_loss) = (recipe.pref_beta, recipe.pref_ftx);
    let preference: Box<dyn Judge> = match recipe.stage {
        Stage::Pt | Stage::Sft => return Box::new(Sft(loss_of_tokens(recipe))),
        Stage::Cls => {
            return Box::new(Classification { smoothing: recipe.label_smoothing_factor as f32 });
        }
        Stage::Kto => {
            let (chosen_weight, rejected_weight) = (recipe.kto_chosen_weight, recipe.kto_rejected_weight);
            Box::new(Kto { beta, chosen_weight, rejected_weight })
        }
        Stage::Rm => Box::new(RewardModel),
        Stage::Dpo => match recipe.pref_loss {
            PrefLoss::Sigmoid => Box::new(Dpo { beta, label_smoothing: recipe.dpo_label_smoothing }),
            PrefLoss::Hinge => Box::new(Hinge { beta }),
            PrefLoss::Ipo => Box::new(Ipo { beta }),
            PrefLoss::Orpo => Box::new(Orpo { beta }),
            PrefLoss::Simpo => Box::new(SimPo { beta, gamma: recipe.simpo_gamma }),
            PrefLoss::KtoPair => Box::new(KtoPair { beta }),
        },
    };
    Box::new(Preference { judge: preference, chosen_loss })
}

pub(crate) fn loss_of_tokens(recipe: &Recipe) -> justtrain_kernels::Loss {
    let smoothing = recipe.label_smoothing_factor as f32;
    let consistency = recipe.rdrop_alpha.map(|alpha| alpha as f32);
    justtrain_kernels::Loss { smoothing, consistency }
}

/// log σ(x).
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// σ(x).
fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(value: f64, reference: f64, tokens: usize, rejected: bool) -> Scored {
        Scored { answer: Answer { tokens, rejected, reference, baseline: 0.3 }, value }
    }

    fn judges() -> Vec<Box<dyn Judge>> {
        vec![
            Box::new(Dpo { beta: 0.3, label_smoothing: 0.0 }),
            Box::new(Dpo { beta: 0.3, label_smoothing: 0.2 }),
            Box::new(Hinge { beta: 0.3 }),
            Box::new(Ipo { beta: 0.3 }),
            Box::new(Orpo { beta: 0.3 }),
            Box::new(SimPo { beta: 2.0, gamma: 0.5 }),
            Box::new(RewardModel),
            Box::new(KtoPair { beta: 0.3 }),
            Box::new(Kto { beta: 0.3, chosen_weight: 1.2, rejected_weight: 0.7 }),
        ]
    }

    /// Derivatives are those of the loss, and no answer's depends on those of another pair.
    #[test]
    fn slopes_are_the_derivatives_of_the_loss() {
        let answers = [
            scored(-7.0, -7.5, 5, false),
            scored(-9.0, -8.0, 4, true),
            scored(-3.0, -2.9, 7, false),
            scored(-2.0, -2.5, 2, true),
        ];
        for judge in judges() {
            let mut slopes = vec![0.0; 4];
            judge.judge(&answers, &mut slopes);
            for at in 0..4 {
                let loss = |by: f64| {
                    let mut moved = answers.to_vec();
                    moved[at].value += by;
                    judge.judge(&moved, &mut [0.0; 4])
                };
                let expected = (loss(1e-5) - loss(-1e-5)) / 2e-5;
                assert!((slopes[at] - expected).abs() < 1e-8, "{judge:?} {at}: {} {expected}", slopes[at]);
            }
        }
    }

    /// Each method makes the chosen answer more probable and the rejected one less.
    #[test]
    fn every_method_prefers_what_was_chosen() {
        for judge in judges() {
            let mut slopes = vec![0.0; 2];
            judge.judge(&[scored(-7.0, -7.0, 5, false), scored(-7.0, -7.0, 5, true)], &mut slopes);
            assert!(slopes[0] < 0.0 && slopes[1] > 0.0, "{judge:?}: {slopes:?}");
        }
    }

    #[test]
    fn extreme_log_probabilities_give_finite_losses() {
        for judge in judges() {
            for (chosen, rejected) in [(-2000.0, -0.0), (-1e-12, -5000.0)] {
                let mut slopes = vec![0.0; 2];
                let loss = judge.judge(&[scored(chosen, 0.0, 5, false), scored(rejected, 0.0, 5, true)], &mut slopes);
                assert!(
                    loss.is_finite() && slopes.iter().all(|slope| slope.is_finite()),
                    "{judge:?}: {loss} {slopes:?}"
                );
            }
        }
    }

    #[test]
    fn rewards_are_means_over_answers_and_pairs() {
        let dpo = Dpo { beta: 0.5, label_smoothing: 0.0 };
        let answers = [
            scored(-1.0, -3.0, 1, false),
            scored(-2.0, -2.0, 1, true),
            scored(-5.0, -4.0, 1, false),
            scored(-4.0, -4.0, 1, true),
        ];
        let mut sums = RewardSums::new(&dpo, &answers[..2]);
        sums.add(RewardSums::new(&dpo, &answers[2..]));
        assert_eq!(sums.means(), Some(Rewards { chosen: Some(0.25), rejected: Some(0.0), accuracy: 0.5 }));
        let kto = Kto { beta: 0.5, chosen_weight: 1.0, rejected_weight: 1.0 };
        let one_sided = RewardSums::new(&kto, &[answers[0].clone(), answers[2].clone()]).means().unwrap();
        assert_eq!((one_sided.chosen, one_sided.rejected, one_sided.accuracy), (Some(0.25), None, 0.5));
        assert_eq!(RewardSums::default().means(), None);
    }
}
