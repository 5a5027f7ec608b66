//! Where output goes. People's lines go to standard output; with `--json` they go to standard error, and standard
//! output carries the result alone, one object on its last line.

use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use justtrain_proto::v1::Problem;
use serde_json::Value;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::problem;
use crate::text::{Lang, say};

/// What a command hands back: its exit code, and the object that `--json` prints.
#[derive(Debug)]
pub(crate) struct Report {
    pub exit: Exit,
    pub json: Value,
}

impl Report {
    pub(crate) fn ok(json: Value) -> Self {
        Self { exit: Exit::Ok, json }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    pub lang: Lang,
    json: bool,
    color: bool,
    live: bool,
}

impl Ui {
    pub(crate) fn new(lang: Lang, json: bool) -> Self {
        let live = !json && io::stdout().is_terminal() && io::stderr().is_terminal();
        let color = live && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { lang, json, color, live }
    }

    #[cfg(test)]
    pub(crate) fn plain(lang: Lang) -> Self {
        Self { lang, json: true, color: false, live: false }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// A person is watching: bars, colours and prompts make sense.
    pub(crate) fn is_live(self) -> bool {
        self.live
    }

    /// A line for people. A reader that has gone away (`| head`) is no error of ours.
    pub(crate) fn line(self, line: impl Display) {
        let _ = if self.json { writeln!(io::stderr(), "{line}") } else { writeln!(io::stdout(), "{line}") };
    }

    /// A piece of text without a line end, shown at once.
    pub(crate) fn piece(self, piece: &str) {
        let _ = if self.json {
            io::stderr().write_all(piece.as_bytes())
        } else {
            io::stdout().write_all(piece.as_bytes()).and_then(|()| io::stdout().flush())
        };
    }

    pub(crate) fn problem(self, problem: &Problem) {
        let label = if problem::is_error(problem) {
            self.red(say!(self.lang, "error: ", "错误："))
        } else {
            self.yellow(say!(self.lang, "warning: ", "警告："))
        };
        let _ = writeln!(io::stderr(), "{label}{}", problem::line(problem, self.lang));
    }

    /// Prints what came out and returns the process's exit code.
    pub(crate) fn finish(self, outcome: Result<Report>) -> Exit {
        let (exit, json) = match outcome {
            Ok(report) => (report.exit, report.json),
            Err(failure) => {
                self.failure(&failure);
                (failure.exit, failure.json(self.lang))
            }
        };
        if self.json {
            let _ = writeln!(io::stdout(), "{json}");
        }
        exit
    }

    fn failure(self, failure: &Failure) {
        for problem in &failure.problems {
            self.problem(problem);
        }
        if failure.problems.len() != 1 {
            let label = self.red(say!(self.lang, "error: ", "错误："));
            let _ = writeln!(io::stderr(), "{label}{}", self.lang.pick(&failure.message));
        }
    }

    pub(crate) fn bold(self, text: impl Display) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(self, text: impl Display) -> String {
        self.paint("2", text)
    }

    pub(crate) fn red(self, text: impl Display) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn green(self, text: impl Display) -> String {
        self.paint("32", text)
    }

    pub(crate) fn yellow(self, text: impl Display) -> String {
        self.paint("33", text)
    }

    /// A token that counts for the loss.
    pub(crate) fn target(self, text: impl Display) -> String {
        self.paint("4;32", text)
    }

    fn paint(self, style: &str, text: impl Display) -> String {
        if self.color { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_string() }
    }
}
