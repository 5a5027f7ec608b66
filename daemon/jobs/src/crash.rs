//! A worker that ended without saying how, explained.

use std::process::ExitStatus;

use justtrain_worker_api::{Failure, FailureReason, Problem, ProblemCode};

/// What is known of a crash.
pub(crate) struct Crash {
    /// None where the process could not even be waited for.
    pub(crate) status: Option<ExitStatus>,
    /// The last lines of its log.
    pub(crate) log: String,
    /// A line on its standard output that is no message.
    pub(crate) garbage: Option<String>,
    /// The daemon ended it: the signal says nothing about memory.
    pub(crate) killed: bool,
}

impl Crash {
    pub(crate) fn into_failure(self) -> Failure {
        let (how_en, how_zh, memory) = describe(self.status);
        let mut found = how_en.clone();
        if let Some(garbage) = &self.garbage {
            found = format!("it printed {garbage:?} where a message belongs; {found}");
        }
        if !self.log.is_empty() {
            found = format!("{found}; its last words: {}", self.log);
        }
        let (fix_en, fix_zh) = match memory && !self.killed {
            true => (
                "it was probably ended for lack of memory: lower per_device_train_batch_size or cutoff_len, then resume the job",
                "很可能是内存不足：请减小 per_device_train_batch_size 或 cutoff_len，然后恢复任务",
            ),
            false => (
                "resume the job: it goes on from its last checkpoint; worker.log in its folder has the details",
                "请恢复任务，将从最近的检查点继续；详情见任务目录下的 worker.log",
            ),
        };
        let problem = Problem::error(
            ProblemCode::WorkerCrashed,
            format!("the worker process ended unexpectedly ({how_en})"),
            format!("工作进程意外退出（{how_zh}）"),
        )
        .found(found)
        .fix(fix_en, fix_zh);
        problem.because(FailureReason::Internal)
    }
}

/// How it ended in two languages, and whether that looks like the kernel's way of saying "out of memory".
fn describe(status: Option<ExitStatus>) -> (String, String, bool) {
    #[cfg(unix)]
    if let Some(signal) = status.and_then(|status| std::os::unix::process::ExitStatusExt::signal(&status)) {
        let name = match signal {
            libc::SIGKILL => "SIGKILL",
            libc::SIGSEGV => "SIGSEGV",
            libc::SIGABRT => "SIGABRT",
            libc::SIGBUS => "SIGBUS",
            libc::SIGILL => "SIGILL",
            libc::SIGTERM => "SIGTERM",
            _ => "",
        };
        let name = if name.is_empty() { format!("signal {signal}") } else { format!("signal {signal}, {name}") };
        return (name.clone(), name, signal == libc::SIGKILL);
    }
    match status.and_then(|status| status.code()) {
        Some(code) => (format!("exit code {code}"), format!("退出码 {code}"), false),
        None => ("no exit status".to_owned(), "没有退出状态".to_owned(), false),
    }
}
