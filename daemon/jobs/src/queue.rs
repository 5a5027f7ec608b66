//! The queues, one a device: on each one running job at a time, looked after from its start to its end.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use justtrain_worker_api::{
    Command, Control, DevicePick, Event, Failure, FailureReason, ModelFiles, Outcome, Problem, ProblemCode,
    RecipeSource,
};
use tokio::sync::watch;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::{
    Change, Job, JobId, JobReason, JobState, RequestKey, Store, StoreError, Worker, WorkerEnd, WorkerProgram, now,
};

/// Events are written together when they come faster than this.
const BATCH: Duration = Duration::from_millis(200);
/// When the store is tried again after it has failed.
const RETRY: Duration = Duration::from_secs(5);

/// A job that shall be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    pub recipe: RecipeSource,
    pub model: ModelFiles,
    /// Never `auto`: jobs on one device wait for each other.
    pub device: DevicePick,
}

/// All jobs and the task that runs them.
#[derive(Clone)]
pub struct Jobs {
    store: Arc<Store>,
    program: WorkerProgram,
    /// `jobs/` in the data folder.
    folder: PathBuf,
    shutdown: watch::Sender<bool>,
    /// The process of the job that runs on each device.
    processes: Arc<Mutex<HashMap<DevicePick, u32>>>,
}

impl Jobs {
    pub fn new(store: Arc<Store>, program: WorkerProgram, folder: PathBuf) -> Self {
        Self { store, program, folder, shutdown: watch::Sender::new(false), processes: Arc::default() }
    }

