//! The decoder-only transformer: the only network there is.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use justtrain_kernels::{RotaryTable, Segments, Weight, embedding, linear, rms_norm};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::Problem;

use crate::block::{Block, Pass};
use crate::generate::KvCache;
use crate::layers::{Attention, Mlp, Projection};
use crate::parameters::{Parameter, Parameters};
use crate::weights::Loader;
use crate::{DecoderConfig, WeightFormats, families};

const EMBEDDINGS: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const OUTPUT: &str = "lm_head.weight";

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
    blocks: Vec<Block>,
    norm: Tensor<1>,
    /// None where the embedding table is the output layer.
    output: Option<Weight>,
}

/// What turns the last block's output into logits.
#[derive(Debug, Clone)]
pub struct Head {
    norm: Tensor<1>,
    output: Weight,
    output_name: &'static str,
    epsilon: f32,
}

impl Head {
    /// The normed hidden states and the output layer's weight.
    pub fn normed(&self, x: Tensor<2>) -> (Tensor<2>, &Weight) {
        (rms_norm(x, self.norm.clone(), self.epsilon), &self.output)
    }
}

impl Parameters for Head {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::vector(NORM.to_owned(), &mut self.norm),
            Parameter::weight(self.output_name.to_owned(), &mut self.output),
        ]
    }
}

impl Parameters for Decoder {
    fn parameters_mut(&mut self) -> Vec<Parameter<'_>> {
        let mut parameters = vec![Parameter::weight(EMBEDDINGS.to_owned(), &mut self.embeddings)];
        parameters.extend(self.blocks.iter_mut().flat_map(Block::parameters_mut));
        parameters.push(Parameter::vector(NORM.to_owned(), &mut self.norm));
        if let Some(output) = &mut self.output {
            parameters.push(Parameter::weight(OUTPUT.to_owned(), output));
        }
        parameters
    }
}

impl Decoder {
    /// Reads all weights. Fails with `UnknownArchitecture` or `ShapeMismatch`, and with `InvalidValue` where the
    /// formats do not fit the file.
    pub fn load(checkpoint: &Checkpoint, device: &Device, formats: WeightFormats) -> Result<Self, Problem> {
        let config = families::decoder_config(checkpoint)?;
        let loader = Loader::new(checkpoint, device, formats);
        let (hidden, heads) = (config.hidden_size, config.heads);
        let (query, key_value) = (heads.query * heads.dim, heads.key_value * heads.dim);
        let blocks = (0..config.layers)
            .map(|layer| {
                let prefix = format!("model.layers.{layer}");
                let projection =
                    |name: &str, outputs, inputs| loader.projection(format!("{prefix}.{name}"), [outputs, inputs]);
                Ok(Block {
                    name: prefix.clone(),
                    input_norm: loader.vector(&format!("{prefix}.input_layernorm.weight"), hidden)?,
                    attention: Attention {
                        q: projection("self_attn.q_proj", query, hidden)?,
                        k: projection("self_attn.k_proj", key_value, hidden)?,
                        v: projection("self_attn.v_proj", key_value, hidden)?,
                        o: projection("self_attn.o_proj", hidden, query)?,
                        heads,
                    },
                    post_attention_norm: loader.vector(&format!("{prefix}.post_attention_layernorm.weight"), hidden)?,
                    mlp: Mlp {
                        gate: projection("mlp.gate_proj", config.intermediate_size, hidden)?,
                        up: projection("mlp.up_proj", config.intermediate_size, hidden)?,
                        down: projection("mlp.down_proj", hidden, config.intermediate_size)?,
                    },
                })
            })
            .collect::<Result<_, Problem>>()?;
        let table = [config.vocab_size, hidden];
        let decoder = Self {
            embeddings: loader.table(EMBEDDINGS, table)?,
            blocks,
            norm: loader.vector(NORM, hidden)?,
            output: match config.tied_embeddings {
                true => None,
                false => Some(loader.table(OUTPUT, table)?),
            },
            formats,
            config,
        };
        loader.refuse_strangers(decoder.config.tied_embeddings)?;
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
        self.norm.device()
    }

    /// Every linear layer, in the order of the network.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.blocks.iter().flat_map(Block::projections)
    }

    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.blocks.iter_mut().flat_map(Block::projections_mut)
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
            output: self.output_weight().clone(),
            output_name: if self.output.is_some() { OUTPUT } else { EMBEDDINGS },
            epsilon: self.config.rms_norm_eps,
        }
    }

    /// The name of the embedding table among the parameters.
    pub fn embeddings_name(&self) -> &'static str {
        EMBEDDINGS
    }

    /// Numbers in the base model.
    pub fn parameters(&self) -> u64 {
        let elements = |dims: &[usize]| dims.iter().product::<usize>() as u64;
        let norms = (2 * self.blocks.len() + 1) as u64 * self.config.hidden_size as u64;
        let tables = elements(&self.embeddings.dims()) * (1 + u64::from(self.output.is_some()));
        norms + tables + self.projections().map(|projection| elements(&projection.shape())).sum::<u64>()
    }

    /// `[vocabulary, hidden]`: what turns hidden states into logits.
    pub fn output_weight(&self) -> &Weight {
        self.output.as_ref().unwrap_or(&self.embeddings)
    }

    /// What the blocks must know about an input.
    pub fn pass(&self, input: &Input, mode: Mode) -> Pass {
        Pass {
            table: Arc::new(RotaryTable::new(&input.positions, &self.config.inverse_frequencies)),
            segments: input.segments.clone(),
            mode,
            epsilon: self.config.rms_norm_eps,
        }
    }

    /// `[tokens, hidden]`: what goes into the first block.
    pub fn embed(&self, ids: &[u32]) -> Tensor<2> {
        embedding(&self.embeddings, ids, &self.device())
    }

    /// `[tokens, hidden]` after the last norm. With a cache, `input` continues its sequences.
    pub fn hidden_states(&self, input: &Input, mut cache: Option<&mut KvCache>, mode: Mode) -> Tensor<2> {
        let pass = self.pass(input, mode);
        let mut x = self.embed(&input.ids);
        for (layer, block) in self.blocks.iter().enumerate() {
            let cache = cache.as_deref_mut().map(|cache| cache.layer(layer));
            x = block.forward_cached(x, &pass, cache);
        }
        rms_norm(x, self.norm.clone(), self.config.rms_norm_eps)
    }

    /// `[rows, vocabulary]` for a few rows of hidden states; training goes through `linear_cross_entropy` instead.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        linear(hidden, self.output_weight(), None)
    }
}
