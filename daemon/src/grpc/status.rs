//! Problems as gRPC statuses: the one place where a code is chosen.

use justtrain_jobs::{JobState, StoreError};
use justtrain_proto::{PROBLEMS_TYPE_URL, v1};
use justtrain_worker_api::{Failure, FailureReason, Problem, ProblemCode};
use prost::Message;
use tonic::{Code, Status};

use super::convert;

const DOMAIN: &str = "justtrain.dev";

/// The status of a failed command.
pub(super) fn of_failure(failure: &Failure) -> Status {
    let code = match failure.reason {
        FailureReason::Internal | FailureReason::LossDiverged => code_of(failure.problems.first()),
        FailureReason::HostOom | FailureReason::DiskFull => Code::ResourceExhausted,
        FailureReason::RecipeInvalid | FailureReason::DataInvalid | FailureReason::ModelInvalid => {
            match code_of(failure.problems.first()) {
                Code::NotFound => Code::NotFound,
                _ => Code::InvalidArgument,
            }
        }
    };
    let reason = serde_json::to_value(failure.reason).ok();
    with_code(code, reason.as_ref().and_then(|reason| reason.as_str()).unwrap_or("INTERNAL"), &failure.problems)
}

/// The status of problems that come without a reason.
pub(super) fn of_problems(problems: &[Problem]) -> Status {
    let reason = problems.first().map(convert::problem).map(|problem| problem.code).unwrap_or_default();
    with_code(code_of(problems.first()), &reason, problems)
}

pub(super) fn of_problem(problem: Problem) -> Status {
    of_problems(&[problem])
}

pub(super) fn of_store(error: StoreError) -> Status {
    let problem = |code, zh: &str| Problem::error(code, error.to_string(), zh);
    match &error {
        StoreError::NoJob(_) => {
            let problem = problem(ProblemCode::FileNotFound, "没有这个任务")
                .fix("list the jobs with `justtrain jobs list`", "用 `justtrain jobs list` 查看任务");
            with_code(Code::NotFound, "NO_SUCH_JOB", &[problem])
        }
        StoreError::NoOperation(_) => {
            with_code(Code::NotFound, "NO_SUCH_OPERATION", &[problem(ProblemCode::FileNotFound, "没有这个操作")])
        }
        StoreError::NotAllowed { id, from, to } => {
            let (en, zh, expected) = match to {
                JobState::Queued => ("resumed", "恢复", "interrupted, failed or cancelled"),
                _ => ("cancelled", "取消", "queued, running or interrupted"),
            };
            let problem = Problem::error(
                ProblemCode::InvalidValue,
                format!("job {id} cannot be {en} as it is"),
                format!("任务 {id} 当前不能{zh}"),
            )
            .found(from.as_str().to_ascii_lowercase())
            .expected(expected)
            .fix(
                format!("look at it with `justtrain jobs show {id}`"),
                format!("用 `justtrain jobs show {id}` 查看任务"),
            );
            with_code(Code::FailedPrecondition, "WRONG_STATE", &[problem])
        }
        StoreError::RequestReused(_) => {
            let problem = problem(ProblemCode::InvalidValue, "该请求编号已用于另一个请求");
            with_code(Code::AlreadyExists, "REQUEST_REUSED", &[problem])
        }
        error if error.is_disk_full() => {
            let problem = problem(ProblemCode::DiskFull, "磁盘已满").fix("free some disk space", "请释放磁盘空间");
            with_code(Code::ResourceExhausted, "DISK_FULL", &[problem])
        }
        _ => with_code(Code::Internal, "DATABASE", &[problem(ProblemCode::Internal, "数据库出错")]),
    }
}

/// A request whose fields are wrong.
pub(super) fn invalid(key: &str, found: &str, expected: &str) -> Status {
    let problem = Problem::error(ProblemCode::InvalidValue, "the request is not valid", "请求无效")
        .key(key)
        .found(if found.is_empty() { "nothing" } else { found })
        .expected(expected);
    with_code(Code::InvalidArgument, "INVALID_REQUEST", &[problem])
}

