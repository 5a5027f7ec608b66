//! Optimisers in a recipe: their names, and which settings each takes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerType {
    #[default]
    Adamw,
    /// AdamW whose memory is 2 bytes a weight instead of 8.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
    /// Memory for rows and columns alone.
    Adafactor,
    /// The sign of a running mean.
    Lion,
    /// Gradient descent.
    Sgd,
    /// Orthogonal updates of hidden matrices, AdamW for the rest.
    Muon,
    /// AdamW in a low-rank projection of the gradients.
    GaloreAdamw,
}

impl OptimizerType {
    pub fn name(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Adamw8bit => "adamw_8bit",
            Self::Adafactor => "adafactor",
            Self::Lion => "lion",
            Self::Sgd => "sgd",
            Self::Muon => "muon",
            Self::GaloreAdamw => "galore_adamw",
        }
    }

    /// The recipe's keys that it takes, beside those that all take.
    pub fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Adamw | Self::Adamw8bit => &["adam_beta1", "adam_beta2", "adam_epsilon"],
            Self::Adafactor => &[],
            Self::Lion => &["adam_beta1", "adam_beta2"],
            Self::Sgd => &["momentum", "nesterov"],
            Self::Muon => &["adam_beta1", "adam_beta2", "adam_epsilon", "momentum", "nesterov"],
            Self::GaloreAdamw => {
                &["adam_beta1", "adam_beta2", "adam_epsilon", "galore_rank", "galore_update_interval", "galore_scale"]
            }
        }
    }
}
