//! `gemma3_text`: the language models of Gemma 3 (arXiv 2503.19786). Layers with a window have a rotation of their own;
//! queries and keys are normed head by head.

use justtrain_worker_api::Problem;
use serde_json::Value;

use super::reader::ConfigReader;
use super::rope::Rope;
use super::{Family, gemma2};
use crate::config::{DecoderConfig, LayerConfig, Positions};
use crate::names::{self, BlockNames, WeightNames};
use crate::rotation::Rotation;

const NAMES: WeightNames = WeightNames {
    block: BlockNames { qk_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]), ..gemma2::BLOCK },
    ..names::LLAMA
};

/// Indices of the two rotations.
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

pub(super) struct Gemma3Text;

impl Family for Gemma3Text {
    fn model_type(&self) -> &'static str {
        "gemma3_text"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        config.require(&[("attn_logit_softcapping", "null")])?;
        let base = gemma2::base(config)?;
        let window = Some(config.size_or("sliding_window", 4096)?);
        // Of so many layers the last one sees everything.
        let pattern = config.size_or("sliding_window_pattern", 6)?;
        let layer = |slides| match slides {
            true => LayerConfig { window, rotation: LOCAL, experts: false },
            false => LayerConfig { rotation: GLOBAL, ..LayerConfig::default() },
        };
        let sliding = config.sliding_layers(|layer| !(layer + 1).is_multiple_of(pattern))?;
        Ok(DecoderConfig {
            positions: Positions::Rotary(rotations(config, base.heads.dim)?),
            layers: sliding.into_iter().map(layer).collect(),
            logit_soft_cap: config.number_or_null("final_logit_softcapping", None)?.map(|cap| cap as f32),
            names: &NAMES,
            ..base
        })
    }
}

/// transformers 5 has settings for each kind of layer; earlier ones scale the global rotation alone.
fn rotations(config: &ConfigReader<'_>, head_dim: usize) -> Result<Vec<Rotation>, Problem> {
    let of_kind = |kind: &str, before: &str, theta_key: &str, default: f64| {
        let settings = &config.values["rope_parameters"][kind];
        let theta = config.values[theta_key].as_f64().unwrap_or(default);
        let (place, settings) = match settings {
            Value::Null => (before.to_owned(), &config.values[before]),
            settings => (format!("rope_parameters.{kind}"), settings),
        };
        Rope::new(config, place, settings, theta, head_dim).rotation()
    };
    let global = of_kind("full_attention", "rope_scaling", "rope_theta", 1e6)?;
    let local = of_kind("sliding_attention", "", "rope_local_base_freq", 1e4)?;
    Ok(vec![global, local])
}
