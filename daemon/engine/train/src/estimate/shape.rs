//! Sizes and counts of a decoder and of what is trained in it.

use justtrain_model::{DecoderConfig, LinearShape};

use super::trained::TrainedShape;
use crate::recipe::Recipe;

/// A decoder as far as memory and time depend on it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) layers: usize,
    /// Norms of the whole hidden state in one block.
    pub(super) block_norms: usize,
    /// Queries and keys are normed head by head.
    pub(super) qk_norms: bool,
    /// Query heads.
    pub(super) heads: usize,
    /// Width of all query heads together, and of all key heads.
    pub(super) query: usize,
    pub(super) key_value: usize,
    pub(super) vocabulary: usize,
    /// The table of learned positions, where there is one.
    pub(super) positions: Option<[usize; 2]>,
    /// The linear layers of one block.
    pub(super) linears: Vec<Linear>,
    /// The base model's own weights are trained, some of them or all.
    pub(super) full: bool,
    /// Numbers in the base model, and the tensors that they lie in.
    pub(super) parameters: u64,
    pub(super) tensors: u64,
    /// What the optimiser changes, and what it leaves.
    pub(super) trained: TrainedShape,
}

/// A weight matrix of a block, and the largest rank of its adapters; 0 where it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Linear {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) rank: usize,
}

impl Linear {
    pub(super) fn weights(self) -> u64 {
        (self.outputs * self.inputs) as u64
    }

    /// Numbers in A and B.
    pub(super) fn adapter(self) -> u64 {
        (self.rank * (self.inputs + self.outputs)) as u64
    }
}

impl Shape {
    pub(super) fn new(config: &DecoderConfig, recipe: &Recipe) -> Self {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (query, key_value) = (config.heads.query * config.heads.dim, config.heads.key_value * config.heads.dim);
        let (lora, full) = (recipe.lora_config(), recipe.trains_weights());
        let rank = |layer: usize, shape: &LinearShape| {
            let name = config.module(layer, shape.name);
            if lora.targets(&name) && !full { lora.rank_of(&name) } else { 0 }
        };
        let linear = |shape: &LinearShape| {
            let rank = (0..config.layers.len()).map(|layer| rank(layer, shape)).max().unwrap_or(0);
            Linear { outputs: shape.outputs, inputs: shape.inputs, rank }
        };
        let linears: Vec<Linear> = config.linears().iter().map(linear).collect();
        Self {
            hidden,
            intermediate,
            layers: config.layers.len(),
            block_norms: config.block_norms(),
            qk_norms: config.has_qk_norms(),
            heads: config.heads.query,
            query,
            key_value,
            vocabulary: config.vocab_size,
            positions: config.position_table(),
            linears,
            full,
            tensors: config.tensors().len() as u64,
            parameters: config.parameters(),
            trained: TrainedShape::new(config, recipe),
        }
    }

    /// Bytes of one embedding table or output layer in `f32`.
    pub(super) fn table_bytes(&self) -> u64 {
        (self.vocabulary * self.hidden) as u64 * 4
    }
}
