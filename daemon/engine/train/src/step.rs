//! One update of the trained parameters from the batches of an accumulation window.

use std::sync::Arc;

use justtrain_kernels::Targets;
use justtrain_model::parameters::{Parameter, Parameters, Trained};
use justtrain_model::{Decoder, Input, Mode};

use crate::backward::Backward;
use crate::gradients::{GradientSums, multiply, square_sum};
use crate::objectives::{Answer, Objective, RewardSums};
use crate::optim::{Groups, Optimizer, Update};
use crate::regularizers::Regularizers;
use crate::tasks::{TaskGradients, Weighting};

/// What an update depends on besides weights and data.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    pub objective: &'a dyn Objective,
    pub trained: Trained<'a>,
    pub checkpointing: bool,
    /// The global norm that gradients are scaled down to; 0: no limit.
    pub max_grad_norm: f64,
    /// Where products are in float16. A gradient that overflows is then no rarity, and must leave everything as it was.
    pub loss_scale: Option<f32>,
    /// From 1.
    pub number: u64,
    pub learning_rate: f64,
    /// Parameters that learn at a rate of their own, or from a later step on.
    pub groups: &'a Groups,
    pub regularizers: &'a Regularizers,
    /// Decides how weights in 16 bits are rounded.
    pub seed: u64,
}

/// A batch, and the seed of its dropout masks.
#[derive(Debug)]
pub struct MicroBatch {
    /// By its place in the recipe; 0 where there is one only.
    pub task: usize,
    pub input: Input,
    pub targets: Arc<Targets>,
    /// Where whole answers are judged: those of the sequences, in their order.
    pub answers: Vec<Answer>,
    pub dropout_seed: Option<u64>,
}

/// The sum of a task's losses, and over how many targets.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OfTask {
    pub loss: f64,
    pub units: usize,
}

impl OfTask {
    pub(crate) fn mean(self) -> f64 {
        self.loss / self.units.max(1) as f64
    }
}

/// What a step saw before it changed anything.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Mean over all target tokens, or over all pairs or answers that are judged.
    pub loss: f64,
    /// Of all gradients together, before clipping.
    pub grad_norm: f64,
    pub rewards: RewardSums,
    pub tasks: Vec<OfTask>,
    /// Some parameters are updated already, though a later gradient was no finite number.
    pub half_done: bool,
}

impl Measured {
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

impl Step<'_> {
    /// Updates the decoder, unless loss or norm is no finite number. A single batch without clipping updates each
    /// parameter as soon as its gradient is there, and keeps none, up to the first that is not finite; else the sums are
    /// kept in `f32`.
    pub fn run(&self, decoder: &mut Decoder, optimizer: &mut dyn Optimizer, batches: Vec<MicroBatch>) -> Measured {
        self.run_weighted(decoder, optimizer, None, batches)
    }

