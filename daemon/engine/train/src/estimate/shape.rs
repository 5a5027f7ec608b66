//! Sizes and counts of a decoder and of what is trained in it.

use justtrain_model::DecoderConfig;

use crate::recipe::{FinetuningType, LoraTarget, Recipe};

/// A decoder as far as memory and time depend on it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) layers: usize,
    /// Query heads.
    pub(super) heads: usize,
    /// Width of all query heads together, and of all key heads.
    pub(super) query: usize,
    pub(super) key_value: usize,
    pub(super) vocabulary: usize,
    /// The linear layers of one block.
    pub(super) linears: [Linear; 7],
    /// Matrices of `[vocabulary, hidden]`: 1 where the embedding table is the output layer, else 2.
    pub(super) tables: u64,
    /// Numbers in all norms.
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
        let linear = |name: &str, outputs, inputs| {
            let targeted = match &target {
                LoraTarget::All => true,
                LoraTarget::Named(names) => names.iter().any(|target| target == name),
            };
            Linear { outputs, inputs, rank: if targeted && !full { recipe.lora_rank } else { 0 } }
        };
        let linears = [
            linear("q_proj", query, hidden),
            linear("k_proj", key_value, hidden),
            linear("v_proj", key_value, hidden),
            linear("o_proj", hidden, query),
            linear("gate_proj", intermediate, hidden),
            linear("up_proj", intermediate, hidden),
            linear("down_proj", hidden, intermediate),
        ];
        let layers = config.layers as u64;
        let sum = |count: fn(Linear) -> u64| layers * linears.iter().copied().map(count).sum::<u64>();
        let norms = (2 * layers + 1) * hidden as u64;
        let tables = 2 - u64::from(config.tied_embeddings);
        let parameters = norms + tables * (config.vocab_size * hidden) as u64 + sum(Linear::weights);
        Self {
            hidden,
            intermediate,
            layers: config.layers,
            heads: config.heads.query,
            query,
            key_value,
            vocabulary: config.vocab_size,
            linears,
            tables,
            norms,
            full,
            parameters,
            trained_parameters: if full { parameters } else { sum(Linear::adapter) },
            trained_tensors: match full {
                true => tables + 9 * layers + 1,
                false => sum(|linear| 2 * u64::from(linear.rank > 0)),
            },
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
        }
        matrices
    }

    /// Bytes of one embedding table or output layer in `f32`.
    pub(super) fn table_bytes(&self) -> u64 {
        (self.vocabulary * self.hidden) as u64 * 4
    }
}
