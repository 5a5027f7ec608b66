//! The record of a job and of what happened to it.

use std::{
    fmt,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use justtrain_worker_api::{DevicePick, Event, ModelFiles, Problem, RecipeSource, StageOfJob, TrainResult};
use serde::{Deserialize, Serialize};

use crate::{JobReason, JobState};

/// Milliseconds since 1970-01-01 UTC.
pub type UnixMillis = i64;

pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Ten characters that a person can type: digits and lower-case letters without `i`, `l`, `o` and `u`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JobId(String);

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl JobId {
    /// A new id: 50 random bits.
    pub fn random() -> Self {
        let bytes = uuid::Uuid::new_v4().into_bytes();
        // Bytes 6 and 8 of a UUID hold its version; the others are random.
        let random = bytes[..6].iter().chain(&bytes[10..14]);
        Self(random.map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
    }

    /// Ids name folders, so nothing but the alphabet gets through.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 10 && text.bytes().all(|byte| ALPHABET.contains(&byte))).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub state: JobState,
    pub reason: Option<JobReason>,
    /// Why, and the next command; empty while all is well.
    pub problems: Vec<Problem>,
    pub recipe: RecipeSource,
    /// The base model.
    pub model: ModelFiles,
    /// Jobs on one device wait for each other. Never `auto`.
    #[serde(default = "cpu")]
    pub device: DevicePick,
    pub created: UnixMillis,
    /// Start of the newest attempt.
    pub started: Option<UnixMillis>,
    pub ended: Option<UnixMillis>,
    /// 1 for the first run, one more for each resume.
    pub attempt: u32,
    /// 1 is next; 0 when not queued.
    pub queue_position: u32,
    pub progress: Option<Progress>,
    pub result: Option<TrainResult>,
    /// Recipe, log, checkpoints and adapter.
    pub run_dir: PathBuf,
}

/// Where jobs ran before they said so.
fn cpu() -> DevicePick {
    DevicePick::Cpu
}

/// The newest step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    pub step: u64,
    pub total_steps: u64,
    pub loss: f64,
    pub learning_rate: f64,
    pub tokens_per_second: f64,
    pub seconds_left: f64,
    /// Where the job has several stages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<StageOfJob>,
}

impl Progress {
    /// What an event says of the progress, if anything.
    pub(crate) fn of(event: &Event) -> Option<Self> {
        match *event {
            Event::Started { first_step, total_steps, .. } => {
                Some(Self { step: first_step, total_steps, ..Self::default() })
            }
            Event::Step {
                step, total_steps, loss, learning_rate, tokens_per_second, seconds_left, ref stage, ..
            } => {
                let stage = stage.clone();
                Some(Self { step, total_steps, loss, learning_rate, tokens_per_second, seconds_left, stage })
            }
            _ => None,
        }
    }
}

/// Something that happened to a job. Within a job `seq` is 1, 2, 3… without a gap.
#[derive(Debug, Clone, PartialEq)]
pub struct JobEvent {
    pub seq: u64,
    pub time: UnixMillis,
    pub body: EventBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "events are read one at a time, never kept in bulk")]
pub enum EventBody {
    /// The job after a change of its state.
    State(Box<Job>),
    /// A line of the worker.
    Worker(Event),
}

#[cfg(test)]
mod tests {
    use super::{JobId, Progress};

    #[test]
    fn progress_has_the_stage_of_its_step() {
        let step = r#"{"event":"step","step":6,"total_steps":9,"epoch":1,"loss":2,"learning_rate":0.1,"grad_norm":1,"tokens":8,
            "target_tokens":4,"tokens_per_second":80,"seconds_left":1,"peak_memory_bytes":1"#;
        let stage = r#","stage":{"name":"taste","number":2,"count":2}}"#;
        let of = |text: &str| Progress::of(&serde_json::from_str(text).unwrap()).unwrap();
        let progress = of(&format!("{step}{stage}"));
        assert_eq!(progress.stage.as_ref().map(|stage| (stage.name.as_str(), stage.number)), Some(("taste", 2)));
        // As jobs of one stage say it, and workers of earlier versions.
        assert_eq!(of(&format!("{step}}}")), Progress { stage: None, ..progress });
    }

    #[test]
    fn ids_are_safe_folder_names() {
        assert!(JobId::parse(JobId::random().as_str()).is_some());
        for bad in ["", "../../etc", "abc", "ABCDEFGHJK", "0123456789a", "012345678/"] {
            assert_eq!(JobId::parse(bad), None, "{bad}");
        }
    }
}
