//! What a recipe trains in a decoder and what it leaves as it is: every tensor, by its size.

use justtrain_model::DecoderConfig;
use justtrain_model::adapters::{LoraConfig, LoraStart};

use crate::recipe::{Recipe, Stage};
use crate::trainable;

/// Tensors by their sizes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Tensors {
    /// Rows and columns, and how many there are of each.
    pub(super) matrices: Vec<([usize; 2], u64)>,
    /// Numbers in norms, biases and magnitudes.
    pub(super) vectors: u64,
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
        self.vectors + self.matrices.iter().map(|([rows, cols], count)| (rows * cols) as u64 * count).sum::<u64>()
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct TrainedShape {
    /// All that the optimiser changes.
    pub(super) changed: Tensors,
    /// The rest of the base model.
    pub(super) frozen: Tensors,
    /// Numbers of the vectors that are magnitudes (DoRA).
    pub(super) magnitudes: u64,
    /// Numbers in frozen pairs: what trained ones started with (PiSSA, LoftQ), and what was taken out of the weights.
    pub(super) start: u64,
    /// Numbers in the pairs of earlier stages beside those that are trained (O-LoRA).
    pub(super) earlier: u64,
    /// Whether a table of the vocabulary is trained, and whether the output layer is.
    pub(super) table: bool,
    pub(super) output: bool,
    /// Numbers in the blocks' own matrices that are trained.
    pub(super) block_weights: u64,
    /// Blocks with adapters.
    pub(super) adapted_layers: usize,
    /// Blocks from the lowest that a gradient must reach to the last.
    pub(super) graph_layers: usize,
}

impl TrainedShape {
    pub(super) fn new(config: &DecoderConfig, recipe: &Recipe) -> Self {
        let mut trained = Self::default();
        if recipe.stage == Stage::Rm {
            trained.changed.add(&[1, config.hidden_size]);
        }
        if recipe.trains_weights() {
            // What a selection names and the model does not have is refused elsewhere.
            let names = trainable::weights(recipe, config).unwrap_or_default();
            trained.own_weights(config, |name| names.contains(name));
        } else {
            let lora = recipe.lora_config();
            trained.pairs(config, &lora, recipe);
            trained.earlier = trained.numbers() * recipe.pair_beside().map_or(0, |_| recipe.stages_before as u64);
            trained.own_weights(config, |name| in_full(config, &lora, name));
        }
        trained
    }

    pub(super) fn numbers(&self) -> u64 {
        self.changed.numbers()
    }

    /// The tensors that these lie in.
    pub(super) fn tensors(&self) -> u64 {
        self.changed.count
    }

    fn pairs(&mut self, config: &DecoderConfig, lora: &LoraConfig, recipe: &Recipe) {
        let mut pairs = 0;
        for layer in 0..config.layers.len() {
            let before = pairs;
            for linear in config.linears(layer) {
                let name = config.module(layer, linear.name);
                if !lora.targets(&name) {
                    continue;
                }
                let rank = lora.rank_of(&name);
                self.changed.add(&[rank, linear.inputs]);
                self.changed.add(&[linear.outputs, rank]);
                pairs += (rank * (linear.inputs + linear.outputs)) as u64;
                if lora.dora {
                    self.changed.add(&[linear.outputs]);
                    self.magnitudes += linear.outputs as u64;
                }
            }
            if pairs > before {
                self.adapted_layers += 1;
                self.reach(config, layer);
            }
        }
        let makes_words = config.makes_words && !matches!(recipe.stage, Stage::Rm | Stage::Cls);
        let [tokens, output] = [Some(config.names.embeddings), config.names.output];
        if let Some(name) = tokens.filter(|name| config.patches.is_none() && lora.targets_table(name)) {
            self.pair(config, lora.rank_of(name));
            self.reach(config, 0);
        }
        if let Some(name) = output.filter(|name| makes_words && lora.targets_table(name)) {
            self.pair(config, lora.rank_of(name));
        }
        self.start = match recipe.lora_start() {
            Some(LoraStart::Loftq { iterations: 2.. }) => 2 * pairs,
            Some(_) => pairs,
            None => 0,
        };
    }

    /// Of a table of the vocabulary.
    fn pair(&mut self, config: &DecoderConfig, rank: usize) {
        self.changed.add(&[config.vocab_size, rank]);
        self.changed.add(&[rank, config.hidden_size]);
    }

    fn own_weights(&mut self, config: &DecoderConfig, is_trained: impl Fn(&str) -> bool) {
        for (name, shape) in config.tensors() {
            if !is_trained(&name) {
                self.frozen.add(&shape);
                continue;
            }
            self.changed.add(&shape);
            let matrix = shape.len() == 2;
            if let Some((layer, _)) = config.place_in_block(&name) {
                self.reach(config, layer);
                let numbers = if matrix { shape.iter().product::<usize>() as u64 } else { 0 };
                // A token goes through some of the experts only.
                self.block_weights += match config.experts.filter(|_| config.is_of_expert(&name)) {
                    None => numbers,
                    Some(experts) => numbers * experts.per_token as u64 / experts.count as u64,
                };
            } else if matrix {
                let output = Some(&name) == config.output_weight().as_ref();
                let table = shape == [config.vocab_size, config.hidden_size];
                self.table |= table;
                self.output |= output || (table && config.tied_embeddings);
                let pooler = config.names.classifier.pooler.is_some_and(|module| name.starts_with(module));
                if !output && !pooler {
                    // A table below the first block is reached through all of them.
                    self.reach(config, 0);
                }
            }
        }
    }

    fn reach(&mut self, config: &DecoderConfig, layer: usize) {
        self.graph_layers = self.graph_layers.max(config.layers.len() - layer);
    }
}

/// Whether a tensor of the base model is trained beside the pairs.
fn in_full(config: &DecoderConfig, lora: &LoraConfig, name: &str) -> bool {
    if let Some(module) = name.strip_suffix(".bias") {
        let is_linear = |(layer, part): (usize, &str)| config.linears(layer).iter().any(|linear| linear.name == part);
        let linear = config.place_in_block(module).is_some_and(is_linear);
        return lora.in_full(module, linear && lora.targets(module)).bias;
    }
    let saved = |module: &str| lora.in_full(module, false).weight;
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let tied = config.names.output.filter(|_| config.tied_embeddings && module == config.names.embeddings);
    saved(module) || tied.is_some_and(saved)
}
