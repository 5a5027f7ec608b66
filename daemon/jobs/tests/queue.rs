//! The queue over a scripted worker: what is stored, in which order, and how each bad end is explained.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use justtrain_jobs::{EventBody, Job, JobReason, JobState, Jobs, NewJob, RequestKey, Store, StoreError, WorkerProgram};
use justtrain_worker_api::{DevicePick, Event, ModelFiles, RecipeSource};

const STARTED: &str = r#"echo '{"event":{"event":"phase","phase":"training"}}'"#;
const TRAINED: &str = r#"echo '{"outcome":{"outcome":"trained","stopped":false,"steps":3,"first_loss":2.0,"last_loss":1.0,"validation_loss":null,"tokens_per_second":9.0,"peak_memory_bytes":1,"seconds":1.0,"adapter":"/a"}}'"#;
const STOPPED: &str = r#"echo '{"outcome":{"outcome":"trained","stopped":true,"steps":1,"first_loss":2.0,"last_loss":2.0,"validation_loss":null,"tokens_per_second":9.0,"peak_memory_bytes":1,"seconds":1.0,"adapter":"/a"}}'"#;

/// A store and a queue in a folder of their own, with a shell script as the worker.
struct Desk {
    folder: tempfile::TempDir,
    jobs: Jobs,
}

impl Desk {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let worker = folder.path().join("worker");
        fs::write(folder.path().join("script"), format!("read command\n{script}\n")).unwrap();
        symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/../worker-api/fixtures/scripted-worker"), &worker).unwrap();
        let store = Arc::new(Store::open(&folder.path().join("jobs.db")).unwrap());
        let jobs = Jobs::new(store, WorkerProgram::new(worker), folder.path().join("jobs"));
        Self { folder, jobs }
    }

    fn queue(&self) -> Job {
        self.jobs.create(new_job(), &request("11111111-1111-4111-8111-111111111111", "a")).unwrap()
    }

    /// Runs the queue until the job is in a state for which `until` holds.
    async fn run_until(&self, job: &Job, until: impl Fn(&Job) -> bool) -> Job {
        let queue = tokio::spawn({
            let jobs = self.jobs.clone();
            async move { jobs.run().await }
        });
        let mut changes = self.jobs.store().changes();
        let reached = async {
            loop {
                changes.mark_unchanged();
                let job = self.jobs.store().job(&job.id).unwrap();
                if until(&job) {
                    return job;
                }
                changes.changed().await.unwrap();
            }
        };
        let job = tokio::time::timeout(std::time::Duration::from_secs(60), reached).await.expect("the job moves on");
        queue.abort();
        job
    }

    async fn run(&self) -> Job {
        let job = self.queue();
        self.run_until(&job, |job| job.state.is_at_rest()).await
    }
}

fn new_job() -> NewJob {
    job_on(DevicePick::Cpu)
}

fn job_on(device: DevicePick) -> NewJob {
    NewJob {
        device,
        recipe: RecipeSource { text: "x: 1\n".into(), file: "r.yaml".into(), base_dir: "/".into() },
        model: ModelFiles { name: "m".into(), path: PathBuf::from("/m"), ..ModelFiles::default() },
    }
}

