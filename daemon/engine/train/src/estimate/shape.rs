//! Sizes and counts of a decoder and of what is trained in it.

use justtrain_model::{DecoderConfig, ExpertsConfig, LinearShape, Stack as Kind};

use super::trained::TrainedShape;
use crate::recipe::Recipe;

/// A decoder as far as memory and time depend on it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub(super) hidden: usize,
    /// Width of what a block's feed-forward network makes of a token, in all experts that it goes through.
    pub(super) intermediate: usize,
    pub(super) layers: usize,
    /// One; or an encoder's and a decoder's.
    pub(super) stacks: Vec<Stack>,
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
    /// Where some blocks have experts.
    pub(super) experts: Option<ExpertsConfig>,
    /// The base model's own weights are trained, some of them or all.
    pub(super) full: bool,
    /// Numbers in the base model, and the tensors that they lie in.
    pub(super) parameters: u64,
    pub(super) tensors: u64,
    /// What the optimiser changes, and what it leaves.
    pub(super) trained: TrainedShape,
}

/// Blocks that tokens go through one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stack {
    pub(super) kind: Kind,
    pub(super) layers: usize,
    /// Of these, the ones that a gradient must reach.
    pub(super) graph_layers: usize,
    /// Norms of the whole hidden state in one block.
    pub(super) block_norms: usize,
    /// The matrices of one block that a token is multiplied by; where blocks differ, of the one with the most.
    pub(super) linears: Vec<Linear>,
}

/// A weight matrix of a block, and the largest rank of its adapters; 0 where it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Linear {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) rank: usize,
    /// It is not the block's own tokens that are multiplied by it, but those that it attends to.
    pub(super) of_sources: bool,
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
        let hidden = config.hidden_size;
        let (query, key_value) = (config.heads.query * config.heads.dim, config.heads.key_value * config.heads.dim);
        let (lora, full) = (recipe.lora_config(), recipe.trains_weights());
        let rank = |layer: usize, shape: &LinearShape| {
            let name = config.module(layer, shape.name);
            if lora.targets(&name) && !full { lora.rank_of(&name) } else { 0 }
        };
        // Those of earlier stages are multiplied by as well.
        let pairs = 1 + recipe.pair_beside().map_or(0, |_| recipe.stages_before);
        let trained = TrainedShape::new(config, recipe);
        let stack = |kind: Kind| {
            let layers: Vec<usize> = (0..config.layers.len()).filter(|&layer| config.stack(layer) == kind).collect();
            let &first = layers.first()?;
            let linear = |shape: LinearShape| Linear {
                outputs: shape.outputs,
                inputs: shape.inputs,
                rank: pairs * layers.iter().map(|&layer| rank(layer, &shape)).max().unwrap_or(0),
                of_sources: config.reads_sources(&shape),
            };
            let mut linears: Vec<Linear> = config.linears(first).into_iter().map(linear).collect();
            if config.experts.is_some() {
                // Those that take no adapter.
                let numbers =
                    |matrices: &Vec<[usize; 2]>| matrices.iter().map(|[rows, cols]| rows * cols).sum::<usize>();
                let feed_forwards = layers.iter().map(|&layer| config.feed_forward(layer));
                let most = feed_forwards.max_by_key(numbers).unwrap_or_default();
                let frozen = |[outputs, inputs]: [usize; 2]| Linear { outputs, inputs, rank: 0, of_sources: false };
                linears.extend(most.into_iter().map(frozen));
            }
            let lowest = (config.layers.len() - trained.graph_layers).max(first);
            let graph_layers = layers.iter().filter(|&&layer| layer >= lowest).count();
            Some(Stack { kind, layers: layers.len(), graph_layers, block_norms: config.block_norms(first), linears })
        };
        Self {
            hidden,
            intermediate: widest_feed_forward(config),
            experts: config.experts,
            layers: config.layers.len(),
            stacks: [Kind::Only, Kind::Encoder, Kind::Decoder].into_iter().filter_map(stack).collect(),
            qk_norms: config.has_qk_norms(),
            heads: config.heads.query,
            query,
            key_value,
            vocabulary: config.vocab_size,
            positions: config.position_table(),
            full,
            tensors: config.tensors().len() as u64,
            parameters: config.parameters(),
            trained,
        }
    }

    /// Of one block of each stack.
    pub(super) fn linears(&self) -> impl Iterator<Item = Linear> {
        self.stacks.iter().flat_map(|stack| &stack.linears).copied()
    }

    /// Whether a matrix is what chooses experts.
    pub(super) fn is_router(&self, dims: [usize; 2]) -> bool {
        self.experts.is_some_and(|experts| dims == [experts.count, self.hidden])
    }

    /// Bytes of one embedding table or output layer in `f32`.
    pub(super) fn table_bytes(&self) -> u64 {
        (self.vocabulary * self.hidden) as u64 * 4
    }
}

fn widest_feed_forward(config: &DecoderConfig) -> usize {
    let width = |layer| match config.experts_of(layer) {
        None => config.intermediate_size,
        Some(experts) => experts.per_token * experts.intermediate_size,
    };
    (0..config.layers.len()).map(width).max().unwrap_or(0)
}
