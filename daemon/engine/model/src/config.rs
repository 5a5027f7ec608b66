//! What a transformer looks like, whatever its family.

use justtrain_kernels::{Activation, Heads};
use justtrain_worker_api::{Problem, ProblemCode};

use crate::image;
use crate::names::{BlockNames, JointNames, Seq2SeqNames, WeightNames};
use crate::rotation::Rotation;

/// A first text and a second one.
pub(crate) const TOKEN_TYPES: usize = 2;

/// Sizes and constants of a transformer: blocks of grouped-query attention and a feed-forward network, each with a norm and
/// beside a residual. A decoder sees what came before, an encoder all of its text. Which parts a block has is told by the
/// names of its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub heads: Heads,
    /// 0 where images are read.
    pub vocab_size: usize,
    /// How an image becomes tokens, where images are read.
    pub patches: Option<Patches>,
    /// It has an output layer; encoders and classifiers have none.
    pub makes_words: bool,
    /// The output layer is the embedding table.
    pub tied_embeddings: bool,
    /// The longest sequence that the model was made for, in tokens.
    pub max_positions: usize,
    /// What embeddings are multiplied by.
    pub embedding_scale: f32,
    /// What hidden states are multiplied by before the output layer.
    pub output_scale: f32,
    /// The first blocks are an encoder's, where there are two stacks.
    pub seq2seq: Option<Seq2Seq>,
    pub positions: Positions,
    /// One for each block.
    pub layers: Vec<LayerConfig>,
    /// A token sees none that comes after it; false makes an encoder. Of two stacks this is the decoder's.
    pub causal: bool,
    pub norm_place: NormPlace,
    pub norm: NormKind,
    pub norm_epsilon: f32,
    /// What products of queries and keys are multiplied by.
    pub attention_scale: f32,
    pub attention_soft_cap: Option<f32>,
    pub logit_soft_cap: Option<f32>,
    pub mlp: MlpKind,
    /// What some or all layers have in place of one feed-forward network.
    pub experts: Option<ExpertsConfig>,
    pub biases: Biases,
    pub names: &'static WeightNames,
}

/// A square image cut into square patches, each a token, behind one token more that stands for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patches {
    /// Pixels along a side of the image.
    pub image_size: usize,
    /// Of a patch.
    pub patch_size: usize,
    pub channels: usize,
}

impl Patches {
    pub fn count(self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Numbers in a patch.
    pub fn numbers(self) -> usize {
        self.channels * self.patch_size * self.patch_size
    }

    /// Tokens of an image.
    pub fn tokens(self) -> usize {
        self.count() + 1
    }
}

/// Two stacks (Sutskever et al. 2014, arXiv 1409.3215): an encoder reads a source, and a decoder, which attends to that, says the
/// target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seq2Seq {
    pub encoder_blocks: usize,
    /// The token that every target begins with.
    pub start: u32,
    /// That which ends a source and a target.
    pub end: u32,
}

/// Which rows a block is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// There is no other.
    Only,
    Encoder,
    Decoder,
}

/// How a token's place in its sequence is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are rotated; layers name one of these by index.
    Rotary(Vec<Rotation>),
    /// A row of a table is added to the embedding: row `offset` for the first token.
    Learned { rows: usize, offset: usize },
    /// Scores have a bias by the distance of key and query, of which there are so many; all from the furthest on are one.
    Distances { buckets: usize, furthest: usize },
}

/// What differs from block to block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerConfig {
    /// A query sees itself and the keys before it, this many together.
    pub window: Option<usize>,
    /// Index of its [`Rotation`], where positions are rotary.
    pub rotation: usize,
    /// Its feed-forward network is a mixture of experts.
    pub experts: bool,
}

/// A mixture of experts (Shazeer et al. 2017, arXiv 1701.06538): feed-forward networks of which a router chooses a few
/// for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsConfig {
    pub count: usize,
    /// Experts that a token goes through.
    pub per_token: usize,
    /// Of each expert.
    pub intermediate_size: usize,
    /// The weights of a token's experts are divided by their sum.
    pub norm_weights: bool,
}

