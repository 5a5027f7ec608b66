//! The decoder-only transformer: the only network there is.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use justtrain_kernels::{RotaryTable, Segments, Weight, embedding, linear, rms_norm};
use justtrain_weights::Checkpoint;
use justtrain_worker_api::Problem;

use crate::generate::KvCache;
use crate::layers::{Attention, Mlp, Projection};
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
    blocks: Vec<Block>,
    norm: Tensor<1>,
    /// None where the embedding table is the output layer.
    output: Option<Weight>,
}

#[derive(Debug, Clone)]
struct Block {
    input_norm: Tensor<1>,
    attention: Attention,
    post_attention_norm: Tensor<1>,
    mlp: Mlp,
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
            embeddings: loader.table("model.embed_tokens.weight", table)?,
            blocks,
            norm: loader.vector("model.norm.weight", hidden)?,
            output: match config.tied_embeddings {
                true => None,
                false => Some(loader.table("lm_head.weight", table)?),
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

    /// The same weights without gradient tracking, sharing their memory: for evaluation and generation.
    pub fn without_gradients(&self) -> Self {
        let mut decoder = self.clone();
        decoder.embeddings = decoder.embeddings.inner();
        decoder.norm = decoder.norm.inner();
        decoder.output = decoder.output.map(Weight::inner);
        for block in &mut decoder.blocks {
            block.input_norm = block.input_norm.clone().inner();
            block.post_attention_norm = block.post_attention_norm.clone().inner();
        }
        for projection in decoder.projections_mut() {
            projection.weight = projection.weight.clone().inner();
            if let Some(lora) = &mut projection.lora {
                lora.a = lora.a.clone().inner();
                lora.b = lora.b.clone().inner();
            }
        }
        decoder
    }

    /// Every linear layer, in the order of the network.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.blocks.iter().flat_map(|Block { attention, mlp, .. }| {
            [&attention.q, &attention.k, &attention.v, &attention.o, &mlp.gate, &mlp.up, &mlp.down]
        })
    }

    pub fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.blocks.iter_mut().flat_map(|Block { attention, mlp, .. }| {
            [
                &mut attention.q,
                &mut attention.k,
                &mut attention.v,
                &mut attention.o,
                &mut mlp.gate,
                &mut mlp.up,
                &mut mlp.down,
            ]
        })
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

    /// `[tokens, hidden]` after the last norm. With a cache, `input` continues its sequences.
    pub fn hidden_states(&self, input: &Input, mut cache: Option<&mut KvCache>, mode: Mode) -> Tensor<2> {
        let table = Arc::new(RotaryTable::new(&input.positions, &self.config.inverse_frequencies));
        let epsilon = self.config.rms_norm_eps;
        let mut x = embedding(&self.embeddings, &input.ids, &self.device());
        for (layer, block) in self.blocks.iter().enumerate() {
            let cache = cache.as_deref_mut().map(|cache| cache.layer(layer));
            let normed = rms_norm(x.clone(), block.input_norm.clone(), epsilon);
            x = x + block.attention.forward(normed, &table, &input.segments, cache, mode);
            let normed = rms_norm(x.clone(), block.post_attention_norm.clone(), epsilon);
            x = x + block.mlp.forward(normed, mode);
        }
        rms_norm(x, self.norm.clone(), epsilon)
    }

    /// `[rows, vocabulary]` for a few rows of hidden states; training goes through `linear_cross_entropy` instead.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        linear(hidden, self.output_weight(), None)
    }
}
