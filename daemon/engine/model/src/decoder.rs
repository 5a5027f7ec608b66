//! The transformer: the only network there is. Most of its families are decoders, hence its name; an encoder is one whose tokens
//! see all of their text, and that has a classifier in place of an output layer. Where there are two stacks, the first blocks are
//! an encoder's, and the rows of sources and targets go through all of them.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use justtrain_kernels::{Buckets, Factors, Numbers, OutputLayer, Segments, Weight};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::Problem;

use crate::block::{Block, BlockDropout, Pass};
use crate::classifier::{self, Classifier};
use crate::config::{Patches, Positions};
use crate::embeddings::{self, Embeddings};
use crate::generate::KvCache;
use crate::image;
use crate::layers::{BiasTable, InFull, Lora, Norm, Projection};
use crate::parameters::{Parameter, Parameters};
use crate::weights::Loader;
use crate::{DecoderConfig, WeightFormats, families};

/// Tokens of several sequences one after the other, without padding.
#[derive(Debug, Clone)]
pub struct Input {
    pub ids: Vec<u32>,
    /// From 0 within each sequence.
    pub positions: Vec<u32>,
    /// Which of a pair's texts a token is in; empty where all are in the first.
    pub types: Vec<u32>,
    /// `[images · patches, numbers of a patch]`, where images are read; the ids say nothing then.
    pub patches: Option<Tensor<2>>,
    /// Which tokens attend to which; of two stacks the targets' alone.
    pub segments: Arc<Segments>,
    /// What the targets are answers to, where there are two stacks.
    pub sources: Option<Sources>,
}

/// What an encoder reads.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Of their tokens, which come behind all of the targets; 0 where a cache has them.
    pub rows: usize,
    /// Which of these attend to which.
    pub(crate) segments: Arc<Segments>,
    /// Each target's rows and its source's.
    pub(crate) pairs: Arc<Segments>,
}

impl Input {
    /// Whole sequences; `starts` holds each one's first token and, last, the number of all.
    pub fn packed(ids: Vec<u32>, starts: &[usize]) -> Self {
        let positions = starts.windows(2).flat_map(|pair| 0..(pair[1] - pair[0]) as u32).collect();
        let segments = Arc::new(Segments::packed(starts));
        Self { ids, positions, types: Vec::new(), patches: None, segments, sources: None }
    }

    /// One source for each of its sequences, which are the targets; as [`Self::packed`] has them.
    pub fn with_sources(mut self, ids: &[u32], starts: &[usize]) -> Self {
        let read = starts.windows(2).map(|pair| pair[0]..pair[1]);
        let pairs = self.segments.sequences().map(|(target, _)| target).zip(read);
        self.sources = Some(Sources {
            rows: ids.len(),
            segments: Arc::new(Segments::packed(starts)),
            pairs: Arc::new(Segments::cached(pairs)),
        });
        self.ids.extend(ids);
        self.positions.extend(starts.windows(2).flat_map(|pair| 0..(pair[1] - pair[0]) as u32));
        self
    }

    /// The same where a cache has what was made of the sources, which lay in these rows.
    pub(crate) fn with_sources_read(mut self, rows: impl Iterator<Item = Range<usize>>) -> Self {
        let pairs = self.segments.sequences().map(|(target, _)| target).zip(rows);
        let pairs = Arc::new(Segments::cached(pairs));
        self.sources = Some(Sources { rows: 0, segments: Arc::new(Segments::packed(&[])), pairs });
        self
    }

    /// The rows of each sequence: of two stacks the targets', then the sources'.
    pub fn sequences(&self) -> impl Iterator<Item = Range<usize>> {
        let sources = self.sources.iter().flat_map(|sources| {
            let first = self.ids.len() - sources.rows;
            sources.segments.sequences().map(move |(rows, _)| rows.start + first..rows.end + first)
        });
        self.segments.sequences().map(|(rows, _)| rows).chain(sources)
    }

    /// Images, each `[channels, size, size]`, one after the other; there are as many ids for each as it has tokens.
    pub fn with_images(mut self, images: &[Vec<f32>], patches: Patches, device: &Device) -> Self {
        self.patches = Some(Tensor::from_data(image::cut(images, patches), device));
        self
    }

