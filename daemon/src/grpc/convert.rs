//! Our types as those of the contract.

use justtrain_jobs::{
    EventBody, Job, JobEvent, JobReason, JobState, Operation, OperationResult, OperationState, Progress, UnixMillis,
};
use justtrain_proto::v1;
use justtrain_worker_api::{
    AccuracyReport, DataFile, EvaluationReport, Event, FormatName, Problem, Rewards, Severity, StageOfJob, TaskScore,
    Text, Turn,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

use super::status;

/// The name that serde gives a unit variant.
fn name_of(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

pub(super) fn text(text: &Text) -> v1::Text {
    v1::Text { en: text.en.clone(), zh: text.zh.clone() }
}

pub(super) fn time(millis: UnixMillis) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: millis.div_euclid(1000), nanos: (millis.rem_euclid(1000) * 1_000_000) as i32 }
}

pub(super) fn problem(problem: &Problem) -> v1::Problem {
    v1::Problem {
        code: name_of(problem.code),
        severity: match problem.severity {
            Severity::Warning => v1::Severity::Warning.into(),
            Severity::Error => v1::Severity::Error.into(),
        },
        message: Some(text(&problem.message)),
        file: problem.file.clone().unwrap_or_default(),
        line: problem.line.unwrap_or_default(),
        column: problem.column.unwrap_or_default(),
        row: problem.row.unwrap_or_default(),
        key: problem.key.clone().unwrap_or_default(),
        found: problem.found.clone().unwrap_or_default(),
        expected: problem.expected.clone().unwrap_or_default(),
        fix: (!problem.fix.is_empty()).then(|| text(&problem.fix)),
    }
}

pub(super) fn problems(list: &[Problem]) -> Vec<v1::Problem> {
    list.iter().map(problem).collect()
}

pub(super) fn turn(turn: Turn) -> v1::Turn {
    v1::Turn { role: turn.role, content: turn.content }
}

/// A value by its serde name; empty is None.
fn parse<T: DeserializeOwned>(key: &str, name: &str, expected: &str) -> Result<Option<T>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    serde_json::from_value(name.into()).map(Some).map_err(|_| status::invalid(key, name, expected))
}

pub(super) fn data_file(data: Option<v1::DataFile>) -> Result<DataFile, Status> {
    let data = data.unwrap_or_default();
    if data.path.is_empty() {
        return Err(status::invalid("data.path", "", "the path of a data file"));
    }
    let formats = "alpaca, sharegpt, messages, prompt_completion, preference, kto, text or classification";
    Ok(DataFile { path: data.path.into(), format: parse::<FormatName>("data.format", &data.format, formats)? })
}

pub(super) fn format_name(format: FormatName) -> String {
    name_of(format)
}

pub(super) fn job(job: &Job) -> v1::Job {
    v1::Job {
        name: format!("jobs/{}", job.id),
        state: match job.state {
            JobState::Queued => v1::JobState::Queued,
            JobState::Running => v1::JobState::Running,
            JobState::Cancelling => v1::JobState::Cancelling,
            JobState::Interrupted => v1::JobState::Interrupted,
            JobState::Succeeded => v1::JobState::Succeeded,
            JobState::Failed => v1::JobState::Failed,
            JobState::Cancelled => v1::JobState::Cancelled,
        }
        .into(),
        reason: job.reason.map_or(v1::JobReason::Unspecified, job_reason).into(),
        problems: problems(&job.problems),
        recipe: Some(v1::Recipe {
            yaml: job.recipe.text.clone(),
            file: job.recipe.file.clone(),
            base_dir: job.recipe.base_dir.display().to_string(),
        }),
        model: job.model.name.clone(),
        create_time: Some(time(job.created)),
        start_time: job.started.map(time),
        end_time: job.ended.map(time),
        attempt: job.attempt,
        queue_position: job.queue_position,
        progress: job.progress.clone().map(
            |Progress { step, total_steps, loss, learning_rate, tokens_per_second, seconds_left, stage: of }| {
                v1::Progress {
                    stage: of.map(stage),
                    step,
                    total_steps,
                    loss,
                    learning_rate,
                    tokens_per_second,
                    seconds_left,
                }
            },
        ),
        result: job.result.as_ref().map(|result| v1::TrainResult {
            steps: result.steps,
            first_loss: result.first_loss,
            last_loss: result.last_loss,
            validation_loss: result.validation_loss,
            tokens_per_second: result.tokens_per_second,
            peak_memory_bytes: result.peak_memory_bytes,
            seconds: result.seconds,
            adapter_path: result.adapter.display().to_string(),
            rewards: result.rewards.map(rewards),
        }),
        run_dir: job.run_dir.display().to_string(),
    }
}

fn job_reason(reason: JobReason) -> v1::JobReason {
    match reason {
        JobReason::User => v1::JobReason::User,
        JobReason::RecipeInvalid => v1::JobReason::RecipeInvalid,
        JobReason::DataInvalid => v1::JobReason::DataInvalid,
        JobReason::ModelInvalid => v1::JobReason::ModelInvalid,
        JobReason::HostOom => v1::JobReason::HostOom,
        JobReason::DiskFull => v1::JobReason::DiskFull,
        JobReason::LossDiverged => v1::JobReason::LossDiverged,
        JobReason::WorkerCrashed => v1::JobReason::WorkerCrashed,
        JobReason::DaemonRestarted => v1::JobReason::DaemonRestarted,
        JobReason::Internal => v1::JobReason::Internal,
    }
}

pub(super) fn job_event(event: JobEvent, resume_token: String) -> v1::JobEvent {
    use v1::job_event::Event as Out;
    let body = match event.body {
        EventBody::State(changed) => Out::StateChanged(v1::StateChanged { job: Some(job(&changed)) }),
        EventBody::Worker(event) => worker_event(event),
    };
    v1::JobEvent { seq: event.seq, resume_token, time: Some(time(event.time)), event: Some(body) }
}