/// Where the norms of a block lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlace {
    /// Before attention and feed-forward network; the residual stays as it is.
    Before,
    /// After each residual (Vaswani et al. 2017, arXiv 1706.03762).
    After,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) · w`.
    Rms,
    /// `x / rms(x) · (1 + w)`.
    RmsOnePlus,
    /// LayerNorm, with a bias (Ba et al. 2016, arXiv 1607.06450).
    Layer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpKind {
    /// `down(activation(gate(x)) · up(x))`.
    Gated(Activation),
    /// `down(activation(up(x)))`.
    Plain(PlainActivation),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainActivation {
    /// GELU itself (Hendrycks & Gimpel 2016, arXiv 1606.08415).
    Gelu,
    GeluTanh,
    Relu,
}

/// Which linear layers of a block have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Biases {
    pub qkv: bool,
    pub attention_output: bool,
    pub mlp: bool,
}

/// A linear layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// Within the block, such as `self_attn.q_proj`.
    pub name: &'static str,
    pub outputs: usize,
    pub inputs: usize,
    pub bias: bool,
}

impl LinearShape {
    /// The last part of its name, which adapters are targeted by.
    pub fn target(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

impl DecoderConfig {
    /// Widths of queries, keys and values.
    pub fn qkv_widths(&self) -> [usize; 3] {
        let Heads { query, key_value, dim } = self.heads;
        [query * dim, key_value * dim, key_value * dim]
    }

    pub fn stack(&self, layer: usize) -> Stack {
        match self.seq2seq {
            None => Stack::Only,
            Some(Seq2Seq { encoder_blocks, .. }) if layer < encoder_blocks => Stack::Encoder,
            Some(_) => Stack::Decoder,
        }
    }

    /// The names of a decoder of two stacks, where the block is one of its.
    pub(crate) fn decoder_names(&self, layer: usize) -> Option<&'static Seq2SeqNames> {
        self.names.seq2seq.as_ref().filter(|_| self.stack(layer) == Stack::Decoder)
    }

    pub(crate) fn block_names(&self, layer: usize) -> &'static BlockNames {
        self.decoder_names(layer).map_or(&self.names.block, |names| &names.block)
    }

    /// The full name of a part of a block.
    pub fn module(&self, layer: usize, part: &str) -> String {
        let first = self.seq2seq.map_or(0, |stacks| stacks.encoder_blocks);
        match self.decoder_names(layer) {
            None => format!("{}.{layer}.{part}", self.names.blocks),
            Some(names) => format!("{}.{}.{part}", names.blocks, layer - first),
        }
    }

    /// The linear layers of one block that adapters can be put on, in the order of the network. Beside experts these are
    /// attention's alone: PEFT has no name for a feed-forward network there that is not also that of every expert.
    pub fn linears(&self, layer: usize) -> Vec<LinearShape> {
        let mut linears = self.qkv(layer);
        linears.push(self.attention_output(layer));
        linears.extend(self.cross_linears(layer));
        if self.experts.is_none() {
            linears.extend(self.up(layer, self.intermediate_size));
            linears.push(self.down(layer, self.intermediate_size));
        }
        linears
    }

    /// Norms of the whole hidden state in one block.
    pub fn block_norms(&self, layer: usize) -> usize {
        let names = self.block_names(layer);
        let outputs = [names.attention_output_norm, names.mlp_output_norm];
        2 + outputs.iter().flatten().count() + usize::from(self.decoder_names(layer).is_some())
    }

    /// Whether queries and keys are normed head by head.
    pub fn has_qk_norms(&self) -> bool {
        self.names.block.qk_norms.is_some()
    }

    /// Shape of the table of learned positions, where there is one.
    pub fn position_table(&self) -> Option<[usize; 2]> {
        match self.positions {
            Positions::Learned { rows, .. } => Some([rows, self.hidden_size]),
            Positions::Rotary(_) | Positions::Distances { .. } => None,
        }
    }

    /// Module and shape of each table of biases by distance: the encoder's, and the decoder's.
    pub fn position_biases(&self) -> Vec<(&'static str, [usize; 2])> {
        let modules = self.names.seq2seq.as_ref().map(|names| names.position_biases).into_iter().flatten();
        match self.positions {
            Positions::Distances { buckets, .. } => modules.map(|name| (name, [buckets, self.heads.query])).collect(),
            Positions::Rotary(_) | Positions::Learned { .. } => Vec::new(),
        }
    }

    /// The longest sequence that `prompt` tokens can grow into, with a cache that keeps the keys as they were rotated.
    pub fn answer_limit(&self, prompt: usize) -> usize {
        let turning_points = match &self.positions {
            Positions::Rotary(rotations) => rotations.iter().filter_map(Rotation::turning_point).collect(),
            Positions::Learned { .. } | Positions::Distances { .. } => Vec::new(),
        };
        turning_points.into_iter().filter(|&point| prompt <= point).fold(self.max_positions, usize::min)
    }

    /// Tokens of the longest sequence that can be computed at all: learned positions end.
    pub fn longest_sequence(&self) -> Option<usize> {
        matches!(self.positions, Positions::Learned { .. }).then_some(self.max_positions)
    }

    /// Of an output layer that is a matrix of its own.
    pub fn output_weight(&self) -> Option<String> {
        self.names.output_weight().filter(|_| self.makes_words && !self.tied_embeddings)
    }

    /// Numbers in the base model.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// The matrices of one block's feed-forward network that a token is multiplied by, `[outputs, inputs]`.
    pub fn feed_forward(&self, layer: usize) -> Vec<[usize; 2]> {
        let times = self.experts_of(layer).map_or(1, |experts| experts.per_token);
        let Some(network) = self.networks(layer).into_iter().next() else { return Vec::new() };
        let matrix = |(_, linear): &(String, LinearShape)| [linear.outputs, linear.inputs];
        let one: Vec<[usize; 2]> = network.up.iter().chain([&network.down]).map(matrix).collect();
        self.router(layer).map(|(_, shape)| shape).into_iter().chain(one.repeat(times)).collect()
    }

    /// Name and shape of every tensor of the base model, in the order of the network.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let names = self.names;
        let (table, mut tensors) = (vec![self.vocab_size, self.hidden_size], Vec::new());
        match self.patches {
            None => tensors.push((format!("{}.weight", names.embeddings), table.clone())),
            Some(patches) => tensors.extend(image::tensors(names.embeddings, patches, self.hidden_size)),
        }
        let positions = names.positions.zip(self.position_table()).filter(|_| self.patches.is_none());
        tensors.extend(positions.map(|(name, shape)| (format!("{name}.weight"), shape.to_vec())));
        let types = names.token_types.map(|name| (format!("{name}.weight"), vec![TOKEN_TYPES, self.hidden_size]));
        tensors.extend(types);
        let norm = |name: String, width: usize| {
            let parts = ["weight", "bias"].into_iter().take(self.norm.vectors());
            parts.map(move |part| (format!("{name}.{part}"), vec![width]))
        };
        let embedding_norm = names.embedding_norm.map(|name| norm(name.to_owned(), self.hidden_size));
        tensors.extend(embedding_norm.into_iter().flatten());
        let biases = self.position_biases().into_iter();
        tensors.extend(biases.map(|(name, shape)| (format!("{name}.weight"), shape.to_vec())));
        for layer in 0..self.layers.len() {
            let (block, decoder) = (self.block_names(layer), self.decoder_names(layer));
            let full = |part: &str| self.module(layer, part);
            let linear = |(name, shape): (String, LinearShape)| {
                let bias = shape.bias.then(|| (format!("{name}.bias"), vec![shape.outputs]));
                let weight = (format!("{name}.weight"), vec![shape.outputs, shape.inputs]);
                std::iter::once(weight).chain(bias)
            };
            let of_attention = |shape: LinearShape| linear((full(shape.name), shape));
            let of_block = |part: &'static str| norm(full(part), self.hidden_size);
            tensors.extend(of_block(block.attention_norm));
            tensors.extend(self.qkv(layer).into_iter().flat_map(of_attention));
            let of_heads = block.qk_norms.into_iter().flatten();
            tensors.extend(of_heads.flat_map(|part| norm(full(part), self.heads.dim)));
            tensors.extend(of_attention(self.attention_output(layer)));
            tensors.extend(block.attention_output_norm.into_iter().flat_map(of_block));
            tensors.extend(decoder.into_iter().flat_map(|decoder| of_block(decoder.cross_norm)));
            tensors.extend(self.cross_linears(layer).into_iter().flat_map(of_attention));
            tensors.extend(of_block(block.mlp_norm));
            tensors.extend(self.router(layer).map(|(name, shape)| (format!("{name}.weight"), shape.to_vec())));
            let networks = self.networks(layer).into_iter();
            tensors.extend(networks.flat_map(|network| network.up.into_iter().chain([network.down])).flat_map(linear));
            tensors.extend(block.mlp_output_norm.into_iter().flat_map(of_block));
            let encoder_norm = self.encoder_norm(layer).map(|name| norm(name.to_owned(), self.hidden_size));
            tensors.extend(encoder_norm.into_iter().flatten());
        }
        let last_norm = names.norm.map(|name| norm(name.to_owned(), self.hidden_size));
        tensors.extend(last_norm.into_iter().flatten());
        tensors.extend(self.output_weight().map(|output| (output, table)));
        if let Some(pooler) = names.classifier.pooler {
            tensors.push((format!("{pooler}.weight"), vec![self.hidden_size; 2]));
            tensors.push((format!("{pooler}.bias"), vec![self.hidden_size]));
        }
        tensors
    }

    /// `InvalidValue` where one of the blocks is not there. Blocks of two stacks are counted in each.
    pub fn check_layers(&self, layers: &[usize]) -> Result<(), Problem> {
        let of_encoder = self.seq2seq.map_or(0, |stacks| stacks.encoder_blocks);
        let count = of_encoder.max(self.layers.len() - of_encoder);
        let Some(beyond) = layers.iter().find(|&&layer| layer >= count) else { return Ok(()) };
        Err(Problem::error(ProblemCode::InvalidValue, "this model has no such block", "该模型没有这一块")
            .key("layers_to_transform")
            .found(beyond)
            .expected(format!("0 to {}", count - 1))
            .fix("write numbers from this range", "请写这个范围内的编号"))
    }

    /// The number of the block that a tensor is in, and its name there: 3 and `mlp.up_proj.weight`. The norm of an encoder that
    /// is the first of two stacks is in its last block.
    pub fn place_in_block<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let within = |blocks: &str| {
            let (layer, rest) = name.strip_prefix(blocks)?.strip_prefix('.')?.split_once('.')?;
            Some((layer.parse::<usize>().ok()?, rest))
        };
        let of_decoder = || {
            let (names, stacks) = (self.names.seq2seq.as_ref()?, self.seq2seq?);
            if name.starts_with(names.encoder_norm) {
                return Some((stacks.encoder_blocks - 1, name.split_once('.')?.1));
            }
            within(names.blocks).map(|(layer, rest)| (stacks.encoder_blocks + layer, rest))
        };
        within(self.names.blocks).or_else(of_decoder)
    }

    /// The norm of the encoder, where the block is its last.
    pub(crate) fn encoder_norm(&self, layer: usize) -> Option<&'static str> {
        let names = self.names.seq2seq.as_ref()?;
        self.seq2seq.filter(|stacks| layer + 1 == stacks.encoder_blocks).map(|_| names.encoder_norm)
    }

    pub(crate) fn qkv(&self, layer: usize) -> Vec<LinearShape> {
        joint(&self.block_names(layer).qkv, &self.qkv_widths(), self.hidden_size, self.biases.qkv)
    }

    pub(crate) fn attention_output(&self, layer: usize) -> LinearShape {
        self.output_of(self.block_names(layer).attention_output)
    }

    /// Queries, keys, values and output of a decoder's attention to the encoder's tokens.
    pub(crate) fn cross_linears(&self, layer: usize) -> Vec<LinearShape> {
        let Some(names) = self.decoder_names(layer) else { return Vec::new() };
        let shape = |(name, outputs)| LinearShape { name, outputs, inputs: self.hidden_size, bias: self.biases.qkv };
        let qkv = names.cross_qkv.into_iter().zip(self.qkv_widths()).map(shape);
        qkv.chain([self.output_of(names.cross_output)]).collect()
    }

    /// Whether a linear layer of a decoder is multiplied by what the encoder has made.
    pub fn reads_sources(&self, linear: &LinearShape) -> bool {
        self.names.seq2seq.as_ref().is_some_and(|names| names.cross_qkv[1..].contains(&linear.name))
    }

    fn output_of(&self, name: &'static str) -> LinearShape {
        LinearShape {
            name,
            outputs: self.hidden_size,
            inputs: self.qkv_widths()[0],
            bias: self.biases.attention_output,
        }
    }

    /// The feed-forward networks of a block: the one, or one for each expert.
    pub(crate) fn networks(&self, layer: usize) -> Vec<Network> {
        let network = |width: usize, name: &dyn Fn(&'static str) -> String| {
            let named = |shape: LinearShape| (self.module(layer, &name(shape.name)), shape);
            let (up, down) = (self.up(layer, width), named(self.down(layer, width)));
            Network { up: up.into_iter().map(named).collect(), widths: self.up_widths(width), down }
        };
        let (Some(experts), Some(names)) = (self.experts_of(layer), &self.names.block.experts) else {
            return vec![network(self.intermediate_size, &str::to_owned)];
        };
        let expert = |index: usize| {
            let name = |part: &'static str| {
                format!("{}.{index}.{}", names.experts, part.rsplit('.').next().unwrap_or_default())
            };
            network(experts.intermediate_size, &name)
        };
        (0..experts.count).map(expert).collect()
    }

    /// What chooses a block's experts: its name, and `[experts, hidden]`.
    pub(crate) fn router(&self, layer: usize) -> Option<(String, [usize; 2])> {
        let (experts, names) = (self.experts_of(layer)?, self.names.block.experts.as_ref()?);
        Some((self.module(layer, names.router), [experts.count, self.hidden_size]))
    }

    /// What a block has in place of one feed-forward network.
    pub fn experts_of(&self, layer: usize) -> Option<ExpertsConfig> {
        self.experts.filter(|_| self.layers[layer].experts)
    }

    /// Whether a tensor is that of an expert, which no gradient reaches in a batch where no token went there.
    pub fn is_of_expert(&self, tensor: &str) -> bool {
        let part = self.place_in_block(tensor).map(|(_, part)| part);
        let names = self.names.block.experts.as_ref().zip(part);
        names.is_some_and(|(names, part)| part.strip_prefix(names.experts).is_some_and(|rest| rest.starts_with('.')))
    }

    fn up(&self, layer: usize, width: usize) -> Vec<LinearShape> {
        joint(&self.block_names(layer).up, &self.up_widths(width), self.hidden_size, self.biases.mlp)
    }

    /// Gate and up, or up alone.
    fn up_widths(&self, width: usize) -> Vec<usize> {
        match self.mlp {
            MlpKind::Gated(_) => vec![width; 2],
            MlpKind::Plain(_) => vec![width],
        }
    }

    fn down(&self, layer: usize, width: usize) -> LinearShape {
        let name = self.block_names(layer).down;
        LinearShape { name, outputs: self.hidden_size, inputs: width, bias: self.biases.mlp }
    }
}

/// The linear layers of one feed-forward network, by their full names.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) up: Vec<(String, LinearShape)>,
    /// Of what `up` makes.
    pub(crate) widths: Vec<usize>,
    pub(crate) down: (String, LinearShape),
}

impl NormKind {
    /// How many vectors a norm of the kind has.
    pub fn vectors(self) -> usize {
        if self == Self::Layer { 2 } else { 1 }
    }
}

fn joint(names: &JointNames, widths: &[usize], inputs: usize, bias: bool) -> Vec<LinearShape> {
    match names {
        JointNames::Apart(names) => {
            let shape = |(&name, &outputs)| LinearShape { name, outputs, inputs, bias };
            names.iter().zip(widths).map(shape).collect()
        }
        JointNames::Fused(name) => vec![LinearShape { name, outputs: widths.iter().sum(), inputs, bias }],
    }
}
