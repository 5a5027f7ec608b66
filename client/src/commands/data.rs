//! `data check|preview|generate`: looks at training data before training on it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use justtrain_proto::v1::{
    CheckDatasetRequest, CheckDatasetResponse, DataFile, GenerateDatasetRequest, PreviewDatasetRequest, PreviewRow,
};
use serde_json::{Value, json};

use crate::failure::{Failure, Result};
use crate::pick::ModelArgs;
use crate::session::{Session, absolute_text};
use crate::text::{Lang, say};
use crate::ui::{Report, Ui};
use crate::{json, problem, show};

#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// Report format, rows and every problem of a data file
    Check(Check),
    /// Show each token of some rows, and whether it counts for the loss
    Preview(Preview),
    /// Write a built-in data set
    Generate(Generate),
}

#[derive(Debug, Args)]
pub(crate) struct File {
    /// The data, a JSON or JSONL file
    file: PathBuf,
    /// alpaca, sharegpt, messages, prompt_completion, preference, kto, text or classification; recognised by default
    #[arg(long)]
    format: Option<String>,
    /// Longest row in tokens; 2048 by default
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    cutoff_len: u32,
    #[command(flatten)]
    model: ModelArgs,
}

impl File {
    fn data(&self) -> Result<DataFile> {
        let path = absolute_text(Some(&self.file))?;
        Ok(DataFile { path, format: self.format.clone().unwrap_or_default() })
    }
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    file: File,
}

#[derive(Debug, Args)]
pub(crate) struct Preview {
    #[command(flatten)]
    file: File,
    /// How many rows
    #[arg(long, value_name = "N", default_value_t = 1)]
    rows: u32,
    /// Rows to skip
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// Which data set
    #[arg(value_enum)]
    kind: Kind,
    /// How many rows
    #[arg(long, value_name = "N", default_value_t = 1000)]
    count: u32,
    /// The same seed gives the same rows
    #[arg(long, value_name = "S", default_value_t = 42)]
    seed: u64,
    /// Language of the data; by default that of the output
    #[arg(long, value_enum)]
    lang: Option<Lang>,
    /// File to write; by default KIND-LANG.json in this folder
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// Which of two numbers is larger
    Numbers,
}

impl Data {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        match self {
            Self::Check(command) => command.run(session).await,
            Self::Preview(command) => command.run(session).await,
            Self::Generate(command) => command.run(session).await,
        }
    }
}

impl Check {
    async fn run(self, session: &Session) -> Result<Report> {
        let (ui, daemon) = (session.ui, session.connect().await?);
        let request = CheckDatasetRequest {
            data: Some(self.file.data()?),
            model: self.file.model.selector(&daemon).await?,
            cutoff_len: self.file.cutoff_len,
        };
        let report = daemon.datasets().check_dataset(request).await?.into_inner();
        show_check(ui, &report);
        Ok(checked(report, ui.lang))
    }
}

/// The report as an object; with an `error` beside it where there is something that cannot be trained on.
fn checked(report: CheckDatasetResponse, lang: Lang) -> Report {
    // Of the problems that are not listed only the rows that they cost are known.
    let unlisted_errors = report.more_problems > 0 && report.usable_rows < report.rows;
    let failed = unlisted_errors || report.problems.iter().any(problem::is_error);
    let mut json = json!({
        "format": report.format,
        "rows": report.rows,
        "usable_rows": report.usable_rows,
        "problems": json::problems(&report.problems, lang),
        "more_problems": report.more_problems,
        "tokens": report.tokens,
        "target_tokens": report.target_tokens,
        "longest_row_tokens": report.longest_row_tokens,
        "cut_rows": report.cut_rows,
    });
    if !failed {
        return Report::ok(json);
    }
    let failure = Failure::invalid(report.problems);
    if let (Value::Object(object), Value::Object(error)) = (&mut json, failure.json(lang)) {
        object.extend(error);
    }
    Report { exit: failure.exit, json }
}

fn show_check(ui: Ui, report: &CheckDatasetResponse) {
    let (format, rows, usable) = (&report.format, show::count(report.rows), show::count(report.usable_rows));
    for problem in &report.problems {
        ui.problem(problem);
    }
    if report.more_problems > 0 {
        let more = report.more_problems;
        ui.line(say!(ui.lang, "… and {more} more problems", "……还有 {more} 个问题"));
    }
    ui.line(say!(
        ui.lang,
        "{format}: {usable} of {rows} rows can be trained on",
        "{format}：{rows} 条数据中有 {usable} 条可用于训练"
    ));
    if let (Some(tokens), Some(targets)) = (report.tokens, report.target_tokens) {
        let (tokens, targets) = (show::count(tokens), show::count(targets));
        let (longest, cut) = (report.longest_row_tokens(), report.cut_rows());
        ui.line(say!(
            ui.lang,
            "{tokens} tokens, {targets} of them answers; longest row {longest}, {cut} rows cut",
            "共 {tokens} 个词元，其中答案 {targets} 个；最长 {longest}，截断 {cut} 条"
        ));
    }
    if !report.first_row.is_empty() {
        ui.line(say!(ui.lang, "First row as it was understood:", "第一条数据的理解结果："));
    }
    for turn in &report.first_row {
        ui.line(format!("  {}: {}", turn.role, show::clip(&turn.content, 100)));
    }
}

