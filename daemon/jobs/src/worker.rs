//! One supervised worker process.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use justtrain_worker_api::{Command, Control, Event, Failure, FailureReason, Message, Outcome, Problem, ProblemCode};
use tokio::fs::OpenOptions;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::watch;

use crate::crash::Crash;

/// Lines of a worker's log that a crash quotes.
const LAST_WORDS: usize = 5;
/// How long a worker that was asked to stop may take to save.
const GRACE: Duration = Duration::from_secs(30);

/// The worker's executable.
#[derive(Debug, Clone)]
pub struct WorkerProgram(PathBuf);

impl WorkerProgram {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// `JUSTTRAIN_WORKER`, else `justtrain-worker` beside this program.
    pub fn find() -> Self {
        let beside = || {
            let name = format!("justtrain-worker{}", std::env::consts::EXE_SUFFIX);
            std::env::current_exe().map(|exe| exe.with_file_name(&name)).unwrap_or_else(|_| name.into())
        };
        Self(std::env::var_os("JUSTTRAIN_WORKER").map_or_else(beside, PathBuf::from))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Starts a worker on a command. Its standard error goes to `log`, where one is given.
    ///
    /// The worker leads a process group of its own and, on Linux, dies with the daemon.
    pub async fn spawn(&self, command: &Command, log: Option<&Path>) -> Result<Worker, Failure> {
        let mut process = tokio::process::Command::new(&self.0);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        #[cfg(unix)]
        process.process_group(0);
        #[cfg(target_os = "linux")]
        // SAFETY: `prctl` is async-signal-safe and touches this new process only. The signal fires when the thread that
        // started the worker ends: those of the runtime live as long as the daemon.
        unsafe {
            process.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut child = process.spawn().map_err(|error| self.cannot_start(&error))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(self.cannot_start(&io::Error::other("its pipes are missing")));
        };
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let log_task = tokio::spawn(keep_log(stderr, log.map(Path::to_owned), last_words.clone()));
        let mut worker = Worker {
            child,
            stdin: Some(stdin),
            messages: BufReader::new(stdout).lines(),
            last_words,
            log_task: Some(log_task),
        };
        // A worker that dies before it reads is noticed when its output ends.
        let _ = worker.write_line(&serde_json::to_string(command).expect("commands are JSON")).await;
        Ok(worker)
    }

    /// Runs a command to its end. `cancel` turning true kills the worker and gives `Cancelled`.
    pub async fn run(
        &self,
        command: &Command,
        mut cancel: watch::Receiver<bool>,
        mut on_event: impl FnMut(Event),
    ) -> Result<Outcome, Failure> {
        let mut worker = self.spawn(command, None).await?;
        loop {
            let message = tokio::select! {
                message = worker.next() => message,
                () = cancelled(&mut cancel) => {
                    worker.kill().await;
                    let problem = Problem::error(ProblemCode::Cancelled, "it was cancelled", "已取消");
                    return Err(Failure { reason: FailureReason::Internal, problems: vec![problem] });
                }
            };
            match message {
                WorkerEnd::Event(event) => on_event(event),
                WorkerEnd::Ended(result) => return *result,
            }
        }
    }

    fn cannot_start(&self, error: &io::Error) -> Failure {
        let problem = Problem::error(
            ProblemCode::WorkerCrashed,
            format!("the worker process cannot be started: {error}"),
            format!("无法启动工作进程：{error}"),
        )
        .file(self.0.display())
        .fix("install JustTrain again", "请重新安装 JustTrain");
        Failure { reason: FailureReason::Internal, problems: vec![problem] }
    }
}

/// Ends when the value turns true; never, where nobody can turn it any more.
async fn cancelled(cancel: &mut watch::Receiver<bool>) {
    if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
        std::future::pending().await
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    messages: Lines<BufReader<ChildStdout>>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    log_task: Option<tokio::task::JoinHandle<()>>,
}

/// What came next from a worker.
#[derive(Debug)]
pub enum WorkerEnd {
    Event(Event),
    /// The last thing a worker has to say, or why it could not.
    Ended(Box<Result<Outcome, Failure>>),
}

impl Worker {
    /// The next event, or the end. Safe to drop between two lines.
    pub async fn next(&mut self) -> WorkerEnd {
        let garbage = match self.messages.next_line().await {
            Ok(Some(line)) => match serde_json::from_str(&line) {
                Ok(Message::Event(event)) => return WorkerEnd::Event(event),
                Ok(Message::Outcome(outcome)) => return self.ended(Ok(outcome)).await,
                Ok(Message::Failed(failure)) => return self.ended(Err(failure)).await,
                Err(_) => {
                    let _ = self.child.start_kill();
                    Some(line.chars().take(200).collect())
                }
            },
            Ok(None) | Err(_) => None,
        };
        let status = self.child.wait().await.ok();
        if let Some(task) = self.log_task.take() {
            let _ = task.await;
        }
        let log = {
            let last = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
            last.iter().cloned().collect::<Vec<_>>().join(" | ")
        };
        WorkerEnd::Ended(Box::new(Err(Crash { status, log, garbage }.into_failure())))
    }

    /// It has said how it ended; its process follows.
    async fn ended(&mut self, result: Result<Outcome, Failure>) -> WorkerEnd {
        self.stdin = None;
        let _ = tokio::time::timeout(GRACE, self.child.wait()).await;
        WorkerEnd::Ended(Box::new(result))
    }

    /// False when the worker no longer listens.
    pub async fn send(&mut self, control: &Control) -> bool {
        self.write_line(&serde_json::to_string(control).expect("controls are JSON")).await.is_ok()
    }

    async fn write_line(&mut self, line: &str) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Err(io::ErrorKind::BrokenPipe.into()) };
        stdin.write_all(format!("{line}\n").as_bytes()).await?;
        stdin.flush().await
    }

    pub async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }

    /// The longest that a stop may take before the worker is killed.
    pub fn grace() -> Duration {
        GRACE
    }
}

/// Copies a worker's standard error to its log and remembers the last lines.
async fn keep_log(stderr: ChildStderr, log: Option<PathBuf>, last_words: Arc<Mutex<VecDeque<String>>>) {
    let mut file = match log {
        Some(path) => OpenOptions::new().create(true).append(true).open(path).await.ok(),
        None => None,
    };
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(file) = &mut file {
            // A log that cannot be written is no reason to stop a job.
            let _ = file.write_all(format!("{line}\n").as_bytes()).await;
        }
        let mut last = last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LAST_WORDS {
            last.pop_front();
        }
        last.push_back(line);
    }
}
