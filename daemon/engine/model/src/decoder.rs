//! The decoder-only transformer: the only network there is.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use justtrain_kernels::{Numbers, OutputLayer, Segments, Weight, embedding, linear};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::Problem;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::block::{Block, BlockDropout, Pass};
use crate::config::Positions;
use crate::generate::KvCache;
use crate::layers::{InFull, Norm, Projection};
use crate::parameters::{Parameter, Parameters, SCORE};
use crate::weights::Loader;
use crate::{DecoderConfig, WeightFormats, families};

/// Tokens of several sequences one after the other, without padding.
#[derive(Debug, Clone)]
pub struct Input {
    pub ids: Vec<u32>,
    /// From 0 within each sequence.
    pub positions: Vec<u32>,
    /// Which tokens attend to which.
    pub segments: Arc<Segments>,
}

impl Input {
    /// Whole sequences; `starts` holds each one's first token and, last, the number of all.
    pub fn packed(ids: Vec<u32>, starts: &[usize]) -> Self {
        let positions = starts.windows(2).flat_map(|pair| 0..(pair[1] - pair[0]) as u32).collect();
        Self { ids, positions, segments: Arc::new(Segments::packed(starts)) }
    }
}

/// How a forward pass treats the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// False gives the base model's answer.
    pub adapter: bool,
    /// Set while training: the dropout masks of this pass.
    pub dropout_seed: Option<u64>,
}

impl Mode {
    pub const BASE: Self = Self { adapter: false, dropout_seed: None };
    pub const TUNED: Self = Self { adapter: true, dropout_seed: None };
}

#[derive(Debug, Clone)]
pub struct Decoder {
    config: DecoderConfig,
    formats: WeightFormats,
    embeddings: Weight,
    embeddings_name: String,
    /// Of learned positions.
    positions: Option<PositionTable>,
    blocks: Vec<Block>,
    norm: Norm,
    /// None where the embedding table is the output layer.
    output: Option<Weight>,
    output_name: String,
    /// `[1, hidden]`; what makes it a reward model.
    score: Option<Tensor<2>>,
}

#[derive(Debug, Clone)]
struct PositionTable {
    name: String,
    table: Weight,
    /// Row of a sequence's first token.
    offset: usize,
}

impl PositionTable {
    fn rows(&self, positions: &[u32]) -> Vec<u32> {
        positions.iter().map(|position| position + self.offset as u32).collect()
    }
}

/// What turns the last block's output into logits, or into rewards.
#[derive(Debug, Clone)]
pub struct Head {
    norm: Norm,
    output: OutputLayer,
    output_name: String,
    score: Option<Tensor<2>>,
}

impl Head {
    /// The normed hidden states and the output layer.
    pub fn normed(&self, x: Tensor<2>) -> (Tensor<2>, &OutputLayer) {
        (self.norm.forward(x), &self.output)
    }

    /// What a reward model says of a sequence at these rows of normed hidden states, which are those of last tokens.
    pub fn rewards(&self, hidden: Tensor<2>, rows: &[usize]) -> Tensor<1> {
        let score = self.score.clone().expect("only a reward model is asked");
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let (count, device) = (rows.len(), hidden.device());
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &device);
        hidden.select(0, rows).matmul(score.transpose()).flatten(0, 1)
    }
}

impl Parameters for Head {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let mut parameters: Vec<Parameter<'_>> = self.norm.parameters_mut().collect();
        // A reward model has no use for logits.
        parameters.push(match &mut self.score {
            None => Parameter::weight(self.output_name.clone(), &mut self.output.weight),
            Some(score) => Parameter::matrix(SCORE.to_owned(), score),
        });
        parameters
    }
}

impl Parameters for Decoder {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let mut parameters = vec![Parameter::weight(self.embeddings_name.clone(), &mut self.embeddings)];
        let positions = self.positions.iter_mut();
        parameters.extend(positions.map(|table| Parameter::weight(table.name.clone(), &mut table.table)));
        parameters.extend(self.blocks.iter_mut().flat_map(Block::parameters_mut));
        parameters.extend(self.norm.parameters_mut());
        if let Some(output) = &mut self.output {
            parameters.push(Parameter::weight(self.output_name.clone(), output));
        }
        parameters.extend(self.score.iter_mut().map(|score| Parameter::matrix(SCORE.to_owned(), score)));
        parameters
    }
}

