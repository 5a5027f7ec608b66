//! What a worker tells the daemon.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{DevicePick, Estimate, ExportFormat, LargestModel, Problem, Text};

/// One JSON line on a worker's standard output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    Event(Event),
    Outcome(Outcome),
    Failed(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    Info,
    Warning,
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    LoadingModel,
    Tokenizing,
    Training,
    Evaluating,
    Generating,
    Saving,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Log {
        level: LogLevel,
        text: Text,
    },
    Phase {
        phase: Phase,
    },
    /// Once, before the first step.
    Started {
        /// Where training goes on from; 0 for a new run.
        first_step: u64,
        total_steps: u64,
        epochs: f64,
        train_rows: u64,
        validation_rows: u64,
        trainable_parameters: u64,
        total_parameters: u64,
        device: String,
    },
    /// After each optimiser step.
    Step {
        /// 1-based.
        step: u64,
        total_steps: u64,
        epoch: f64,
        /// Mean over the answer tokens of this step, natural logarithm.
        loss: f64,
        learning_rate: f64,
        /// Global norm before clipping.
        grad_norm: f64,
        tokens: u64,
        target_tokens: u64,
        /// All tokens of this step over its wall time.
        tokens_per_second: f64,
        seconds_left: f64,
        peak_memory_bytes: u64,
        /// Where preferences are learnt.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rewards: Option<Rewards>,
        /// Where the job has several stages: the one that this step is of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stage: Option<StageOfJob>,
    },
    /// A step whose loss or gradient was no finite number: nothing has changed, and the next batches are tried.
    StepSkipped {
        /// The step that was tried, 1-based.
        step: u64,
        /// Whether the loss was a number, and only its gradient was none.
        loss_is_finite: bool,
        /// Of the data, 1-based.
        rows: Vec<u64>,
        /// Such steps without a good one in between, and how many of them end the job.
        in_a_row: u64,
        limit: u64,
        /// Where the gradient was too large for float16, which is no such step: what the loss is scaled by from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        loss_scale: Option<f64>,
    },
    /// Loss on the validation split while training.
    Evaluation {
        step: u64,
        loss: f64,
        perplexity: f64,
        token_accuracy: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rewards: Option<Rewards>,
    },
    /// What a step or a validation has found of each task.
    Tasks {
        step: u64,
        validation: bool,
        tasks: Vec<TaskScore>,
    },
    Checkpoint {
        step: u64,
        path: PathBuf,
    },
    /// For commands that only count: evaluate, export, data check.
    Progress {
        done: u64,
        total: u64,
    },
    /// What there is to know about the answer `id` before its first piece.
    Warned {
        id: u64,
        problem: Problem,
    },
    /// A piece of the answer to `Control::Generate { id }`.
    Token {
        id: u64,
        text: String,
    },
    /// The answer `id` is complete.
    Generated {
        id: u64,
        end: GenerationEnd,
        prompt_tokens: u64,
        answer_tokens: u64,
        seconds: f64,
    },
    /// The answer `id` could not be made; the worker goes on serving.
    GenerateFailed {
        id: u64,
        problem: Problem,
    },
    /// `Command::Serve` has loaded its model.
    Ready,
}

/// One of a job's stages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageOfJob {
    pub name: String,
    /// From 1.
    pub number: u64,
    /// How many there are.
    pub count: u64,
}

/// How the model values answers that people have judged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rewards {
    /// Mean over the chosen or good answers, where there are any.
    pub chosen: Option<f64>,
    /// Mean over the rejected or bad answers.
    pub rejected: Option<f64>,
    /// Share of pairs whose chosen answer has the higher reward; of single answers, of those with a reward on the right
    /// side of 0.
    pub accuracy: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationEnd {
    /// The model said that it is done.
    Stop,
    /// `max_new_tokens` or the context length was reached.
    Length,
    Cancelled,
}

/// How a command ended well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    RecipeChecked(RecipeSummary),
    Schema {
        schema: serde_json::Value,
    },
    Trained {
        /// True when a stop was asked for and a checkpoint holds the rest.
        stopped: bool,
        #[serde(flatten)]
        result: TrainResult,
    },
    Evaluated(EvaluationReport),
    Exported {
        format: ExportFormat,
        path: PathBuf,
        bytes: u64,
    },
    Served,
    DataChecked(DataReport),
    DataPreviewed {
        rows: Vec<PreviewRow>,
    },
    DataGenerated {
        path: PathBuf,
        rows: u64,
    },
    Probed(ProbeReport),
    Estimated(Box<Estimate>),
    LargestModels {
        methods: Vec<LargestModel>,
    },
    OpsChecked {
        ops: Vec<OpReport>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    pub name: String,
    /// Mean over the task's targets, natural logarithm.
    pub loss: f64,
    /// In validations: the share of targets that are the most probable token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_accuracy: Option<f64>,
    /// What the task's loss counts, where that is learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// In validations: what the recipe judges the task by (`loss`, `perplexity`, `token_accuracy` or `exact_match`), and what
    /// it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
}

