//! The largest resident size of the training process: the largest of its moments.

use justtrain_model::{WeightFormat, WeightFormats};
use justtrain_worker_api::{MemoryEstimate, Moment};

use super::activations::{at_work_in_backward, at_work_in_forward, kept, output_layer, with_gaps};
use super::shape::{Linear, Shape};
use super::work::{Rows, Work};
use crate::optim;
use crate::recipe::{Recipe, TaskWeighting};

pub(super) const FLOAT: u64 = 4;
/// Code, threads and what the allocator keeps aside; measured (`scripts/estimate-check`).
const PROGRAM: u64 = 64 << 20;
/// The tokenizer's tables, for each token of the vocabulary; measured.
const TOKENIZER: u64 = 512;
/// Parsed JSON takes about this many times the file's bytes, its text included.
const PARSED_JSON: u64 = 4;

pub(super) fn peak(recipe: &Recipe, shape: &Shape, work: &Work, rows: &Rows) -> MemoryEstimate {
    let moments = [
        starting(recipe, shape, rows),
        reading_data(recipe, shape, rows),
        forward_is_done(recipe, shape, work, rows),
        backward_is_done(recipe, shape, work, rows),
        evaluating(recipe, shape, work, rows),
        saving(recipe, shape, rows),
    ];
    moments.into_iter().max_by_key(MemoryEstimate::total).unwrap_or_default()
}

/// What is there from the first step to the last.
fn throughout(recipe: &Recipe, shape: &Shape, rows: &Rows) -> MemoryEstimate {
    MemoryEstimate {
        weights: frozen_weights(recipe, shape, rows.model_bytes) + (shape.trained.start + earlier(shape)) * FLOAT,
        trained_weights: trained_weights(recipe, shape) + weights_beside(recipe, shape),
        optimizer: optim::bytes(
            recipe,
            &shape.trained.changed.matrices,
            shape.trained.changed.vectors,
            shape.vocabulary,
        ),
        data: rows.sample_bytes(),
        program: PROGRAM + shape.vocabulary as u64 * TOKENIZER,
        ..MemoryEstimate::default()
    }
}

/// Numbers of earlier stages' pairs, and of all pairs joined, which a pass keeps.
fn earlier(shape: &Shape) -> u64 {
    let earlier = shape.trained.earlier;
    if earlier > 0 { 2 * earlier + shape.trained.numbers() } else { 0 }
}

/// The weights that the run began with, and those that mixout makes for a batch; what EWC and LwF hold on to.
fn weights_beside(recipe: &Recipe, shape: &Shape) -> u64 {
    let copies = u64::from(recipe.remembers_start()) + u64::from(recipe.mixout_p.is_some());
    let anchors = if recipe.ewc_lambda.is_some() { 2 } else { 0 };
    let before = recipe.lwf().map_or(0, |_| trained_weights(recipe, shape));
    (copies + anchors) * shape.trained.numbers() * FLOAT + before
}

/// Norms are always in `f32`, and adapters. Of magnitudes two more numbers each are kept: what rows of the frozen weight
/// and of the changed one sum up to.
fn trained_weights(recipe: &Recipe, shape: &Shape) -> u64 {
    let matrices = shape.trained.numbers() - shape.trained.changed.vectors;
    let saved = if in_16_bits(recipe, shape) { matrices * (FLOAT - 2) } else { 0 };
    (shape.trained.numbers() + 2 * shape.trained.magnitudes) * FLOAT - saved
}

/// Whether the weights that are trained are widened block by block.
fn in_16_bits(recipe: &Recipe, shape: &Shape) -> bool {
    shape.full && recipe.weight_formats().linear != WeightFormat::F32
}

/// In the forms in which the recipe has them held. Weights and tables that are trained are counted as such.
pub(super) fn frozen_weights(recipe: &Recipe, shape: &Shape, file_bytes: u64) -> u64 {
    let WeightFormats { linear, tables, .. } = recipe.weight_formats();
    // On average; of a model that is not read, at most.
    let stored = match file_bytes {
        0 => FLOAT as f64,
        bytes => (bytes as f64 / shape.parameters as f64).min(FLOAT as f64),
    };
    let bytes = |&(dims, count): &([usize; 2], u64)| {
        let format = if dims[0] == shape.vocabulary { tables } else { linear };
        let bytes = match format {
            // Learned positions and routers are always in `f32`.
            _ if shape.positions == Some(dims) || shape.is_router(dims) => (dims[0] * dims[1]) as u64 * FLOAT,
            WeightFormat::F32 => (dims[0] * dims[1]) as u64 * FLOAT,
            WeightFormat::Packed(format) => format.bytes(dims) as u64,
            WeightFormat::AsStored => ((dims[0] * dims[1]) as f64 * stored) as u64,
            WeightFormat::Gguf => return None,
        };
        Some(count * bytes)
    };
    match shape.trained.frozen.matrices.iter().map(bytes).sum::<Option<u64>>() {
        Some(matrices) => matrices + shape.trained.frozen.vectors * FLOAT,
        // What is kept as it is takes in memory what it takes in the file.
        None => file_bytes,
    }
}

