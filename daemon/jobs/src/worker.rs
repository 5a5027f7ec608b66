//! One supervised worker process.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use justtrain_worker_api::{Command, Control, Event, Failure, FailureReason, Message, Outcome, Problem, ProblemCode};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::LogFile;
use crate::crash::{Crash, oom_kills};

/// Lines of a worker's log that a crash quotes.
const LAST_WORDS: usize = 5;
/// Characters that are quoted of a line.
const LONGEST_QUOTE: usize = 200;
/// How long a worker that was asked to stop may take to save.
const GRACE: Duration = Duration::from_secs(30);
/// How long the log of a process that has ended is waited for; something it started may still hold it open.
const LOG_GRACE: Duration = Duration::from_secs(2);
/// The largest `worker.log`; there may be an old one of the same size.
const LARGEST_LOG: u64 = 4 << 20;
/// A longer line of the log is kept in pieces of this many bytes.
const LONGEST_LINE: u64 = 64 << 10;

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
        let oom_kills = oom_kills();
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
            output: BufReader::new(stdout),
            line: Vec::new(),
            last: None,
            killed: false,
            oom_kills,
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
                    return Err(problem.because(FailureReason::Internal));
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
        problem.because(FailureReason::Internal)
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
    output: BufReader<ChildStdout>,
    /// What has been read of the next line; outlives a call of `next` that is dropped.
    line: Vec<u8>,
    last: Option<Last>,
    /// The daemon ended it.
    killed: bool,
    /// What the kernel counted when it was started.
    oom_kills: u64,
    last_words: Arc<Mutex<VecDeque<String>>>,
    log_task: Option<tokio::task::JoinHandle<()>>,
}

/// The last that was read from a worker whose process may still be leaving.
#[derive(Debug)]
enum Last {
    Said { result: Result<Outcome, Failure>, leave_by: Instant },
    Crashed { garbage: Option<String> },
}

/// What came next from a worker.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on a cold path")]
pub enum WorkerEnd {
    Event(Event),
    /// The last thing a worker has to say, or why it could not.
    Ended(Box<Result<Outcome, Failure>>),
}

impl Worker {
    /// The next event, or the end. A call that is dropped loses nothing.
    pub async fn next(&mut self) -> WorkerEnd {
        let last = match self.last.take() {
            Some(last) => last,
            None => match self.read().await {
                Ok(event) => return WorkerEnd::Event(event),
                Err(last) => last,
            },
        };
        // Kept while the process is waited for: whoever drops this call asks again.
        match self.last.insert(last) {
            Last::Said { leave_by, .. } => {
                let leave_by = *leave_by;
                self.stdin = None;
                let _ = timeout_at(leave_by, self.child.wait()).await;
            }
            Last::Crashed { garbage } => {
                if garbage.is_some() {
                    self.kill_group();
                }
                let _ = self.child.wait().await;
                if let Some(task) = &mut self.log_task {
                    let _ = timeout(LOG_GRACE, task).await;
                    self.log_task = None;
                }
            }
        }
        WorkerEnd::Ended(Box::new(match self.last.take() {
            Some(Last::Said { result, .. }) => result,
            Some(Last::Crashed { garbage }) => Err(self.crash(garbage).into_failure()),
            None => Err(self.crash(None).into_failure()),
        }))
    }

    /// The next event, or the last that is to be read.
    async fn read(&mut self) -> Result<Event, Last> {
        // What a dropped call has read of a line stays in `self.line`.
        let read = self.output.read_until(b'\n', &mut self.line).await;
        let line = std::mem::take(&mut self.line);
        if read.is_err() || line.is_empty() {
            return Err(Last::Crashed { garbage: None });
        }
        let result = match serde_json::from_slice(&line) {
            Ok(Message::Event(event)) => return Ok(event),
            Ok(Message::Outcome(outcome)) => Ok(outcome),
            Ok(Message::Failed(failure)) => Err(failure),
            Err(_) => {
                return Err(Last::Crashed { garbage: Some(quote(&line)) });
            }
        };
        Err(Last::Said { result, leave_by: Instant::now() + GRACE })
    }

    fn crash(&mut self, garbage: Option<String>) -> Crash {
        let last = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let log = last.iter().cloned().collect::<Vec<_>>().join(" | ");
        let (status, out_of_memory) = (self.child.try_wait().ok().flatten(), oom_kills() > self.oom_kills);
        Crash { status, log, garbage, killed: self.killed, out_of_memory }
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

    /// Ends it, and whatever it started.
    pub async fn kill(&mut self) {
        self.kill_group();
        let _ = self.child.wait().await;
    }

    fn kill_group(&mut self) {
        self.killed = true;
        #[cfg(unix)]
        if let Some(id) = self.child.id().and_then(|id| libc::pid_t::try_from(id).ok()) {
            // SAFETY: a plain system call. The worker leads its group, and has not been waited for: the number is its.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
        let _ = self.child.start_kill();
    }

    /// Its process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// The longest that a stop may take before the worker is killed.
    pub fn grace() -> Duration {
        GRACE
    }
}

fn quote(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end().chars().take(LONGEST_QUOTE).collect()
}

/// Copies a worker's standard error to its log and remembers the last lines.
async fn keep_log(stderr: ChildStderr, log: Option<PathBuf>, last_words: Arc<Mutex<VecDeque<String>>>) {
    let mut file = log.and_then(|path| LogFile::open(&path, LARGEST_LOG).ok());
    let (mut stderr, mut bytes) = (BufReader::new(stderr), Vec::new());
    // Read to the end whatever it is: a worker whose standard error is closed could not go on.
    while (&mut stderr).take(LONGEST_LINE).read_until(b'\n', &mut bytes).await.is_ok_and(|read| read > 0) {
        if let Some(file) = &mut file {
            // A log that cannot be written is no reason to stop a job.
            let _ = file.write_all(&bytes);
        }
        let line = quote(&bytes);
        bytes.clear();
        let mut last = last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LAST_WORDS {
            last.pop_front();
        }
        last.push_back(line);
    }
}
