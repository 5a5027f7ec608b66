//! Follows a job to its end, and says what to do next.

use justtrain_proto::v1::{GetJobRequest, Job, JobState, Text, TrainResult};
use serde_json::Value;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::json;
use crate::progress::TrainView;
use crate::retry::Backoff;
use crate::session::Session;
use crate::text::{Lang, say};
use crate::ui::{Report, Ui};
use crate::watch::JobEvents;
use crate::{show, state};

/// Shows the events of `name` until the job ends or the person leaves with Ctrl-C; the job goes on without them.
pub(crate) async fn job(session: &Session, name: &str) -> Result<Report> {
    let ui = session.ui;
    let mut view = TrainView::new(ui);
    let mut events = JobEvents::new(session, name, Backoff::standard());
    let ended = loop {
        tokio::select! {
            event = events.next() => match event {
                Ok(Some(event)) => view.event(&event),
                Ok(None) => break true,
                Err(failure) => {
                    view.close();
                    how_to_come_back(ui, name);
                    return Err(failure);
                }
            },
            _ = tokio::signal::ctrl_c() => break false,
        }
    };
    view.close();
    let job = session.connect().await?.jobs().get_job(GetJobRequest { name: name.into() }).await?.into_inner();
    if ended {
        return Ok(end(ui, &job));
    }
    ui.line(say!(ui.lang, "Left; the job goes on.", "已离开，任务继续运行。"));
    how_to_come_back(ui, name);
    Ok(Report::ok(json::job(&job, ui.lang)))
}

pub(crate) fn how_to_come_back(ui: Ui, name: &str) {
    let id = show::id(name);
    ui.line(say!(ui.lang, "  come back: justtrain jobs watch {id}", "  返回查看：justtrain jobs watch {id}"));
    ui.line(say!(ui.lang, "  cancel:    justtrain jobs cancel {id}", "  取消任务：justtrain jobs cancel {id}"));
}

/// Shows how `job` ended.
fn end(ui: Ui, job: &Job) -> Report {
    let mut json = json::job(job, ui.lang);
    if job.state() == JobState::Succeeded {
        if let Some(result) = &job.result {
            succeeded(ui, job, result);
        }
        return Report::ok(json);
    }
    let failure = Failure { exit: Exit::of_job(job.reason()), message: why(job), problems: job.problems.clone() };
    for problem in &failure.problems {
        ui.problem(problem);
    }
    ui.line(ui.lang.pick(&failure.message));
    let id = show::id(&job.name);
    ui.line(say!(
        ui.lang,
        "  go on from the newest checkpoint: justtrain jobs resume {id}",
        "  从最新检查点继续：justtrain jobs resume {id}"
    ));
    if let (Value::Object(object), Value::Object(error)) = (&mut json, failure.json(ui.lang)) {
        object.extend(error);
    }
    Report { exit: failure.exit, json }
}

fn why(job: &Job) -> Text {
    let name = &job.name;
    let state = |lang| state::with_reason(job.state(), job.reason(), lang);
    let (en, zh) = (state(Lang::En), state(Lang::Zh));
    Text { en: format!("job {name}: {en}"), zh: format!("任务 {name}：{zh}") }
}

fn succeeded(ui: Ui, job: &Job, result: &TrainResult) {
    let TrainResult { steps, first_loss, last_loss, tokens_per_second, adapter_path, .. } = result;
    let (time, memory) = (show::duration(result.seconds, ui.lang), show::bytes(result.peak_memory_bytes));
    let done = say!(ui.lang, "Trained {steps} steps in {time}", "训练完成：{steps} 步，用时 {time}");
    ui.line(ui.bold(done));
    ui.line(say!(
        ui.lang,
        "  loss {first_loss:.4} → {last_loss:.4}, {tokens_per_second:.0} tokens/s, {memory} memory at most",
        "  损失 {first_loss:.4} → {last_loss:.4}，{tokens_per_second:.0} 词元/秒，内存峰值 {memory}"
    ));
    if let Some(loss) = result.validation_loss {
        ui.line(say!(ui.lang, "  validation loss {loss:.4}", "  验证损失 {loss:.4}"));
    }
    ui.line(say!(ui.lang, "  result: {adapter_path}", "  结果：{adapter_path}"));
    let id = show::id(&job.name);
    ui.line(say!(ui.lang, "Next:", "接下来："));
    ui.line(say!(
        ui.lang,
        "  better than before?   justtrain validate {id}",
        "  比之前好吗？  justtrain validate {id}"
    ));
    // Where every weight was trained there is a whole model and no adapter.
    let format = if adapter_path.ends_with("/model") { "merged" } else { "peft" };
    ui.line(say!(
        ui.lang,
        "  take it elsewhere:    justtrain export {id} --format {format}",
        "  导出：        justtrain export {id} --format {format}"
    ));
    ui.line(say!(
        ui.lang,
        "  talk with it:         justtrain chat --job {id}",
        "  与它对话：    justtrain chat --job {id}"
    ));
}

#[cfg(test)]
mod tests {
    use justtrain_proto::v1::JobReason;

    use super::*;

    #[test]
    fn a_failed_job_has_its_name_and_an_error() {
        let job = Job {
            name: "jobs/a".into(),
            state: JobState::Failed.into(),
            reason: JobReason::HostOom.into(),
            ..Job::default()
        };
        let report = end(Ui::plain(Lang::En), &job);
        assert_eq!(report.exit, Exit::OutOfResources);
        assert_eq!(report.json["name"], "jobs/a");
        assert_eq!(report.json["error"]["code"], "out_of_resources");
    }
}
