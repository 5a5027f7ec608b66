//! What a recipe trains in a decoder: every tensor, by its size.

use justtrain_model::adapters::{LoraConfig, LoraStart};
use justtrain_model::layers::InFull;
use justtrain_model::{DecoderConfig, LinearShape};

use crate::recipe::{FinetuningType, Recipe};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct TrainedShape {
    /// Rows and columns, and how many there are of each.
    pub(super) matrices: Vec<([usize; 2], u64)>,
    /// Numbers in vectors, and the tensors that they lie in.
    pub(super) vectors: u64,
    vector_tensors: u64,
    /// Numbers of the vectors that are magnitudes (DoRA).
    pub(super) magnitudes: u64,
    /// Numbers in frozen pairs: what trained ones started with (PiSSA, LoftQ), and what was taken out of the weights.
    pub(super) start: u64,
    /// Tables of the vocabulary that are trained beside adapters, and whether the output layer is among them.
    pub(super) tables: u64,
    pub(super) output: bool,
}

impl TrainedShape {
    pub(super) fn new(config: &DecoderConfig, recipe: &Recipe) -> Self {
        match recipe.finetuning_type {
            FinetuningType::Full => Self::of_all(config),
            FinetuningType::Lora => Self::of_adapter(config, &recipe.lora_config(), recipe.lora_start()),
        }
    }

    fn of_all(config: &DecoderConfig) -> Self {
        let layers = config.layers.len() as u64;
        let mut trained = Self { output: true, ..Self::default() };
        trained.matrices.extend(config.linears().iter().map(|linear| ([linear.outputs, linear.inputs], layers)));
        let tables = 2 - u64::from(config.tied_embeddings);
        trained.matrices.push(([config.vocab_size, config.hidden_size], tables));
        trained.matrices.extend(config.position_table().map(|table| (table, 1)));
        for _ in &config.layers {
            config.block_vectors().into_iter().for_each(|len| trained.vector(len));
        }
        (0..config.norm.vectors()).for_each(|_| trained.vector(config.hidden_size));
        trained
    }

    fn of_adapter(config: &DecoderConfig, lora: &LoraConfig, start: Option<LoraStart>) -> Self {
        let mut trained = Self::default();
        for layer in 0..config.layers.len() {
            for linear in config.linears() {
                trained.linear(&config.module(layer, linear.name), &linear, lora);
            }
        }
        let pairs: u64 = trained.numbers() - trained.vectors;
        trained.start = match start {
            Some(LoraStart::Loftq { iterations: 2.. }) => 2 * pairs,
            Some(_) => pairs,
            None => 0,
        };
        for layer in 0..config.layers.len() {
            for linear in config.linears() {
                let name = config.module(layer, linear.name);
                let InFull { weight, bias } = lora.in_full(&name, lora.targets(&name));
                trained.matrices.extend(weight.then_some(([linear.outputs, linear.inputs], 1)));
                if bias && linear.bias {
                    trained.vector(linear.outputs);
                }
            }
            for (part, width) in config.block_norm_parts() {
                trained.norm(config, lora.in_full(&config.module(layer, part), false), width);
            }
        }
        trained.norm(config, lora.in_full(config.names.norm, false), config.hidden_size);
        let saved = |name: &str| lora.in_full(name, false).weight;
        let (embeddings, output) = (saved(config.names.embeddings), saved(config.names.output));
        trained.tables = match config.tied_embeddings {
            true => u64::from(embeddings || output),
            false => u64::from(embeddings) + u64::from(output),
        };
        trained.output = output || (config.tied_embeddings && embeddings);
        trained
            .matrices
            .extend((trained.tables > 0).then_some(([config.vocab_size, config.hidden_size], trained.tables)));
        trained.matrices.extend(
            config.position_table().filter(|_| config.names.positions.is_some_and(saved)).map(|table| (table, 1)),
        );
        trained
    }

    /// The pair of a layer, and its magnitudes.
    fn linear(&mut self, name: &str, linear: &LinearShape, lora: &LoraConfig) {
        if !lora.targets(name) {
            return;
        }
        let rank = lora.rank_of(name);
        self.matrices.extend([([rank, linear.inputs], 1), ([linear.outputs, rank], 1)]);
        if lora.dora {
            self.vector(linear.outputs);
            self.magnitudes += linear.outputs as u64;
        }
    }

    fn norm(&mut self, config: &DecoderConfig, InFull { weight, bias }: InFull, width: usize) {
        if weight {
            self.vector(width);
        }
        if bias && config.norm.vectors() > 1 {
            self.vector(width);
        }
    }

    fn vector(&mut self, len: usize) {
        self.vectors += len as u64;
        self.vector_tensors += 1;
    }

    /// All that the optimiser changes.
    pub(super) fn numbers(&self) -> u64 {
        self.vectors + self.matrices.iter().map(|([rows, cols], count)| (rows * cols) as u64 * count).sum::<u64>()
    }

    /// The tensors that these lie in.
    pub(super) fn tensors(&self) -> u64 {
        self.vector_tensors + self.matrices.iter().map(|(_, count)| count).sum::<u64>()
    }
}
