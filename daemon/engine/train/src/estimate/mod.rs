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
//! | `largest.rs` | which of some known models fit |

mod activations;
mod disk;
mod largest;
mod memory;
mod remedies;
mod shape;
mod speed;
mod trained;
mod work;

#[cfg(test)]
mod tests;

use justtrain_model::{DecoderConfig, device, families};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{
    DevicePick, DiskEstimate, Estimate, Failure, FailureReason, MemoryEstimate, ModelFiles, PastRun, RecipeSource,
    Room, WorkEstimate,
};

use crate::EventSink;
use crate::prepare::open_encoder;
use crate::recipe::Recipe;
use crate::run::no_device;
use crate::trainable;

use shape::Shape;
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
    let (device, _) = device::open(recipe.device()).map_err(|problem| no_device(problem, source))?;
    let checkpoint = Checkpoint::open(&model.path).map_err(|problem| problem.because(FailureReason::ModelInvalid))?;
    let config =
        families::decoder_config(&checkpoint).map_err(|problem| problem.because(FailureReason::ModelInvalid))?;
    let template = recipe.chat_template().map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    let (encoder, _) =
        open_encoder(&checkpoint, template).map_err(|problem| problem.because(FailureReason::ModelInvalid))?;
    trainable::weights(&recipe, &config)
        .map_err(|problems| Failure { reason: FailureReason::RecipeInvalid, problems })?;
    recipe
        .layers_to_transform()
        .map_or(Ok(()), |layers| config.check_layers(layers))
        .map_err(|problem| problem.because(FailureReason::RecipeInvalid))?;
    let job = Job { rows: Rows::read(&recipe, &model.path, &encoder, events)?, config, device };
    let prediction = job.predict(&recipe);
    let (problems, remedies) = remedies::judge(&job, &recipe, &prediction, room);
    let Prediction { shape, work, memory, disk } = prediction;
    Ok(Estimate {
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
        time: past_runs.and_then(|past_runs| speed::time(&recipe, device, past_runs, &shape, &work)),
        trainable_parameters: shape.trained.numbers(),
        total_parameters: shape.parameters,
        problems,
        remedies,
    })
}

/// A model's shape and rows to train it on; the recipe may vary.
struct Job {
    config: DecoderConfig,
    rows: Rows,
    device: DevicePick,
}

struct Prediction {
    shape: Shape,
    work: Work,
    /// Only the processor's.
    memory: Option<MemoryEstimate>,
    disk: DiskEstimate,
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
        Prediction {
            memory: (self.device == DevicePick::Cpu).then(|| memory::peak(recipe, &shape, &work, &self.rows)),
            disk: disk::needed(recipe, &shape, work.steps),
            shape,
            work,
        }
    }
}
