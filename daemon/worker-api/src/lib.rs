//! What the daemon and its worker say to each other.
//!
//! The daemon starts one `justtrain-worker` process per job, writes one [`Command`] as a JSON line to its standard
//! input, and reads [`Message`]s, one JSON line each, from its standard output. Further [`Control`] lines may follow
//! on standard input while the worker runs. Standard error is the worker's free-text log. The last message is always
//! [`Message::Outcome`] or [`Message::Failed`]; a worker that ends without one has crashed.
//!
//! Only serde types live here: no tensors, no sockets, no database.

mod command;
mod device;
mod estimate;
mod event;
mod problem;

pub use command::{
    Command, Control, DataFile, DataLanguage, EvaluateOptions, ExportFormat, GenerateOptions, ModelFiles, RecipeSource,
    Turn,
};
pub use device::{DevicePick, NoDevice};
pub use estimate::{
    DiskEstimate, Estimate, KnownModel, LargestModel, MemoryEstimate, Moment, PastRun, Remedy, Room, SpeedBasis,
    TimeEstimate, WorkEstimate,
};
pub use event::{
    AccuracyReport, Bf16Report, DataReport, EvaluationReport, Event, ExampleComparison, Failure, FailureReason,
    FormatName, GenerationEnd, GpuReport, LogLevel, Message, OpReport, Outcome, Phase, PreviewRow, PreviewToken,
    ProbeReport, RecipeSummary, Rewards, Sample, StageOfJob, TaskScore, TrainResult,
};
pub use problem::{Problem, ProblemCode, Severity, Text};
