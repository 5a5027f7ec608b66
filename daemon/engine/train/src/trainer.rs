//! One optimiser step after the other.

use std::sync::Arc;
use std::time::Instant;

use justtrain_data::{Batch, MixedSampler, Sample};
use justtrain_kernels::{Targets, awake};
use justtrain_model::Decoder;
use justtrain_model::parameters::Parameters;
use justtrain_worker_api::{Event, Problem, ProblemCode, TaskScore};

use crate::checkpoint::RunState;
use crate::early_stopping::EarlyStopping;
use crate::memory;
use crate::objectives::{Background, Objective};
use crate::optim::schedule::{PlateauState, Schedule, Shape};
use crate::optim::{Groups, Optimizer};
use crate::prepare::input_of;
use crate::regularizers::{Regularizers, twice};
use crate::step::{Measured, MicroBatch, OfTask, Step};
use crate::tasks::Weighting;
use crate::trainable::Trainable;

/// A run under way: the trained decoder, the optimiser with its memory, the place in the data.
pub(crate) struct Trainer<'a> {
    pub(crate) decoder: Decoder,
    pub(crate) optimizer: Box<dyn Optimizer>,
    pub(crate) state: RunState,
    pub(crate) samples: &'a [Sample],
    pub(crate) objective: &'a dyn Objective,
    pub(crate) background: Background,
    pub(crate) sampler: MixedSampler,
    pub(crate) weighting: Option<Box<dyn Weighting>>,
    /// Of a recipe's tasks; empty where it names none.
    pub(crate) task_names: Vec<String>,
    /// What the last step found of each task, until it is told.
    pub(crate) task_losses: Option<Event>,
    pub(crate) settings: Settings,
}

/// What became of a step.
pub(crate) enum Stepped {
    Done(Event),
    /// Nothing has changed, and the run goes on.
    Skipped(Event),
    /// The run must not go on. Weights after later steps than `good` are not to be trusted.
    Diverged {
        problem: Box<Problem>,
        good: u64,
    },
}

pub(crate) struct Settings {
    pub(crate) trainable: Trainable,
    pub(crate) checkpointing: bool,
    pub(crate) schedule: Schedule,
    pub(crate) groups: Groups,
    pub(crate) regularizers: Regularizers,
    pub(crate) early_stopping: Option<EarlyStopping>,
    /// Whether the optimiser keeps running means of the weights.
    pub(crate) keeps_means: bool,
    pub(crate) max_grad_norm: f64,
    /// Steps without a finite loss and gradient, one after the other, that end the run.
    pub(crate) max_bad_steps: u64,
    /// Steps without an overflow that double the loss scale.
    pub(crate) loss_scale_window: u64,
    pub(crate) accumulation: usize,
    pub(crate) seed: u64,
}

