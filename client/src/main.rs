//! `justtrain`: the thin client. It speaks gRPC to the daemon, and nothing else.

mod answer;
mod args;
mod commands;
mod exit;
mod failure;
#[cfg(test)]
mod fake;
mod follow;
mod help_zh;
mod json;
mod operation;
mod pick;
mod problem;
mod progress;
mod retry;
mod session;
mod show;
mod state;
mod text;
mod ui;
mod watch;

use std::process::ExitCode;

use args::{Cli, NoCommand};
use failure::Result;
use session::Session;
use text::Lang;
use ui::{Report, Ui};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let words: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    // For help and usage errors, which come before anything is parsed.
    let ui = Ui::new(Lang::of_arguments(&words), words.iter().any(|word| word == "--json"));
    let exit = match args::parse(arguments, ui.lang) {
        Ok(cli) => {
            let ui = cli.ui();
            ui.finish(run(cli, ui).await)
        }
        Err(NoCommand::Wrong(failure)) => ui.finish(Err(failure)),
        Err(NoCommand::Shown(text)) => {
            let _ = text.print();
            return ExitCode::from(if text.use_stderr() { exit::Exit::Usage as u8 } else { 0 });
        }
    };
    ExitCode::from(exit as u8)
}

async fn run(cli: Cli, ui: Ui) -> Result<Report> {
    cli.command.run(&Session::new(ui, cli.global.addr)?).await
}
