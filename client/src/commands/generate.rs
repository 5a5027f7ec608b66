//! `generate`: answers a file of prompts. The output appears whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use justtrain_proto::v1::{ModelSelector, Problem, Severity, Text, Turn};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::answer::{Answer, Piece, Sampling, Warnings, ask};
use crate::failure::{Failure, Result};
use crate::json::enum_name;
use crate::pick::ModelArgs;
use crate::session::{Daemon, Session};
use crate::text::{both, say};
use crate::ui::Report;

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// JSONL with {"prompt"} or {"messages"} rows
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// JSONL to write: each row with its "answer"
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Answer with the base model, the adapter switched off
    #[arg(long)]
    base: bool,
    #[command(flatten)]
    sampling: Sampling,
}

impl Generate {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        let ui = session.ui;
        let prompts = read(&self.input)?;
        let daemon = session.connect().await?;
        let model = self.model.selector_or_latest(&daemon).await?;
        let warnings = self.answer_all(session, &daemon, &model, &prompts).await?;
        let (count, path) = (prompts.len(), self.output.display());
        ui.line(say!(ui.lang, "{count} answers in {path}", "{count} 条回答已写入 {path}"));
        let problems = warnings.json(ui.lang);
        Ok(Report::ok(json!({"rows": count, "output": self.output, "base": self.base, "problems": problems})))
    }

    /// Writes to a file beside the output, which takes its place once every row is answered.
    async fn answer_all(
        &self,
        session: &Session,
        daemon: &Daemon,
        model: &ModelSelector,
        prompts: &[Prompt],
    ) -> Result<Warnings> {
        let mut warnings = Warnings::default();
        let bar = bar(session, prompts.len() as u64);
        let partial = partial_path(&self.output);
        let written = |error| Failure::file(&self.output, &error);
        let mut file = BufWriter::new(File::create(&partial).map_err(written)?);
        for prompt in prompts {
            let request = self.sampling.request(model, prompt.turns.clone(), self.base);
            let piece = |piece: Piece<'_>| {
                if let Piece::Warning(warning) = piece {
                    bar.suspend(|| session.ui.problem(warning));
                }
            };
            let answer = ask(daemon, request, &mut warnings, piece).await.map_err(|failure| {
                bar.finish_and_clear();
                at(failure, &self.input, prompt.line)
            })?;
            writeln!(file, "{}", row(prompt, &answer)).and_then(|()| file.flush()).map_err(written)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        file.get_ref().sync_all().map_err(written)?;
        std::fs::rename(&partial, &self.output).map_err(|error| Failure::file(&self.output, &error))?;
        Ok(warnings)
    }
}

fn bar(session: &Session, rows: u64) -> ProgressBar {
    if !session.ui.is_live() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {eta}");
    ProgressBar::new(rows).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn partial_path(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

#[derive(Debug)]
struct Prompt {
    /// 1-based.
    line: u64,
    row: Map<String, Value>,
    turns: Vec<Turn>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

/// Every prompt of the file, or every problem in it.
fn read(path: &Path) -> Result<Vec<Prompt>> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::file(path, &error))?;
    let (mut prompts, mut problems) = (Vec::new(), Vec::new());
    for (line, written) in (1u64..).zip(text.lines()).filter(|(_, written)| !written.trim().is_empty()) {
        match parse(written) {
            Ok((row, turns)) => prompts.push(Prompt { line, row, turns }),
            Err(problem) => problems.push(Problem {
                severity: Severity::Error.into(),
                file: path.display().to_string(),
                line,
                ..*problem
            }),
        }
    }
    if prompts.is_empty() && problems.is_empty() {
        problems.push(Problem {
            code: "FILE_EMPTY".into(),
            severity: Severity::Error.into(),
            message: Some(both!("no prompt in this file", "文件中没有提示")),
            file: path.display().to_string(),
            ..Problem::default()
        });
    }
    if problems.is_empty() { Ok(prompts) } else { Err(Failure::invalid(problems)) }
}

type Row = (Map<String, Value>, Vec<Turn>);

/// One line of the input, as it was written and as a conversation.
fn parse(line: &str) -> Result<Row, Box<Problem>> {
    let row: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
        let code = if error.is_data() { "WRONG_TYPE" } else { "SYNTAX" };
        Problem {
            column: error.column() as u64,
            ..wrong(code, both!("not a JSON object: {error}", "不是 JSON 对象：{error}"))
        }
    })?;
    let turns = match (row.get("prompt"), row.get("messages")) {
        (Some(Value::String(prompt)), None) => vec![Turn { role: "user".into(), content: prompt.clone() }],
        (None, Some(messages)) => turns(messages)?,
        (Some(other), None) => {
            let message = both!("the prompt is not a string", "prompt 不是字符串");
            return Err(Box::new(Problem {
                key: "prompt".into(),
                found: other.to_string(),
                ..wrong("WRONG_TYPE", message)
            }));
        }
        (Some(_), Some(_)) => {
            let message =
                both!("both a prompt and messages; give one of them", "同时有 prompt 与 messages；只能有一个");
            return Err(Box::new(wrong("INVALID_VALUE", message)));
        }
        (None, None) => {
            let message = both!("neither a prompt nor messages", "既没有 prompt 也没有 messages");
            let found = row.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Box::new(Problem {
                found,
                expected: "prompt | messages".into(),
                ..wrong("MISSING_KEY", message)
            }));
        }
    };
    Ok((row, turns))
}

fn turns(messages: &Value) -> Result<Vec<Turn>, Box<Problem>> {
    let messages: Vec<Message> = Deserialize::deserialize(messages).map_err(|error| {
        let message = both!(
            "messages is not a list of role and content: {error}",
            "messages 不是由 role 与 content 组成的列表：{error}"
        );
        Problem { key: "messages".into(), ..wrong("WRONG_TYPE", message) }
    })?;
    if messages.last().is_none_or(|message| message.role != "user") {
        let message = both!("the last message is not the user's", "最后一条消息不是用户的");
        return Err(Box::new(Problem { key: "messages".into(), ..wrong("BAD_CONVERSATION", message) }));
    }
    Ok(messages.into_iter().map(|message| Turn { role: message.role, content: message.content }).collect())
}

fn wrong(code: &str, message: Text) -> Problem {
    Problem { code: code.into(), message: Some(message), ..Problem::default() }
}

/// `failure`, with the line of the input it belongs to.
fn at(mut failure: Failure, input: &Path, line: u64) -> Failure {
    if failure.problems.is_empty() {
        failure.problems.push(wrong("GENERATE_FAILED", failure.message.clone()));
    }
    for problem in failure.problems.iter_mut().filter(|problem| problem.file.is_empty()) {
        problem.file = input.display().to_string();
        problem.line = line;
    }
    failure
}

fn row(prompt: &Prompt, answer: &Answer) -> Value {
    let mut row = prompt.row.clone();
    row.insert("answer".into(), answer.text.clone().into());
    row.insert("end".into(), enum_name(answer.end.reason().as_str_name(), "END_REASON_").into());
    row.insert("answer_tokens".into(), answer.end.answer_tokens.into());
    Value::Object(row)
}

#[cfg(test)]
mod tests;