impl Preview {
    async fn run(self, session: &Session) -> Result<Report> {
        let (ui, daemon) = (session.ui, session.connect().await?);
        let request = PreviewDatasetRequest {
            data: Some(self.file.data()?),
            model: Some(self.file.model.selector_or_only_model(&daemon).await?),
            cutoff_len: self.file.cutoff_len,
            offset: self.offset,
            rows: self.rows,
        };
        let rows = daemon.datasets().preview_dataset(request).await?.into_inner().rows;
        for row in &rows {
            if ui.is_live() { show_row(ui, row) } else { list_row(ui, row) }
        }
        let rows: Vec<_> = rows.iter().map(row_json).collect();
        Ok(Report::ok(json!({"rows": rows})))
    }
}

/// The text as the model sees it, what it learns underlined.
fn show_row(ui: Ui, row: &PreviewRow) {
    let (number, total) = (row.row, row.tokens.len());
    let targets = row.tokens.iter().filter(|token| token.target).count();
    let answer = answer(row, ui.lang);
    let title = say!(
        ui.lang,
        "Row {number}{answer}: {total} tokens, {targets} count for the loss",
        "第 {number} 条{answer}：{total} 个词元，{targets} 个计入损失"
    );
    ui.line(ui.bold(title));
    let painted = row.tokens.iter().map(|token| {
        // Styles end before a line does, so that the rest of a terminal's line stays plain.
        let lines = token.text.split('\n').map(|part| match (part.is_empty(), token.target) {
            (true, _) => String::new(),
            (false, true) => ui.target(part),
            (false, false) => ui.dim(part),
        });
        lines.collect::<Vec<_>>().join("⏎\n")
    });
    ui.line(painted.collect::<String>());
}

/// Which answer of a row that judges answers.
fn answer(row: &PreviewRow, lang: Lang) -> String {
    match row.chosen {
        None => String::new(),
        Some(true) => say!(lang, ", chosen", "（选中）"),
        Some(false) => say!(lang, ", rejected", "（拒绝）"),
    }
}

/// A line a token: id, text as JSON, whether it is a target.
fn list_row(ui: Ui, row: &PreviewRow) {
    let (number, answer) = (row.row, answer(row, ui.lang));
    ui.line(say!(ui.lang, "# row {number}{answer}: id text target", "# 第 {number} 条{answer}：id text target"));
    for token in &row.tokens {
        ui.line(format!("{}\t{}\t{}", token.id, json!(token.text), token.target));
    }
}

fn row_json(row: &PreviewRow) -> serde_json::Value {
    json!({
        "row": row.row,
        "chosen": row.chosen,
        "rendered": row.rendered,
        "tokens": row.tokens.iter().map(|token| json!({"id": token.id, "text": token.text, "target": token.target})).collect::<Vec<_>>(),
    })
}

impl Generate {
    async fn run(self, session: &Session) -> Result<Report> {
        let ui = session.ui;
        let (kind, language) = match (self.kind, self.lang.unwrap_or(ui.lang)) {
            (Kind::Numbers, Lang::En) => ("numbers", "en"),
            (Kind::Numbers, Lang::Zh) => ("numbers", "zh"),
        };
        let output = self.output.unwrap_or_else(|| format!("{kind}-{language}.json").into());
        let request = GenerateDatasetRequest {
            kind: kind.into(),
            count: self.count,
            seed: self.seed,
            language: language.into(),
            output_path: absolute_text(Some(&output))?,
        };
        let written = session.connect().await?.datasets().generate_dataset(request).await?.into_inner();
        let (rows, path) = (written.rows, &written.path);
        ui.line(say!(ui.lang, "{rows} rows in {path}", "{rows} 条数据已写入 {path}"));
        Ok(Report::ok(json!({"path": written.path, "rows": written.rows})))
    }
}

#[cfg(test)]
mod tests {
    use justtrain_proto::v1::{Problem, Severity};

    use super::*;
    use crate::exit::Exit;

    fn report(severity: Severity) -> CheckDatasetResponse {
        let problem = Problem { code: "NO_ANSWER".into(), severity: severity.into(), row: 3, ..Problem::default() };
        CheckDatasetResponse { rows: 200, usable_rows: 200, problems: vec![problem], ..CheckDatasetResponse::default() }
    }

    #[test]
    fn wrong_data_is_exit_code_6_with_the_report_and_an_error() {
        let checked = checked(report(Severity::Error), Lang::En);
        assert_eq!(checked.exit, Exit::InvalidInput);
        assert_eq!((&checked.json["rows"], &checked.json["error"]["code"]), (&200.into(), &"invalid_input".into()));
        assert_eq!(checked.json["error"]["problems"][0]["row"], 3);
    }

    #[test]
    fn warnings_alone_are_no_failure_however_many() {
        let many = CheckDatasetResponse { more_problems: 50, ..report(Severity::Warning) };
        assert_eq!(checked(many.clone(), Lang::En).exit, Exit::Ok);
        assert_eq!(checked(CheckDatasetResponse { usable_rows: 60, ..many }, Lang::En).exit, Exit::InvalidInput);
    }
}
