//! Sizes and counts of a decoder and of what is trained in it.

use justtrain_model::{DecoderConfig, LinearShape};

use crate::recipe::{LoraTarget, Recipe};
use crate::trainable;

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
    /// The embedding table or the output layer is trained.
    pub(super) table_trained: bool,
    /// Blocks from the lowest that is trained to the last: those that the backward goes through.
    pub(super) graph_layers: usize,
    /// Blocks with adapters.
    pub(super) adapted_layers: usize,
    /// Numbers in the weights of blocks that are trained.
    pub(super) trained_linears: u64,
    /// Numbers in trained norms and biases.
    pub(super) trained_vectors: u64,
    /// Rows and columns of every trained matrix, and how many of them there are.
    pub(super) trained_matrices: Vec<([usize; 2], u64)>,
    /// The same of the base model's frozen matrices, and the numbers in its frozen norms and biases.
    pub(super) frozen_matrices: Vec<([usize; 2], u64)>,
    pub(super) frozen_vectors: u64,
    /// Numbers in the base model, and the tensors that they lie in.
    pub(super) parameters: u64,
    pub(super) tensors: u64,
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

/// Tensors by what they are.
#[derive(Default)]
struct Tensors {
    matrices: Vec<([usize; 2], u64)>,
    /// Numbers in norms and biases.
    vectors: u64,
    count: u64,
}

impl Tensors {
    fn add(&mut self, shape: &[usize]) {
        self.count += 1;
        let Ok(shape) = <[usize; 2]>::try_from(shape) else {
            self.vectors += shape.iter().product::<usize>() as u64;
            return;
        };
        match self.matrices.iter_mut().find(|(known, _)| *known == shape) {
            Some((_, count)) => *count += 1,
            None => self.matrices.push((shape, 1)),
        }
    }

    fn numbers(&self) -> u64 {
        self.matrices.iter().map(|([rows, cols], count)| (rows * cols) as u64 * count).sum::<u64>() + self.vectors
    }
}

impl Shape {
    pub(super) fn new(config: &DecoderConfig, recipe: &Recipe) -> Self {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (query, key_value) = (config.heads.query * config.heads.dim, config.heads.key_value * config.heads.dim);
        let (target, full) = (recipe.lora_target(), recipe.trains_weights());
        let linear = |shape: &LinearShape| {
            let targeted = match &target {
                LoraTarget::All => true,
                LoraTarget::Named(names) => names.iter().any(|target| target == shape.target()),
            };
            let rank = if targeted && !full { recipe.lora_rank } else { 0 };
            Linear { outputs: shape.outputs, inputs: shape.inputs, rank }
        };
        let linears: Vec<Linear> = config.linears().iter().map(linear).collect();
        let layers = config.layers.len();
        // What a selection names and the model does not have is refused elsewhere.
        let names = trainable::weights(recipe, config).unwrap_or_default();
        let (mut trained, mut frozen, mut trained_linears) = (Tensors::default(), Tensors::default(), 0);
        let (mut lowest, mut outside) = (layers, false);
        for (name, shape) in config.tensors() {
            if !names.contains(&name) {
                frozen.add(&shape);
                continue;
            }
            trained.add(&shape);
            match config.place_in_block(&name) {
                Some((layer, _)) => {
                    lowest = lowest.min(layer);
                    trained_linears += if shape.len() == 2 { shape.iter().product::<usize>() as u64 } else { 0 };
                }
                None => {
                    outside |= shape.len() == 2 && (config.tied_embeddings || !name.starts_with(config.names.output))
                }
            }
        }
        let table_trained = trained.matrices.iter().any(|([rows, _], _)| *rows == config.vocab_size);
        let adapted: Vec<usize> = match recipe.layers_to_transform() {
            _ if full => Vec::new(),
            None => (0..layers).collect(),
            Some(chosen) => (0..layers).filter(|layer| chosen.contains(layer)).collect(),
        };
        lowest = adapted.first().copied().unwrap_or(lowest);
        for linear in linears.iter().filter(|linear| linear.rank > 0) {
            for _ in &adapted {
                trained.add(&[linear.rank, linear.inputs]);
                trained.add(&[linear.outputs, linear.rank]);
            }
        }
        Self {
            hidden,
            intermediate,
            layers,
            block_norms: config.block_norms(),
            qk_norms: config.has_qk_norms(),
            heads: config.heads.query,
            query,
            key_value,
            vocabulary: config.vocab_size,
            positions: config.position_table(),
            linears,
            full,
            table_trained,
            // A table below the first block is reached through all of them.
            graph_layers: if outside { layers } else { layers - lowest },
            adapted_layers: adapted.len(),
            trained_linears,
            tensors: config.tensors().len() as u64,
            trained_parameters: trained.numbers(),
            trained_tensors: trained.count,
            trained_vectors: trained.vectors,
            trained_matrices: trained.matrices,
            frozen_matrices: frozen.matrices,
            frozen_vectors: frozen.vectors,
            parameters: config.parameters(),
        }
    }

    /// Bytes of one embedding table or output layer in `f32`.
    pub(super) fn table_bytes(&self) -> u64 {
        (self.vocabulary * self.hidden) as u64 * 4
    }
}
