//! `validate`: base model beside tuned model.

use std::path::PathBuf;

use clap::Args;
use justtrain_proto::v1::operation::Result as OperationResult;
use justtrain_proto::v1::{Accuracy, CreateEvaluationRequest, DataFile, Evaluation};

use super::request_id;
use crate::failure::Result;
use crate::session::{Session, absolute_text};
use crate::show::{self, Table};
use crate::text::say;
use crate::ui::{Report, Ui};
use crate::{json, operation, pick};

/// Widest text of an example, in columns.
const EXAMPLE_WIDTH: usize = 100;
const EXAMPLES: usize = 3;

#[derive(Debug, Args)]
pub(crate) struct Validate {
    /// A job's id, the start of its id, or `latest`
    job: String,
    /// A data file, instead of the rows that the job held out
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// At most this many rows; all by default
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_samples: u32,
    /// Longest answer in tokens; 128 by default
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_new_tokens: u32,
}

impl Validate {
    pub(crate) async fn run(self, session: &Session) -> Result<Report> {
        let (ui, daemon) = (session.ui, session.connect().await?);
        let path = absolute_text(self.data.as_deref())?;
        let request = CreateEvaluationRequest {
            request_id: request_id(),
            job: pick::job_name(&daemon, &self.job).await?,
            data: self.data.map(|_| DataFile { path, ..DataFile::default() }),
            max_samples: self.max_samples,
            max_new_tokens: self.max_new_tokens,
        };
        let started = daemon.evaluations().create_evaluation(request).await?.into_inner();
        let done = operation::follow(session, started).await?;
        if let Some(OperationResult::Evaluation(report)) = &done.result {
            show(ui, report);
        }
        Ok(Report::ok(json::operation(&done, ui.lang)))
    }
}

fn show(ui: Ui, report: &Evaluation) {
    let (rows, tokens) = (report.rows, show::count(report.target_tokens));
    ui.line(say!(ui.lang, "{rows} rows, {tokens} answer tokens", "{rows} 条数据，{tokens} 个答案词元"));
    ui.line(table(ui, report));
    for example in report.examples.iter().take(EXAMPLES) {
        let clip = |text: &str| show::clip(text, EXAMPLE_WIDTH);
        let (prompt, reference, base, tuned) =
            (clip(&example.prompt), clip(&example.reference), clip(&example.base), clip(&example.tuned));
        ui.line("");
        ui.line(say!(ui.lang, "question:  {prompt}", "问题：    {prompt}"));
        ui.line(say!(ui.lang, "reference: {reference}", "参考答案：{reference}"));
        ui.line(say!(ui.lang, "base:      {base}", "原模型：  {base}"));
        ui.line(say!(ui.lang, "tuned:     {tuned}", "微调后：  {tuned}"));
    }
}

/// How one measure is written.
type Measure = fn(&Accuracy) -> String;

fn table(ui: Ui, report: &Evaluation) -> Table {
    let header = [String::new(), say!(ui.lang, "BASE", "原模型"), say!(ui.lang, "TUNED", "微调后")];
    let mut table = Table::new(header).right_align(&[1, 2]);
    let rows: [(String, Measure); 4] = [
        (say!(ui.lang, "loss", "损失"), |accuracy| format!("{:.4}", accuracy.loss)),
        (say!(ui.lang, "perplexity", "困惑度"), |accuracy| format!("{:.3}", accuracy.perplexity)),
        (say!(ui.lang, "token accuracy", "词元准确率"), |accuracy| show::percent(accuracy.token_accuracy)),
        (say!(ui.lang, "exact match", "完全一致"), |accuracy| show::percent(accuracy.exact_match)),
    ];
    // Of the tuned model alone.
    let judged: Option<(String, Measure)> = report.tuned.as_ref().and_then(|tuned| tuned.rewards.as_ref()).map(|_| {
        let right: Measure = |accuracy| {
            let right = accuracy.rewards.as_ref().map(|rewards| show::percent(rewards.accuracy));
            right.unwrap_or_else(|| "-".to_owned())
        };
        (say!(ui.lang, "preferences right", "偏好判断正确"), right)
    });
    for (label, value) in rows.into_iter().chain(judged) {
        let cell = |accuracy: &Option<Accuracy>| accuracy.as_ref().map_or_else(|| "-".to_owned(), value);
        table.row([label, cell(&report.base), cell(&report.tuned)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use justtrain_proto::v1::Rewards;

    use super::*;
    use crate::text::Lang;

    #[test]
    fn base_stands_beside_tuned() {
        let accuracy =
            |exact_match| Accuracy { loss: 1.0, perplexity: 2.7, token_accuracy: 0.5, exact_match, rewards: None };
        let report = Evaluation { base: Some(accuracy(0.25)), tuned: Some(accuracy(1.0)), ..Evaluation::default() };
        let text = table(Ui::plain(Lang::Zh), &report).to_string();
        assert!(text.ends_with("完全一致     25.0%  100.0%"), "{text}");
        let base_only = Evaluation { tuned: None, ..report };
        assert!(table(Ui::plain(Lang::En), &base_only).to_string().ends_with("25.0%      -"));
        let rewards = Some(Rewards { accuracy: 0.75, ..Rewards::default() });
        let tuned = Some(Accuracy { rewards, ..accuracy(1.0) });
        let judged = table(Ui::plain(Lang::En), &Evaluation { tuned, ..base_only }).to_string();
        assert!(judged.contains("preferences right") && judged.ends_with("75.0%"), "{judged}");
    }
}