impl Trainer<'_> {
    pub(crate) fn done(&self) -> bool {
        self.state.step >= self.settings.schedule.total_steps || self.stops_early()
    }

    /// Whether no better validation is waited for any more.
    pub(crate) fn stops_early(&self) -> bool {
        self.settings.early_stopping.is_some_and(|rule| rule.ends(self.state.best.as_ref()))
    }

    /// One update. The loss is the mean over all target tokens of the accumulation window.
    pub(crate) fn step(&mut self) -> Stepped {
        let start = Instant::now();
        let window = self.next_window();
        let indices = window.iter().flat_map(|(_, batch)| batch);
        let samples: Vec<&Sample> = indices.map(|&index| &self.samples[index]).collect();
        let target_tokens: usize = samples.iter().map(|sample| sample.targets()).sum();
        let tokens: u64 = samples.iter().map(|sample| sample.tokens() as u64).sum();
        let mut rows: Vec<u64> = samples.iter().map(|sample| sample.row).collect();
        // Both answers of a pair are of one row.
        rows.dedup();

        let number = self.state.step + 1;
        let learning_rate = self.learning_rate();
        let step = Step {
            objective: self.objective,
            trained: self.settings.trainable.after(self.state.step),
            checkpointing: self.settings.checkpointing,
            max_grad_norm: self.settings.max_grad_norm,
            loss_scale: self.state.loss_scale.map(|scale| scale.factor),
            number,
            learning_rate,
            groups: &self.settings.groups,
            regularizers: &self.settings.regularizers,
            seed: self.settings.seed,
        };
        let batches = self.micro_batches(window);
        let weighting = self.weighting.as_mut().map(|weighting| &mut **weighting as &mut dyn Weighting);
        let measured = awake(|| step.run_weighted(&mut self.decoder, &mut *self.optimizer, weighting, batches));
        if !measured.is_finite() {
            return self.bad_step(&measured, rows);
        }
        let Measured { loss, grad_norm, rewards, tasks, .. } = measured;
        if !self.task_names.is_empty() {
            self.task_losses = Some(self.of_tasks(number, &tasks));
        }

        let seconds = start.elapsed().as_secs_f64();
        let total_steps = self.settings.schedule.total_steps;
        let state = &mut self.state;
        state.step = number;
        state.bad_steps = 0;
        state.sampler = self.sampler.state();
        if let Some(scale) = &mut state.loss_scale {
            scale.held(self.settings.loss_scale_window);
        }
        if let Some(weighting) = &self.weighting {
            state.task_weights = weighting.state().into_iter().map(f64::to_bits).collect();
        }
        state.last_loss = loss;
        if number == 1 {
            state.first_loss = loss;
        }
        state.tokens += tokens;
        state.seconds += seconds;
        Stepped::Done(Event::Step {
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
            stage: None,
        })
    }

    /// The batches are passed over, and the number of the step is tried again with the next ones. A gradient that was too large
    /// for float16 is no bad step while the loss can be scaled less.
    fn bad_step(&mut self, measured: &Measured, rows: Vec<u64>) -> Stepped {
        let (state, limit) = (&mut self.state, self.settings.max_bad_steps);
        let (step, loss_is_finite) = (state.step + 1, measured.loss.is_finite());
        state.sampler = self.sampler.state();
        if let Some(scale) = state.loss_scale.as_mut().filter(|_| loss_is_finite)
            && scale.overflowed()
        {
            let (in_a_row, loss_scale) = (state.bad_steps, Some(f64::from(scale.factor)));
            return Stepped::Skipped(Event::StepSkipped { step, loss_is_finite, rows, in_a_row, limit, loss_scale });
        }
        state.bad_steps += 1;
        if measured.half_done {
            return Stepped::Diverged { problem: Box::new(diverged(step, 1, measured.loss, &rows)), good: state.step };
        }
        if state.bad_steps >= limit {
            // No batch has a finite loss with the weights of the last step: they are bad, and it is not the data.
            let problem = Box::new(diverged(step, state.bad_steps, measured.loss, &rows));
            return Stepped::Diverged { problem, good: state.step.saturating_sub(1) };
        }
        let in_a_row = state.bad_steps;
        Stepped::Skipped(Event::StepSkipped { step, loss_is_finite, rows, in_a_row, limit, loss_scale: None })
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
        for mut parameter in self.decoder.trained_mut(self.settings.trainable.all()) {
            let name = parameter.name.clone();
            parameter.update(0, |weights| self.optimizer.exchange(&name, weights));
        }
    }

    /// Tells the schedule the loss of a validation; true where by `value` it is the best so far and the recipe asks for that.
    pub(crate) fn validated(&mut self, value: f64, loss: f64) -> bool {
        let schedule = &self.settings.schedule;
        if let Shape::ReduceOnPlateau(rule) = &schedule.shape {
            let state = self.state.plateau.get_or_insert_with(|| PlateauState::new(schedule.learning_rate));
            rule.observe(state, loss);
        }
        let step = self.state.step;
        self.settings.early_stopping.is_some_and(|rule| rule.observe(&mut self.state.best, step, value, loss))
    }

    fn of_tasks(&self, step: u64, tasks: &[OfTask]) -> Event {
        let weights = self.weighting.as_ref().and_then(|weighting| weighting.weights());
        let score = |(index, task): (usize, &OfTask)| {
            let weight = weights.as_ref().map(|weights| weights[index]);
            TaskScore {
                name: self.task_names[index].clone(),
                loss: task.mean(),
                token_accuracy: None,
                weight,
                metric: None,
                value: None,
            }
        };
        let seen = tasks.iter().enumerate().filter(|(_, task)| task.units > 0);
        Event::Tasks { step, validation: false, tasks: seen.map(score).collect() }
    }

    /// The batches of one step: each one's task and its samples, as indices. A window ends with its epoch, even when it is
    /// shorter than the others; where tasks are weighted it has as many batches of each.
    fn next_window(&mut self) -> Vec<(usize, Vec<usize>)> {
        let mut window = Vec::new();
        if self.weighting.is_some() {
            for task in (0..self.sampler.tasks()).flat_map(|task| vec![task; self.settings.accumulation]) {
                window.push((task, self.sampler.batch_of(task)));
            }
            return window;
        }
        loop {
            window.push(self.sampler.next_batch());
            if window.len() == self.settings.accumulation || self.sampler.epoch_is_done() {
                return window;
            }
        }
    }

    fn micro_batches(&self, window: Vec<(usize, Vec<usize>)>) -> Vec<MicroBatch> {
        let all = || window.iter().flat_map(|(_, batch)| batch).copied().collect::<Vec<_>>();
        let mut answers = match self.objective.preference() {
            None => Vec::new(),
            Some(preference) => self.background.answers(preference, &self.decoder, self.samples, &all()),
        }
        .into_iter();
        let in_pairs = self.settings.regularizers.in_pairs;
        let micro_batch = |(index, (task, samples)): (usize, (usize, Vec<usize>))| {
            let batch = Batch::new(samples.iter().map(|&sample| &self.samples[sample]));
            let mut batch = if in_pairs { twice(batch) } else { batch };
            MicroBatch {
                task,
                input: input_of(&mut batch, &self.decoder),
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

fn diverged(step: u64, times: u64, loss: f64, rows: &[u64]) -> Problem {
    let rows: Vec<String> = rows.iter().map(u64::to_string).collect();
    Problem::error(
        ProblemCode::LossDiverged,
        format!("the loss or its gradient is not a finite number at step {step}, {times} times in a row"),
        format!("第 {step} 步的损失或梯度不是有限数值，连续 {times} 次"),
    )
    .found(format!("loss {loss}, data rows {}", rows.join(", ")))
    .expected("a finite number")
}
