//! `qwen2`: Qwen2 and Qwen2.5. Queries, keys and values have biases; a window is possible and in no published model.

use justtrain_worker_api::Problem;

use super::reader::ConfigReader;
use super::{Family, llama};
use crate::config::{Biases, DecoderConfig, LayerConfig};

pub(super) struct Qwen2;

impl Family for Qwen2 {
    fn model_type(&self) -> &'static str {
        "qwen2"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        Ok(DecoderConfig {
            layers: layers(config)?,
            biases: Biases { qkv: true, ..Biases::default() },
            ..llama::base(config)?
        })
    }
}

/// Windows where `use_sliding_window` says so: in the layers that `layer_types` names, else from the layer
/// `max_window_layers` on.
pub(super) fn layers(config: &ConfigReader<'_>) -> Result<Vec<LayerConfig>, Problem> {
    let used = config.flag_or("use_sliding_window", false)?;
    let window = if used { Some(config.size_or("sliding_window", 4096)?) } else { None };
    let first = config.size_or("max_window_layers", 28)?;
    let sliding = config.sliding_layers(|layer| used && layer >= first)?;
    Ok(sliding
        .into_iter()
        .map(|slides| LayerConfig { window: window.filter(|_| slides), ..LayerConfig::default() })
        .collect())
}