fn code_of(problem: Option<&Problem>) -> Code {
    match problem.map(|problem| problem.code) {
        Some(ProblemCode::FileNotFound | ProblemCode::ModelNotFound) => Code::NotFound,
        Some(ProblemCode::DiskFull | ProblemCode::OutOfMemory) => Code::ResourceExhausted,
        Some(ProblemCode::Cancelled) => Code::Cancelled,
        Some(ProblemCode::SourceFailed | ProblemCode::Checkpoint) => Code::FailedPrecondition,
        Some(ProblemCode::Internal | ProblemCode::WorkerCrashed | ProblemCode::Interrupted) | None => Code::Internal,
        Some(_) => Code::InvalidArgument,
    }
}

/// A status whose details hold the reason and the problems: all of them, or as many as fit and how many more there are.
pub(super) fn with_code(code: Code, reason: &str, problems: &[Problem]) -> Status {
    let mut message = problems.first().map(ToString::to_string).unwrap_or_default();
    clip(&mut message);
    let info = tonic_types::pb::ErrorInfo {
        reason: reason.to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: std::collections::HashMap::new(),
    };
    let list = v1::Problems { problems: fitting(problems) };
    let any = |type_url: &str, value: Vec<u8>| prost_types::Any { type_url: type_url.to_owned(), value };
    let details = tonic_types::pb::Status {
        code: code as i32,
        message: message.clone(),
        details: vec![
            any("type.googleapis.com/google.rpc.ErrorInfo", info.encode_to_vec()),
            any(PROBLEMS_TYPE_URL, list.encode_to_vec()),
        ],
    };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// Details travel in an HTTP/2 header as base64, and clients refuse headers that exceed 16 KiB together; the call would
/// seem to have lost its connection.
const LARGEST_LIST: usize = 8 << 10;
const LONGEST_TEXT: usize = 1 << 10;

fn fitting(problems: &[Problem]) -> Vec<v1::Problem> {
    // For the last entry, which says that there are more.
    let mut room = LARGEST_LIST - 256;
    let mut list = Vec::with_capacity(problems.len());
    for (index, problem) in problems.iter().enumerate() {
        let mut converted = convert::problem(problem);
        let texts = [&mut converted.message, &mut converted.fix].into_iter().flatten();
        texts.flat_map(|text| [&mut text.en, &mut text.zh]).for_each(clip);
        [&mut converted.found, &mut converted.expected].into_iter().for_each(clip);
        // The entry's own bytes, its tag and its length.
        let size = converted.encoded_len() + 4;
        if size > room && index > 0 {
            let more = problems.len() - index;
            let (en, zh) = (format!("there are {more} more problems"), format!("另有 {more} 个问题"));
            list.push(convert::problem(&Problem::error(problem.code, en, zh)));
            return list;
        }
        room = room.saturating_sub(size);
        list.push(converted);
    }
    list
}

fn clip(text: &mut String) {
    if text.len() > LONGEST_TEXT {
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(status: &Status) -> Vec<v1::Problem> {
        let details = tonic_types::pb::Status::decode(status.details()).unwrap();
        let list = details.details.iter().find(|any| any.type_url == PROBLEMS_TYPE_URL).unwrap();
        v1::Problems::decode(&*list.value).unwrap().problems
    }

    fn unknown_keys(count: u64) -> Vec<Problem> {
        let one = |line| {
            Problem::error(ProblemCode::UnknownKey, "there is no such key", "没有这个键")
                .at(line, 1)
                .fix("remove this line; \"justtrain recipe schema\" lists all keys", "请删除该行")
        };
        (1..=count).map(one).collect()
    }

    #[test]
    fn every_problem_arrives_where_they_fit() {
        let status = of_problems(&unknown_keys(20));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(problems_of(&status).iter().map(|problem| problem.line).collect::<Vec<_>>(), Vec::from_iter(1..=20));
    }

    #[test]
    fn what_does_not_fit_into_a_header_is_counted() {
        for problems in
            [unknown_keys(500), vec![Problem::error(ProblemCode::Syntax, "x".repeat(99_999), "错".repeat(99_999)); 9]]
        {
            let status = of_problems(&problems);
            let header = status.details().len() * 4 / 3 + status.message().len() * 3;
            assert!(header < 15 << 10, "{header} bytes");
            let listed = problems_of(&status);
            let more = problems.len() - (listed.len() - 1);
            assert_eq!(listed.last().unwrap().message.as_ref().unwrap().en, format!("there are {more} more problems"));
        }
    }
}