impl Decoder {
    /// Reads all weights. Fails with `UnknownArchitecture` or `ShapeMismatch`, and with `InvalidValue` where the
    /// formats do not fit the file.
    pub fn load(checkpoint: &Checkpoint, device: &Device, formats: WeightFormats) -> Result<Self, Problem> {
        let config = families::decoder_config(checkpoint)?;
        let (loader, names) = (Loader::new(checkpoint, device, formats), config.names);
        let blocks = (0..config.layers.len()).map(|layer| Block::load(&loader, &config, layer));
        let blocks = blocks.collect::<Result<_, Problem>>()?;
        let (table, embeddings_name) =
            ([config.vocab_size, config.hidden_size], format!("{}.weight", names.embeddings));
        let positions = match (&config.positions, names.positions) {
            (&Positions::Learned { rows, offset }, Some(name)) => {
                let name = format!("{name}.weight");
                let table = loader.in_full_precision(&name, [rows, config.hidden_size])?;
                Some(PositionTable { name, table, offset })
            }
            _ => None,
        };
        let decoder = Self {
            embeddings: loader.table(&embeddings_name, table)?,
            embeddings_name,
            positions,
            blocks,
            norm: loader.norm(names.norm.to_owned(), config.hidden_size, &config)?,
            output: match config.tied_embeddings {
                true => None,
                false => Some(loader.table(&config.names.output_weight(), table)?),
            },
            output_name: config.names.output_weight(),
            score: match checkpoint.shape(SCORE) {
                None => None,
                Some(_) => Some(loader.score(SCORE, config.hidden_size)?),
            },
            formats,
            config,
        };
        loader.refuse_strangers(&decoder.config)?;
        Ok(decoder)
    }

    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// How the weights are held.
    pub fn formats(&self) -> WeightFormats {
        self.formats
    }

    pub fn device(&self) -> Device {
        self.norm.weight.device()
    }