    /// `types` may end before the last token: those after are in the first text.
    pub fn with_types(mut self, mut types: Vec<u32>) -> Self {
        if !types.is_empty() {
            types.resize(self.ids.len(), 0);
            self.types = types;
        }
        self
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
    embeddings: Embeddings,
    /// One for each stack, where positions are told by distance.
    position_biases: Vec<BiasTable>,
    blocks: Vec<Block>,
    norm: Option<Norm>,
    /// None where the embedding table is the output layer, and in encoders.
    output: Option<Table>,
    /// The adapter of the output layer, whichever table that is.
    head_lora: Option<Lora>,
    /// What makes it a classifier or a reward model.
    classifier: Option<Classifier>,
    /// The part of a classifier that a model without one may have.
    pooler: Option<Projection>,
}

/// The output layer, by its name among the parameters.
#[derive(Debug, Clone)]
struct Table {
    name: String,
    weight: Weight,
}

/// What turns the last block's output into logits, or into what a classifier says.
#[derive(Debug, Clone)]
pub struct Head {
    norm: Option<Norm>,
    /// What hidden states are multiplied by after the norm.
    scale: f32,
    judge: HeadKind,
}

// There is one of them at a time.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
enum HeadKind {
    Language {
        output: OutputLayer,
        name: String,
        /// What the tensors of its adapter are named after.
        module: &'static str,
    },
    Classifier(Classifier),
    /// An encoder that is no classifier yet.
    None,
}

impl Head {
    /// The normed hidden states and the output layer.
    ///
    /// # Panics
    /// Where it is the head of a classifier, which has no words.
    pub fn normed(&self, x: Tensor<2>) -> (Tensor<2>, &OutputLayer) {
        let HeadKind::Language { output, .. } = &self.judge else { panic!("a classifier makes no words") };
        (self.norm(x), output)
    }

    fn norm(&self, x: Tensor<2>) -> Tensor<2> {
        let x = match &self.norm {
            None => x,
            Some(norm) => norm.forward(x),
        };
        if self.scale == 1.0 { x } else { x * self.scale }
    }

    /// `[sequences, labels]`: what a classifier says of each sequence of an input, whose last block gave `x`.
    ///
    /// # Panics
    /// Where it is no classifier.
    pub fn classes(&self, x: Tensor<2>, input: &Input, mode: Mode) -> Tensor<2> {
        let HeadKind::Classifier(classifier) = &self.judge else { panic!("only a classifier has classes") };
        let x = classifier::select(x, &classifier.rows(input));
        classifier.logits(self.norm(x), mode)
    }
}

impl Parameters for Head {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let mut parameters: Vec<Parameter<'_>> = self.norm.iter_mut().flat_map(Norm::parameters_mut).collect();
        // A reward model has no use for logits.
        match &mut self.judge {
            HeadKind::Language { output, name, module } => {
                parameters.push(Parameter::weight(name.clone(), &mut output.weight));
                if let Some(Factors { a, b, .. }) = &mut output.adapter {
                    parameters.push(Parameter::matrix(format!("{module}.lora_A"), a));
                    parameters.push(Parameter::matrix(format!("{module}.lora_B"), b));
                }
            }
            HeadKind::Classifier(classifier) => parameters.extend(classifier.parameters_mut()),
            HeadKind::None => {}
        }
        parameters
    }
}

impl Parameters for Decoder {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let Self {
            config,
            formats: _,
            embeddings,
            position_biases,
            blocks,
            norm,
            output,
            head_lora,
            classifier,
            pooler,
        } = self;
        let mut parameters = embeddings.parameters_mut();
        parameters.extend(position_biases.iter_mut().map(BiasTable::parameter));
        parameters.extend(blocks.iter_mut().flat_map(Block::parameters_mut));
        parameters.extend(norm.iter_mut().flat_map(Norm::parameters_mut));
        parameters.extend(output.iter_mut().map(|Table { name, weight }| Parameter::weight(name.clone(), weight)));
        let head = config.names.output.unwrap_or_default();
        parameters.extend(head_lora.iter_mut().flat_map(|lora| lora.parameters_mut(head)));
        parameters.extend(pooler.iter_mut().flat_map(Projection::parameters_mut));
        parameters.extend(classifier.iter_mut().flat_map(Classifier::parameters_mut));
        parameters
    }
}

