//! The bearer token that every call but health must bring.

use std::path::{Path, PathBuf};

use justtrain_worker_api::{Problem, ProblemCode};
use tonic::service::Interceptor;
use tonic::{Code, Request, Status};

use super::status;

#[derive(Clone)]
pub(super) struct Auth {
    expected: String,
    token_file: PathBuf,
}

impl Auth {
    pub(super) fn new(token: &str, home: &Path) -> Self {
        Self { expected: format!("Bearer {token}"), token_file: home.join("token") }
    }
}

impl Interceptor for Auth {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let given = request.metadata().get(justtrain_proto::AUTHORIZATION).map(|value| value.as_bytes());
        if given.is_some_and(|given| equal(given, self.expected.as_bytes())) {
            return Ok(request);
        }
        let (en, zh) = match given {
            Some(_) => ("the token is not this daemon's", "令牌不属于此守护进程"),
            None => ("the call brings no token", "请求没有携带令牌"),
        };
        let problem = Problem::error(ProblemCode::InvalidValue, en, zh)
            .expected(format!("the token in {}", self.token_file.display()))
            .fix(
                "run the client as the user who started the daemon, or set JUSTTRAIN_TOKEN",
                "请以启动守护进程的用户运行客户端，或设置 JUSTTRAIN_TOKEN",
            );
        Err(status::with_code(Code::Unauthenticated, "WRONG_TOKEN", &[problem]))
    }
}

/// Takes the same time wherever the two differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
