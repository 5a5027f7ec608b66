//! `doctor`: the daemon's environment checks.

use justtrain_proto::v1::{CheckResult, CheckStatus, RunChecksRequest};
use serde_json::json;

use crate::exit::Exit;
use crate::failure::Result;
use crate::json::enum_name;
use crate::session::Session;
use crate::text::{Lang, say};
use crate::ui::{Report, Ui};

pub(crate) async fn run(session: &Session) -> Result<Report> {
    let ui = session.ui;
    let mut stream = session.connect().await?.system().run_checks(RunChecksRequest {}).await?.into_inner();
    let mut checks = Vec::new();
    while let Some(check) = stream.message().await? {
        show(&check, ui);
        checks.push(check);
    }
    let count = |status| checks.iter().filter(|check| check.status() == status).count();
    let (failed, warned) = (count(CheckStatus::Fail), count(CheckStatus::Warn));
    ui.line(match (failed, warned) {
        (0, 0) => say!(ui.lang, "This machine is ready.", "本机已就绪。"),
        (0, _) => say!(ui.lang, "This machine is ready. Warnings: {warned}.", "本机已就绪，有 {warned} 条警告。"),
        _ => say!(ui.lang, "Checks failed: {failed}.", "{failed} 项检查未通过。"),
    });
    let exit = if failed > 0 { Exit::Failed } else { Exit::Ok };
    let checks: Vec<_> = checks.iter().map(|check| json(check, ui.lang)).collect();
    Ok(Report { exit, json: json!({"ok": failed == 0, "checks": checks}) })
}

fn show(check: &CheckResult, ui: Ui) {
    let label = match check.status() {
        CheckStatus::Pass => ui.green("PASS"),
        CheckStatus::Warn => ui.yellow("WARN"),
        CheckStatus::Fail => ui.red("FAIL"),
        CheckStatus::Skip | CheckStatus::Unspecified => ui.dim("SKIP"),
    };
    let text = |text| ui.lang.pick_opt(text);
    let (title, found, expected, fix) =
        (text(&check.title), text(&check.found), text(&check.expected), text(&check.fix));
    ui.line(say!(ui.lang, "{label}  {title}: {found}", "{label}  {title}：{found}"));
    if matches!(check.status(), CheckStatus::Warn | CheckStatus::Fail) {
        if !expected.is_empty() {
            ui.line(say!(ui.lang, "      expected: {expected}", "      应为：{expected}"));
        }
        if !fix.is_empty() {
            ui.line(say!(ui.lang, "      fix: {fix}", "      解决办法：{fix}"));
        }
    }
}

fn json(check: &CheckResult, lang: Lang) -> serde_json::Value {
    json!({
        "id": check.id,
        "status": enum_name(check.status().as_str_name(), "CHECK_STATUS_"),
        "title": lang.pick_opt(&check.title),
        "found": lang.pick_opt(&check.found),
        "expected": lang.pick_opt(&check.expected),
        "fix": lang.pick_opt(&check.fix),
    })
}
