//! Every way in which input can be bad, one test each: over the real programs, with the place, the exit code, and the
//! sentence in both languages.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::desk::{Desk, program, text};

const ENGINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../daemon/engine");

/// The exit code and the first problem of a command that is refused, which it also is in Chinese.
fn refused(desk: &Desk, arguments: &[&str]) -> (i32, Value) {
    let problem = |error: &Value| error["error"]["problems"][0].clone();
    let chinese = desk.client(arguments).env("JUSTTRAIN_LANG", "zh").output().unwrap();
    let chinese = problem(&crate::desk::last_line(&chinese));
    let message = chinese["message"].as_str().unwrap();
    assert!(message.chars().any(|c| ('\u{4e00}'..'\u{a000}').contains(&c)), "{chinese}");
    let (code, error) = desk.refused(arguments);
    assert!(problem(&error)["fix"].is_string(), "a fix is given: {error}");
    (code, problem(&error))
}

/// As [`refused`], where the model at `path` cannot be trained.
fn refused_model(desk: &Desk, path: &str) -> Value {
    let recipe = desk.path("model.yaml");
    fs::write(&recipe, format!("model_name_or_path: {path}\ndataset: data.jsonl\nval_size: 2\n")).unwrap();
    let (code, problem) = refused(desk, &["train", &recipe]);
    assert_eq!(code, 6, "{problem}");
    assert!(problem["file"].as_str().unwrap().contains(path.trim_start_matches("./")), "{problem}");
    problem
}

#[test]
fn a_file_that_is_not_a_gguf() {
    let desk = Desk::tiny();
    fs::write(desk.path("x.gguf"), "hello, world").unwrap();
    let problem = refused_model(&desk, "./x.gguf");
    assert_eq!(problem["code"], "FILE_FORMAT");
    assert!(problem["found"].as_str().unwrap().contains("hell"), "{problem}");
}

#[test]
fn a_truncated_gguf() {
    let desk = Desk::tiny();
    let whole = fs::read(Path::new(ENGINE).join("weights/fixtures/tiny.gguf")).unwrap();
    fs::write(desk.path("x.gguf"), &whole[..whole.len() - 100]).unwrap();
    let problem = refused_model(&desk, "./x.gguf");
    assert_eq!(problem["code"], "FILE_TRUNCATED");
    assert_eq!(problem["found"], format!("{} bytes", whole.len() - 100));
}

#[test]
fn pytorch_pickles() {
    let desk = Desk::tiny();
    fs::rename(desk.path("model/model.safetensors"), desk.path("model/pytorch_model.bin")).unwrap();
    let problem = refused_model(&desk, "./model");
    assert_eq!((&problem["code"], &problem["found"]), (&json!("FILE_FORMAT"), &json!("pytorch_model.bin")));
    assert!(problem["fix"].as_str().unwrap().contains("save_pretrained"), "{problem}");
}

#[test]
fn a_model_whose_terms_nobody_has_accepted() {
    let (code, problem) = refused(&Desk::new(), &["models", "pull", "gemma-3-270m"]);
    assert_eq!((code, &problem["code"]), (6, &json!("LICENSE_NOT_ACCEPTED")));
    assert_eq!(problem["expected"], "https://ai.google.dev/gemma/terms");
}