    /// The same, with a weighting that makes one gradient of the tasks'.
    pub(crate) fn run_weighted(
        &self,
        decoder: &mut Decoder,
        optimizer: &mut dyn Optimizer,
        weighting: Option<&mut dyn Weighting>,
        batches: Vec<MicroBatch>,
    ) -> Measured {
        let mut tasks = vec![OfTask::default(); batches.iter().map(|batch| batch.task + 1).max().unwrap_or(0)];
        batches.iter().for_each(|batch| tasks[batch.task].units += self.objective.units(batch));
        let units: usize = tasks.iter().map(|task| task.units).sum();
        let Regularizers { mixout, .. } = self.regularizers;
        let at_once = batches.len() == 1
            && self.max_grad_norm == 0.0
            && mixout.is_none()
            && weighting.is_none()
            && self.loss_scale.is_none();
        let (mut loss, mut rewards) = (0.0, RewardSums::default());
        let (mut square, mut updated, mut sums) = (0.0f64, false, GradientSums::default());
        // One for each task, of the mean over its own targets.
        let mut of_tasks = vec![GradientSums::default(); if weighting.is_some() { tasks.len() } else { 0 }];
        for batch in batches {
            let backward = Backward {
                objective: self.objective,
                trained: self.trained,
                checkpointing: self.checkpointing,
                mode: Mode { adapter: true, dropout_seed: batch.dropout_seed },
                divisor: if weighting.is_some() { tasks[batch.task].units as f32 } else { units as f32 },
                regularizers: self.regularizers,
                loss_scale: self.loss_scale.unwrap_or(1.0),
            };
            let mixing = mixout.as_ref().zip(batch.dropout_seed);
            let mut mixed = mixing.map(|(mixout, seed)| mixout.mixed(decoder, self.trained, seed));
            let decoder = mixed.as_mut().unwrap_or(&mut *decoder);
            let of_batch = backward.run(decoder, &batch, &mut |parameter, mut gradient| {
                if let Some((mixout, seed)) = mixing {
                    mixout.mask(&parameter, seed, &mut gradient);
                }
                if at_once {
                    self.regularizers.pull(&parameter, &mut gradient);
                    square += square_sum(&gradient);
                    if square.is_finite() {
                        self.update(parameter, &gradient, optimizer);
                        updated = true;
                    }
                } else {
                    of_tasks.get_mut(batch.task).unwrap_or(&mut sums).add(&parameter.name, gradient);
                }
            });
            loss += of_batch.0;
            tasks[batch.task].loss += of_batch.0;
            rewards.add(of_batch.1);
        }
        if let Some(weighting) = weighting
            && loss.is_finite()
        {
            // What a weighting has learnt must not be lost to a gradient that is no number.
            match of_tasks.iter().position(|sums| !sums.norm().is_finite()) {
                Some(bad) => sums = of_tasks.swap_remove(bad),
                None => {
                    let losses = tasks.iter().map(|task| task.mean()).collect();
                    sums = weighting.combine(self.number, TaskGradients { losses, gradients: of_tasks });
                }
            }
        }
        if !at_once && self.regularizers.pulls() {
            for parameter in decoder.trained_mut(self.trained) {
                sums.change(&parameter.name, |gradient| self.regularizers.pull(&parameter, gradient));
            }
        }
        let grad_norm = if at_once { square.sqrt() } else { sums.norm() };
        let half_done = updated && !grad_norm.is_finite();
        let measured = Measured { loss: loss / units as f64, grad_norm, rewards, tasks, half_done };
        if !at_once && measured.is_finite() {
            self.update_from(sums, grad_norm, decoder, optimizer);
        }
        measured
    }

    /// As `torch.nn.utils.clip_grad_norm_`, then the update.
    fn update_from(&self, mut sums: GradientSums, norm: f64, decoder: &mut Decoder, optimizer: &mut dyn Optimizer) {
        let factor = self.max_grad_norm / (norm + 1e-6);
        let clip = self.max_grad_norm > 0.0 && factor < 1.0;
        for parameter in decoder.trained_mut(self.trained) {
            let Some(mut gradient) = sums.take(&parameter.name) else { continue };
            if clip {
                multiply(&mut gradient, factor as f32);
            }
            self.update(parameter, &gradient, optimizer);
        }
    }

    /// Another one for each step and each parameter. FNV-1a (Fowler, Noll, Vo) of the name: no hash that a new compiler
    /// may change, as a resumed run must round as an uninterrupted one does.
    fn rounding_seed(&self, name: &str) -> u64 {
        let of_step = self.seed ^ self.number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        name.bytes()
            .fold(of_step ^ 0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
    }

    fn update(&self, mut parameter: Parameter<'_>, gradient: &[f32], optimizer: &mut dyn Optimizer) {
        let (name, shape, decays) = (parameter.name.clone(), parameter.shape(), parameter.decays());
        let learning_rate = self.learning_rate * self.groups.share(&name);
        let step = self.groups.own_steps(&name, self.number);
        let update = Update { name: &name, shape: &shape, decays, step, learning_rate };
        parameter.update(self.rounding_seed(&name), |weights| optimizer.update(&update, weights, gradient));
    }
}
