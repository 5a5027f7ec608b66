//! What a job will take of the machine: memory, disk and time, from the recipe, the model's shape and the data. No weight
//! is loaded.
//!
//! | file | holds |
//! |---|---|
//! | `shape.rs` | sizes and counts of a decoder and of what is trained in it |
//! | `trained.rs` | what the recipe trains, tensor by tensor |
//! | `work.rs` | the batches of the whole run, from the rows themselves |
//! | `memory.rs` | the peak, by what lies in memory then |
//! | `activations.rs` | what the forward pass keeps, op by op |
//! | `disk.rs` | checkpoints and results |
//! | `speed.rs` | time, from an earlier run or from a layer timed just now |
//! | `remedies.rs` | what to change in a recipe that does not fit |
//! | `teacher.rs` | what a teacher takes beside |
//! | `largest.rs` | which of some known models fit |

mod activations;
mod disk;
mod largest;
mod memory;
mod remedies;
mod shape;
mod speed;
mod teacher;
mod trained;
mod work;

#[cfg(test)]
mod tests;

use justtrain_model::{DecoderConfig, device, families};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{
    DevicePick, DiskEstimate, Estimate, Failure, FailureReason, MemoryEstimate, ModelFiles, PastRun, RecipeSource,
    Room, TimeEstimate, WorkEstimate,
};

use crate::EventSink;
use crate::prepare::open_reader;
use crate::recipe::Recipe;
use crate::run::no_device;
use crate::trainable;

use shape::Shape;
use teacher::Teacher;
use work::{Rows, Work};

pub use largest::largest_models;

/// Predicts what training would take, and searches for a way where it does not fit into `room`. With `past_runs` the
/// time too. A GPU's memory is not predicted: nothing is known of it, and nothing is refused for it.
pub fn estimate(
    source: &RecipeSource,
    model: &ModelFiles,
    room: Room,
    past_runs: Option<&[PastRun]>,
    events: &mut dyn EventSink,
) -> Result<Estimate, Failure> {
    let recipe =
        Recipe::parse(source).map_err(|problems| Failure { reason: FailureReason::RecipeInvalid, problems })?;
    let (mut estimates, mut room) = (Vec::new(), room);
    let stages = recipe.stages();
    let mut taken = 0;
    for (index, stage) in stages.iter().enumerate() {
        let hands_on = stages.get(index + 1).is_some_and(|next| next.recipe.keep_optimizer_state);
        let passed = Passed { taken, hands_on };
        let (estimate, left) = estimate_stage(&stage.recipe, source, model, room, past_runs, passed, events)?;
        taken = left;
        // What a stage leaves stays beside the next one's.
        room.disk_bytes = room.disk_bytes.saturating_sub(estimate.disk.result);
        estimates.push(estimate);
    }
    Ok(together(estimates))
}

/// Of stages one after the other: the largest memory, all results beside the largest checkpoints, the time of all.
fn together(stages: Vec<Estimate>) -> Estimate {
    let memory = |stage: &Estimate| stage.memory.as_ref().map_or(0, MemoryEstimate::total);
    let heaviest = stages.iter().max_by_key(|stage| memory(stage)).expect("a recipe has a stage").clone();
    let last = stages.last().expect("a recipe has a stage");
    let disk = DiskEstimate {
        checkpoints: stages.iter().map(|stage| stage.disk.checkpoints).max().unwrap_or(0),
        result: stages.iter().map(|stage| stage.disk.result).sum(),
        temporary: stages.iter().map(|stage| stage.disk.temporary).max().unwrap_or(0),
    };
    let sum = |of: fn(&WorkEstimate) -> u64| stages.iter().map(|stage| of(&stage.work)).sum();
    let work = WorkEstimate {
        steps: sum(|work| work.steps),
        tokens: sum(|work| work.tokens),
        largest_batch_tokens: heaviest.work.largest_batch_tokens,
        rows_read: sum(|work| work.rows_read),
        rows: sum(|work| work.rows),
    };
    let times: Option<Vec<TimeEstimate>> = stages.iter().map(|stage| stage.time).collect();
    let time = times.and_then(|times| {
        let seconds: f64 = times.iter().map(|time| time.seconds).sum();
        Some(TimeEstimate { seconds, tokens_per_second: work.tokens as f64 / seconds, basis: times.first()?.basis })
    });
    let Estimate { problems, remedies, .. } =
        stages.iter().find(|stage| !stage.problems.is_empty()).unwrap_or(&heaviest).clone();
    let (trainable_parameters, total_parameters) = (last.trainable_parameters, last.total_parameters);
    Estimate { disk, work, time, problems, remedies, trainable_parameters, total_parameters, ..heaviest }
}

