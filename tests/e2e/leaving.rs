//! People who leave, and daemons that do: the job notices neither, and who comes back sees it to its end.

use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::desk::{Desk, last_line, text};

/// Many steps: the job runs until it is cancelled.
const LONG: &str = "max_steps: 1000000\nsave_steps: 20\nsave_total_limit: 1\n";

fn spawn(desk: &Desk, arguments: &[&str]) -> Child {
    desk.client(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The name of the desk's only job once it has done a step.
fn running_job(desk: &Desk) -> String {
    let start = Instant::now();
    loop {
        let jobs = desk.json(&["jobs", "list"]);
        if jobs["jobs"][0]["progress"]["step"].as_u64() >= Some(1) {
            return jobs["jobs"][0]["name"].as_str().unwrap().to_owned();
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{jobs}");
        sleep(Duration::from_millis(50));
    }
}

/// Exit code and JSON object of a client that ends by itself.
fn ended(client: Child) -> (i32, Value, String) {
    let output = client.wait_with_output().unwrap();
    (output.status.code().unwrap(), last_line(&output), text(&output))
}

#[test]
fn ctrl_c_leaves_the_job_running_and_says_how_to_come_back() {
    let desk = Desk::tiny();
    let client = spawn(&desk, &["train", &desk.tiny_recipe(LONG)]);
    let job = running_job(&desk);
    // SAFETY: a plain system call on a process that we started.
    assert_eq!(unsafe { libc::kill(client.id() as i32, libc::SIGINT) }, 0);
    let (code, left, shown) = ended(client);
    assert_eq!((code, &left["state"]), (0, &"running".into()), "{shown}");
    let id = job.strip_prefix("jobs/").unwrap();
    assert!(shown.contains(&format!("justtrain jobs watch {id}")), "{shown}");

    let watcher = spawn(&desk, &["jobs", "watch", &id[..6]]);
    desk.json(&["jobs", "cancel", id]);
    let (code, cancelled, shown) = ended(watcher);
    assert_eq!((code, &cancelled["state"]), (1, &"cancelled".into()), "{shown}");
    let step = cancelled["progress"]["step"].as_u64().unwrap();
    assert!(desk.home().join("jobs").join(id).join(format!("checkpoints/step-{step}")).is_dir(), "it saved first");
}

#[test]
fn a_watcher_outlives_the_daemon() {
    let mut desk = Desk::tiny();
    desk.json(&["train", &desk.tiny_recipe(LONG), "--detach"]);
    let job = running_job(&desk);
    let watcher = spawn(&desk, &["jobs", "watch", &job]);
    desk.wait(&job, |job| job["progress"]["step"].as_u64() >= Some(25));
    desk.daemon.kill().unwrap();
    desk.daemon.wait().unwrap();
    desk.restart_daemon();
    // It goes on from a checkpoint by itself.
    let again = desk.wait(&job, |job| job["attempt"] == 2 && job["state"] == "running");
    assert!(again["progress"]["step"].as_u64() >= Some(20), "{again}");
    desk.json(&["jobs", "cancel", &job]);
    let (code, cancelled, shown) = ended(watcher);
    assert_eq!((code, &cancelled["state"]), (1, &"cancelled".into()), "{shown}");
    assert!(shown.contains("attempt 2"), "what happened meanwhile was shown: {shown}");
}
