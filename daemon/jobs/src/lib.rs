//! Jobs: what a training job is, where it is stored, when it runs, and who looks after its process.
//!
//! - [`JobState`] and [`JobReason`]: the life of a job and which changes are allowed.
//! - [`Store`]: one SQLite file with jobs, their events, operations and answered requests. What happened is stored
//!   before anyone hears of it.
//! - [`WorkerProgram`] and [`Worker`]: one supervised process; when it dies, a problem says why.
//! - [`Jobs`]: the queue, one running job at a time.
//! - [`Operations`]: shorter work that a person waits for, such as an export.
//! - [`LogFile`]: a log whose size has a limit, of a worker and of the daemon.
//!
//! This crate knows no gRPC and no tensors. It never reads a recipe's text.

mod crash;
mod job;
mod log_file;
mod operation;
mod queue;
mod state;
mod store;
mod worker;

pub use job::{EventBody, Job, JobEvent, JobId, Progress, UnixMillis, now};
pub use log_file::LogFile;
pub use operation::{
    Operation, OperationHandle, OperationId, OperationKind, OperationResult, OperationState, Operations, PullSummary,
};
pub use queue::{Jobs, NewJob};
pub use state::{JobReason, JobState};
pub use store::{Change, RequestKey, Store, StoreError};
pub use worker::{Worker, WorkerEnd, WorkerProgram};
