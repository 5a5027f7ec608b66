//! Environment checks: what was found, what is needed, and how to fix it.
//!
//! A machine without a GPU or without a network is a fine machine; only what keeps training from working at all is a
//! [`Status::Fail`]. To add a check, write a function that returns a [`CheckResult`] into the file of its subject and
//! call it in [`run`].

mod compute;
mod gpu;
mod network;
pub mod resources;
mod storage;
mod system;
mod verdict;

use std::net::SocketAddr;
use std::path::PathBuf;

use justtrain_worker_api::Text;
use serde::{Deserialize, Serialize};

pub use network::Server;
pub use system::total_memory;
pub use verdict::{VERDICT_BATCH_TOKENS, verdict};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    Pass,
    /// Works, with a limit that `fix` removes.
    Warn,
    /// Training cannot work before this is fixed.
    Fail,
    /// Could not be looked at here.
    Skip,
}

/// What one check says. `fix` is empty where nothing needs fixing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// Stable identifier, such as `memory`.
    pub id: &'static str,
    pub status: Status,
    pub title: Text,
    pub found: Text,
    pub expected: Text,
    pub fix: Text,
}

impl CheckResult {
    fn new(id: &'static str, title: (&str, &str), expected: (&str, &str)) -> Self {
        Self {
            id,
            status: Status::Pass,
            title: Text::new(title.0, title.1),
            found: Text::default(),
            expected: Text::new(expected.0, expected.1),
            fix: Text::default(),
        }
    }

    fn found(mut self, en: impl Into<String>, zh: impl Into<String>) -> Self {
        self.found = Text::new(en, zh);
        self
    }

    /// A finding that reads the same in both languages.
    fn found_as_is(self, found: impl Into<String>) -> Self {
        let found = found.into();
        self.found(found.clone(), found)
    }

    fn status(mut self, status: Status, fix_en: impl Into<String>, fix_zh: impl Into<String>) -> Self {
        self.status = status;
        self.fix = Text::new(fix_en, fix_zh);
        self
    }
}

/// The address the daemon listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Our own daemon holds it.
    Ours(SocketAddr),
    /// It should be free for the daemon to come.
    Wanted(SocketAddr),
}

/// What to look at.
pub struct Context {
    /// The data folder; it need not exist yet.
    pub home: PathBuf,
    pub port: Port,
    /// Names of the models in the store.
    pub models: Vec<String>,
    /// The worker program, for the real calculation at the end.
    pub worker: PathBuf,
    /// Servers that models come from.
    pub servers: Vec<Server>,
}

/// Runs every check; `report` gets each result as soon as it is known.
pub async fn run(context: Context, mut report: impl FnMut(CheckResult) + Send) {
    let servers: Vec<_> = context.servers.into_iter().map(|server| tokio::spawn(network::server(server))).collect();
    report(system::os());
    report(system::cpu());
    report(system::memory());
    report(storage::disk(&context.home));
    report(storage::home(&context.home));
    gpu::checks().into_iter().for_each(&mut report);
    report(network::proxy());
    let mut offset = None;
    for server in servers {
        if let Ok((result, told)) = server.await {
            report(result);
            offset = offset.or(told);
        }
    }
    report(system::clock(offset));
    report(network::port(context.port));
    report(storage::model(&context.models));
    report(compute::matmul(&context.worker).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_check_reports_in_both_languages_and_failures_say_what_to_do() {
        let home = tempfile::tempdir().unwrap();
        let silent = Server {
            id: "hub",
            address: "https://hub.invalid".into(),
            answer: Box::pin(async { Err("no route".to_owned()) }),
        };
        let context = Context {
            home: home.path().join("new"),
            port: Port::Wanted(([127, 0, 0, 1], 0).into()),
            models: Vec::new(),
            worker: home.path().join("no-worker"),
            servers: vec![silent],
        };
        let mut results = Vec::new();
        run(context, |result| results.push(result)).await;
        let ids: Vec<_> = results.iter().map(|result| result.id).collect();
        let gpu = ["gpu", "driver", "vram", "compute_capability", "nvrtc", "nccl"];
        let first = ["os", "cpu", "memory", "disk", "home"];
        let last = ["proxy", "hub", "clock", "port", "model", "compute"];
        let expected = [&first[..], &gpu, &last].concat();
        assert_eq!(ids, expected);
        for result in &results {
            for text in [&result.title, &result.found, &result.expected] {
                assert!(!text.en.is_empty() && !text.zh.is_empty(), "{result:?}");
            }
            assert_eq!(matches!(result.status, Status::Warn | Status::Fail), !result.fix.en.is_empty(), "{result:?}");
            assert_eq!(result.fix.en.is_empty(), result.fix.zh.is_empty(), "{result:?}");
        }
        let status = |id| results.iter().find(|result| result.id == id).unwrap().status;
        assert_eq!(status("home"), Status::Pass);
        assert_eq!(status("hub"), Status::Warn);
        assert_eq!(status("model"), Status::Warn);
        assert_eq!(status("compute"), Status::Fail);
    }
}