/// Whether a step keeps the gradients of all parameters: until their norm is known, or the window's last batch is done.
fn keeps_gradients(recipe: &Recipe) -> bool {
    recipe.batches_per_step() > 1 || recipe.max_grad_norm > 0.0 || recipe.mixout_p.is_some() || recipe.has_loss_scale()
}

/// Of gradients while a step makes them: one for each task where they are weighted.
fn gradients(recipe: &Recipe, shape: &Shape) -> u64 {
    let each = shape.trained.numbers() * FLOAT;
    each * if recipe.task_weighting == TaskWeighting::None { 1 } else { recipe.tasks.len() as u64 }
}

/// What is left between gradients and the weights of which each is widened while it is changed, where these are in 16 bits;
/// measured (`scripts/estimate-check`).
fn gaps_between(recipe: &Recipe, shape: &Shape) -> u64 {
    if in_16_bits(recipe, shape) { trained_weights(recipe, shape) } else { 0 }
}

/// The pairs start as part of a layer: the layer as it was, in `f32`, what is taken out of it, what is left, and that once more
/// while it is rounded.
fn starting(recipe: &Recipe, shape: &Shape, rows: &Rows) -> MemoryEstimate {
    let largest = shape.linears().map(Linear::weights).max().unwrap_or(0);
    MemoryEstimate {
        moment: Moment::Loading,
        optimizer: 0,
        data: 0,
        activations: if shape.trained.start > 0 { 4 * largest * FLOAT } else { 0 },
        ..throughout(recipe, shape, rows)
    }
}

/// The model is loaded; the rows are parsed and not yet tokenised.
fn reading_data(recipe: &Recipe, shape: &Shape, rows: &Rows) -> MemoryEstimate {
    MemoryEstimate {
        moment: Moment::Loading,
        optimizer: 0,
        data: rows.file_bytes * PARSED_JSON,
        ..throughout(recipe, shape, rows)
    }
}

/// Every block has kept its activations; the backward of the last block begins.
fn forward_is_done(recipe: &Recipe, shape: &Shape, work: &Work, rows: &Rows) -> MemoryEstimate {
    let products = recipe.weight_formats().products;
    let kept = kept(shape, work.largest, recipe.gradient_checkpointing, products);
    MemoryEstimate {
        // Those of earlier batches of the same step.
        gradients: if recipe.batches_per_step() > 1 { gradients(recipe, shape) } else { 0 },
        activations: with_gaps(kept + at_work_in_backward(shape, work.largest, products)),
        output_layer: output_layer(shape, work.largest, recipe.weight_formats().products)
            + if in_16_bits(recipe, shape) { shape.table_bytes() } else { 0 },
        ..throughout(recipe, shape, rows)
    }
}

/// Every gradient is there; the activations have gone block by block.
fn backward_is_done(recipe: &Recipe, shape: &Shape, work: &Work, rows: &Rows) -> MemoryEstimate {
    MemoryEstimate {
        gradients: if keeps_gradients(recipe) { gradients(recipe, shape) + gaps_between(recipe, shape) } else { 0 },
        activations: with_gaps(at_work_in_backward(shape, work.largest, recipe.weight_formats().products)),
        // The table's gradient; and the table in `f32` while it is changed, where it is not so already.
        output_layer: match (shape.trained.table, in_16_bits(recipe, shape)) {
            (false, _) => 0,
            (true, false) => shape.table_bytes(),
            (true, true) => 2 * shape.table_bytes(),
        },
        ..throughout(recipe, shape, rows)
    }
}

fn evaluating(recipe: &Recipe, shape: &Shape, work: &Work, rows: &Rows) -> MemoryEstimate {
    MemoryEstimate {
        moment: Moment::Evaluating,
        activations: with_gaps(at_work_in_forward(shape, work.validation.tokens)),
        output_layer: output_layer(shape, work.validation, recipe.weight_formats().products),
        ..throughout(recipe, shape, rows)
    }
}

/// A checkpoint is written one tensor at a time.
fn saving(recipe: &Recipe, shape: &Shape, rows: &Rows) -> MemoryEstimate {
    let before = throughout(recipe, shape, rows);
    let largest = shape.trained.changed.matrices.iter().map(|([rows, cols], _)| (rows * cols) as u64 * FLOAT).max();
    MemoryEstimate { moment: Moment::Saving, optimizer: before.optimizer + largest.unwrap_or(0), ..before }
}
