//! Sizes and counts of a decoder and of what is trained in it.

use justtrain_model::adapters::LoraStart;
use justtrain_model::{DecoderConfig, LinearShape};

use crate::recipe::{FinetuningType, Recipe};

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
    /// The linear layers of one block.
    pub(super) linears: Vec<Linear>,
    /// Matrices of `[vocabulary, hidden]`: 1 where the embedding table is the output layer, else 2.
    pub(super) tables: u64,
    /// Rows of the table of learned positions; 0 where there is none.
    pub(super) positions: usize,
    /// Numbers in all norms and biases.
    pub(super) norms: u64,
    /// The base model's own weights are trained.
    pub(super) full: bool,
    /// Numbers in the base model.
    pub(super) parameters: u64,
    /// Numbers that the optimiser changes, and the tensors that they lie in.
    pub(super) trained_parameters: u64,
    pub(super) trained_tensors: u64,
    /// Of these the numbers in vectors, and rows and columns of the matrices with how many there are.
    pub(super) trained_vectors: u64,
    pub(super) trained_matrices: Vec<([usize; 2], u64)>,
    /// Adapted layers have magnitudes (DoRA).
    pub(super) dora: bool,
    /// Numbers in frozen pairs: what trained ones started with (PiSSA, LoftQ), and what was taken out of the weights.
    pub(super) start: u64,
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
        let (lora, full) = (recipe.lora_config(), recipe.finetuning_type == FinetuningType::Full);
        let rank = |layer: usize, shape: &LinearShape| {
            let name = config.module(layer, shape.name);
            if lora.targets(&name) && !full { lora.rank_of(&name) } else { 0 }
        };
        let linear = |shape: &LinearShape| {
            let rank = (0..config.layers.len()).map(|layer| rank(layer, shape)).max().unwrap_or(0);
            Linear { outputs: shape.outputs, inputs: shape.inputs, rank }
        };
        let linears: Vec<Linear> = config.linears().iter().map(linear).collect();
        let vectors = config.block_vectors();
        let layers = config.layers.len() as u64;
        let last_norm = config.norm.vectors();
        let positions = config.position_table().map_or(0, |[rows, _]| rows);
        let tables = 2 - u64::from(config.tied_embeddings);
        let norms = layers * vectors.iter().sum::<usize>() as u64 + (last_norm * hidden) as u64;
        let mut trained_matrices = Vec::new();
        let (mut trained_vectors, mut vector_tensors) = (0, 0);
        if full {
            trained_matrices.extend(linears.iter().map(|linear| ([linear.outputs, linear.inputs], layers)));
            trained_matrices.push(([config.vocab_size, hidden], tables));
            trained_matrices.push(([positions, hidden], u64::from(positions > 0)));
            trained_vectors = norms;
            vector_tensors = layers * vectors.len() as u64 + last_norm as u64;
        } else {
            for layer in 0..config.layers.len() {
                for shape in config.linears() {
                    let rank = rank(layer, &shape);
                    trained_matrices.push(([rank, shape.inputs], u64::from(rank > 0)));
                    trained_matrices.push(([shape.outputs, rank], u64::from(rank > 0)));
                    if lora.dora && rank > 0 {
                        trained_vectors += shape.outputs as u64;
                        vector_tensors += 1;
                    }
                }
            }
        }
        trained_matrices.retain(|(_, count)| *count > 0);
        let in_matrices =
            trained_matrices.iter().map(|([rows, cols], count)| (rows * cols) as u64 * count).sum::<u64>();
        let frozen_pairs = match recipe.lora_start() {
            Some(LoraStart::Loftq { iterations: 2.. }) => 2,
            Some(_) => 1,
            None => 0,
        };
        let start = if full { 0 } else { frozen_pairs * in_matrices };
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
            linears,
            tables,
            positions,
            norms,
            full,
            parameters: config.parameters(),
            trained_parameters: in_matrices + trained_vectors,
            trained_tensors: trained_matrices.iter().map(|(_, count)| count).sum::<u64>() + vector_tensors,
            trained_vectors,
            trained_matrices,
            dora: lora.dora && !full,
            start,
        }
    }

    /// Bytes of one embedding table or output layer in `f32`.
    pub(super) fn table_bytes(&self) -> u64 {
        (self.vocabulary * self.hidden) as u64 * 4
    }
}
