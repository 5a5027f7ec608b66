//! One model that stays loaded between answers.

use std::sync::Arc;
use std::time::Duration;

use justtrain_jobs::{Worker, WorkerEnd, WorkerProgram};
use justtrain_worker_api::{
    Command, Control, DevicePick, Event, Failure, FailureReason, GenerateOptions, ModelFiles, Problem, ProblemCode,
    Turn,
};
use tokio::sync::{Mutex, mpsc};

/// A model that nobody asks for so long is unloaded.
const IDLE: Duration = Duration::from_secs(300);

pub(super) struct Question {
    pub(super) turns: Vec<Turn>,
    pub(super) options: GenerateOptions,
    /// Answer with the adapter switched off.
    pub(super) base: bool,
}

/// At most one worker that serves; questions wait for each other.
pub(super) struct WarmModel {
    program: WorkerProgram,
    loaded: Arc<Mutex<Option<Loaded>>>,
}

struct Loaded {
    model: ModelFiles,
    worker: Worker,
    /// Of the newest question; also tells an idle timer that it is not the newest.
    last_id: u64,
}

impl WarmModel {
    pub(super) fn new(program: WorkerProgram) -> Self {
        Self { program, loaded: Arc::default() }
    }

    /// Asks the model, loading it where another one is loaded. `events` gets every event of the answer; when nobody
    /// receives them any more, the answer is stopped.
    pub(super) async fn ask(
        &self,
        model: ModelFiles,
        question: Question,
        events: mpsc::Sender<Event>,
    ) -> Result<(), Failure> {
        let mut slot = self.loaded.lock().await;
        let mut loaded = match slot.take().filter(|loaded| loaded.model == model) {
            Some(loaded) => loaded,
            None => {
                let command = Command::Serve { model: model.clone(), device: DevicePick::Auto };
                Loaded { model, worker: self.program.spawn(&command, None).await?, last_id: 0 }
            }
        };
        let id = loaded.last_id + 1;
        loaded.last_id = id;
        let Question { turns, options, base } = question;
        loaded.worker.send(&Control::Generate { id, turns, options, base }).await;
        loop {
            match loaded.worker.next().await {
                WorkerEnd::Event(event) => {
                    let over = matches!(event, Event::Generated { .. } | Event::GenerateFailed { .. });
                    if events.send(event).await.is_err() && !over {
                        loaded.worker.send(&Control::CancelGenerate { id }).await;
                    }
                    if over {
                        break;
                    }
                }
                WorkerEnd::Ended(result) => return Err((*result).err().unwrap_or_else(ended_early)),
            }
        }
        *slot = Some(loaded);
        drop(slot);
        self.unload_when_idle(id);
        Ok(())
    }

    fn unload_when_idle(&self, id: u64) {
        let loaded = self.loaded.clone();
        tokio::spawn(async move {
            tokio::time::sleep(IDLE).await;
            let mut slot = loaded.lock().await;
            if slot.as_ref().is_some_and(|loaded| loaded.last_id == id) {
                // Dropped, the worker ends.
                *slot = None;
            }
        });
    }
}

fn ended_early() -> Failure {
    let problem =
        Problem::error(ProblemCode::WorkerCrashed, "the model was unloaded before it answered", "模型在回答之前被卸载");
    problem.because(FailureReason::Internal)
}
