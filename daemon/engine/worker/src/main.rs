//! `justtrain-worker`: one process for one piece of work.
//!
//! It reads a [`Command`] as one JSON line from standard input and writes [`Message`]s, one JSON line each, to standard
//! output; nothing else is ever printed there. It opens no socket.

mod allocator;
mod commands;
mod pipe;

use std::io::BufRead;
use std::process::ExitCode;

use justtrain_worker_api::{Command, Failure, FailureReason, Message, Problem, ProblemCode};

use pipe::Pipe;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        let version = format!("justtrain-worker {}\n", env!("CARGO_PKG_VERSION"));
        return match std::io::Write::write_all(&mut std::io::stdout(), version.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let pipe = Pipe;
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    let result = match read.map_err(|error| error.to_string()).and_then(|_| parse(&line)) {
        // From inside the pool: outside it, each of a step's thousands of parallel loops would wait for other threads to wake.
        Ok(command) => rayon::scope(|_| commands::run(command, &pipe)),
        Err(reason) => Err(internal(reason)),
    };
    match result {
        Ok(outcome) => {
            pipe.send(&Message::Outcome(outcome));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            pipe.send(&Message::Failed(failure));
            ExitCode::FAILURE
        }
    }
}

fn parse(line: &str) -> Result<Command, String> {
    serde_json::from_str(line).map_err(|error| error.to_string())
}

fn internal(reason: String) -> Failure {
    let problem =
        Problem::error(ProblemCode::Internal, "the worker was given no valid command", "工作进程没有收到有效的命令")
            .found(reason)
            .expected("one command as a JSON line on standard input")
            .fix("the worker is started by the daemon: use `justtrain`", "工作进程由守护进程启动：请使用 `justtrain`");
    problem.because(FailureReason::Internal)
}
