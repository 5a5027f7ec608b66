//! A data folder with a daemon on a free port, and the client that talks to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// A program that `cargo build --bins` has left beside the tests' folder.
pub(crate) fn program(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.ancestors().nth(2).unwrap().join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --release --workspace --bins` first", path.display());
    path
}

pub(crate) struct Desk {
    folder: tempfile::TempDir,
    pub(crate) daemon: Child,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let daemon = start_daemon(folder.path());
        Self { folder, daemon }
    }

    /// With the model in the store and 40 rows of data.
    pub(crate) fn furnished() -> Self {
        let desk = Self::new();
        let model = std::env::var("JUSTTRAIN_TEST_MODEL")
            .expect("JUSTTRAIN_TEST_MODEL names SmolLM2-135M-Instruct.Q4_1.gguf; scripts/test sets it");
        let pulled = desk.json(&["models", "pull", &model]);
        assert!(pulled.to_string().contains("SmolLM2-135M-Instruct"), "{pulled}");
        let data = desk.path("numbers.json");
        desk.json(&["data", "generate", "numbers", "--count", "40", "--seed", "3", "--lang", "en", "--output", &data]);
        desk
    }

    pub(crate) fn home(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub(crate) fn restart_daemon(&mut self) {
        self.daemon = start_daemon(self.folder.path());
    }

    /// The JSON object of a command that must succeed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.client(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        last_line(&output)
    }

    /// The exit code and JSON object of a command that must not.
    pub(crate) fn refused(&self, arguments: &[&str]) -> (i32, Value) {
        let output = self.client(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output));
        (output.status.code().unwrap(), last_line(&output))
    }

    pub(crate) fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("justtrain"));
        command.arg("--json").args(arguments).stdin(Stdio::null());
        command.env("JUSTTRAIN_HOME", self.folder.path()).env("JUSTTRAIN_LANG", "en");
        command.env_remove("JUSTTRAIN_ADDR").env_remove("JUSTTRAIN_TOKEN");
        command
    }

    /// Writes `recipe.yaml`; returns its path.
    pub(crate) fn recipe(&self, extra: &str) -> String {
        let text = format!(
            "model_name_or_path: {MODEL}\ndataset: numbers.json\nval_size: 4\ncutoff_len: 256\nlora_rank: 4\n\
             per_device_train_batch_size: 2\ngradient_accumulation_steps: 1\nlearning_rate: 0.001\n{extra}"
        );
        let path = self.path("recipe.yaml");
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a job and waits until it has done some steps; returns its name.
    pub(crate) fn train_until_step(&self, recipe: &str, step: u64) -> String {
        let started = self.json(&["train", recipe, "--detach"]);
        let job = started["name"].as_str().unwrap().to_owned();
        self.wait(&job, |job| job["progress"]["step"].as_u64() >= Some(step));
        job
    }

    pub(crate) fn wait(&self, job: &str, until: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let shown = self.json(&["jobs", "show", job]);
            if until(&shown) {
                return shown;
            }
            assert!(start.elapsed() < Duration::from_secs(300), "{shown}");
            sleep(Duration::from_millis(200));
        }
    }

    /// The process that the daemon has started.
    pub(crate) fn worker(&self) -> i32 {
        let parent = format!("PPid:\t{}", self.daemon.id());
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| s.lines().any(|line| line == parent))
        };
        pids.find(ours).expect("a worker runs")
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn start_daemon(home: &Path) -> Child {
    let announcement = home.join("daemon.json");
    let _ = fs::remove_file(&announcement);
    let daemon = Command::new(program("justtraind"))
        .arg("--home")
        .arg(home)
        .args(["--addr", "127.0.0.1:0"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !announcement.is_file() {
        assert!(start.elapsed() < Duration::from_secs(60), "the daemon does not start");
        sleep(Duration::from_millis(50));
    }
    daemon
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn last_line(output: &Output) -> Value {
    let out = String::from_utf8_lossy(&output.stdout);
    let line = out.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}
