//! How far a pull is, and the way to stop it.

use std::future::Future;
use std::io;

use justtrain_worker_api::{Problem, ProblemCode, Text};
use tokio::sync::watch;

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes that a power cut would not take away. Never less than before.
    pub done: u64,
    /// 0 while unknown.
    pub total: u64,
    /// What is being done now.
    pub status: Text,
}

/// Tells the caller about progress; keeps `done` from running backwards when a download starts again.
pub(crate) struct Meter<'a> {
    report: &'a mut (dyn FnMut(PullProgress) + Send),
    now: PullProgress,
    /// Bytes of the files before the present one.
    base: u64,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(report: &'a mut (dyn FnMut(PullProgress) + Send)) -> Self {
        Self { report, now: PullProgress { done: 0, total: 0, status: Text::default() }, base: 0 }
    }

    pub(crate) fn status(&mut self, status: Text) {
        self.now.status = status;
        (self.report)(self.now.clone());
    }

    /// A source starts: `total` bytes will come from it, 0 while unknown.
    pub(crate) fn start(&mut self, total: u64) {
        self.now.total = if total == 0 { 0 } else { total.max(self.now.done) };
        self.base = 0;
    }

    /// The present file, the only one of a source that could not say how long it is, is this long.
    pub(crate) fn learned_size(&mut self, size: Option<u64>) {
        if self.now.total == 0 {
            self.now.total = self.base + size.unwrap_or(0);
        }
    }

    /// `bytes` of the present file are durable.
    pub(crate) fn file_has(&mut self, bytes: u64) {
        let done = self.base + bytes;
        if done > self.now.done {
            self.now.done = done;
            self.now.total = if self.now.total == 0 { 0 } else { self.now.total.max(done) };
            (self.report)(self.now.clone());
        }
    }

    pub(crate) fn file_ended(&mut self, size: u64) {
        self.file_has(size);
        self.base += size;
    }
}

/// The caller's wish to stop.
#[derive(Debug, Clone)]
pub(crate) struct Cancel(watch::Receiver<bool>);

impl Cancel {
    pub(crate) fn new(receiver: watch::Receiver<bool>) -> Self {
        Self(receiver)
    }

    /// Runs `work` until it ends or the caller wants to stop; then it is dropped where it is.
    ///
    /// # Errors
    /// `CANCELLED`.
    pub(crate) async fn guard<T>(&self, work: impl Future<Output = T>) -> Result<T, Problem> {
        let mut receiver = self.0.clone();
        let cancelled = async {
            // A caller that dropped its sender can no longer wish anything.
            if receiver.wait_for(|cancelled| *cancelled).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = cancelled => Err(cancelled_problem()),
            value = work => Ok(value),
        }
    }

    /// For loops that cannot be dropped.
    pub(crate) fn check(&self) -> io::Result<()> {
        if *self.0.borrow() { Err(io::Error::from(io::ErrorKind::Interrupted)) } else { Ok(()) }
    }
}

pub(crate) fn cancelled_problem() -> Problem {
    Problem::error(ProblemCode::Cancelled, "the download was stopped", "下载已取消")
        .fix("run the same command again: it goes on where it stopped", "再次执行同一命令即可从中断处继续")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_runs_backwards() {
        let mut seen = Vec::new();
        let mut report = |progress: PullProgress| seen.push(progress.done);
        let mut meter = Meter::new(&mut report);
        meter.start(100);
        for bytes in [10, 50, 0, 20, 60] {
            meter.file_has(bytes);
        }
        assert_eq!(seen, [10, 50, 60]);
    }
}
