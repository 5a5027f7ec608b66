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
        result: result(shape),
        temporary: if saved > kept { checkpoint } else { 0 },
    }
}

/// The trained weights, and what they started with.
fn result(shape: &Shape) -> u64 {
    (shape.trained.numbers() + shape.trained.start) * FLOAT + shape.trained.tensors() * HEADER
}

/// What the optimiser remembers, in two tensors for each trained one.
fn optimizer(recipe: &Recipe, shape: &Shape) -> u64 {
    optim::bytes(recipe, &shape.trained.matrices, shape.trained.vectors, shape.vocabulary)
        + 2 * shape.trained.tensors() * HEADER
}
