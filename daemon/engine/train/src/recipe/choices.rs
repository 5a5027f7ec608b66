//! What a key can be, where it is one of several words, or one thing or a list.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Pt,
    #[default]
    Sft,
    Rm,
    Dpo,
    Kto,
    Cls,
}

impl Stage {
    /// Whether the loss is one of single tokens.
    pub(crate) fn learns_tokens(self) -> bool {
        matches!(self, Self::Pt | Self::Sft)
    }

    /// Whether whole answers are judged.
    pub(crate) fn judges_answers(self) -> bool {
        !self.learns_tokens() && self != Self::Cls
    }

    /// How many samples a row becomes.
    pub(crate) fn samples_of_row(self) -> usize {
        if matches!(self, Self::Dpo | Self::Rm) { 2 } else { 1 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PrefLoss {
    #[default]
    Sigmoid,
    Hinge,
    Ipo,
    Orpo,
    Simpo,
    KtoPair,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinetuningType {
    #[default]
    Lora,
    Full,
    Freeze,
}

impl FinetuningType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Full => "full",
            Self::Freeze => "freeze",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Bias {
    #[default]
    None,
    All,
    /// Of layers with a LoRA pair.
    LoraOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DatasetFormat {
    #[default]
    Auto,
    Alpaca,
    Sharegpt,
    /// OpenAI's `messages`.
    Messages,
    /// `prompt` and `completion`.
    PromptCompletion,
    /// `chosen` and `rejected` beside a prompt.
    Preference,
    /// An answer with `kto_tag` or `label`.
    Kto,
    /// Plain texts under `text`.
    Text,
    /// `text`, or a pair of texts, with the class under `label`.
    Classification,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    Auto,
    Fp32,
    Bf16,
    Fp16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuantizationType {
    Nf4,
    Int8,
    Gguf,
}

/// A text, or a list of texts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A number, or a list of numbers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum OneOrManyNumbers {
    One(usize),
    Many(Vec<usize>),
}
