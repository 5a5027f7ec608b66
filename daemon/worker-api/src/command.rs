//! What the daemon asks of a worker.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::DevicePick;

/// A recipe as the person wrote it. Only the engine interprets the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeSource {
    /// The YAML text.
    pub text: String,
    /// The name shown in errors.
    pub file: String,
    /// Absolute folder that relative paths inside the recipe start from.
    pub base_dir: PathBuf,
}

/// A base model on the local disk, and what was trained from it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelFiles {
    /// The name the person knows it by, such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
    pub name: String,
    /// A GGUF file or a Hugging Face folder.
    pub path: PathBuf,
    /// A PEFT adapter folder, or after full fine-tuning the tuned model's Hugging Face folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// The models that a recipe names as teachers, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub teachers: BTreeMap<String, PathBuf>,
}

/// A data file; `format` is sniffed when it is not given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    pub path: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<crate::FormatName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataLanguage {
    En,
    Zh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes them.
    Peft,
    /// A Hugging Face folder with the adapter folded into the weights.
    Merged,
}

/// One turn of a conversation; `role` is `system`, `user` or `assistant`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub role: String,
    pub content: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateOptions {
    pub max_new_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    pub top_p: f32,
    pub seed: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 256, temperature: 0.0, top_p: 1.0, seed: 42 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluateOptions {
    /// At most this many held-out rows; 0 is all of them.
    pub max_samples: u32,
    /// Longest answer generated for the exact-match measure.
    pub max_new_tokens: u32,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self { max_samples: 0, max_new_tokens: 128 }
    }
}

/// The first line a worker reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Parse and validate a recipe without touching model or data; ends with [`crate::Outcome::RecipeChecked`].
    CheckRecipe {
        recipe: RecipeSource,
    },
    /// The recipe's JSON Schema; ends with [`crate::Outcome::Schema`].
    Schema,
    /// Train into `run_dir`; with `resume`, go on from the newest valid checkpoint there.
    Train {
        recipe: RecipeSource,
        model: ModelFiles,
        run_dir: PathBuf,
        resume: bool,
    },
    /// Base model beside tuned model on held-out rows: `data` where given, else the recipe's own validation split.
    Evaluate {
        recipe: RecipeSource,
        model: ModelFiles,
        data: Option<DataFile>,
        options: EvaluateOptions,
    },
    Export {
        model: ModelFiles,
        format: ExportFormat,
        output: PathBuf,
    },
    /// Load a model and answer [`Control::Generate`] lines until standard input closes.
    Serve {
        model: ModelFiles,
        device: DevicePick,
    },
    /// Read a data file, report format, rows, problems and token statistics. `model` gives tokenizer and template.
    DataCheck {
        data: DataFile,
        model: Option<ModelFiles>,
        cutoff_len: u32,
    },
    /// The first `rows` rows from `offset`, token by token, with the loss mask.
    DataPreview {
        data: DataFile,
        model: ModelFiles,
        cutoff_len: u32,
        offset: u32,
        rows: u32,
    },
    /// Write the number-comparison set as an alpaca JSON file.
    DataGenerate {
        kind: String,
        count: u32,
        seed: u64,
        language: DataLanguage,
        output: PathBuf,
    },
    /// What training would take, and what to change where it does not fit; ends with [`crate::Outcome::Estimated`].
    Estimate {
        recipe: RecipeSource,
        model: ModelFiles,
        room: crate::Room,
        /// None: no time is predicted, and nothing is measured.
        past_runs: Option<Vec<crate::PastRun>>,
    },
    /// The largest of some models that each method can train; ends with [`crate::Outcome::LargestModels`].
    LargestModels {
        models: Vec<crate::KnownModel>,
        room: crate::Room,
        /// Tokens of the batch that a model must be able to learn from.
        batch_tokens: u32,
    },
    /// A real matmul on the chosen device, checked against a scalar loop.
    Probe {
        device: DevicePick,
    },
    /// Every op on the chosen device beside the processor's; ends with [`crate::Outcome::OpsChecked`].
    CheckOps {
        device: DevicePick,
    },
}

/// Lines a worker may read after its command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "control", rename_all = "snake_case")]
pub enum Control {
    /// Save a checkpoint and end with `stopped: true`.
    Stop,
    /// One answer; tokens come back as [`crate::Event::Token`] with the same `id`.
    /// With `base`, the adapter is switched off for this answer.
    Generate { id: u64, turns: Vec<Turn>, options: GenerateOptions, base: bool },
    /// Stop the answer that is being generated.
    CancelGenerate { id: u64 },
}
