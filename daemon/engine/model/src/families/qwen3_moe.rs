//! `qwen3_moe`: Qwen3 with a mixture of experts in place of the feed-forward network, in all blocks or in some.

use justtrain_worker_api::{Problem, ProblemCode};

use super::reader::ConfigReader;
use super::{Family, qwen3};
use crate::config::{DecoderConfig, ExpertsConfig, LayerConfig};
use crate::names::{BlockNames, ExpertNames, WeightNames};

const NAMES: WeightNames = WeightNames {
    block: BlockNames { experts: Some(ExpertNames { router: "mlp.gate", experts: "mlp.experts" }), ..qwen3::BLOCK },
    ..qwen3::NAMES
};

pub(super) struct Qwen3Moe;

impl Family for Qwen3Moe {
    fn model_type(&self) -> &'static str {
        "qwen3_moe"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        // With it transformers adds a loss that balances the load.
        config.require(&[("output_router_logits", "false")])?;
        let base = qwen3::base(config)?;
        // transformers 5 writes the same under another name.
        let key = if config.values["num_experts"].is_null() { "num_local_experts" } else { "num_experts" };
        let experts = ExpertsConfig {
            count: config.size(key)?,
            per_token: config.size("num_experts_per_tok")?,
            intermediate_size: config.size("moe_intermediate_size")?,
            norm_weights: config.flag_or("norm_topk_prob", false)?,
        };
        if experts.per_token > experts.count {
            let (found, expected) =
                (&config.values["num_experts_per_tok"], format!("at most {key}: {}", experts.count));
            return Err(config.wrong(ProblemCode::InvalidValue, "num_experts_per_tok", found, &expected));
        }
        let used = config.flag_or("use_sliding_window", false)?;
        let window = if used { Some(config.size_or("sliding_window", 4096)?) } else { None };
        let every = config.size_or("decoder_sparse_step", 1)?;
        let dense = dense_layers(config)?;
        let layer = |index: usize| LayerConfig {
            window,
            experts: (index + 1).is_multiple_of(every) && !dense.contains(&index),
            ..LayerConfig::default()
        };
        Ok(DecoderConfig {
            layers: (0..base.layers.len()).map(layer).collect(),
            experts: Some(experts),
            names: &NAMES,
            ..base
        })
    }
}

/// The blocks that have one feed-forward network all the same.
fn dense_layers(config: &ConfigReader<'_>) -> Result<Vec<usize>, Problem> {
    let value = &config.values["mlp_only_layers"];
    if value.is_null() {
        return Ok(Vec::new());
    }
    let indices = value.as_array().and_then(|values| {
        values.iter().map(|value| value.as_u64().map(|index| index as usize)).collect::<Option<Vec<_>>>()
    });
    indices
        .ok_or_else(|| config.wrong(ProblemCode::InvalidValue, "mlp_only_layers", value, "a list of numbers of blocks"))
}
