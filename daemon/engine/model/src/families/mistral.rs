//! `mistral`: Mistral 7B, whose first version has a sliding window.

use justtrain_worker_api::Problem;

use super::reader::ConfigReader;
use super::{Family, llama};
use crate::config::{DecoderConfig, LayerConfig};

pub(super) struct Mistral;

impl Family for Mistral {
    fn model_type(&self) -> &'static str {
        "mistral"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        config.require(&[("layer_types", "null")])?;
        let window = window(config)?;
        let layers = vec![LayerConfig { window, ..LayerConfig::default() }; config.size("num_hidden_layers")?];
        Ok(DecoderConfig { layers, ..llama::base(config)? })
    }
}

/// Null is no window; without the key transformers has 4,096.
fn window(config: &ConfigReader<'_>) -> Result<Option<usize>, Problem> {
    match config.values.get("sliding_window") {
        None => Ok(Some(4096)),
        Some(window) if window.is_null() => Ok(None),
        Some(_) => config.size("sliding_window").map(Some),
    }
}