fn request(id: &str, hash: &str) -> RequestKey {
    RequestKey { id: id.into(), method: "CreateJob", hash: hash.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_and_every_event_is_stored_without_a_gap() {
    let desk = Desk::new(&format!("{STARTED}\n{TRAINED}"));
    let job = desk.run().await;
    assert_eq!((job.state, job.result.as_ref().map(|result| result.steps)), (JobState::Succeeded, Some(3)));
    let events = desk.jobs.store().events_after(&job.id, 0, 100).unwrap();
    assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let states: Vec<_> = events
        .iter()
        .map(|event| match &event.body {
            EventBody::State(job) => format!("{:?}", job.state),
            EventBody::Worker(Event::Phase { phase }) => format!("{phase:?}"),
            EventBody::Worker(other) => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(states, ["Queued", "Running", "Training", "Succeeded"]);
    assert_eq!(desk.jobs.store().events_after(&job.id, 2, 100).unwrap().len(), 2);
    assert_eq!(fs::read_to_string(job.run_dir.join("recipe.yaml")).unwrap(), "x: 1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_is_explained() {
    let cases = [
        (format!("{STARTED}\necho 'out of luck' >&2\nexit 9"), ["exit code 9", "out of luck"]),
        (format!("{STARTED}\nkill -SEGV $$"), ["signal 11, SIGSEGV", "worker.log"]),
        ("kill -KILL $$".to_owned(), ["SIGKILL", "memory"]),
        ("echo 'hello there'\nsleep 60".to_owned(), ["hello there", "where a message belongs"]),
    ];
    for (script, expected) in cases {
        let job = Desk::new(&script).run().await;
        assert_eq!((job.state, job.reason), (JobState::Failed, Some(JobReason::WorkerCrashed)), "{script}");
        let problem = job.problems[0].to_string();
        for expected in expected {
            assert!(problem.contains(expected), "{script}: {problem}");
        }
        assert!(!job.problems[0].message.zh.is_empty() && !job.problems[0].fix.zh.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_talks_without_end_does_not_fill_the_disk() {
    // Lines, then one line that never ends.
    let noise = "yes 'a line of the log' | head -c 9000000 >&2; head -c 9000000 /dev/zero | tr '\\0' x >&2";
    let desk = Desk::new(&format!("{STARTED}\n{noise}\necho >&2\necho 'out of luck' >&2\nexit 9"));
    let job = desk.run().await;
    assert!(job.problems[0].to_string().contains("out of luck"), "the end of the log is read");
    let size = |name: &str| fs::metadata(job.run_dir.join(name)).unwrap().len();
    let (log, old) = (size("worker.log"), size("worker.log.old"));
    assert!(log <= 4 << 20 && old <= 4 << 20 && log + old > 4 << 20, "{log} and {old} bytes");
    assert!(fs::read_to_string(job.run_dir.join("worker.log")).unwrap().ends_with("out of luck\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_keeps_its_reason() {
    let failed = r#"echo '{"failed":{"reason":"DISK_FULL","problems":[{"code":"DISK_FULL","severity":"error","message":{"en":"full","zh":"满"}}]}}'"#;
    let job = Desk::new(failed).run().await;
    assert_eq!((job.state, job.reason), (JobState::Failed, Some(JobReason::DiskFull)));
    assert_eq!(job.problems[0].message.en, "full");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_not_there_is_named() {
    let desk = Desk::new("");
    fs::remove_file(desk.folder.path().join("worker")).unwrap();
    let job = desk.run().await;
    assert_eq!(job.reason, Some(JobReason::WorkerCrashed));
    assert!(job.problems[0].file.as_ref().unwrap().ends_with("worker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_saves_before_it_is_cancelled() {
    // Ends only once it has read a stop, and not before both cancellations are answered.
    let wait = "read control\nwhile [ ! -e \"$0.asked\" ]; do sleep 0.02; done";
    let desk = Desk::new(&format!("{STARTED}\n{wait}\ncase $control in *stop*) {STOPPED} ;; esac"));
    let job = desk.queue();
    let cancel = async {
        let mut changes = desk.jobs.store().changes();
        while desk.jobs.store().job(&job.id).unwrap().state != JobState::Running {
            changes.changed().await.unwrap();
        }
        // However often it is asked: the job has not ended before its worker has.
        for _ in 0..2 {
            assert_eq!(desk.jobs.cancel(&job.id).unwrap().state, JobState::Cancelling);
        }
        fs::write(desk.folder.path().join("worker.asked"), "").unwrap();
    };
    let (job, ()) = tokio::join!(desk.run_until(&job, |job| job.state.is_at_rest()), cancel);
    assert_eq!((job.state, job.reason), (JobState::Cancelled, Some(JobReason::User)));
    assert!(matches!(desk.jobs.cancel(&job.id), Err(StoreError::NotAllowed { .. })));
}

#[test]
fn the_same_request_makes_one_job() {
    let desk = Desk::new("");
    let id = "22222222-2222-4222-8222-222222222222";
    let first = desk.jobs.create(new_job(), &request(id, "a")).unwrap();
    assert_eq!(desk.jobs.create(new_job(), &request(id, "a")).unwrap().id, first.id);
    assert!(matches!(desk.jobs.create(new_job(), &request(id, "b")), Err(StoreError::RequestReused(_))));
    assert_eq!(desk.jobs.store().jobs(None, 10).unwrap().0.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_a_dead_daemon_left_running_is_queued_again() {
    let desk = Desk::new(&format!("{STARTED}\nsleep 60"));
    let job = desk.queue();
    desk.run_until(&job, |job| job.state == JobState::Running).await;
    let store = Store::open(&desk.folder.path().join("jobs.db")).unwrap();
    let recovered = store.recover().unwrap();
    assert_eq!((recovered.len(), recovered[0].attempt, recovered[0].state), (1, 2, JobState::Queued));
    let events = store.events_after(&job.id, 0, 100).unwrap();
    let interrupted = events
        .iter()
        .any(|event| matches!(&event.body, EventBody::State(job) if job.reason == Some(JobReason::DaemonRestarted)));
    assert!(interrupted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_takes_its_time_to_leave_has_still_succeeded() {
    // Longer than events are held back: the queue has other things to do between the last word and the end.
    let job = Desk::new(&format!("{STARTED}\n{TRAINED}\nexec sleep 1")).run().await;
    assert_eq!((job.state, &job.problems), (JobState::Succeeded, &Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_are_quoted_and_end_the_worker() {
    let job = Desk::new("printf '\\377bad\\n'\nsleep 600").run().await;
    assert_eq!((job.state, job.reason), (JobState::Failed, Some(JobReason::WorkerCrashed)));
    assert!(job.problems[0].to_string().contains("bad"), "{}", job.problems[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_worker_dies_while_the_daemon_ends_goes_on_later() {
    let desk = Desk::new(&format!("{STARTED}\nread control\nkill -KILL $$"));
    let job = desk.queue();
    let stop = async {
        let mut changes = desk.jobs.store().changes();
        while desk.jobs.store().job(&job.id).unwrap().state != JobState::Running {
            changes.changed().await.unwrap();
        }
        desk.jobs.shut_down();
    };
    let (job, ()) = tokio::join!(desk.run_until(&job, |job| job.state.is_at_rest()), stop);
    assert_eq!((job.state, job.reason), (JobState::Interrupted, Some(JobReason::DaemonRestarted)));
    assert_eq!(desk.jobs.store().recover().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_events_cannot_be_stored_does_not_seem_to_run() {
    let desk = Desk::new(&format!("{STARTED}\nexec sleep 600"));
    let database = rusqlite::Connection::open(desk.folder.path().join("jobs.db")).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.body LIKE '%phase%'
                  BEGIN SELECT RAISE(FAIL, 'refused'); END";
    database.execute_batch(refuse).unwrap();
    let job = desk.run().await;
    assert_eq!((job.state, job.reason), (JobState::Failed, Some(JobReason::Internal)));
    assert!(job.problems[0].to_string().contains("refused"), "{}", job.problems[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_wait_for_their_own_device_only() {
    // Runs for as long as the test lets it.
    let desk = Desk::new(&format!("{STARTED}\nread control\n{STOPPED}"));
    let devices = [DevicePick::Cpu, DevicePick::Cpu, DevicePick::Cuda(0)];
    let jobs: Vec<Job> = (0..3)
        .map(|index| {
            let id = format!("{index}1111111-1111-4111-8111-111111111111");
            desk.jobs.create(job_on(devices[index]), &request(&id, "a")).unwrap()
        })
        .collect();
    assert_eq!(jobs.iter().map(|job| job.queue_position).collect::<Vec<_>>(), [1, 2, 1]);
    let running = |job: &Job| desk.jobs.store().job(&job.id).unwrap().state == JobState::Running;
    desk.run_until(&jobs[2], |_| running(&jobs[0]) && running(&jobs[2])).await;
    let waiting = desk.jobs.store().job(&jobs[1].id).unwrap();
    assert_eq!((waiting.state, waiting.queue_position), (JobState::Queued, 1));
}
