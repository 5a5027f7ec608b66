//! What judged answers are compared with: their log-probabilities before the run, computed once, and how far the model
//! has moved on other answers.

use justtrain_data::Sample;
use justtrain_model::{Decoder, Mode};

use super::{Answer, Baseline, Preference};
use crate::evaluate::scores_of;

/// Of the samples of a run.
#[derive(Debug, Default)]
pub struct Background {
    /// By sample; empty where nothing is compared with the reference.
    references: Vec<f64>,
    /// The same of [`mismatched`] answers, where the method takes them.
    mismatched: Vec<f64>,
    cutoff_len: usize,
}

impl Background {
    /// `decoder` is as it was before the run, and so is the reference. Samples outside `seen` are in no step.
    pub fn new(
        preference: Option<&Preference>,
        decoder: &Decoder,
        samples: &[Sample],
        seen: &[usize],
        cutoff_len: usize,
    ) -> Self {
        let mut background = Self { cutoff_len, ..Self::default() };
        let Some(preference) = preference.filter(|preference| preference.judge.needs_reference()) else {
            return background;
        };
        let scores = scores_of(decoder, seen.iter().map(|&index| &samples[index]), Mode::TUNED);
        background.references = vec![0.0; samples.len()];
        for (&index, score) in seen.iter().zip(scores) {
            background.references[index] = score.log_probability;
        }
        if preference.judge.baseline() == Baseline::Mismatched {
            let others: Vec<Sample> = seen.iter().map(|&index| mismatched(samples, index, cutoff_len)).collect();
            background.mismatched = vec![0.0; samples.len()];
            for (&index, score) in seen.iter().zip(scores_of(decoder, &others, Mode::TUNED)) {
                background.mismatched[index] = score.log_probability;
            }
        }
        background
    }

    /// The answers of a step, which are the samples at `indices`.
    pub fn answers(
        &self,
        preference: &Preference,
        decoder: &Decoder,
        samples: &[Sample],
        indices: &[usize],
    ) -> Vec<Answer> {
        let mut answers: Vec<Answer> = indices
            .iter()
            .map(|&index| Answer {
                tokens: samples[index].targets(),
                rejected: samples[index].rejected,
                reference: self.references.get(index).copied().unwrap_or(0.0),
                baseline: 0.0,
            })
            .collect();
        match preference.judge.baseline() {
            Baseline::None => {}
            Baseline::Mismatched => {
                let others: Vec<Sample> =
                    indices.iter().map(|&index| mismatched(samples, index, self.cutoff_len)).collect();
                let scores = scores_of(decoder, &others, Mode::TUNED);
                let ratios = scores.iter().zip(indices).map(|(s, &index)| s.log_probability - self.mismatched[index]);
                let moved = mean_above_0(ratios);
                answers.iter_mut().for_each(|answer| answer.baseline = moved);
            }
            Baseline::Others => {
                let scores = scores_of(decoder, indices.iter().map(|&index| &samples[index]), Mode::TUNED);
                let ratios: Vec<(bool, f64)> = answers
                    .iter()
                    .zip(scores)
                    .map(|(answer, score)| (answer.rejected, score.log_probability - answer.reference))
                    .collect();
                let of = |rejected| mean_above_0(ratios.iter().filter(|(kind, _)| *kind == rejected).map(|(_, r)| *r));
                let (of_chosen, of_rejected) = (of(false), of(true));
                for answer in &mut answers {
                    answer.baseline = if answer.rejected { of_chosen } else { of_rejected };
                }
            }
        }
        answers
    }
}

fn mean_above_0(ratios: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = ratios.fold((0.0, 0), |(sum, count), ratio| (sum + ratio, count + 1));
    if count == 0 { 0.0 } else { f64::max(sum / f64::from(count), 0.0) }
}

/// The prompt of a sample with the answer of the one before it, as TRL pairs them.
fn mismatched(samples: &[Sample], index: usize, cutoff_len: usize) -> Sample {
    let answer_start = |sample: &Sample| sample.target.iter().position(|&target| target).unwrap_or(sample.ids.len());
    let (own, other) = (&samples[index], &samples[(index + samples.len() - 1) % samples.len()]);
    let (prompt, answer) = (&own.ids[..answer_start(own)], &other.ids[answer_start(other)..]);
    let mut ids = [prompt, answer].concat();
    ids.truncate(cutoff_len);
    let target = (0..ids.len()).map(|at| at >= prompt.len()).collect();
    Sample { ids, target, row: own.row, ..Sample::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_gets_the_answer_of_the_row_before() {
        let sample = |ids: &[u32], prompt| Sample {
            ids: ids.to_vec(),
            target: (0..ids.len()).map(|at| at >= prompt).collect(),
            row: 1,
            ..Sample::default()
        };
        let samples = [sample(&[1, 2, 3], 2), sample(&[4, 5, 6, 7], 1), sample(&[8, 9], 1)];
        assert_eq!(mismatched(&samples, 0, 10), sample(&[1, 2, 9], 2));
        assert_eq!(mismatched(&samples, 2, 10), sample(&[8, 5, 6, 7], 1));
        assert_eq!(mismatched(&samples, 2, 3), sample(&[8, 5, 6], 1));
    }
}
