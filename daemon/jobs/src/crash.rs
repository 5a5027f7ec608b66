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
    /// The kernel has ended processes for lack of memory while it ran.
    pub(crate) out_of_memory: bool,
}

/// Processes that the kernel has ended for lack of memory since it started; 0 where it does not count them.
pub(crate) fn oom_kills() -> u64 {
    std::fs::read_to_string("/proc/vmstat").map_or(0, |counters| oom_kills_in(&counters))
}

fn oom_kills_in(counters: &str) -> u64 {
    counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

impl Crash {
    pub(crate) fn into_failure(self) -> Failure {
        let (how_en, how_zh, memory) = describe(self.status);
        let memory = memory && !self.killed;
        let out_of_memory = memory && self.out_of_memory;
        let mut found = how_en.clone();
        if let Some(garbage) = &self.garbage {
            found = format!("it printed {garbage:?} where a message belongs; {found}");
        }
        if !self.log.is_empty() {
            found = format!("{found}; its last words: {}", self.log);
        }
        let (fix_en, fix_zh) = match memory {
            true if out_of_memory => (
                "lower per_device_train_batch_size or cutoff_len, then resume the job; train --dry-run says what a recipe takes",
                "请减小 per_device_train_batch_size 或 cutoff_len，然后恢复任务；train --dry-run 会说明一份配方需要多少内存",
            ),
            true => (
                "it was probably ended for lack of memory: lower per_device_train_batch_size or cutoff_len, then resume the job",
                "很可能是内存不足：请减小 per_device_train_batch_size 或 cutoff_len，然后恢复任务",
            ),
            false => (
                "resume the job: it goes on from its last checkpoint; worker.log in its folder has the details",
                "请恢复任务，将从最近的检查点继续；详情见任务目录下的 worker.log",
            ),
        };
        let (en, zh) = match out_of_memory {
            true => (
                "the machine ran out of memory, and the system ended the worker process",
                "内存耗尽，系统结束了工作进程",
            ),
            false => ("the worker process ended unexpectedly", "工作进程意外退出"),
        };
        let problem =
            Problem::error(ProblemCode::WorkerCrashed, format!("{en} ({how_en})"), format!("{zh}（{how_zh}）"))
                .found(found)
                .fix(fix_en, fix_zh);
        problem.because(if out_of_memory { FailureReason::HostOom } else { FailureReason::Internal })
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

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn killed_by(signal: i32, out_of_memory: bool, killed: bool) -> Failure {
        let status = Some(ExitStatus::from_raw(signal));
        Crash { status, log: String::new(), garbage: None, killed, out_of_memory }.into_failure()
    }

    #[test]
    fn lack_of_memory_is_told_from_other_ends() {
        let reason = |signal, out_of_memory, killed| killed_by(signal, out_of_memory, killed).reason;
        assert_eq!(reason(libc::SIGKILL, true, false), FailureReason::HostOom);
        assert_eq!(reason(libc::SIGKILL, false, false), FailureReason::Internal);
        assert_eq!(reason(libc::SIGKILL, true, true), FailureReason::Internal);
        assert_eq!(reason(libc::SIGSEGV, true, false), FailureReason::Internal);
        let problem = &killed_by(libc::SIGKILL, true, false).problems[0];
        assert!(problem.message.en.contains("out of memory") && problem.message.zh.contains("内存耗尽"), "{problem}");
    }

    #[test]
    fn the_kernels_count_is_found_among_its_counters() {
        assert_eq!(oom_kills_in("nr_free_pages 5\noom_kill 12\noom_killer 3\n"), 12);
        assert_eq!(oom_kills_in("nr_free_pages 5\n"), 0);
    }
}
