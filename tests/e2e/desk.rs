//! A data folder with a daemon on a free port, and the client that talks to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

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

    /// With a tiny random model in `model`, whose tokens are the characters of ASCII, and rows in `data.jsonl`.
    pub(crate) fn tiny() -> Self {
        let desk = Self::new();
        let model = desk.home().join("model");
        fs::create_dir(&model).unwrap();
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../daemon/engine/model/fixtures/tiny-llama");
        for file in ["config.json", "model.safetensors"] {
            fs::copy(Path::new(fixture).join(file), model.join(file)).unwrap();
        }
        let mut vocabulary: serde_json::Map<String, Value> = (0..3).map(|id| (format!("<{id}>"), id.into())).collect();
        vocabulary.extend((' '..='~').zip(3..).map(|(character, id)| (character.to_string(), id.into())));
        let end = json!({"id": 2, "content": "<2>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        let split = json!({"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false});
        let tokenizer = json!({"version": "1.0", "added_tokens": [end], "pre_tokenizer": split,
            "decoder": {"type": "Fuse"}, "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<0>"}});
        fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let template = "{% for m in messages %}{{ m.role[0] + m.content + '<2>' }}{% endfor %}\
                        {% if add_generation_prompt %}a{% endif %}";
        let config = json!({"eos_token": "<2>", "chat_template": template});
        fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
        let rows: Vec<String> = (0..12)
            .map(|i| json!({"prompt": format!("{i}+1"), "completion": format!("is {}", i + 1)}).to_string())
            .collect();
        fs::write(desk.path("data.jsonl"), rows.join("\n")).unwrap();
        desk
    }

    /// Writes `tiny.yaml`, a recipe for the tiny model; returns its path.
    pub(crate) fn tiny_recipe(&self, extra: &str) -> String {
        let path = self.path("tiny.yaml");
        let text = "model_name_or_path: ./model\ndataset: data.jsonl\nval_size: 2\nper_device_train_batch_size: 2\n";
        fs::write(&path, format!("{text}{extra}")).unwrap();
        path
    }

    /// Changes the tiny model's `config.json`.
    pub(crate) fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path("model/config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
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

    /// A daemon that finds no more memory than this on the machine.
    pub(crate) fn limit_memory(&mut self, limit: &str) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.daemon = start(daemon(self.folder.path()).env("JUSTTRAIN_MEMORY_LIMIT", limit), self.folder.path());
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
    start(&mut daemon(home), home)
}

fn daemon(home: &Path) -> Command {
    let mut command = Command::new(program("justtraind"));
    command.arg("--home").arg(home).args(["--addr", "127.0.0.1:0"]).stderr(Stdio::null());
    command
}

fn start(command: &mut Command, home: &Path) -> Child {
    let announcement = home.join("daemon.json");
    let _ = fs::remove_file(&announcement);
    let daemon = command.spawn().unwrap();
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

pub(crate) fn last_line(output: &Output) -> Value {
    let out = String::from_utf8_lossy(&output.stdout);
    let line = out.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}
