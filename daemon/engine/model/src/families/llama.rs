//! `llama`: SmolLM2, Llama 2 and 3, TinyLlama; and what its descendants share with it.

use justtrain_kernels::Activation;
use justtrain_worker_api::Problem;

use super::reader::ConfigReader;
use super::{Family, rope};
use crate::config::{Biases, DecoderConfig, LayerConfig, MlpKind, NormKind, NormPlace, Positions};
use crate::names;

/// What transformers' llama can be and this one is not.
const FIXED: &[(&str, &str)] = &[("sliding_window", "null")];

pub(super) struct Llama;

impl Family for Llama {
    fn model_type(&self) -> &'static str {
        "llama"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        config.require(FIXED)?;
        let attention = config.flag_or("attention_bias", false)?;
        let mlp = config.flag_or("mlp_bias", false)?;
        Ok(DecoderConfig { biases: Biases { qkv: attention, attention_output: attention, mlp }, ..base(config)? })
    }
}

/// A llama without biases.
pub(super) fn base(config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
    config.require(&[("hidden_act", "\"silu\""), ("quantization_config", "null")])?;
    let heads = config.heads(config.equal_head_dim()?)?;
    Ok(DecoderConfig {
        hidden_size: config.size("hidden_size")?,
        intermediate_size: config.size("intermediate_size")?,
        heads,
        vocab_size: config.size("vocab_size")?,
        patches: None,
        makes_words: true,
        tied_embeddings: config.flag_or("tie_word_embeddings", false)?,
        max_positions: config.size("max_position_embeddings")?,
        embedding_scale: 1.0,
        output_scale: 1.0,
        seq2seq: None,
        positions: Positions::Rotary(vec![rope::rotation(config, heads.dim)?]),
        layers: vec![LayerConfig::default(); config.size("num_hidden_layers")?],
        causal: true,
        norm_place: NormPlace::Before,
        norm: NormKind::Rms,
        norm_epsilon: config.number("rms_norm_eps")? as f32,
        attention_scale: 1.0 / (heads.dim as f32).sqrt(),
        attention_soft_cap: None,
        logit_soft_cap: None,
        mlp: MlpKind::Gated(Activation::Silu),
        experts: None,
        biases: Biases::default(),
        names: &names::LLAMA,
    })
}
