//! The part of a model that a run trains, on the disk.

use std::fs;
use std::path::Path;

use justtrain_model::Decoder;
use justtrain_model::adapters::{LoraConfig, save_peft};
use justtrain_model::export::save_model;
use justtrain_model::parameters::{Parameters, Trained};
use justtrain_worker_api::Problem;
use serde_json::Value;

use super::cannot_write;
use crate::prepare::CHAT_TEMPLATE;

/// `template` is the text of a chat template that is not the model's own: whoever loads the folder must use the same one.
#[derive(Debug, Clone)]
pub enum TrainedModel {
    /// In PEFT's format.
    Adapter { config: LoraConfig, base_model: String, template: Option<String> },
    /// All weights, as a Hugging Face folder with the base model's `config.json`.
    Weights { config: Value, template: Option<String> },
}

impl TrainedModel {
    pub fn parameters(&self) -> Trained<'static> {
        match self {
            Self::Adapter { .. } => Trained::Adapters,
            Self::Weights { .. } => Trained::Weights,
        }
    }

    /// Name of the folder in a run and in its checkpoints. The daemon looks for the same names.
    pub fn folder(&self) -> &'static str {
        match self {
            Self::Adapter { .. } => "adapter",
            Self::Weights { .. } => "model",
        }
    }

    /// About how many bytes [`Self::save`] writes at most.
    pub fn bytes(&self, decoder: &Decoder) -> u64 {
        let started = decoder.projections().any(|layer| layer.lora.as_ref().is_some_and(|lora| lora.start.is_some()));
        // Beside each pair what it started with, and what was taken out of the weight.
        let pairs = if started { 3 } else { 1 };
        let earlier = decoder.projections().filter_map(|layer| layer.lora.as_ref()?.earlier.as_ref());
        let earlier: usize =
            earlier.flat_map(|pairs| [pairs.a.dims(), pairs.b.dims()]).map(|[rows, cols]| rows * cols).sum();
        4 * earlier as u64
            + pairs * decoder.trained_sizes(self.parameters()).iter().map(|(_, len)| *len as u64 * 4).sum::<u64>()
    }

    pub fn save(&self, decoder: &Decoder, folder: &Path) -> Result<u64, Problem> {
        let (size, template) = match self {
            Self::Adapter { config, base_model, template } => {
                (save_peft(decoder, config, base_model, folder)?, template)
            }
            Self::Weights { config, template } => (save_model(decoder, config, folder)?, template),
        };
        if let Some(template) = template {
            let path = folder.join(CHAT_TEMPLATE);
            fs::write(&path, template).map_err(|error| cannot_write(&path, &error))?;
        }
        Ok(size)
    }
}
