//! Job states and their reasons in words.

use justtrain_proto::v1::{JobReason, JobState};

use crate::text::{Lang, say};

pub(crate) fn state(state: JobState, lang: Lang) -> String {
    match state {
        JobState::Queued => say!(lang, "queued", "排队中"),
        JobState::Running => say!(lang, "running", "运行中"),
        JobState::Cancelling => say!(lang, "stopping", "正在停止"),
        JobState::Interrupted => say!(lang, "interrupted", "已中断"),
        JobState::Succeeded => say!(lang, "succeeded", "已完成"),
        JobState::Failed => say!(lang, "failed", "失败"),
        JobState::Cancelled => say!(lang, "cancelled", "已取消"),
        JobState::Unspecified => say!(lang, "unknown", "未知"),
    }
}

/// `None` while all is well.
pub(crate) fn reason(reason: JobReason, lang: Lang) -> Option<String> {
    Some(match reason {
        JobReason::Unspecified => return None,
        JobReason::User => say!(lang, "you asked for it", "用户操作"),
        JobReason::RecipeInvalid => say!(lang, "the recipe is wrong", "配方有误"),
        JobReason::DataInvalid => say!(lang, "the data is wrong", "数据有误"),
        JobReason::ModelInvalid => say!(lang, "the model cannot be used", "模型无法使用"),
        JobReason::HostOom => say!(lang, "out of memory", "内存不足"),
        JobReason::DiskFull => say!(lang, "the disk is full", "磁盘已满"),
        JobReason::LossDiverged => say!(lang, "the loss diverged", "损失发散"),
        JobReason::WorkerCrashed => say!(lang, "the worker crashed", "训练进程崩溃"),
        JobReason::DaemonRestarted => say!(lang, "the daemon was restarted", "守护进程重启"),
        JobReason::Internal => say!(lang, "internal error", "内部错误"),
    })
}

/// `failed (out of memory)`.
pub(crate) fn with_reason(job_state: JobState, job_reason: JobReason, lang: Lang) -> String {
    let name = state(job_state, lang);
    match reason(job_reason, lang) {
        Some(why) => say!(lang, "{name} ({why})", "{name}（{why}）"),
        None => name,
    }
}