/// What a training run has to show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainResult {
    pub steps: u64,
    pub first_loss: f64,
    pub last_loss: f64,
    /// On the validation split after the last step, where there is one.
    pub validation_loss: Option<f64>,
    /// Over the whole run: all tokens over the time spent in steps.
    pub tokens_per_second: f64,
    pub peak_memory_bytes: u64,
    pub seconds: f64,
    /// The folder of the newest weights: PEFT's for an adapter, Hugging Face's after full fine-tuning.
    pub adapter: PathBuf,
    /// Where preferences are learnt: of the last validation, else of the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Rewards>,
}

/// What the daemon must know of a recipe before a job can start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecipeSummary {
    /// `model_name_or_path` as written.
    pub model: String,
    /// Each `teacher` as written.
    #[serde(default)]
    pub teachers: Vec<String>,
    /// Absolute paths of the data files.
    pub data: Vec<PathBuf>,
    pub device: DevicePick,
    pub finetuning_type: String,
    pub warnings: Vec<Problem>,
}

/// Why a command ended badly. The daemon stores it with the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub reason: FailureReason,
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl Problem {
    /// The failure of a command that this problem alone has ended.
    pub fn because(self, reason: FailureReason) -> Failure {
        Failure { reason, problems: vec![self] }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailureReason {
    RecipeInvalid,
    DataInvalid,
    ModelInvalid,
    HostOom,
    DiskFull,
    LossDiverged,
    Internal,
}

/// The formats of issue one; the name is what a person writes in a recipe's `dataset_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormatName {
    Alpaca,
    Sharegpt,
    /// OpenAI `messages`.
    Messages,
    PromptCompletion,
    /// Two answers, of which one was chosen.
    Preference,
    /// An answer, and whether it is good.
    Kto,
    /// Plain texts.
    Text,
    /// A text or a pair of them, and its class.
    Classification,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataReport {
    pub format: FormatName,
    pub rows: u64,
    /// Rows that can be trained on.
    pub usable_rows: u64,
    pub problems: Vec<Problem>,
    /// Problems past the first hundred are counted only.
    pub more_problems: u64,
    /// With a model: all tokens, answer tokens, and the longest row.
    pub tokens: Option<u64>,
    pub target_tokens: Option<u64>,
    pub longest_row_tokens: Option<u64>,
    /// Rows longer than `cutoff_len`.
    pub cut_rows: Option<u64>,
    pub first_row: Option<Sample>,
}

/// A conversation as it was understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub turns: Vec<crate::Turn>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewRow {
    /// 1-based.
    pub row: u64,
    /// The chat template's output.
    pub rendered: String,
    pub tokens: Vec<PreviewToken>,
    /// Of a row that judges answers: whether this one is the better, or a good one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewToken {
    pub id: u32,
    pub text: String,
    /// Whether the model is trained to predict this token.
    pub target: bool,
}

/// Base model beside tuned model, on the same rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationReport {
    pub rows: u64,
    pub target_tokens: u64,
    pub base: AccuracyReport,
    /// None when no adapter was given.
    pub tuned: Option<AccuracyReport>,
    /// A few rows with both answers.
    pub examples: Vec<ExampleComparison>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccuracyReport {
    /// Mean over answer tokens, natural logarithm.
    pub loss: f64,
    pub perplexity: f64,
    /// Share of answer tokens whose most probable prediction is right, the right prefix given.
    pub token_accuracy: f64,
    /// Share of rows whose greedy answer equals the reference after trimming white space.
    pub exact_match: f64,
    /// Of the tuned model, where the recipe learns preferences: against the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Rewards>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExampleComparison {
    pub prompt: String,
    pub reference: String,
    pub base: String,
    pub tuned: Option<String>,
}

/// How far one op's results on a device are from the processor's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpReport {
    pub op: String,
    /// Relative to the largest magnitude of a result; the worst result counts. Null in JSON where one is not a number.
    #[serde(deserialize_with = "infinite_if_null")]
    pub error: f64,
}

/// JSON has no infinity: serde_json writes null for it.
fn infinite_if_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

/// A GPU as its driver names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuReport {
    pub name: String,
    /// What kernels are compiled for; ends in the compute capability, such as `ptx_sm90`.
    pub target: String,
}

/// Products in bfloat16, on a processor that has instructions for them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bf16Report {
    /// `amx` or `avx512-bf16`.
    pub instructions: String,
    pub gflops: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    pub device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuReport>,
    /// The widest instruction set in use: `avx512`, `avx2` or `scalar`.
    pub simd: String,
    /// In float32.
    pub gflops: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16: Option<Bf16Report>,
    /// The largest difference from the right result, of all products.
    pub max_error: f64,
}