fn worker_event(event: Event) -> v1::job_event::Event {
    use v1::job_event::Event as Out;
    match event {
        Event::Log { level, text: line } => Out::Log(v1::Log { level: name_of(level), text: Some(text(&line)) }),
        Event::Phase { phase } => Out::Phase(v1::PhaseChanged { phase: name_of(phase) }),
        Event::Started {
            first_step,
            total_steps,
            epochs,
            train_rows,
            validation_rows,
            trainable_parameters,
            total_parameters,
            device,
        } => Out::Started(v1::Started {
            first_step,
            total_steps,
            epochs,
            train_rows,
            validation_rows,
            trainable_parameters,
            total_parameters,
            device,
        }),
        Event::Step {
            step,
            total_steps,
            epoch,
            loss,
            learning_rate,
            grad_norm,
            tokens,
            target_tokens,
            tokens_per_second,
            seconds_left,
            peak_memory_bytes,
            rewards: judged,
            stage: of,
        } => Out::Step(v1::Step {
            step,
            total_steps,
            epoch,
            loss,
            learning_rate,
            grad_norm,
            tokens,
            target_tokens,
            tokens_per_second,
            seconds_left,
            peak_memory_bytes,
            rewards: judged.map(rewards),
            stage: of.map(stage),
        }),
        Event::StepSkipped { step, loss_is_finite, rows, in_a_row, limit, loss_scale } => {
            Out::Skipped(v1::StepSkipped { step, loss_is_finite, rows, in_a_row, limit, loss_scale })
        }
        Event::Evaluation { step, loss, perplexity, token_accuracy, rewards: judged } => {
            let rewards = judged.map(rewards);
            Out::Validation(v1::ValidationLoss { step, loss, perplexity, token_accuracy, rewards })
        }
        Event::Tasks { step, validation, tasks } => {
            let score = |task: TaskScore| {
                let TaskScore { name, loss, token_accuracy, weight, metric, value } = task;
                v1::TaskScore { name, loss, token_accuracy, weight, metric, value }
            };
            Out::Tasks(v1::TaskScores { step, validation, tasks: tasks.into_iter().map(score).collect() })
        }
        Event::Checkpoint { step, path } => {
            Out::Checkpoint(v1::CheckpointSaved { step, path: path.display().to_string() })
        }
        // Of other commands, or of a kind that the contract has no message for: the stream is alive.
        Event::Progress { .. }
        | Event::Warned { .. }
        | Event::Token { .. }
        | Event::Generated { .. }
        | Event::GenerateFailed { .. }
        | Event::Ready => Out::Bookmark(v1::Bookmark {}),
    }
}

fn stage(StageOfJob { name, number, count }: StageOfJob) -> v1::Stage {
    v1::Stage { name, number, count }
}

fn rewards(rewards: Rewards) -> v1::Rewards {
    let Rewards { chosen, rejected, accuracy } = rewards;
    v1::Rewards { chosen, rejected, accuracy, margin: chosen.zip(rejected).map(|(chosen, rejected)| chosen - rejected) }
}

pub(super) fn operation(operation: &Operation) -> v1::Operation {
    use v1::operation::Result as Out;
    v1::Operation {
        name: format!("operations/{}", operation.id),
        kind: operation.kind.as_str().to_owned(),
        state: match operation.state {
            OperationState::Running => v1::OperationState::Running,
            OperationState::Succeeded => v1::OperationState::Succeeded,
            OperationState::Failed => v1::OperationState::Failed,
            OperationState::Cancelled => v1::OperationState::Cancelled,
        }
        .into(),
        done: operation.done,
        total: operation.total,
        unit: match operation.kind {
            justtrain_jobs::OperationKind::Pull => "bytes",
            justtrain_jobs::OperationKind::Evaluate => "rows",
            justtrain_jobs::OperationKind::Export => "tensors",
        }
        .to_owned(),
        status: Some(text(&operation.status)),
        problems: problems(&operation.problems),
        result: operation.result.as_ref().map(|result| match result {
            OperationResult::Pull(pull) => Out::Pull(v1::PullResult {
                model: format!("models/{}", pull.model),
                path: pull.path.display().to_string(),
                size_bytes: pull.size_bytes,
                sha256: pull.sha256.clone(),
                source: pull.source.clone(),
                attempts: pull.attempts.iter().map(text).collect(),
            }),
            OperationResult::Evaluation(report) => Out::Evaluation(evaluation(report)),
            OperationResult::Export { format, path, bytes } => Out::Export(v1::Export {
                format: name_of(*format),
                path: path.display().to_string(),
                size_bytes: *bytes,
            }),
        }),
        create_time: Some(time(operation.created)),
    }
}

fn evaluation(report: &EvaluationReport) -> v1::Evaluation {
    let accuracy = |report: &AccuracyReport| v1::Accuracy {
        loss: report.loss,
        perplexity: report.perplexity,
        token_accuracy: report.token_accuracy,
        exact_match: report.exact_match,
        rewards: report.rewards.map(rewards),
    };
    v1::Evaluation {
        rows: report.rows,
        target_tokens: report.target_tokens,
        base: Some(accuracy(&report.base)),
        tuned: report.tuned.as_ref().map(accuracy),
        examples: report
            .examples
            .iter()
            .map(|example| v1::ExampleComparison {
                prompt: example.prompt.clone(),
                reference: example.reference.clone(),
                base: example.base.clone(),
                tuned: example.tuned.clone().unwrap_or_default(),
            })
            .collect(),
    }
}
