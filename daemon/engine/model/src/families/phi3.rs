//! `phi3`: Phi-3 and Phi-3.5 mini. Queries, keys and values lie in one matrix, and so do gate and up.

use justtrain_worker_api::Problem;

use super::reader::ConfigReader;
use super::{Family, llama};
use crate::config::{DecoderConfig, LayerConfig};
use crate::names::{self, BlockNames, JointNames, WeightNames};

const NAMES: WeightNames = WeightNames {
    block: BlockNames {
        qkv: JointNames::Fused("self_attn.qkv_proj"),
        up: JointNames::Fused("mlp.gate_up_proj"),
        ..names::LLAMA_BLOCK
    },
    ..names::LLAMA
};

pub(super) struct Phi3;

impl Family for Phi3 {
    fn model_type(&self) -> &'static str {
        "phi3"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        // transformers reads this name here as longrope, which is another scaling.
        if config.values["rope_scaling"]["type"] == "yarn" {
            config.require(&[("rope_scaling", "null")])?;
        }
        let window = match config.values["sliding_window"].is_null() {
            true => None,
            false => Some(config.size("sliding_window")?),
        };
        let layers = vec![LayerConfig { window, ..LayerConfig::default() }; config.size("num_hidden_layers")?];
        Ok(DecoderConfig { layers, names: &NAMES, ..llama::base(config)? })
    }
}
