//! Exit codes: the one enum that scripts rely on, and the one place where gRPC codes become exit codes.

use justtrain_proto::v1::{JobReason, Problem};
use tonic::Code;

/// How the program ends. The numbers are part of the command line's contract (`docs/guides/command-line.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Ok = 0,
    /// The work itself failed: a job failed, a check found problems.
    Failed = 1,
    /// The command line could not be understood.
    Usage = 2,
    DaemonUnreachable = 3,
    Unauthenticated = 4,
    NotFound = 5,
    /// A recipe, a data file or a request that is wrong.
    InvalidInput = 6,
    /// No disk or no memory left.
    OutOfResources = 7,
}

impl Exit {
    /// The value of `error.code` in `--json` output.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::DaemonUnreachable => "daemon_unreachable",
            Self::Unauthenticated => "unauthenticated",
            Self::NotFound => "not_found",
            Self::InvalidInput => "invalid_input",
            Self::OutOfResources => "out_of_resources",
        }
    }

    pub(crate) fn of_rpc(code: Code) -> Self {
        match code {
            Code::Ok => Self::Ok,
            Code::Unavailable => Self::DaemonUnreachable,
            Code::Unauthenticated | Code::PermissionDenied => Self::Unauthenticated,
            Code::NotFound => Self::NotFound,
            Code::InvalidArgument | Code::AlreadyExists | Code::OutOfRange => Self::InvalidInput,
            Code::ResourceExhausted => Self::OutOfResources,
            Code::FailedPrecondition
            | Code::Aborted
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss => Self::Failed,
        }
    }

    /// Of a job that did not succeed: the same cause has the same number whether it came up before or during the run.
    pub(crate) fn of_job(reason: JobReason) -> Self {
        match reason {
            JobReason::HostOom | JobReason::DiskFull => Self::OutOfResources,
            JobReason::RecipeInvalid | JobReason::DataInvalid | JobReason::ModelInvalid => Self::InvalidInput,
            _ => Self::Failed,
        }
    }

    /// Of an operation that failed: what a call that fails with these problems has.
    pub(crate) fn of_problems(problems: &[Problem]) -> Self {
        let of_one = |problem: &Problem| match problem.code.as_str() {
            "DISK_FULL" | "OUT_OF_MEMORY" => Self::OutOfResources,
            "MODEL_NOT_FOUND" | "FILE_NOT_FOUND" => Self::NotFound,
            "SOURCE_FAILED" | "CHECKSUM_MISMATCH" | "CHECKPOINT" | "LOSS_DIVERGED" | "CANCELLED" | "INTERRUPTED"
            | "WORKER_CRASHED" | "INTERNAL" | "" => Self::Failed,
            _ => Self::InvalidInput,
        };
        let all = || problems.iter().map(of_one);
        let telling = all().find(|exit| matches!(exit, Self::OutOfResources | Self::NotFound));
        telling.or_else(|| all().next()).unwrap_or(Self::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_codes_have_their_documented_numbers() {
        let number = |code| Exit::of_rpc(code) as u8;
        assert_eq!(number(Code::Unavailable), 3);
        assert_eq!(number(Code::Unauthenticated), 4);
        assert_eq!(number(Code::NotFound), 5);
        assert_eq!(number(Code::InvalidArgument), 6);
        assert_eq!(number(Code::ResourceExhausted), 7);
        assert_eq!(number(Code::Internal), 1);
    }

    #[test]
    fn a_full_disk_is_7_however_it_comes_up() {
        let problem = Problem { code: "DISK_FULL".into(), ..Problem::default() };
        assert_eq!(Exit::of_problems(&[Problem::default(), problem]), Exit::OutOfResources);
        assert_eq!(Exit::of_job(JobReason::DiskFull), Exit::OutOfResources);
        for code in ["INVALID_VALUE", "LICENSE_NOT_ACCEPTED"] {
            let wrong = Problem { code: code.into(), ..Problem::default() };
            assert_eq!(Exit::of_problems(&[wrong]), Exit::InvalidInput);
        }
        assert_eq!(Exit::of_problems(&[]), Exit::Failed);
        assert_eq!(Exit::of_job(JobReason::WorkerCrashed), Exit::Failed);
    }
}