impl Decoder {
    /// Reads all weights. Fails with `UnknownArchitecture` or `ShapeMismatch`, and with `InvalidValue` where the
    /// formats do not fit the file.
    pub fn load(checkpoint: &Checkpoint, device: &Device, formats: WeightFormats) -> Result<Self, Problem> {
        let config = families::decoder_config(checkpoint)?;
        let (loader, names) = (Loader::new(checkpoint, device, formats, config.names), config.names);
        let blocks = (0..config.layers.len()).map(|layer| Block::load(&loader, &config, layer));
        let blocks = blocks.collect::<Result<_, Problem>>()?;
        let output = || {
            let name = config.output_weight()?;
            let weight = loader.table(&name, [config.vocab_size, config.hidden_size]);
            Some(weight.map(|weight| Table { name, weight }))
        };
        let classifier = Classifier::load(&loader, checkpoint, &config)?;
        let decoder = Self {
            embeddings: Embeddings::load(&loader, &config)?,
            position_biases: position_biases(&loader, &config)?,
            blocks,
            norm: names.norm.map(|name| loader.norm(name.to_owned(), config.hidden_size, &config)).transpose()?,
            output: output().transpose()?,
            head_lora: None,
            pooler: if classifier.is_some() { None } else { classifier::pooler(&loader, &config)? },
            classifier,
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
        self.blocks[0].device()
    }

    /// Every linear layer that an adapter can be put on, in the order of the network.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        let pooler = self.classifier.as_ref().and_then(Classifier::pooler);
        self.blocks.iter().flat_map(Block::projections).chain(pooler)
    }

    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let pooler = self.classifier.as_mut().and_then(Classifier::pooler_mut);
        self.blocks.iter_mut().flat_map(Block::projections_mut).chain(pooler)
    }

    /// Has tensors of the model trained in full beside the adapters: those that `which` tells of a module's name and whether it
    /// has an adapter. They become `f32`. A table that is the output layer as well stays one table.
    pub(crate) fn train_in_full(&mut self, which: impl Fn(&str, bool) -> InFull) {
        let device = self.device();
        let dense = |weight: &mut Weight| weight.numbers = Numbers::Dense(weight.to_tensor(&device));
        let names = self.config.names;
        let norms = self.blocks.iter_mut().flat_map(Block::norms_mut);
        for norm in norms.chain(&mut self.norm).chain(&mut self.embeddings.norm) {
            norm.in_full = which(&norm.name, false);
        }
        self.classifier.iter_mut().for_each(Classifier::train_new_pooler);
        for projection in self.projections_mut() {
            projection.in_full = which(&projection.name, projection.lora.is_some());
            if projection.in_full.weight {
                dense(&mut projection.weight);
            }
        }
        for table in &mut self.position_biases {
            table.in_full = InFull { weight: which(table.module, false).weight, bias: false };
        }
        let mark = |module: &str, name: &mut String, table: &mut Weight, weight: bool| {
            *name = InFull { weight, bias: false }.weight_name(module);
            if weight {
                dense(table);
            }
        };
        let output = names.output.map(|module| (module, which(module, false).weight));
        let shared = self.config.tied_embeddings && output.is_some_and(|(_, trained)| trained);
        for (index, table) in self.embeddings.tables.iter_mut().enumerate() {
            let trained = which(table.module, false).weight || (index == 0 && shared);
            mark(table.module, &mut table.name, &mut table.weight, trained);
        }
        if let (Some((module, trained)), Some(Table { name, weight })) = (output, &mut self.output) {
            mark(module, name, weight, trained);
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

    pub fn embeddings(&self) -> &Embeddings {
        &self.embeddings
    }

    pub(crate) fn token_table(&self) -> Option<&embeddings::Table> {
        self.embeddings.tokens()
    }

    pub(crate) fn token_table_mut(&mut self) -> Option<&mut embeddings::Table> {
        self.embeddings.tokens_mut()
    }

    /// The adapter of the output layer.
    pub fn head_lora(&self) -> Option<&Lora> {
        self.head_lora.as_ref()
    }

    pub(crate) fn head_lora_mut(&mut self) -> Option<&mut Lora> {
        self.head_lora.as_mut()
    }

    pub(crate) fn set_head_lora(&mut self, lora: Lora) {
        self.head_lora = Some(lora);
    }

    /// Shares the memory of the decoder's own tensors. With the mode's dropout, where there is some.
    pub fn head(&self, mode: Mode) -> Head {
        let judge = match (&self.classifier, self.makes_words()) {
            (Some(classifier), _) => HeadKind::Classifier(classifier.clone()),
            (None, false) => HeadKind::None,
            (None, true) => {
                let name = self.output.as_ref().map_or(self.embeddings_name(), |output| &output.name);
                let module = self.config.names.output.unwrap_or_default();
                HeadKind::Language { output: self.output_layer(mode), name: name.to_owned(), module }
            }
        };
        Head { norm: self.norm.clone(), scale: self.config.output_scale, judge }
    }

    /// Whether it can say what comes next, as encoders cannot.
    pub fn makes_words(&self) -> bool {
        self.config.makes_words
    }

    /// Makes it a classifier of these labels, or with one a reward model, whose head is random. What a classifier before
    /// had of a pooler stays; an adapter of the output layer, which it no longer has, does not.
    pub fn attach_classifier(&mut self, labels: Vec<String>, seed: u64) {
        let pooler = self.pooler.take().or(self.classifier.take().and_then(Classifier::into_pooler));
        self.head_lora = None;
        self.classifier = Some(Classifier::new(&self.config, pooler, labels, &self.device(), seed));
    }

    /// Has it judge by these labels: with the head that it has, where that is of as many and of the same or of unnamed ones,
    /// else with a new one.
    pub fn classify(&mut self, labels: Vec<String>, seed: u64) {
        match self.classifier.as_mut().filter(|classifier| classifier.can_mean(&labels)) {
            Some(classifier) => classifier.set_labels(labels),
            None => self.attach_classifier(labels, seed),
        }
    }

    /// Has it make words again.
    pub fn forget_classifier(&mut self) {
        self.pooler = self.classifier.take().and_then(Classifier::into_pooler).or(self.pooler.take());
    }

    /// Makes it a reward model with a number for each of the hidden features.
    pub fn set_score(&mut self, numbers: Vec<f32>) {
        self.attach_classifier(vec!["LABEL_0".to_owned()], 0);
        self.classifier.iter_mut().for_each(|head| head.set_weight(numbers.clone()));
    }

    pub fn classifier(&self) -> Option<&Classifier> {
        self.classifier.as_ref()
    }

    /// The name of the embedding table among the parameters; empty where images are read.
    pub fn embeddings_name(&self) -> &str {
        self.embeddings.tokens().map_or("", |table| &table.name)
    }

    /// Numbers in the base model.
    pub fn parameters(&self) -> u64 {
        self.config.parameters()
    }

    /// What turns hidden states into logits. Shares the memory of the decoder's own tensors.
    pub fn output_layer(&self, mode: Mode) -> OutputLayer {
        let table = || self.embeddings.tokens().map(|table| &table.weight);
        let weight = self.output.as_ref().map(|output| &output.weight).or_else(table);
        OutputLayer {
            weight: weight.expect("whoever makes words has an output layer").clone(),
            soft_cap: self.config.logit_soft_cap,
            adapter: self.head_lora.as_ref().filter(|_| mode.adapter).map(|lora| lora.factors(mode.dropout_seed)),
        }
    }

    /// What the blocks must know about an input.
    pub fn pass(&self, input: &Input, mode: Mode) -> Pass {
        let tables = match &self.config.positions {
            Positions::Rotary(rotations) => rotations.iter().map(|rotation| rotation.table(input)).collect(),
            Positions::Learned { .. } | Positions::Distances { .. } => Vec::new(),
        };
        let (segments, sources) = (input.segments.clone(), input.sources.clone());
        Pass { tables, biases: self.position_biases.clone(), segments, sources, mode }
    }

    /// `[tokens, hidden]`: what goes into the first block.
    pub fn embed(&self, input: &Input, mode: Mode) -> Tensor<2> {
        let sum = self.embeddings.sum(input, &self.device(), mode.adapter);
        self.embeddings.norm().map_or(sum.clone(), |norm| norm.forward(sum))
    }

    /// `[tokens, hidden]`, what the output layer takes. With a cache, `input` continues its sequences.
    pub fn hidden_states(&self, input: &Input, cache: Option<&mut KvCache>, mode: Mode) -> Tensor<2> {
        self.head(mode).norm(self.last_block(input, cache, mode))
    }

    /// `[sequences, labels]`: what a classifier says.
    ///
    /// # Panics
    /// Where it is no classifier.
    pub fn classes(&self, input: &Input, mode: Mode) -> Tensor<2> {
        self.head(mode).classes(self.last_block(input, None, mode), input, mode)
    }

    fn last_block(&self, input: &Input, mut cache: Option<&mut KvCache>, mode: Mode) -> Tensor<2> {
        let pass = self.pass(input, mode);
        let mut x = self.embed(input, mode);
        for (layer, block) in self.blocks.iter().enumerate() {
            let cache = cache.as_deref_mut().map(|cache| cache.layer(layer));
            x = block.forward_cached(x, &pass, cache);
        }
        x
    }

    /// `[rows, vocabulary]` for a few rows of hidden states; training goes through `linear_cross_entropy` instead.
    pub fn logits(&self, hidden: Tensor<2>, mode: Mode) -> Tensor<2> {
        self.output_layer(mode).logits(hidden)
    }
}

fn position_biases(loader: &Loader<'_>, config: &DecoderConfig) -> Result<Vec<BiasTable>, Problem> {
    let Positions::Distances { furthest, .. } = config.positions else { return Ok(Vec::new()) };
    let table = |(index, (module, shape)): (usize, (&'static str, [usize; 2]))| {
        let weight = loader.reshaped(&format!("{module}.weight"), &shape, shape)?;
        let buckets = Buckets { count: shape[0], furthest, both_sides: index == 0 };
        Ok(BiasTable { module, in_full: InFull::default(), weight, buckets })
    };
    config.position_biases().into_iter().enumerate().map(table).collect()
}
