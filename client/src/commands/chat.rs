//! `chat`: a conversation with a model, typed or piped.

use std::io::{BufRead, stdin};

use clap::Args;
use justtrain_proto::v1::{ModelSelector, Turn};
use serde_json::json;
use tokio::sync::mpsc;

use crate::answer::{Piece, Sampling, Warnings, ask};
use crate::failure::Result;
use crate::pick::ModelArgs;
use crate::session::{Daemon, Session};
use crate::text::{Lang, say};
use crate::ui::Report;

#[derive(Debug, Args)]
pub(crate) struct Chat {
    #[command(flatten)]
    model: ModelArgs,
    /// Start with the base model, the adapter switched off
    #[arg(long)]
    base: bool,
    #[command(flatten)]
    sampling: Sampling,
}

/// A line that starts with `/`.
#[derive(Debug, PartialEq, Eq)]
enum Input<'a> {
    Say(&'a str),
    Exit,
    Clear,
    Base,
    Help,
    Unknown(&'a str),
}

impl<'a> Input<'a> {
    fn parse(line: &'a str) -> Self {
        match line.trim() {
            "/exit" | "/quit" => Self::Exit,
            "/clear" => Self::Clear,
            "/base" => Self::Base,
            "/help" => Self::Help,
            other if other.starts_with('/') => Self::Unknown(other),
            other => Self::Say(other),
        }
    }
}

impl Chat {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        let (ui, daemon) = (session.ui, session.connect().await?);
        let model = self.model.selector_or_latest(&daemon).await?;
        let mut conversation = Conversation {
            session,
            daemon,
            model,
            sampling: self.sampling,
            base: self.base,
            turns: Vec::new(),
            warnings: Warnings::default(),
        };
        if ui.is_live() {
            let who =
                if conversation.model.job.is_empty() { &conversation.model.model } else { &conversation.model.job };
            ui.line(say!(ui.lang, "{who}. /help lists the commands.", "{who}。输入 /help 查看命令。"));
        }
        let mut lines = lines();
        loop {
            conversation.prompt();
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = tokio::signal::ctrl_c() => None,
            };
            let Some(line) = line else { break };
            match Input::parse(&line) {
                Input::Exit => break,
                Input::Say("") => {}
                Input::Say(text) => conversation.say(text).await?,
                Input::Clear => conversation.turns.clear(),
                Input::Base => conversation.switch(),
                Input::Help => ui.line(help(ui.lang)),
                Input::Unknown(written) => {
                    ui.line(say!(
                        ui.lang,
                        "{written}? /help lists the commands.",
                        "没有 {written}。输入 /help 查看命令。"
                    ));
                }
            }
        }
        let turns: Vec<_> =
            conversation.turns.iter().map(|turn| json!({"role": turn.role, "content": turn.content})).collect();
        let warnings = conversation.warnings.json(ui.lang);
        Ok(Report::ok(json!({"turns": turns, "problems": warnings})))
    }
}

struct Conversation<'a> {
    session: &'a Session,
    daemon: Daemon,
    model: ModelSelector,
    sampling: Sampling,
    base: bool,
    turns: Vec<Turn>,
    warnings: Warnings,
}

impl Conversation<'_> {
    fn prompt(&self) {
        let ui = self.session.ui;
        if ui.is_live() {
            ui.piece(&ui.bold(if self.base { "base> " } else { "> " }));
        }
    }

    /// Ctrl-C ends the answer, and the conversation goes on with what there is of it.
    async fn say(&mut self, text: &str) -> Result<()> {
        let ui = self.session.ui;
        self.turns.push(Turn { role: "user".into(), content: text.to_owned() });
        let request = self.sampling.request(&self.model, self.turns.clone(), self.base);
        let mut shown = String::new();
        let piece = |piece: Piece<'_>| match piece {
            Piece::Text(text) => {
                ui.piece(text);
                shown += text;
            }
            Piece::Warning(warning) => ui.problem(warning),
        };
        let answered = tokio::select! {
            answer = ask(&self.daemon, request, &mut self.warnings, piece) => answer.map(|_| ()),
            _ = tokio::signal::ctrl_c() => Ok(()),
        };
        ui.line("");
        if shown.is_empty() {
            // The question stays unanswered: as if it had not been asked.
            self.turns.pop();
        } else {
            self.turns.push(Turn { role: "assistant".into(), content: shown });
        }
        answered
    }

    fn switch(&mut self) {
        let ui = self.session.ui;
        self.base = !self.base;
        ui.line(if self.base {
            say!(ui.lang, "Now the base model answers; /base goes back.", "现在由原模型回答；再次输入 /base 返回。")
        } else {
            say!(ui.lang, "Now the tuned model answers.", "现在由微调后的模型回答。")
        });
    }
}

fn help(lang: Lang) -> String {
    say!(
        lang,
        "/base   switch between the tuned model and its base\n/clear  start a new conversation\n/exit   leave (also Ctrl-D)\nCtrl-C ends an answer early.",
        "/base   在微调后的模型与原模型之间切换\n/clear  开始新对话\n/exit   退出（也可用 Ctrl-D）\nCtrl-C 提前结束回答。"
    )
}

/// Lines of standard input. A thread of its own reads them: a terminal's read cannot be cancelled.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_text() {
        assert_eq!(Input::parse(" /exit "), Input::Exit);
        assert_eq!(Input::parse("/base"), Input::Base);
        assert_eq!(Input::parse("/nonsense"), Input::Unknown("/nonsense"));
        assert_eq!(Input::parse("9.11/9.9?"), Input::Say("9.11/9.9?"));
    }
}