#[test]
fn truncated_safetensors() {
    let desk = Desk::tiny();
    let path = desk.path("model/model.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(refused_model(&desk, "./model")["code"], "FILE_TRUNCATED");
}

#[test]
fn a_tensor_of_another_shape() {
    let desk = Desk::tiny();
    desk.change_config(|config| config["intermediate_size"] = json!(96));
    let problem = refused_model(&desk, "./model");
    assert_eq!((&problem["code"], &problem["found"]), (&json!("SHAPE_MISMATCH"), &json!("[88, 48]")));
    assert_eq!(problem["expected"], "[96, 48]");
}

#[test]
fn an_unknown_architecture() {
    let desk = Desk::tiny();
    desk.change_config(|config| config["model_type"] = json!("mamba"));
    let problem = refused_model(&desk, "./model");
    assert_eq!((&problem["code"], &problem["found"]), (&json!("UNKNOWN_ARCHITECTURE"), &json!("mamba")));
    assert_eq!(problem["key"], "model_type");
}

#[test]
fn broken_json() {
    let desk = Desk::tiny();
    let path = desk.path("broken.json");
    fs::write(&path, "[{\"instruction\": \"a\",\n \"output\" \"b\"}]").unwrap();
    let (code, problem) = refused(&desk, &["data", "check", &path]);
    assert_eq!((code, &problem["code"]), (6, &json!("SYNTAX")));
    assert_eq!((&problem["line"], &problem["column"]), (&json!(2), &json!(11)), "{problem}");
}

#[test]
fn a_row_without_an_answer() {
    let desk = Desk::tiny();
    let path = desk.path("rows.jsonl");
    fs::write(&path, "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\", \"completion\": \" \"}\n")
        .unwrap();
    let (code, problem) = refused(&desk, &["data", "check", &path]);
    assert_eq!((code, &problem["code"]), (6, &json!("NO_ANSWER")));
    assert_eq!((&problem["row"], &problem["key"]), (&json!(2), &json!("completion")));
}

#[test]
fn an_answer_that_cutoff_len_cuts_to_nothing() {
    let desk = Desk::tiny();
    let recipe = desk.tiny_recipe("cutoff_len: 3\n");
    let (code, problem) = refused(&desk, &["train", &recipe]);
    assert_eq!((code, &problem["code"]), (6, &json!("ANSWER_CUT")), "{problem}");
    assert!(problem["row"].is_number() && problem["fix"].as_str().unwrap().contains("cutoff_len"), "{problem}");
    let (data, model) = (desk.path("data.jsonl"), desk.path("model"));
    let checked = desk.client(&["data", "check", &data, "--model", &model, "--cutoff-len", "3"]).output().unwrap();
    let checked = crate::desk::last_line(&checked);
    assert_eq!(checked["problems"][0]["code"], "ANSWER_CUT", "{checked}");
}

#[test]
fn an_empty_file() {
    let desk = Desk::tiny();
    let path = desk.path("empty.json");
    for nothing in ["", " [ ] "] {
        fs::write(&path, nothing).unwrap();
        let (code, problem) = refused(&desk, &["data", "check", &path]);
        assert_eq!((code, &problem["code"]), (6, &json!("FILE_EMPTY")));
        assert_eq!(problem["file"], path);
    }
    fs::write(desk.path("x.gguf"), "").unwrap();
    assert_eq!(refused_model(&desk, "./x.gguf")["code"], "FILE_EMPTY");
}

#[test]
fn an_unknown_recipe_key_and_a_value_of_the_wrong_type() {
    let desk = Desk::tiny();
    let recipe = desk.tiny_recipe("lora_rnak: 3\nlearning_rate: fast\n");
    let (code, problem) = refused(&desk, &["train", &recipe]);
    assert_eq!((code, &problem["code"], &problem["key"]), (6, &json!("UNKNOWN_KEY"), &json!("lora_rnak")));
    assert!(problem["line"].is_number() && problem.to_string().contains("lora_rank"), "{problem}");
    let (_, error) = desk.refused(&["recipe", "check", &recipe]);
    let second = &error["error"]["problems"][1];
    assert_eq!((&second["code"], &second["key"]), (&json!("WRONG_TYPE"), &json!("learning_rate")));
    assert_eq!(second["line"].as_u64(), problem["line"].as_u64().map(|line| line + 1), "both at once");
}

#[test]
fn a_model_that_is_not_there() {
    let desk = Desk::tiny();
    let recipe = desk.path("nowhere.yaml");
    for model in ["nobody/nothing", "./nothing.gguf"] {
        fs::write(&recipe, format!("model_name_or_path: {model}\ndataset: data.jsonl\n")).unwrap();
        let (code, problem) = refused(&desk, &["train", &recipe]);
        assert_eq!((code, &problem["code"]), (5, &json!("MODEL_NOT_FOUND")), "{problem}");
    }
    assert_eq!(desk.refused(&["jobs", "show", "jobs/0000000000"]).0, 5);
}

/// `/dev/full` refuses every byte as a full disk does.
#[test]
fn no_disk_for_data_and_answers() {
    let desk = Desk::tiny();
    let output = desk.path("out.json");
    symlink("/dev/full", desk.path("out.json.partial")).unwrap();
    let (code, problem) = refused(&desk, &["data", "generate", "numbers", "--count", "2", "--output", &output]);
    assert_eq!((code, &problem["code"]), (7, &json!("DISK_FULL")));
    assert!(!Path::new(&output).exists());

    let (prompts, answers, model) = (desk.path("prompts.jsonl"), desk.path("answers.jsonl"), desk.path("model"));
    fs::write(&prompts, "{\"prompt\": \"1+1\"}\n").unwrap();
    symlink("/dev/full", desk.path("answers.jsonl.partial")).unwrap();
    let arguments = ["generate", "--input", &prompts, "--output", &answers, "--model", &model, "--max-new-tokens", "2"];
    let (code, error) = desk.refused(&arguments);
    assert_eq!((code, &error["error"]["problems"][0]["code"]), (7, &json!("DISK_FULL")), "{error}");
    assert!(!Path::new(&answers).exists());
}

/// Every client hears it, also where the model is loaded already, and once however many answers there are.
#[test]
fn a_model_without_a_chat_template() {
    let desk = Desk::tiny();
    fs::write(desk.path("model/tokenizer_config.json"), json!({"eos_token": "<2>"}).to_string()).unwrap();
    let (prompts, answers, model) = (desk.path("prompts.jsonl"), desk.path("answers.jsonl"), desk.path("model"));
    fs::write(&prompts, "{\"prompt\": \"1+1\"}\n{\"prompt\": \"2+1\"}\n").unwrap();
    for _ in 0..2 {
        let arguments =
            ["generate", "--input", &prompts, "--output", &answers, "--model", &model, "--max-new-tokens", "2"];
        let problems = desk.json(&arguments)["problems"].clone();
        assert_eq!(problems.as_array().map(Vec::len), Some(1), "{problems}");
        assert_eq!((&problems[0]["code"], &problems[0]["severity"]), (&json!("CHAT_TEMPLATE"), &json!("warning")));
        assert!(problems[0]["message"].as_str().unwrap().contains("chatml"), "{problems}");
    }
}

/// A worker that may write no file larger than 16 KiB: the adapter of a checkpoint is.
#[test]
fn no_disk_for_a_checkpoint() {
    let desk = Desk::tiny();
    let recipe = fs::read_to_string(desk.tiny_recipe("")).unwrap();
    let run = desk.path("run");
    let command = json!({
        "command": "train",
        "recipe": {"text": recipe, "file": "recipe.yaml", "base_dir": desk.home()},
        "model": {"name": "tiny", "path": desk.path("model")},
        "run_dir": run,
        "resume": false,
    });
    let mut worker = Command::new(program("justtrain-worker"));
    worker.stdin(Stdio::piped()).stdout(Stdio::piped());
    // SAFETY: two system calls on the new process, both async-signal-safe. Ignored, the signal becomes an error of `write`.
    unsafe {
        worker.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 16 << 10, rlim_max: 16 << 10 };
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut worker = worker.spawn().unwrap();
    // Kept open: a worker whose daemon is gone stops.
    let mut stdin = worker.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, format!("{command}\n").as_bytes()).unwrap();
    let output = worker.wait_with_output().unwrap();
    let failed = &crate::desk::last_line(&output)["failed"];
    assert_eq!(failed["reason"], "DISK_FULL", "{}", text(&output));
    assert!(failed["problems"][0]["file"].as_str().unwrap().contains("step-"), "{failed}");
    let left = fs::read_dir(Path::new(&run).join("checkpoints")).unwrap().count();
    assert_eq!(left, 0, "nothing half-written stays");
}

