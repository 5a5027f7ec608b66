//! Work that a person waits for: pull, evaluate, export. It ends with the daemon.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use justtrain_worker_api::{EvaluationReport, ExportFormat, Problem, ProblemCode, Text};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{RequestKey, Store, StoreError, UnixMillis, now};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OperationId(String);

impl OperationId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for OperationId {
    fn from(id: String) -> Self {
        Self(id)
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    Pull,
    Evaluate,
    Export,
}

impl OperationKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Evaluate => "evaluate",
            Self::Export => "export",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OperationState {
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl OperationState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    pub id: OperationId,
    pub kind: OperationKind,
    pub state: OperationState,
    pub done: u64,
    /// 0 is unknown.
    pub total: u64,
    pub status: Text,
    pub problems: Vec<Problem>,
    pub result: Option<OperationResult>,
    pub created: UnixMillis,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationResult {
    Pull(PullSummary),
    Evaluation(EvaluationReport),
    Export { format: ExportFormat, path: PathBuf, bytes: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullSummary {
    /// `ORG--NAME`.
    pub model: String,
    pub path: PathBuf,
    pub size_bytes: u64,
    pub sha256: String,
    pub source: String,
    pub attempts: Vec<Text>,
}

/// What the work itself holds: where it says how far it is, and learns that it shall stop.
#[derive(Clone)]
pub struct OperationHandle {
    now: watch::Sender<Operation>,
    cancel: watch::Receiver<bool>,
}

impl OperationHandle {
    /// Progress never runs backwards.
    pub fn progress(&self, done: u64, total: u64) {
        self.now.send_modify(|operation| {
            operation.done = operation.done.max(done);
            operation.total = total;
        });
    }

    pub fn status(&self, status: Text) {
        self.now.send_modify(|operation| operation.status = status);
    }

    pub fn cancelled(&self) -> watch::Receiver<bool> {
        self.cancel.clone()
    }
}

/// Every operation, running ones in memory, ended ones in the store.
#[derive(Clone)]
pub struct Operations {
    store: Arc<Store>,
    live: Arc<Mutex<HashMap<OperationId, Live>>>,
}

struct Live {
    now: watch::Sender<Operation>,
    cancel: watch::Sender<bool>,
}

impl Operations {
    /// Operations that an earlier daemon left running are failed.
    pub fn new(store: Arc<Store>) -> Result<Self, StoreError> {
        store.fail_running_operations()?;
        Ok(Self { store, live: Arc::default() })
    }

    /// Starts `work`, or gives back the operation that the same request started before.
    pub fn start<F>(
        &self,
        kind: OperationKind,
        request: &RequestKey,
        work: impl FnOnce(OperationHandle) -> F,
    ) -> Result<Operation, StoreError>
    where
        F: Future<Output = Result<OperationResult, Vec<Problem>>> + Send + 'static,
    {
        let operation = Operation {
            id: OperationId(uuid::Uuid::now_v7().simple().to_string()),
            kind,
            state: OperationState::Running,
            done: 0,
            total: 0,
            status: Text::default(),
            problems: Vec::new(),
            result: None,
            created: now(),
        };
        let (operation, is_new) = self.store.create_operation(operation, request)?;
        if !is_new {
            return Ok(operation);
        }
        let (sender, cancel) = (watch::Sender::new(operation.clone()), watch::Sender::new(false));
        let handle = OperationHandle { now: sender.clone(), cancel: cancel.subscribe() };
        let id = operation.id.clone();
        self.live().insert(id.clone(), Live { now: sender.clone(), cancel });
        let (this, work) = (self.clone(), work(handle));
        tokio::spawn(async move {
            let result = work.await;
            sender.send_modify(|operation| match result {
                Ok(result) => {
                    operation.state = OperationState::Succeeded;
                    operation.result = Some(result);
                }
                Err(problems) => {
                    let cancelled = problems.iter().any(|problem| problem.code == ProblemCode::Cancelled);
                    operation.state = if cancelled { OperationState::Cancelled } else { OperationState::Failed };
                    operation.problems = problems;
                }
            });
            let ended = sender.borrow().clone();
            if let Err(error) = this.store.put_operation(&ended) {
                tracing::error!(%error, "an operation's end could not be stored");
            }
            this.live().remove(&id);
        });
        Ok(operation)
    }

    pub fn get(&self, id: &OperationId) -> Result<Operation, StoreError> {
        let live = self.live().get(id).map(|live| live.now.borrow().clone());
        live.map_or_else(|| self.store.operation(id), Ok)
    }

    /// The operation as it changes; one that has ended does not change any more.
    pub fn watch(&self, id: &OperationId) -> Result<watch::Receiver<Operation>, StoreError> {
        if let Some(live) = self.live().get(id) {
            return Ok(live.now.subscribe());
        }
        Ok(watch::Sender::new(self.store.operation(id)?).subscribe())
    }

    /// Asks an operation to stop; one that has ended stays as it is.
    pub fn cancel(&self, id: &OperationId) -> Result<Operation, StoreError> {
        if let Some(live) = self.live().get(id) {
            live.cancel.send_replace(true);
        }
        self.get(id)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<OperationId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
