//! One optimiser step after the other.

use std::sync::Arc;
use std::time::Instant;

use justtrain_data::{Batch, Sample, Sampler};
use justtrain_kernels::Targets;
use justtrain_model::parameters::{Parameters, Trained};
use justtrain_model::{Decoder, Input};
use justtrain_worker_api::{Event, Failure, FailureReason, Problem, ProblemCode};

use crate::checkpoint::RunState;
use crate::memory;
use crate::objectives::{Background, Objective};
use crate::optim::schedule::{PlateauState, Schedule, Shape};
use crate::optim::{Groups, Optimizer};
use crate::step::{Measured, MicroBatch, Step};

/// A run under way: the trained decoder, the optimiser with its memory, the place in the data.
pub(crate) struct Trainer<'a> {
    pub(crate) decoder: Decoder,
    pub(crate) optimizer: Box<dyn Optimizer>,
    pub(crate) state: RunState,
    pub(crate) samples: &'a [Sample],
    pub(crate) objective: &'a dyn Objective,
    pub(crate) background: Background,
    pub(crate) sampler: Sampler,
    pub(crate) settings: Settings,
}

pub(crate) struct Settings {
    pub(crate) trained: Trained,
    pub(crate) checkpointing: bool,
    pub(crate) schedule: Schedule,
    pub(crate) groups: Groups,
    /// Whether the optimiser keeps running means of the weights.
    pub(crate) keeps_means: bool,
    pub(crate) max_grad_norm: f64,
    pub(crate) accumulation: usize,
    pub(crate) seed: u64,
}

impl Trainer<'_> {
    pub(crate) fn done(&self) -> bool {
        self.state.step >= self.settings.schedule.total_steps
    }

    /// One update. The loss is the mean over all target tokens of the accumulation window.
    pub(crate) fn step(&mut self) -> Result<Event, Failure> {
        let start = Instant::now();
        let window = self.next_window();
        let samples: Vec<&Sample> = window.iter().flatten().map(|&index| &self.samples[index]).collect();
        let target_tokens: usize = samples.iter().map(|sample| sample.targets()).sum();
        let tokens: u64 = samples.iter().map(|sample| sample.ids.len() as u64).sum();
        let mut rows: Vec<u64> = samples.iter().map(|sample| sample.row).collect();
        // Both answers of a pair are of one row.
        rows.dedup();

        let number = self.state.step + 1;
        let learning_rate = self.learning_rate();
        let step = Step {
            objective: self.objective,
            trained: self.settings.trained,
            checkpointing: self.settings.checkpointing,
            max_grad_norm: self.settings.max_grad_norm,
            number,
            learning_rate,
            groups: &self.settings.groups,
            seed: self.settings.seed,
        };
        let batches = self.micro_batches(window);
        let Measured { loss, grad_norm, rewards } = step.run(&mut self.decoder, &mut *self.optimizer, batches);
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(diverged(number, loss, &rows));
        }

        let seconds = start.elapsed().as_secs_f64();
        let total_steps = self.settings.schedule.total_steps;
        let state = &mut self.state;
        state.step = number;
        state.sampler = self.sampler.state();
        state.last_loss = loss;
        if number == 1 {
            state.first_loss = loss;
        }
        state.tokens += tokens;
        state.seconds += seconds;
        Ok(Event::Step {
            step: number,
            total_steps,
            epoch: self.sampler.progress(),
            loss,
            learning_rate,
            grad_norm,
            tokens,
            target_tokens: target_tokens as u64,
            tokens_per_second: tokens as f64 / seconds,
            seconds_left: state.seconds / number as f64 * (total_steps - number) as f64,
            peak_memory_bytes: memory::peak_bytes(),
            rewards: rewards.means(),
        })
    }

    /// Of the next step.
    fn learning_rate(&self) -> f64 {
        let schedule = &self.settings.schedule;
        let highest = self.state.plateau.as_ref().map_or(schedule.learning_rate, |plateau| plateau.learning_rate);
        highest * schedule.factor(self.state.step)
    }

    /// Puts the running means in place of the weights, and back at the next call; without means nothing changes.
    pub(crate) fn exchange_means(&mut self) {
        if !self.settings.keeps_means {
            return;
        }
        for mut parameter in self.decoder.trained_mut(self.settings.trained) {
            let name = parameter.name.clone();
            parameter.update(0, |weights| self.optimizer.exchange(&name, weights));
        }
    }

    /// Tells the schedule what a validation found.
    pub(crate) fn validated(&mut self, loss: f64) {
        let schedule = &self.settings.schedule;
        if let Shape::ReduceOnPlateau(rule) = &schedule.shape {
            let state = self.state.plateau.get_or_insert_with(|| PlateauState::new(schedule.learning_rate));
            rule.observe(state, loss);
        }
    }

    /// The batches of one step, as indices of samples. A window ends with its epoch, even when it is shorter than the
    /// others.
    fn next_window(&mut self) -> Vec<Vec<usize>> {
        let mut window = Vec::new();
        loop {
            window.push(self.sampler.next_batch());
            if window.len() == self.settings.accumulation || self.sampler.epoch_is_done() {
                return window;
            }
        }
    }

    fn micro_batches(&self, window: Vec<Vec<usize>>) -> Vec<MicroBatch> {
        let mut answers = match self.objective.preference() {
            None => Vec::new(),
            Some(preference) => self.background.answers(preference, &self.decoder, self.samples, &window.concat()),
        }
        .into_iter();
        let micro_batch = |(index, samples): (usize, Vec<usize>)| {
            let batch = Batch::new(samples.iter().map(|&sample| &self.samples[sample]));
            MicroBatch {
                input: Input::packed(batch.ids, &batch.starts),
                targets: Arc::new(Targets { rows: batch.target_rows, tokens: batch.target_ids, weights: None }),
                answers: answers.by_ref().take(samples.len()).collect(),
                dropout_seed: Some(self.dropout_seed(index)),
            }
        };
        window.into_iter().enumerate().map(micro_batch).collect()
    }

    /// A function of seed, step and place in the window: a resumed run drops what an uninterrupted one would.
    fn dropout_seed(&self, index: usize) -> u64 {
        let place = self.state.step.wrapping_mul(self.settings.accumulation as u64).wrapping_add(index as u64);
        self.settings.seed ^ place.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

fn diverged(step: u64, loss: f64, rows: &[u64]) -> Failure {
    let rows: Vec<String> = rows.iter().map(u64::to_string).collect();
    let problem = Problem::error(
        ProblemCode::LossDiverged,
        format!("the loss or its gradient is not a finite number at step {step}"),
        format!("第 {step} 步的损失或梯度不是有限数值"),
    )
    .found(format!("loss {loss}, data rows {}", rows.join(", ")))
    .expected("a finite number")
    .fix(
        "lower learning_rate, and look at these rows; the last checkpoint is from before",
        "请降低 learning_rate，并检查这些数据行；最近的检查点不受影响",
    );
    problem.because(FailureReason::LossDiverged)
}
