//! What a job leaves on the disk, and what it needs there for a while.

use justtrain_worker_api::DiskEstimate;

use super::shape::Shape;
use crate::optim;
use crate::recipe::Recipe;

const FLOAT: u64 = 4;
/// Name, type, shape and place of a tensor in a safetensors header.
const HEADER: u64 = 140;

pub(super) fn needed(recipe: &Recipe, shape: &Shape, steps: u64) -> DiskEstimate {
    let checkpoint = result(shape) + optimizer(recipe, shape);
    let saved = steps.div_ceil(recipe.save_steps);
    let kept = saved.min(recipe.save_total_limit as u64);
    DiskEstimate {
        checkpoints: kept * checkpoint,
        // Beside it the weights of the best validation.
        result: result(shape) * (1 + u64::from(recipe.load_best_model_at_end)),
        temporary: if saved > kept { checkpoint } else { 0 },
    }
}

/// The trained weights, and what they started with; with the model's own, those that are frozen as well.
fn result(shape: &Shape) -> u64 {
    let trained = &shape.trained;
    let (numbers, tensors) = match shape.full {
        true => (shape.parameters, shape.tensors),
        false => (trained.numbers() + trained.start + trained.earlier, trained.tensors()),
    };
    numbers * FLOAT + tensors * HEADER
}

/// What the optimiser remembers, in two tensors for each trained one.
pub(super) fn optimizer(recipe: &Recipe, shape: &Shape) -> u64 {
    let trained = &shape.trained;
    optim::bytes(recipe, &trained.changed.matrices, trained.changed.vectors, shape.vocabulary)
        + 2 * trained.tensors() * HEADER
}