    /// Every linear layer that an adapter can be put on, in the order of the network.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.blocks.iter().flat_map(Block::projections)
    }

    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.blocks.iter_mut().flat_map(Block::projections_mut)
    }

    /// Has tensors of the model trained in full beside the adapters: those that `which` tells of a module's name and whether it
    /// has an adapter. They become `f32`. A table that is the output layer as well stays one table.
    pub(crate) fn train_in_full(&mut self, which: impl Fn(&str, bool) -> InFull) {
        let device = self.device();
        let dense = |weight: &mut Weight| weight.numbers = Numbers::Dense(weight.to_tensor(&device));
        for block in &mut self.blocks {
            for norm in block.norms_mut() {
                norm.in_full = which(&norm.name, false);
            }
            for projection in block.projections_mut() {
                projection.in_full = which(&projection.name, projection.lora.is_some());
                if projection.in_full.weight {
                    dense(&mut projection.weight);
                }
            }
        }
        self.norm.in_full = which(&self.norm.name, false);
        let names = self.config.names;
        let mark = |module: &str, name: &mut String, table: &mut Weight, weight: bool| {
            *name = InFull { weight, bias: false }.weight_name(module);
            if weight {
                dense(table);
            }
        };
        let [embeddings, output] = [names.embeddings, names.output].map(|module| which(module, false).weight);
        let shared = self.output.is_none() && output;
        mark(names.embeddings, &mut self.embeddings_name, &mut self.embeddings, embeddings || shared);
        if let (Some(module), Some(PositionTable { name, table, .. })) = (names.positions, &mut self.positions) {
            mark(module, name, table, which(module, false).weight);
        }
        if let Some(table) = &mut self.output {
            mark(names.output, &mut self.output_name, table, output);
        }
    }

    /// Shares that are dropped while training: of the attention's weights, and of what goes into the residuals.
    pub fn set_dropout(&mut self, attention: f32, residual: f32) {
        for (index, block) in (0..).zip(&mut self.blocks) {
            block.dropout = BlockDropout { attention, residual, index };
        }
    }

    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    /// Shares the memory of the decoder's own tensors.
    pub fn head(&self) -> Head {
        Head {
            norm: self.norm.clone(),
            output: self.output_layer(),
            output_name: match self.output {
                Some(_) => self.output_name.clone(),
                None => self.embeddings_name.clone(),
            },
            score: self.score.clone(),
        }
    }

    /// Makes it a reward model whose head is random, spread as transformers does (standard deviation 0.02).
    pub fn attach_score(&mut self, seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::MAX);
        // Irwin–Hall: the sum of twelve uniform numbers is near enough to a normal one.
        let mut number = || (0..12).map(|_| rng.random_range(-0.5..0.5f32)).sum::<f32>() * 0.02;
        let width = self.config.hidden_size;
        let numbers: Vec<f32> = (0..width).map(|_| number()).collect();
        self.set_score(numbers);
    }

    /// The head of a reward model: a number for each of the hidden features.
    pub fn set_score(&mut self, numbers: Vec<f32>) {
        let shape = [1, self.config.hidden_size];
        self.score = Some(Tensor::from_data(TensorData::new(numbers, shape), &self.device()));
    }

    pub fn score(&self) -> Option<&Tensor<2>> {
        self.score.as_ref()
    }

    /// The name of the embedding table among the parameters.
    pub fn embeddings_name(&self) -> &str {
        &self.embeddings_name
    }

    /// The name of the table of learned positions, and the row of it that each token takes.
    pub fn position_rows(&self, input: &Input) -> Option<(&str, Vec<u32>)> {
        self.positions.as_ref().map(|table| (table.name.as_str(), table.rows(&input.positions)))
    }

    /// Numbers in the base model.
    pub fn parameters(&self) -> u64 {
        self.config.parameters()
    }

    /// What turns hidden states into logits. Shares the memory of the decoder's own tensors.
    pub fn output_layer(&self) -> OutputLayer {
        let weight = self.output.as_ref().unwrap_or(&self.embeddings).clone();
        OutputLayer { weight, soft_cap: self.config.logit_soft_cap }
    }

    /// What the blocks must know about an input.
    pub fn pass(&self, input: &Input, mode: Mode) -> Pass {
        let tables = match &self.config.positions {
            Positions::Rotary(rotations) => rotations.iter().map(|rotation| rotation.table(input)).collect(),
            Positions::Learned { .. } => Vec::new(),
        };
        Pass { tables, segments: input.segments.clone(), mode }
    }

    /// `[tokens, hidden]`: what goes into the first block.
    pub fn embed(&self, input: &Input) -> Tensor<2> {
        let x = embedding(&self.embeddings, &input.ids, &self.device());
        let x = if self.config.embedding_scale == 1.0 { x } else { x * self.config.embedding_scale };
        match &self.positions {
            None => x,
            Some(table) => x + embedding(&table.table, &table.rows(&input.positions), &self.device()),
        }
    }

    /// `[tokens, hidden]` after the last norm. With a cache, `input` continues its sequences.
    pub fn hidden_states(&self, input: &Input, mut cache: Option<&mut KvCache>, mode: Mode) -> Tensor<2> {
        let pass = self.pass(input, mode);
        let mut x = self.embed(input);
        for (layer, block) in self.blocks.iter().enumerate() {
            let cache = cache.as_deref_mut().map(|cache| cache.layer(layer));
            x = block.forward_cached(x, &pass, cache);
        }
        self.norm.forward(x)
    }

    /// `[rows, vocabulary]` for a few rows of hidden states; training goes through `linear_cross_entropy` instead.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let OutputLayer { weight, soft_cap } = self.output_layer();
        let logits = linear(hidden, &weight, None);
        match soft_cap {
            None => logits,
            Some(cap) => (logits / cap).tanh() * cap,
        }
    }
}