/// What an optimiser remembers lies on the disk between two stages.
#[derive(Clone, Copy, Default)]
struct Passed {
    /// Bytes that the stage before has left.
    taken: u64,
    hands_on: bool,
}

/// Of one stage, and how many bytes it leaves to the next one's optimiser.
fn estimate_stage(
    recipe: &Recipe,
    source: &RecipeSource,
    model: &ModelFiles,
    room: Room,
    past_runs: Option<&[PastRun]>,
    passed: Passed,
    events: &mut dyn EventSink,
) -> Result<(Estimate, u64), Failure> {
    let (device, _) = device::open(recipe.device()).map_err(|problem| no_device(problem, source))?;
    let checkpoint = Checkpoint::open(&model.path).map_err(|problem| problem.because(FailureReason::ModelInvalid))?;
    let config =
        families::decoder_config(&checkpoint).map_err(|problem| problem.because(FailureReason::ModelInvalid))?;
    let (encoder, _) = open_reader(recipe, &checkpoint)?;
    trainable::weights(recipe, &config)
        .map_err(|problems| Failure { reason: FailureReason::RecipeInvalid, problems })?;
    recipe
        .layers_to_transform()
        .map_or(Ok(()), |layers| config.check_layers(layers))
        .map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    let teacher = crate::teacher::Teacher::find(recipe, model, &encoder)?
        .map(|teacher| Teacher { bytes: teacher.bytes(), config: teacher.config });
    let job = Job { rows: Rows::read(recipe, &checkpoint, &encoder, events)?, config, teacher, device, passed };
    let prediction = job.predict(recipe);
    let (problems, remedies) = remedies::judge(&job, recipe, &prediction, room);
    let Prediction { shape, work, memory, disk, handed } = prediction;
    let estimate = Estimate {
        device,
        memory,
        disk,
        work: WorkEstimate {
            steps: work.steps,
            tokens: work.tokens,
            largest_batch_tokens: work.largest.tokens as u64,
            rows_read: job.rows.read as u64,
            rows: job.rows.all as u64,
        },
        time: past_runs.and_then(|past_runs| speed::time(recipe, device, past_runs, &shape, &work, Some(&checkpoint))),
        trainable_parameters: shape.trained.numbers(),
        total_parameters: shape.parameters,
        problems,
        remedies,
    };
    Ok((estimate, handed))
}

/// A model's shape and rows to train it on; the recipe may vary.
struct Job {
    config: DecoderConfig,
    teacher: Option<Teacher>,
    rows: Rows,
    device: DevicePick,
    passed: Passed,
}

struct Prediction {
    shape: Shape,
    work: Work,
    /// Only the processor's.
    memory: Option<MemoryEstimate>,
    disk: DiskEstimate,
    /// Bytes that are left to the next stage's optimiser.
    handed: u64,
}

impl Prediction {
    /// The peak; 0 where it is not known.
    fn memory_bytes(&self) -> u64 {
        self.memory.map_or(0, |memory| memory.total())
    }
}

impl Job {
    fn predict(&self, recipe: &Recipe) -> Prediction {
        let shape = Shape::new(&self.config, recipe);
        let work = Work::plan(recipe, &self.rows);
        let memory = || {
            let peak = memory::peak(recipe, &shape, &work, &self.rows);
            let peak = self.teacher.as_ref().map_or(peak, |teacher| teacher.beside(peak, recipe, &shape, &work));
            recipe.lwf().map_or(peak, |_| teacher::before(peak, &shape, &work))
        };
        let mut disk = disk::needed(recipe, &shape, work.steps);
        let handed = if self.passed.hands_on { disk::optimizer(recipe, &shape) } else { 0 };
        disk.temporary += self.passed.taken + handed;
        Prediction { memory: (self.device == DevicePick::Cpu).then(memory), disk, handed, shape, work }
    }
}
