//! `gemma2`: Gemma 2 (arXiv 2408.00118). Every other layer has a window; scores and logits are capped; norms stand
//! before and after each half of a block.

use justtrain_kernels::Activation;
use justtrain_worker_api::Problem;

use super::reader::ConfigReader;
use super::{Family, rope};
use crate::config::{Biases, DecoderConfig, LayerConfig, MlpKind, NormKind, NormPlace, Positions};
use crate::names::{self, BlockNames, WeightNames};

pub(super) const BLOCK: BlockNames = BlockNames {
    attention_output_norm: Some("post_attention_layernorm"),
    mlp_norm: "pre_feedforward_layernorm",
    mlp_output_norm: Some("post_feedforward_layernorm"),
    ..names::LLAMA_BLOCK
};

const NAMES: WeightNames = WeightNames { block: BLOCK, ..names::LLAMA };

pub(super) struct Gemma2;

impl Family for Gemma2 {
    fn model_type(&self) -> &'static str {
        "gemma2"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        let base = base(config)?;
        let window = Some(config.size_or("sliding_window", 4096)?);
        let sliding = config.sliding_layers(|layer| layer.is_multiple_of(2))?.into_iter();
        let cap = |key, default| Ok::<_, Problem>(config.number_or_null(key, Some(default))?.map(|cap| cap as f32));
        Ok(DecoderConfig {
            positions: Positions::Rotary(vec![rope::rotation(config, base.heads.dim)?]),
            layers: sliding
                .map(|slides| LayerConfig { window: window.filter(|_| slides), ..LayerConfig::default() })
                .collect(),
            attention_soft_cap: cap("attn_logit_softcapping", 50.0)?,
            logit_soft_cap: cap("final_logit_softcapping", 30.0)?,
            names: &NAMES,
            ..base
        })
    }
}

/// What Gemma 2 and 3 share; the caller gives positions, layers, caps and names.
pub(super) fn base(config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
    config.require(&[
        ("hidden_activation", "\"gelu_pytorch_tanh\""),
        ("use_bidirectional_attention", "false"),
        ("quantization_config", "null"),
    ])?;
    let heads = config.heads(256)?;
    let hidden_size = config.size("hidden_size")?;
    let attention = config.flag_or("attention_bias", false)?;
    Ok(DecoderConfig {
        hidden_size,
        intermediate_size: config.size("intermediate_size")?,
        heads,
        vocab_size: config.size("vocab_size")?,
        patches: None,
        makes_words: true,
        tied_embeddings: config.flag_or("tie_word_embeddings", true)?,
        max_positions: config.size("max_position_embeddings")?,
        embedding_scale: (hidden_size as f32).sqrt(),
        output_scale: 1.0,
        seq2seq: None,
        positions: Positions::Rotary(Vec::new()),
        layers: Vec::new(),
        causal: true,
        norm_place: NormPlace::Before,
        norm: NormKind::RmsOnePlus,
        norm_epsilon: config.number("rms_norm_eps")? as f32,
        attention_scale: (config.size_or("query_pre_attn_scalar", 256)? as f32).powf(-0.5),
        attention_soft_cap: None,
        logit_soft_cap: None,
        mlp: MlpKind::Gated(Activation::GeluTanh),
        experts: None,
        biases: Biases { qkv: attention, attention_output: attention, mlp: false },
        names: &NAMES,
    })
}