#[test]
fn a_wrong_token() {
    let desk = Desk::tiny();
    let stranger = desk.client(&["jobs", "list"]).env("JUSTTRAIN_TOKEN", "not-the-token").output().unwrap();
    assert_eq!(stranger.status.code(), Some(4), "{}", text(&stranger));
    assert!(text(&stranger).contains(&desk.path("token")), "{}", text(&stranger));
}

#[test]
fn a_daemon_that_is_down_and_one_too_many() {
    let mut desk = Desk::tiny();
    let second =
        Command::new(program("justtraind")).arg("--home").arg(desk.home()).args(["--addr", "127.0.0.1:0"]).output();
    let second = second.unwrap();
    assert!(!second.status.success());
    assert!(text(&second).contains(&desk.daemon.id().to_string()), "{}", text(&second));
    desk.daemon.kill().unwrap();
    desk.daemon.wait().unwrap();
    let (code, error) = desk.refused(&["jobs", "list"]);
    assert_eq!((code, &error["error"]["code"]), (3, &json!("daemon_unreachable")));
    assert!(error.to_string().contains("justtrain daemon start"), "{error}");
}

/// The daemon says so, lives on, and runs the next job.
#[test]
fn a_killed_worker() {
    let desk = Desk::tiny();
    let job = desk.train_until_step(&desk.tiny_recipe("max_steps: 100000\nsave_steps: 50000\n"), 1);
    // SAFETY: a plain system call on a process that our daemon started.
    assert_eq!(unsafe { libc::kill(desk.worker(), libc::SIGKILL) }, 0);
    let failed = desk.wait(&job, |job| job["state"] == "failed");
    assert_eq!(failed["reason"], "worker_crashed");
    let problem = failed["problems"][0].to_string();
    assert!(problem.contains("SIGKILL") && problem.contains("memory"), "{problem}");
    let next = desk.json(&["train", &desk.tiny_recipe("max_steps: 2\n")]);
    assert_eq!(next["state"], "succeeded");
}
