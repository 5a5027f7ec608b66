//! How long a run takes: as fast as an earlier run of the same work, else as a layer of the model's shape timed just now.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};
use justtrain_model::kernels::{Factors, Packed, Weight, awake, linear};
use justtrain_model::{Stack as Kind, WeightFormat, some_matrix};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::{DevicePick, PastRun, SpeedBasis, TimeEstimate};
use rayon::prelude::*;

use super::shape::{Linear, Shape, Stack};
use super::work::Work;
use crate::recipe::Recipe;

/// How long a layer is timed.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most tokens of the timed batch.
const TIMED_TOKENS: u64 = 1024;
/// How often what goes into a product and what comes out of it passes through memory in a forward or a backward, beside
/// the product itself: norms, activation functions, residuals, roundings. Measured (`scripts/estimate-check`).
const PASSES_OF_ACTIVATIONS: f64 = 6.0;
/// The same where weights are trained: both sides of a weight's gradient are turned for its product.
const PASSES_OF_FULL: f64 = 11.0;

/// What a forward pass takes of a step: one of three products.
const SHARE_OF_FORWARD: f64 = 1.0 / 3.0;

/// None for a GPU that has not done such work: a timing of the processor says nothing about it.
pub(super) fn time(
    recipe: &Recipe,
    device: DevicePick,
    past_runs: &[PastRun],
    shape: &Shape,
    work: &Work,
    model: Option<&Checkpoint>,
) -> Option<TimeEstimate> {
    let same = past_runs.iter().find(|run| Recipe::parse(&run.recipe).is_ok_and(|past| recipe.same_speed(&past)));
    let (tokens_per_second, basis) = match same {
        Some(run) => (run.tokens_per_second, SpeedBasis::PastRun),
        None if device != DevicePick::Cpu => return None,
        None => {
            let products = flops(recipe, shape, work) / flops_per_second(recipe, shape, work, model);
            let bytes = activation_bytes(recipe, shape, work) + work.steps as f64 * update_bytes(recipe, shape);
            (work.tokens as f64 / (products + bytes / bytes_per_second()), SpeedBasis::Measured)
        }
    };
    let tokens = work.tokens as f64 + work.reference_tokens as f64 * SHARE_OF_FORWARD;
    Some(TimeEstimate { tokens_per_second, seconds: tokens / tokens_per_second, basis })
}

/// Floating-point operations of the whole run, two for each multiply-add.
pub(super) fn flops(recipe: &Recipe, shape: &Shape, work: &Work) -> f64 {
    let (layers, graph_layers) = (shape.layers as f64, shape.trained.graph_layers as f64);
    let again = passes_again(recipe);
    let adapted = shape.trained.adapted_layers as f64 / layers;
    let of_stack = |stack: &Stack| {
        let sum = |count: fn(Linear) -> u64| sum_over_tokens(stack, work, count);
        let (weights, adapters) = (sum(Linear::weights), sum(Linear::adapter));
        // Outputs of all, and gradients of what goes into those that the backward goes through.
        stack.layers as f64 * (weights + adapted * (3.0 + again) * adapters)
            + stack.graph_layers as f64 * (weights + again * weights)
    };
    // Gradients of the trained themselves.
    let own =
        shape.trained.block_weights as f64 * (work.tokens as f64 + baseline_tokens(work)) / shape.stacks.len() as f64;
    let linears = 2.0 * (shape.stacks.iter().map(of_stack).sum::<f64>() + own);
    // Scores and their product with the values: two products forward and five backward, over half of each square.
    let attention = (2.0 * layers + (5.0 + 2.0 * again) * graph_layers) * work.token_pairs * shape.query as f64;
    // Logits, the gradient of the hidden states, and that of a trained table.
    let products = if shape.trained.output { 3.0 } else { 2.0 };
    let head = 2.0 * products * work.targets as f64 * (shape.vocabulary * shape.hidden) as f64;
    linears + attention + head
}

/// Gradient checkpointing makes every block's forward a second time.
fn passes_again(recipe: &Recipe) -> f64 {
    f64::from(u8::from(recipe.gradient_checkpointing))
}

/// A baseline's pass over the training's rows, counted as tokens of a whole step.
fn baseline_tokens(work: &Work) -> f64 {
    work.baseline_tokens as f64 * SHARE_OF_FORWARD
}

/// What each matrix of a block counts, for each of the tokens that are multiplied by it.
fn sum_over_tokens(stack: &Stack, work: &Work, count: fn(Linear) -> u64) -> f64 {
    let sources = work.sources as f64;
    let own = baseline_tokens(work)
        + match stack.kind {
            Kind::Only => work.tokens as f64,
            Kind::Encoder => sources,
            Kind::Decoder => work.tokens as f64 - sources,
        };
    stack.linears.iter().map(|&layer| count(layer) as f64 * if layer.of_sources { sources } else { own }).sum()
}

