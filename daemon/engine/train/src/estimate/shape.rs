//! Sizes and counts of a decoder and of what is trained in it.

use justtrain_model::{DecoderConfig, LinearShape};

use crate::recipe::{FinetuningType, LoraTarget, Recipe, Stage};

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
}

/// A weight matrix of a block, and the rank of its adapter; 0 where it has none.
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
        let (target, full) = (recipe.lora_target(), recipe.finetuning_type == FinetuningType::Full);
        let linear = |shape: &LinearShape| {
            let targeted = match &target {
                LoraTarget::All => true,
                LoraTarget::Named(names) => names.iter().any(|target| target == shape.target()),
            };
            let rank = if targeted && !full { recipe.lora_rank } else { 0 };
            Linear { outputs: shape.outputs, inputs: shape.inputs, rank }
        };
        let linears: Vec<Linear> = config.linears().iter().map(linear).collect();
        let vectors = config.block_vectors();
        let layers = config.layers.len() as u64;
        let sum = |count: fn(Linear) -> u64| layers * linears.iter().copied().map(count).sum::<u64>();
        let last_norm = config.norm.vectors();
        let positions = config.position_table().map_or(0, |[rows, _]| rows);
        let tables = 2 - u64::from(config.tied_embeddings);
        let parameters = config.parameters();
        let (trained_parameters, trained_tensors) = match full {
            true => {
                let of_blocks = layers * (linears.len() + vectors.len()) as u64;
                (parameters, of_blocks + tables + u64::from(positions > 0) + last_norm as u64)
            }
            false => (sum(Linear::adapter), sum(|linear| 2 * u64::from(linear.rank > 0))),
        };
        let (head, heads) = if recipe.stage == Stage::Rm { (hidden as u64, 1) } else { (0, 0) };
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
            norms: layers * vectors.iter().sum::<usize>() as u64 + (last_norm * hidden) as u64,
            full,
            parameters,
            trained_parameters: trained_parameters + head,
            trained_tensors: trained_tensors + heads,
        }
    }

    /// Rows and columns of every trained matrix, and how many of them there are.
    pub(super) fn trained_matrices(&self) -> Vec<([usize; 2], u64)> {
        let layers = self.layers as u64;
        let of_linear = |&Linear { outputs, inputs, rank }: &Linear| match self.full {
            true => vec![([outputs, inputs], layers)],
            false if rank > 0 => vec![([rank, inputs], layers), ([outputs, rank], layers)],
            false => Vec::new(),
        };
        let mut matrices: Vec<_> = self.linears.iter().flat_map(of_linear).collect();
        if self.full {
            matrices.push(([self.vocabulary, self.hidden], self.tables));
            if self.positions > 0 {
                matrices.push(([self.positions, self.hidden], 1));
            }
        }
        matrices
    }

    /// Bytes of one embedding table or output layer in `f32`.
    pub(super) fn table_bytes(&self) -> u64 {
        (self.vocabulary * self.hidden) as u64 * 4
    }
}
