//! What a job will need of the machine, predicted before it starts.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{DevicePick, Problem, RecipeSource, Text};

/// What the machine has to give. The daemon looks; the worker compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Memory that a job may take, a reserve for everything else already left out.
    pub memory_bytes: u64,
    /// Free on the disk of the job's folder, a reserve left out.
    pub disk_bytes: u64,
}

/// A finished run on this machine: how fast it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PastRun {
    pub recipe: RecipeSource,
    pub tokens_per_second: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Where the job would run, never [`DevicePick::Auto`].
    pub device: DevicePick,
    /// None on a GPU, whose memory is not predicted.
    pub memory: Option<MemoryEstimate>,
    pub disk: DiskEstimate,
    pub work: WorkEstimate,
    /// None where no time was asked for, and for work that a GPU has never done before.
    pub time: Option<TimeEstimate>,
    pub trainable_parameters: u64,
    pub total_parameters: u64,
    /// Why the job does not fit: `OUT_OF_MEMORY`, `DISK_FULL`. Empty where it does.
    pub problems: Vec<Problem>,
    /// Changes of the recipe that save something, the gentlest first. Empty where the job fits as it is.
    pub remedies: Vec<Remedy>,
}

/// The largest resident size of the training process, by what lies in it at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// When the peak is reached.
    pub moment: Moment,
    /// Of the base model, frozen.
    pub weights: u64,
    /// What the optimiser changes: adapters, or the whole model.
    pub trained_weights: u64,
    pub gradients: u64,
    pub optimizer: u64,
    /// What the forward pass keeps for the backward pass, and the tensors at work.
    pub activations: u64,
    /// The chunk of logits and what belongs to it.
    pub output_layer: u64,
    /// Tokenised rows; while reading, the file as well.
    pub data: u64,
    /// Pages of the model's file that are mapped while it is read.
    pub model_file: u64,
    /// The program itself, its tokenizer and what its allocator keeps.
    pub program: u64,
}

impl MemoryEstimate {
    pub fn total(&self) -> u64 {
        self.weights
            + self.trained_weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.output_layer
            + self.data
            + self.model_file
            + self.program
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    Loading,
    #[default]
    Training,
    Evaluating,
    Saving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskEstimate {
    /// All that `save_total_limit` keeps.
    pub checkpoints: u64,
    /// What the job leaves: an adapter, or a whole model.
    pub result: u64,
    /// A checkpoint is written beside the old ones before the oldest goes.
    pub temporary: u64,
}

impl DiskEstimate {
    pub fn total(&self) -> u64 {
        self.checkpoints + self.result + self.temporary
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkEstimate {
    pub steps: u64,
    pub tokens: u64,
    /// Of the run's largest batch.
    pub largest_batch_tokens: u64,
    /// Rows that were tokenised, of all rows: past a bound a sample of them stands for all.
    pub rows_read: u64,
    pub rows: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TimeEstimate {
    pub tokens_per_second: f64,
    pub seconds: f64,
    pub basis: SpeedBasis,
}

/// Where a predicted speed comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpeedBasis {
    /// An earlier run of the same work on this machine.
    PastRun,
    /// A layer of the model's shape, timed just now.
    Measured,
}

/// Keys to change, and what the job takes then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remedy {
    /// Lines of a recipe: `gradient_checkpointing: true`.
    pub change: Vec<String>,
    /// What else it changes; empty where it changes nothing but memory and time.
    #[serde(default, skip_serializing_if = "Text::is_empty")]
    pub cost: Text,
    /// None where memory is not predicted.
    pub memory_bytes: Option<u64>,
    pub disk_bytes: u64,
    pub fits: bool,
}

/// A model by its configuration, without weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownModel {
    pub name: String,
    /// As in Hugging Face's `config.json`.
    pub config: Value,
}

/// The largest of some models that a method can train here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargestModel {
    /// `lora`, `qlora` or `full`.
    pub method: String,
    /// None where not even the smallest fits.
    pub model: Option<String>,
    /// Predicted peak of that model, or of the smallest.
    pub memory_bytes: u64,
}
