//! The life of a job: its states, the changes between them, and the reasons for the bad ones.

use justtrain_worker_api::FailureReason;
use serde::{Deserialize, Serialize};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobState {
    /// Waits for its turn.
    Queued,
    /// Its worker is at work.
    Running,
    /// A stop was asked for; the worker is saving a checkpoint.
    Cancelling,
    /// Worker or daemon was lost. Can be resumed; after a restart of the daemon this happens by itself.
    Interrupted,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobState {
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::Cancelling,
        Self::Interrupted,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name in the database and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Cancelling => "CANCELLING",
            Self::Interrupted => "INTERRUPTED",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Whether a job in this state may go straight to `next`.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Queued => matches!(next, Self::Running | Self::Cancelled),
            Self::Running => {
                matches!(next, Self::Cancelling | Self::Interrupted | Self::Succeeded | Self::Failed)
            }
            // A job can reach its end between the wish to stop it and the worker's reading of it.
            Self::Cancelling => matches!(next, Self::Cancelled | Self::Succeeded | Self::Failed),
            Self::Interrupted => matches!(next, Self::Queued | Self::Cancelled),
            Self::Failed | Self::Cancelled => next == Self::Queued,
            Self::Succeeded => false,
        }
    }

    /// Whether nothing more happens unless someone asks for it.
    pub fn is_at_rest(self) -> bool {
        !matches!(self, Self::Queued | Self::Running | Self::Cancelling)
    }
}

/// Why a job is in a state other than queued, running or succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobReason {
    /// The person asked for it.
    User,
    RecipeInvalid,
    DataInvalid,
    ModelInvalid,
    /// The kernel killed the worker for its memory, or the worker could not get enough.
    HostOom,
    DiskFull,
    LossDiverged,
    /// The worker ended without saying how.
    WorkerCrashed,
    DaemonRestarted,
    /// A bug of ours.
    Internal,
}

impl From<FailureReason> for JobReason {
    fn from(reason: FailureReason) -> Self {
        match reason {
            FailureReason::RecipeInvalid => Self::RecipeInvalid,
            FailureReason::DataInvalid => Self::DataInvalid,
            FailureReason::ModelInvalid => Self::ModelInvalid,
            FailureReason::HostOom => Self::HostOom,
            FailureReason::DiskFull => Self::DiskFull,
            FailureReason::LossDiverged => Self::LossDiverged,
            FailureReason::Internal => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::JobState::{self, *};

    #[test]
    fn only_the_documented_changes_are_allowed() {
        let allowed: Vec<(JobState, JobState)> = JobState::ALL
            .into_iter()
            .flat_map(|from| JobState::ALL.into_iter().map(move |to| (from, to)))
            .filter(|(from, to)| from.may_become(*to))
            .collect();
        assert_eq!(
            allowed,
            [
                (Queued, Running),
                (Queued, Cancelled),
                (Running, Cancelling),
                (Running, Interrupted),
                (Running, Succeeded),
                (Running, Failed),
                (Cancelling, Succeeded),
                (Cancelling, Failed),
                (Cancelling, Cancelled),
                (Interrupted, Queued),
                (Interrupted, Cancelled),
                (Failed, Queued),
                (Cancelled, Queued),
            ]
        );
    }
}
