//! What a command that could not do its work hands back: one exit code, one sentence, every problem.

use std::error::Error as _;

use justtrain_proto::PROBLEMS_TYPE_URL;
use justtrain_proto::v1::{Problem, Problems, Severity, Text};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::exit::Exit;
use crate::problem;
use crate::text::{Lang, both};

#[derive(Debug)]
pub(crate) struct Failure {
    pub exit: Exit,
    pub message: Text,
    pub problems: Vec<Problem>,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(exit: Exit, message: Text) -> Self {
        Self { exit, message, problems: Vec::new() }
    }

    pub(crate) fn usage(message: Text) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Input that is wrong in the ways `problems` say.
    pub(crate) fn invalid(problems: Vec<Problem>) -> Self {
        Self { exit: Exit::InvalidInput, message: summary(&problems), problems }
    }

    /// A local file that cannot be read or written.
    pub(crate) fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let (exit, code, message, fix) = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (
                Exit::OutOfResources,
                "DISK_FULL",
                both!("the disk is full", "磁盘已满"),
                both!("free some disk space, or write to another folder", "请释放磁盘空间，或写入其他文件夹"),
            ),
            ErrorKind::NotFound => (
                Exit::NotFound,
                "FILE_NOT_FOUND",
                both!("there is no such file or folder", "没有这个文件或文件夹"),
                both!("check the path", "请检查路径"),
            ),
            _ => (
                Exit::InvalidInput,
                "FILE_FORMAT",
                both!("the file cannot be read or written: {error}", "无法读写此文件：{error}"),
                both!("check the path and its permissions", "请检查路径和权限"),
            ),
        };
        let problem = Problem {
            code: code.into(),
            severity: Severity::Error.into(),
            message: Some(message.clone()),
            file: path.display().to_string(),
            fix: Some(fix),
            ..Problem::default()
        };
        Self { exit, message, problems: vec![problem] }
    }

    /// `{"error": {"code", "message", "problems"}}`.
    pub(crate) fn json(&self, lang: Lang) -> Value {
        json!({"error": {
            "code": self.exit.name(),
            "message": lang.pick(&self.message),
            "problems": self.problems.iter().map(|problem| problem::json(problem, lang)).collect::<Vec<_>>(),
        }})
    }

    /// Nothing listens at `address`.
    pub(crate) fn unreachable(address: &str, home: &std::path::Path) -> Self {
        let home = home.display();
        Self::new(
            Exit::DaemonUnreachable,
            both!(
                "the daemon does not answer at {address} (data folder {home}); start it with: justtrain daemon start",
                "守护进程在 {address} 没有应答（数据目录 {home}）；请先启动：justtrain daemon start"
            ),
        )
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let problems = problems_of(&status);
        let message = match status.code() {
            _ if !problems.is_empty() => summary(&problems),
            _ if is_transport(&status) => both!(
                "the connection to the daemon was lost; see whether it runs with: justtrain daemon status, start it with: justtrain daemon start",
                "与守护进程的连接已断开；用 justtrain daemon status 查看，用 justtrain daemon start 启动"
            ),
            Code::Unauthenticated | Code::PermissionDenied => both!(
                "the daemon refused the token; it is the file `token` in the daemon's data folder (JUSTTRAIN_HOME), or JUSTTRAIN_TOKEN",
                "守护进程拒绝了令牌；令牌是守护进程数据目录（JUSTTRAIN_HOME）中的 token 文件，或 JUSTTRAIN_TOKEN"
            ),
            _ => {
                let message = status.message();
                both!("{message}", "{message}")
            }
        };
        let exit = match status.code() {
            _ if is_transport(&status) => Exit::DaemonUnreachable,
            // A job that cannot fit: the same number as one that ran out of memory.
            Code::FailedPrecondition => Exit::of_problems(&problems),
            code => Exit::of_rpc(code),
        };
        Self { exit, message, problems }
    }
}

/// True when the connection broke, as opposed to an answer of the daemon's that says no.
pub(crate) fn is_transport(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.source().is_some()
}

/// The problems that a failed call carries in its status details; none where it carries none.
fn problems_of(status: &Status) -> Vec<Problem> {
    let Ok(details) = tonic_types::pb::Status::decode(status.details()) else { return Vec::new() };
    details
        .details
        .iter()
        .filter(|any| any.type_url == PROBLEMS_TYPE_URL)
        .filter_map(|any| Problems::decode(any.value.as_slice()).ok())
        .flat_map(|problems| problems.problems)
        .collect()
}

fn summary(problems: &[Problem]) -> Text {
    match problems {
        [only] => only.message.clone().unwrap_or_default(),
        several => {
            let count = several.len();
            both!("{count} problems", "共 {count} 个问题")
        }
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;

    fn status_with(problems: Vec<Problem>) -> Status {
        let any = Any { type_url: PROBLEMS_TYPE_URL.into(), value: Problems { problems }.encode_to_vec() };
        let details = tonic_types::pb::Status { code: 3, message: "bad".into(), details: vec![any] };
        Status::with_details(Code::InvalidArgument, "bad", details.encode_to_vec().into())
    }

    #[test]
    fn problems_travel_in_status_details() {
        let problem = Problem {
            code: "UNKNOWN_KEY".into(),
            severity: Severity::Error.into(),
            message: Some(Text { en: "unknown key".into(), zh: "未知的键".into() }),
            line: 3,
            key: "lora_rnak".into(),
            ..Problem::default()
        };
        let failure = Failure::from(status_with(vec![problem]));
        assert_eq!(failure.exit, Exit::InvalidInput);
        let json = failure.json(Lang::Zh);
        assert_eq!(json["error"]["code"], "invalid_input");
        assert_eq!(json["error"]["message"], "未知的键");
        assert_eq!(json["error"]["problems"][0]["code"], "UNKNOWN_KEY");
        assert_eq!(json["error"]["problems"][0]["line"], 3);
    }

    #[test]
    fn a_dead_daemon_is_explained_with_the_command_that_starts_it() {
        let failure = Failure::unreachable("127.0.0.1:1", std::path::Path::new("/data"));
        assert_eq!(failure.exit as u8, 3);
        assert!(failure.message.en.contains("justtrain daemon start"));
        assert!(failure.message.zh.contains("justtrain daemon start"));
    }

    #[test]
    fn garbage_in_the_details_keeps_the_sentence() {
        let status = Status::with_details(Code::NotFound, "no such job", vec![0xff, 0xff].into());
        let failure = Failure::from(status);
        assert_eq!((failure.exit, failure.message.en.as_str()), (Exit::NotFound, "no such job"));
    }
}