    /// `jobs/` in the data folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process of the job that runs on a device.
    pub fn process_on(&self, device: DevicePick) -> Option<u32> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).get(&device).copied()
    }

    fn set_process(&self, device: DevicePick, id: Option<u32>) {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        match id {
            Some(id) => processes.insert(device, id),
            None => processes.remove(&device),
        };
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub fn program(&self) -> &WorkerProgram {
        &self.program
    }

    /// Queues a job, or gives back the one that the same request made before.
    pub fn create(&self, new: NewJob, request: &RequestKey) -> Result<Job, StoreError> {
        let id = JobId::random();
        let run_dir = self.folder.join(id.as_str());
        let job = Job {
            id,
            state: JobState::Queued,
            reason: None,
            problems: Vec::new(),
            recipe: new.recipe,
            model: new.model,
            device: new.device,
            created: now(),
            started: None,
            ended: None,
            attempt: 1,
            queue_position: 0,
            progress: None,
            result: None,
            run_dir,
        };
        self.store.create_job(&job, request)
    }

    /// A queued or interrupted job ends at once; a running one saves first. Asking again changes nothing.
    pub fn cancel(&self, id: &JobId) -> Result<Job, StoreError> {
        loop {
            let job = self.store.job(id)?;
            let to = match job.state {
                JobState::Cancelling => return Ok(job),
                JobState::Running => JobState::Cancelling,
                _ => JobState::Cancelled,
            };
            match self.store.transition(id, Change::because(to, JobReason::User, Vec::new())) {
                // Its turn came, or it ended, between the look and the change.
                Err(StoreError::NotAllowed { from, .. }) if from != job.state => {}
                result => return result,
            }
        }
    }

    /// Queues a job again; it goes on from its newest checkpoint.
    pub fn resume(&self, id: &JobId) -> Result<Job, StoreError> {
        self.store.transition(id, Change::to(JobState::Queued))
    }

    /// Runs job after job on every device until [`Jobs::shut_down`].
    pub async fn run(&self) {
        let mut changes = self.store.changes();
        let mut shutdown = self.shutdown.subscribe();
        let mut running = JoinSet::new();
        let mut devices: HashMap<task::Id, DevicePick> = HashMap::new();
        loop {
            changes.mark_unchanged();
            let stopping = *shutdown.borrow();
            if stopping && running.is_empty() {
                return;
            }
            match self.store.next_queued(|device| !devices.values().any(|&busy| busy == device)) {
                Ok(Some(job)) if !stopping => {
                    let device = job.device;
                    let jobs = self.clone();
                    let task = running.spawn(async move { jobs.run_job_or_pause(job).await });
                    devices.insert(task.id(), device);
                    continue;
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "the queue cannot be read"),
            }
            tokio::select! {
                Some(ended) = running.join_next_with_id() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    devices.remove(&id);
                }
                _ = changes.changed() => {}
                _ = shutdown.changed() => {}
            }
        }
    }

    async fn run_job_or_pause(&self, job: Job) {
        if let Err(error) = self.run_job(job).await {
            tracing::error!(%error, "a job's state could not be stored");
            self.pause().await;
        }
    }

    /// Makes the running jobs save and [`Jobs::run`] return.
    pub fn shut_down(&self) {
        self.shutdown.send_replace(true);
    }

    async fn run_job(&self, job: Job) -> Result<(), StoreError> {
        let id = job.id.clone();
        let job = self.store.transition(&id, Change::to(JobState::Running))?;
        let result = match prepare(&job) {
            // A store that fails has ended the worker; the job must not seem to run for ever.
            Ok(()) => self.train(&job).await.unwrap_or_else(|error| Err(not_stored(&error))),
            Err(problem) => Err(problem.because(FailureReason::DiskFull)),
        };
        self.set_process(job.device, None);
        let cancelling = self.store.job(&id)?.state == JobState::Cancelling;
        let change = match result {
            Ok(Outcome::Trained { stopped: true, .. }) if cancelling => {
                Change::because(JobState::Cancelled, JobReason::User, Vec::new())
            }
            Ok(Outcome::Trained { stopped: true, .. }) => {
                Change::because(JobState::Interrupted, JobReason::DaemonRestarted, Vec::new())
            }
            Ok(outcome) => ended_well(outcome),
            Err(failure) if cancelling => Change::because(JobState::Cancelled, JobReason::User, failure.problems),
            Err(failure) => {
                let crashed = failure.problems.iter().any(|problem| problem.code == ProblemCode::WorkerCrashed);
                if crashed && *self.shutdown.borrow() {
                    // Ended with the daemon, or by it for being slow: it goes on at the next start.
                    Change::because(JobState::Interrupted, JobReason::DaemonRestarted, failure.problems)
                } else {
                    let reason = if crashed { JobReason::WorkerCrashed } else { failure.reason.into() };
                    Change::because(JobState::Failed, reason, failure.problems)
                }
            }
        };
        // Until it is stored, or the daemon ends and the next one finds the job running.
        loop {
            match self.store.transition(&id, change.clone()) {
                Ok(_) => return Ok(()),
                Err(StoreError::Sql(error)) if !*self.shutdown.borrow() => {
                    tracing::error!(%error, "a job's end could not be stored; trying again");
                    self.pause().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A while, or until the daemon shall end.
    async fn pause(&self) {
        let mut shutdown = self.shutdown.subscribe();
        let _ = tokio::time::timeout(RETRY, shutdown.wait_for(|stop| *stop)).await;
    }

    /// Stores what the worker says until it ends; passes on the wish to stop.
    async fn train(&self, job: &Job) -> Result<Result<Outcome, Failure>, StoreError> {
        let command = Command::Train {
            recipe: job.recipe.clone(),
            model: job.model.clone(),
            run_dir: job.run_dir.clone(),
            resume: job.attempt > 1,
        };
        let mut worker = match self.program.spawn(&command, Some(&job.run_dir.join("worker.log"))).await {
            Ok(worker) => worker,
            Err(failure) => return Ok(Err(failure)),
        };
        self.set_process(job.device, worker.id());
        let mut changes = self.store.changes();
        let mut shutdown = self.shutdown.subscribe();
        let mut pending: Vec<Event> = Vec::new();
        let mut flush_at = None;
        let mut kill_at = None;
        loop {
            let asked_to_stop = *shutdown.borrow() || self.store.job(&job.id)?.state == JobState::Cancelling;
            if asked_to_stop && kill_at.is_none() {
                worker.send(&Control::Stop).await;
                kill_at = Some(Instant::now() + Worker::grace());
            }
            tokio::select! {
                message = worker.next() => match message {
                    WorkerEnd::Event(event) => {
                        pending.push(event);
                        flush_at.get_or_insert(Instant::now() + BATCH);
                    }
                    WorkerEnd::Ended(result) => {
                        self.store.append(&job.id, &pending)?;
                        return Ok(*result);
                    }
                },
                () = at(flush_at) => {
                    self.store.append(&job.id, &pending)?;
                    pending.clear();
                    flush_at = None;
                }
                () = at(kill_at) => {
                    worker.kill().await;
                    kill_at = Some(Instant::now() + Worker::grace());
                }
                _ = changes.changed() => {}
                _ = shutdown.changed() => {}
            }
        }
    }
}

/// Never, where no time is set.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Makes the job's folder with a copy of its recipe.
fn prepare(job: &Job) -> Result<(), Problem> {
    fs::create_dir_all(&job.run_dir)
        .and_then(|()| fs::write(job.run_dir.join("recipe.yaml"), &job.recipe.text))
        .map_err(|error| {
            Problem::error(
                ProblemCode::DiskFull,
                format!("the job's folder cannot be written: {error}"),
                format!("无法写入任务目录：{error}"),
            )
            .file(job.run_dir.display())
            .fix("free some disk space, then resume the job", "请释放磁盘空间，然后恢复任务")
        })
}

fn not_stored(error: &StoreError) -> Failure {
    let (reason, code) = match error.is_disk_full() {
        true => (FailureReason::DiskFull, ProblemCode::DiskFull),
        false => (FailureReason::Internal, ProblemCode::Internal),
    };
    let problem = Problem::error(
        code,
        format!("the job's events cannot be stored: {error}"),
        format!("无法保存任务事件：{error}"),
    )
    .fix("free some disk space, then resume the job", "请释放磁盘空间，然后恢复任务");
    problem.because(reason)
}

fn ended_well(outcome: Outcome) -> Change {
    let Outcome::Trained { result, .. } = outcome else {
        let problem = Problem::error(ProblemCode::Internal, "the worker did another thing", "工作进程执行了其他操作");
        return Change::because(JobState::Failed, JobReason::Internal, vec![problem]);
    };
    Change { result: Some(result), ..Change::to(JobState::Succeeded) }
}
