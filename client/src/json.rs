//! What `--json` prints of the contract's messages: field names as in the `.proto` files, enum values in lower case.

use justtrain_proto::v1::operation::Result as OperationResult;
use justtrain_proto::v1::{
    Accuracy, Evaluation, FoundModel, Job, JobReason, Model, ModelFile, Operation, Problem, Rewards, Stage, TrainResult,
};
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use crate::problem;
use crate::text::Lang;

/// `succeeded` of `JOB_STATE_SUCCEEDED`.
pub(crate) fn enum_name(full: &str, prefix: &str) -> String {
    full.strip_prefix(prefix).unwrap_or(full).to_ascii_lowercase()
}

fn state(job: &Job) -> String {
    enum_name(job.state().as_str_name(), "JOB_STATE_")
}

fn reason(job: &Job) -> Option<String> {
    (job.reason() != JobReason::Unspecified).then(|| enum_name(job.reason().as_str_name(), "JOB_REASON_"))
}

pub(crate) fn problems(problems: &[Problem], lang: Lang) -> Value {
    problems.iter().map(|item| problem::json(item, lang)).collect()
}

fn time(timestamp: &Option<Timestamp>) -> Option<String> {
    timestamp.map(|time| time.to_string())
}

pub(crate) fn job(job: &Job, lang: Lang) -> Value {
    json!({
        "name": job.name,
        "state": state(job),
        "reason": reason(job),
        "problems": problems(&job.problems, lang),
        "model": job.model,
        "recipe_file": job.recipe.as_ref().map(|recipe| &recipe.file),
        "create_time": time(&job.create_time),
        "start_time": time(&job.start_time),
        "end_time": time(&job.end_time),
        "attempt": job.attempt,
        "queue_position": job.queue_position,
        "progress": job.progress.as_ref().map(|progress| json!({
            "step": progress.step,
            "total_steps": progress.total_steps,
            "loss": progress.loss,
            "learning_rate": progress.learning_rate,
            "tokens_per_second": progress.tokens_per_second,
            "seconds_left": progress.seconds_left,
            "stage": progress.stage.as_ref().map(stage),
        })),
        "result": job.result.as_ref().map(train_result),
        "run_dir": job.run_dir,
    })
}

fn stage(stage: &Stage) -> Value {
    json!({"name": stage.name, "number": stage.number, "count": stage.count})
}

fn train_result(result: &TrainResult) -> Value {
    json!({
        "steps": result.steps,
        "first_loss": result.first_loss,
        "last_loss": result.last_loss,
        "validation_loss": result.validation_loss,
        "tokens_per_second": result.tokens_per_second,
        "peak_memory_bytes": result.peak_memory_bytes,
        "seconds": result.seconds,
        "adapter_path": result.adapter_path,
        "rewards": result.rewards.as_ref().map(rewards),
    })
}

fn rewards(rewards: &Rewards) -> Value {
    json!({
        "chosen": rewards.chosen,
        "rejected": rewards.rejected,
        "accuracy": rewards.accuracy,
        "margin": rewards.margin,
    })
}

pub(crate) fn model(model: &Model) -> Value {
    json!({
        "name": model.name,
        "display_name": model.display_name,
        "size_bytes": model.size_bytes,
        "format": model.format,
        "source": model.source,
        "revision": model.revision,
        "license": model.license,
        "sha256": model.sha256,
        "create_time": time(&model.create_time),
        "path": model.path,
        "last_use_time": time(&model.last_use_time),
        "files": model_files(&model.files),
    })
}

pub(crate) fn model_files(files: &[ModelFile]) -> Value {
    files.iter().map(|file| json!({"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256})).collect()
}

pub(crate) fn found_model(model: &FoundModel) -> Value {
    json!({
        "display_name": model.display_name,
        "source": model.source,
        "license": model.license,
        "downloads": model.downloads,
        "size_bytes": model.size_bytes,
        "parameters": model.parameters,
        "gated": model.gated,
        "fit": enum_name(model.fit().as_str_name(), "FIT_"),
    })
}

/// The operation's name and state, with the fields of its result beside them.
pub(crate) fn operation(operation: &Operation, lang: Lang) -> Value {
    let mut object = Map::new();
    object.insert("name".into(), operation.name.clone().into());
    object.insert("state".into(), enum_name(operation.state().as_str_name(), "OPERATION_STATE_").into());
    if let Value::Object(result) =
        operation.result.as_ref().map_or(Value::Null, |result| operation_result(result, lang))
    {
        object.extend(result);
    }
    Value::Object(object)
}

fn operation_result(result: &OperationResult, lang: Lang) -> Value {
    match result {
        OperationResult::Pull(pull) => json!({
            "model": pull.model,
            "path": pull.path,
            "size_bytes": pull.size_bytes,
            "sha256": pull.sha256,
            "source": pull.source,
            "attempts": pull.attempts.iter().map(|attempt| lang.pick(attempt)).collect::<Vec<_>>(),
        }),
        OperationResult::Evaluation(report) => evaluation(report),
        OperationResult::Export(export) => json!({
            "format": export.format,
            "path": export.path,
            "size_bytes": export.size_bytes,
        }),
    }
}

fn evaluation(report: &Evaluation) -> Value {
    let accuracy = |accuracy: &Accuracy| {
        json!({
            "loss": accuracy.loss,
            "perplexity": accuracy.perplexity,
            "token_accuracy": accuracy.token_accuracy,
            "exact_match": accuracy.exact_match,
            "rewards": accuracy.rewards.as_ref().map(rewards),
        })
    };
    json!({
        "rows": report.rows,
        "target_tokens": report.target_tokens,
        "base": report.base.as_ref().map(accuracy),
        "tuned": report.tuned.as_ref().map(accuracy),
        "examples": report.examples.iter().map(|example| json!({
            "prompt": example.prompt,
            "reference": example.reference,
            "base": example.base,
            "tuned": example.tuned,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use justtrain_proto::v1::{Export, JobState, OperationState, Progress};

    use super::*;

    #[test]
    fn a_job_has_its_name_and_a_plain_state() {
        let message = Job { name: "jobs/a".into(), state: JobState::Succeeded.into(), ..Job::default() };
        let json = job(&message, Lang::En);
        assert_eq!((&json["name"], &json["state"]), (&"jobs/a".into(), &"succeeded".into()));
        assert!(json["reason"].is_null() && json["result"].is_null());
    }

    #[test]
    fn progress_says_which_stage_it_is_in() {
        let stage = Stage { name: "taste".into(), number: 2, count: 3 };
        let progress = Progress { step: 6, stage: Some(stage), ..Progress::default() };
        let of =
            |progress| job(&Job { progress: Some(progress), ..Job::default() }, Lang::En)["progress"]["stage"].clone();
        assert_eq!(of(progress), json!({"name": "taste", "number": 2, "count": 3}));
        assert!(of(Progress::default()).is_null());
    }

    #[test]
    fn an_operation_carries_its_result() {
        let export = Export { format: "peft".into(), path: "/out".into(), size_bytes: 7 };
        let message = Operation {
            name: "operations/1".into(),
            state: OperationState::Succeeded.into(),
            result: Some(OperationResult::Export(export)),
            ..Operation::default()
        };
        assert_eq!(
            operation(&message, Lang::En).to_string(),
            r#"{"name":"operations/1","state":"succeeded","format":"peft","path":"/out","size_bytes":7}"#
        );
    }
}
