//! One optimiser step after the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use justtrain_data::{Batch, Sample, Sampler};
use justtrain_kernels::{Targets, linear_cross_entropy};
use justtrain_model::{Decoder, Input, Mode};
use justtrain_worker_api::{Event, Failure, FailureReason, Problem, ProblemCode};

use crate::checkpoint::RunState;
use crate::memory;
use crate::optim::{AdamW, Moments, Schedule, clip_global_norm};

/// A run under way: the trained decoder, the optimiser's memory, the place in the data.
pub(crate) struct Trainer<'a> {
    pub(crate) decoder: Decoder,
    /// Of A and B of every adapted layer, in the order of the network, by PEFT's names.
    pub(crate) moments: Vec<(String, Moments)>,
    pub(crate) state: RunState,
    pub(crate) samples: &'a [Sample],
    pub(crate) sampler: Sampler,
    pub(crate) settings: Settings,
}

pub(crate) struct Settings {
    pub(crate) optimizer: AdamW,
    pub(crate) schedule: Schedule,
    pub(crate) max_grad_norm: f64,
    pub(crate) accumulation: usize,
    pub(crate) seed: u64,
}

impl Trainer<'_> {
    /// Makes A and B leaves of the gradient graph and puts the moments in their order; a new run's are zero.
    pub(crate) fn track_parameters(&mut self) {
        let names_and_sizes = self.for_each_parameter(|_, tensor| tensor.clone().require_grad());
        let mut restored: HashMap<String, Moments> = self.moments.drain(..).collect();
        let moments = names_and_sizes.into_iter().map(|(name, len)| {
            let moments = restored.remove(&name).unwrap_or_else(|| Moments::zeros(len));
            (name, moments)
        });
        self.moments = moments.collect();
    }

    /// Replaces each trained tensor by what `change` makes of it; returns names and sizes in order.
    fn for_each_parameter(&mut self, mut change: impl FnMut(usize, &Tensor<2>) -> Tensor<2>) -> Vec<(String, usize)> {
        let mut seen = Vec::new();
        for projection in self.decoder.projections_mut() {
            let name = projection.name.clone();
            let Some(lora) = &mut projection.lora else { continue };
            for (factor, tensor) in [("lora_A", &mut lora.a), ("lora_B", &mut lora.b)] {
                *tensor = change(seen.len(), tensor);
                seen.push((format!("{name}.{factor}"), tensor.dims().iter().product()));
            }
        }
        seen
    }

    pub(crate) fn done(&self) -> bool {
        self.state.step >= self.settings.schedule.total_steps
    }

    /// One update. The loss is the mean over all target tokens of the accumulation window.
    pub(crate) fn step(&mut self) -> Result<Event, Failure> {
        let start = Instant::now();
        let window = self.next_window();
        let target_tokens: usize = window.iter().map(|batch| batch.target_ids.len()).sum();
        let tokens: u64 = window.iter().map(|batch| batch.ids.len() as u64).sum();
        let rows: Vec<u64> = window.iter().flat_map(|batch| batch.rows.clone()).collect();

        let (loss, mut gradients) = self.accumulate(window, target_tokens);
        let grad_norm = clip_global_norm(&mut gradients, self.settings.max_grad_norm);
        let step = self.state.step + 1;
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(diverged(step, loss, &rows));
        }
        let learning_rate = self.settings.schedule.learning_rate(self.state.step);
        self.update(step, learning_rate, &gradients);

        let seconds = start.elapsed().as_secs_f64();
        let total_steps = self.settings.schedule.total_steps;
        let state = &mut self.state;
        state.step = step;
        state.sampler = self.sampler.state();
        state.last_loss = loss;
        if step == 1 {
            state.first_loss = loss;
        }
        state.tokens += tokens;
        state.seconds += seconds;
        Ok(Event::Step {
            step,
            total_steps,
            epoch: self.sampler.progress(),
            loss,
            learning_rate,
            grad_norm,
            tokens,
            target_tokens: target_tokens as u64,
            tokens_per_second: tokens as f64 / seconds,
            seconds_left: state.seconds / step as f64 * (total_steps - step) as f64,
            peak_memory_bytes: memory::peak_bytes(),
        })
    }

    /// The batches of one step. A window ends with its epoch, even when it is shorter than the others.
    fn next_window(&mut self) -> Vec<Batch> {
        let mut window = Vec::new();
        loop {
            let indices = self.sampler.next_batch();
            window.push(Batch::new(indices.into_iter().map(|index| &self.samples[index])));
            if window.len() == self.settings.accumulation || self.sampler.epoch_is_done() {
                return window;
            }
        }
    }

    /// Loss and gradients of the window, each batch's sum over the targets of all.
    fn accumulate(&self, window: Vec<Batch>, target_tokens: usize) -> (f64, Vec<Vec<f32>>) {
        let mut loss_sum = 0.0;
        let mut gradients: Vec<Vec<f32>> = Vec::new();
        for (index, batch) in window.into_iter().enumerate() {
            let input = Input::packed(batch.ids, &batch.starts);
            let targets = Arc::new(Targets { rows: batch.target_rows, tokens: batch.target_ids });
            let mode = Mode { adapter: true, dropout_seed: Some(self.dropout_seed(index)) };
            let hidden = self.decoder.hidden_states(&input, None, mode);
            let loss = linear_cross_entropy(hidden, self.decoder.output_weight(), targets);
            loss_sum += f64::from(loss.clone().inner().into_scalar::<f32>());
            let mut grads = (loss / target_tokens as f32).backward();
            let parameters = self.decoder.projections().filter_map(|p| p.lora.as_ref()).flat_map(|l| [&l.a, &l.b]);
            let batch_gradients = parameters.map(|tensor| {
                let gradient = tensor.grad_remove(&mut grads).expect("every trained tensor has a gradient");
                gradient.into_data().try_into_vec::<f32>().expect("gradients are f32")
            });
            if gradients.is_empty() {
                gradients = batch_gradients.collect();
            } else {
                for (sum, gradient) in gradients.iter_mut().zip(batch_gradients) {
                    sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
                }
            }
        }
        (loss_sum / target_tokens as f64, gradients)
    }

    /// A function of seed, step and place in the window: a resumed run drops what an uninterrupted one would.
    fn dropout_seed(&self, index: usize) -> u64 {
        let place = self.state.step.wrapping_mul(self.settings.accumulation as u64).wrapping_add(index as u64);
        self.settings.seed ^ place.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    fn update(&mut self, step: u64, learning_rate: f64, gradients: &[Vec<f32>]) {
        let optimizer = self.settings.optimizer;
        let mut moments = std::mem::take(&mut self.moments);
        self.for_each_parameter(|index, tensor| {
            let (shape, device) = (tensor.dims(), tensor.device());
            let data = tensor.clone().inner().into_data();
            let mut weights: Vec<f32> = data.try_into_vec().expect("adapters are f32");
            optimizer.update(step, learning_rate, &mut weights, &gradients[index], &mut moments[index].1);
            Tensor::from_data(TensorData::new(weights, shape), &device).require_grad()
        });
        self.moments = moments;
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
