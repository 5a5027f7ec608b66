//! `qwen3`: dense Qwen3. Queries and keys are normed head by head.

use justtrain_worker_api::Problem;

use super::reader::ConfigReader;
use super::{Family, llama, qwen2};
use crate::config::{Biases, DecoderConfig};
use crate::names::{self, BlockNames, WeightNames};

pub(super) const NAMES: WeightNames = WeightNames { block: BLOCK, ..names::LLAMA };

pub(super) const BLOCK: BlockNames =
    BlockNames { qk_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..names::LLAMA_BLOCK };

pub(super) struct Qwen3;

impl Family for Qwen3 {
    fn model_type(&self) -> &'static str {
        "qwen3"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        Ok(DecoderConfig { layers: qwen2::layers(config)?, ..base(config)? })
    }
}

/// What the dense ones and those with experts share; the caller gives layers.
pub(super) fn base(config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
    // Where transformers' default for the key is another than llama's, it must be there.
    config.size("head_dim")?;
    let attention = config.flag_or("attention_bias", false)?;
    Ok(DecoderConfig {
        biases: Biases { qkv: attention, attention_output: attention, mlp: false },
        names: &NAMES,
        ..llama::base(config)?
    })
}