/// Bytes that the whole run reads and writes between its products. Small models spend a larger part of their time on them:
/// products grow with the square of the width.
fn activation_bytes(recipe: &Recipe, shape: &Shape, work: &Work) -> f64 {
    let of_stack = |stack: &Stack| {
        let numbers = sum_over_tokens(stack, work, |layer| (layer.inputs + layer.outputs) as u64);
        numbers * (stack.layers as f64 * (1.0 + passes_again(recipe)) + stack.graph_layers as f64)
    };
    let passes = if shape.full { PASSES_OF_FULL } else { PASSES_OF_ACTIVATIONS };
    passes * 4.0 * shape.stacks.iter().map(of_stack).sum::<f64>()
}

/// Bytes that a step's update reads and writes: the gradients of a window's batches are added up and their norm is taken;
/// then weight, gradient and two moments are read, and all but the gradient written.
fn update_bytes(recipe: &Recipe, shape: &Shape) -> f64 {
    const UPDATE: f64 = 7.0 * 4.0;
    const NORM: f64 = 4.0;
    const SUM: f64 = 3.0 * 4.0;
    let sums = SUM * recipe.gradient_accumulation_steps as f64;
    shape.trained.numbers() as f64 * (UPDATE + NORM + sums)
}

/// What memory that no cache holds gives this process just now.
fn bytes_per_second() -> f64 {
    const NUMBERS: usize = 16 << 20;
    const CHUNK: usize = 1 << 16;
    let (source, mut target) = (vec![1.0f32; NUMBERS], vec![0.0f32; NUMBERS]);
    let mut copy = || {
        let start = Instant::now();
        let chunks = target.par_chunks_mut(CHUNK).zip(source.par_chunks(CHUNK));
        chunks.for_each(|(target, source)| target.copy_from_slice(source));
        2.0 * size_of_val(source.as_slice()) as f64 / start.elapsed().as_secs_f64()
    };
    // The first touches the target's memory for the first time.
    (0..4).map(|_| copy()).fold(0.0, f64::max)
}

/// Of a layer a token: its output, its input's gradient, and its own where it is trained; of its adapter both factors'
/// gradients as well.
fn linear_flops(layer: Linear, trained: bool) -> f64 {
    let products = if trained { 3.0 } else { 2.0 };
    2.0 * (products * layer.weights() as f64 + 3.0 * layer.adapter() as f64)
}

/// What this machine does just now on the widest layer of a block, forward and backward.
fn flops_per_second(recipe: &Recipe, shape: &Shape, work: &Work, model: Option<&Checkpoint>) -> f64 {
    let widest = shape.linears().max_by_key(|layer| (layer.weights(), layer.outputs));
    let layer = widest.expect("a block has linear layers");
    let tokens = (work.tokens / work.batches.max(1)).clamp(1, TIMED_TOKENS) as usize;
    let device = Device::flex().autodiff();
    let random = |rows, cols| Tensor::<2>::random([rows, cols], Distribution::Uniform(-0.1, 0.1), &device);
    // How long a product takes depends on the numbers, too.
    let (dims, formats) = ([layer.outputs, layer.inputs], recipe.weight_formats());
    let dense = || random(layer.outputs, layer.inputs);
    let stored = model.filter(|_| !shape.full).and_then(|model| some_matrix(model, dims, formats.linear));
    let weight: Weight = match (stored, formats.linear) {
        (Some(weight), _) => weight,
        (None, WeightFormat::Packed(format)) => {
            let numbers = dense().into_data().try_into_vec::<f32>();
            Packed::from_f32(format, &numbers.expect("random numbers are f32"), dims).into()
        }
        _ if shape.full => dense().require_grad().into(),
        _ => dense().into(),
    };
    let weight = weight.with_products(formats.products);
    let x = random(tokens, layer.inputs).require_grad();
    let adapter = (layer.rank > 0).then(|| Factors {
        a: random(layer.rank, layer.inputs).require_grad(),
        b: random(layer.outputs, layer.rank).require_grad(),
        scale: 1.0,
        dropout: None,
    });
    let pass = || linear(x.clone(), &weight, adapter.clone()).sum().backward();
    // The first pass starts threads and touches memory for the first time.
    drop(pass());
    let mut passes = Vec::new();
    // As in a step.
    awake(|| {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let start = Instant::now();
            drop(pass());
            passes.push(start.elapsed());
        }
    });
    // The median: another program's burst should not count.
    passes.sort_unstable();
    let median = passes[passes.len() / 2].as_secs_f64();
    tokens as f64 * linear_flops(layer, shape.full) / median
}
