//! What the forward pass keeps for the backward pass, op by op as the kernels save it, and the tensors at work.
//!
//! Counted in floats a token. A tensor that two ops share is counted with the first of them.

use justtrain_model::Stack as Kind;
use justtrain_model::kernels::Products;
use justtrain_model::kernels::cross_entropy::CHUNK_BYTES;

use super::shape::{Shape, Stack};
use super::work::BatchSize;

const FLOAT: u64 = 4;

/// What the allocator holds on top: freed blocks that no later tensor fits into, since batches differ in size. Measured
/// (`scripts/estimate-check`).
pub(super) fn with_gaps(bytes: u64) -> u64 {
    bytes + bytes / 10
}

/// Bytes of the activations at the end of a forward pass. Of blocks below the lowest that is
/// trained nothing is kept. With gradient checkpointing these are the blocks' inputs, and one block's activations as its turn comes.
pub(super) fn kept(shape: &Shape, batch: BatchSize, checkpointing: bool, products: Products) -> u64 {
    let reached = shape.stacks.iter().filter(|stack| stack.graph_layers > 0);
    let blocks = reached.map(|stack| (stack.graph_layers as u64, kept_by_block(shape, stack, batch, products)));
    if checkpointing {
        let inputs = (shape.trained.graph_layers * shape.hidden * batch.tokens) as u64 * FLOAT;
        return inputs + blocks.map(|(_, block)| block).max().unwrap_or(0);
    }
    blocks.map(|(layers, block)| layers * block).sum()
}

fn kept_by_block(shape: &Shape, stack: &Stack, batch: BatchSize, products: Products) -> u64 {
    let a_token = |exact: usize, rounded: usize| exact as u64 * FLOAT + rounded as u64 * bytes(products);
    let ranks = |of_sources: bool| {
        let linears = stack.linears.iter().filter(move |linear| linear.of_sources == of_sources);
        linears.map(|linear| linear.rank).sum::<usize>()
    };
    let norms = stack.block_norms * rms_norm(shape);
    let exact = norms + softmax(shape) + experts(shape) + ranks(false) + dora(shape, stack);
    let block = a_token(exact, attention(shape) + swiglu(shape));
    // The rows of the other stack are carried along.
    let carried = a_token(shape.hidden, 0);
    let (sources, targets) = (batch.sources as u64, batch.targets_read() as u64);
    match stack.kind {
        Kind::Only => batch.tokens as u64 * block,
        Kind::Encoder => sources * block + targets * carried,
        Kind::Decoder => {
            // Of attention to the encoder: queries and the output; keys and values.
            let (said, read) = (a_token(shape.heads, 2 * shape.query), a_token(ranks(true), 2 * shape.key_value));
            targets * (block + said) + sources * (carried + read)
        }
    }
}

/// Of a number that is rounded as products are.
fn bytes(products: Products) -> u64 {
    match products {
        Products::F32 => FLOAT,
        Products::Bf16 | Products::F16 => FLOAT / 2,
    }
}

/// The outputs of adapted layers, before they are multiplied by what the magnitudes make of them.
fn dora(shape: &Shape, stack: &Stack) -> usize {
    let adapted = stack.linears.iter().filter(|linear| shape.trained.magnitudes > 0 && linear.rank > 0);
    adapted.map(|linear| linear.outputs).sum()
}

/// Its input and one number a token. Its output, the input of the linear layers, is made again in the backward.
fn rms_norm(shape: &Shape) -> usize {
    shape.hidden + 1
}

/// Rotated queries and keys, values, and the output, which is also the input of `o_proj`.
fn attention(shape: &Shape) -> usize {
    2 * shape.query + 2 * shape.key_value
}

/// A sum for each head; queries and keys before their norms, where they have some.
fn softmax(shape: &Shape) -> usize {
    shape.heads + if shape.qk_norms { shape.query + shape.key_value } else { 0 }
}

/// Both inputs. Its output, the input of `down_proj`, is made again in the backward.
fn swiglu(shape: &Shape) -> usize {
    2 * shape.intermediate
}

/// The scores of all experts, before and after they are made weights; and of each expert that a token goes through its
/// output in both orders, that times its weight, and its input where experts are trained.
fn experts(shape: &Shape) -> usize {
    let hidden_states = 3 + usize::from(shape.trained.block_weights > 0);
    shape.experts.map_or(0, |experts| 3 * experts.count + hidden_states * experts.per_token * shape.hidden)
}

/// Bytes of the tensors at work in the backward of one block: the gradient on its way, and around SwiGLU its output and
/// three gradients; with products in 16 bits both its inputs in full, and the left side of a product.
pub(super) fn at_work_in_backward(shape: &Shape, batch: BatchSize, products: Products) -> u64 {
    let widened = match products {
        Products::F32 => 0,
        Products::Bf16 => 2 * shape.intermediate + shape.intermediate / 2,
        Products::F16 => 3 * shape.intermediate,
    };
    let widest = batch.sources.max(batch.targets_read());
    (2 * shape.hidden * batch.tokens + (4 * shape.intermediate + widened) * widest) as u64 * FLOAT
}

/// Bytes of the tensors at work in a forward pass that keeps nothing.
pub(super) fn at_work_in_forward(shape: &Shape, tokens: usize) -> u64 {
    ((2 * shape.hidden + 3 * shape.intermediate) * tokens) as u64 * FLOAT
}

/// Bytes around the fused output layer and loss: a chunk of logits with its hidden states and their gradients, and the
/// last hidden states of the batch before the norm, after it, and their gradient.
pub(super) fn output_layer(shape: &Shape, batch: BatchSize, products: Products) -> u64 {
    let row = shape.vocabulary as u64 * FLOAT;
    let rows = (CHUNK_BYTES as u64 / row).clamp(1, batch.targets.max(1) as u64);
    let hidden = shape.hidden as u64 * FLOAT;
    // The gradient of a trained output layer is made beside the loss.
    let table = if shape.trained.output { shape.table_bytes() } else { 0 };
    // Their gradient is the left side of a product; of the one that makes the hidden states' gradient a part at a time.
    let rounded = match products {
        Products::Bf16 if shape.trained.output => rows * row / 2,
        Products::F32 | Products::Bf16 => 0,
        Products::F16 => rows * row,
    };
    rounded + rows * (row + 2 * hidden) + 3 * batch.tokens as u64 * hidden + table
}
