//! What a request means by a job or a model.

use std::path::{Path, PathBuf};

use justtrain_jobs::{Job, JobId, RequestKey};
use justtrain_proto::v1;
use justtrain_worker_api::{ModelFiles, Problem, ProblemCode};
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Status;

use super::{Daemon, status};

impl Daemon {
    /// A job by its resource name.
    pub(super) fn job(&self, name: &str) -> Result<Job, Status> {
        self.jobs.store().job(&job_id(name)?).map_err(status::of_store)
    }

    /// A job's model with its newest adapter; or a model of the store or of the disk, with or without an adapter.
    pub(super) fn model(&self, selector: Option<v1::ModelSelector>) -> Result<ModelFiles, Status> {
        let selector = selector.unwrap_or_default();
        if !selector.job.is_empty() {
            let job = self.job(&selector.job)?;
            // Without what was trained the answer would be the base model's, and nobody would see the difference.
            let adapter = newest_trained(&job.run_dir).ok_or_else(|| nothing_trained(&job))?;
            return Ok(ModelFiles { adapter: Some(adapter), ..job.model });
        }
        if selector.model.is_empty() {
            return Err(status::invalid("model", "", "a job, or the name of a model"));
        }
        let name = selector.model.strip_prefix("models/").unwrap_or(&selector.model);
        let path = self.hub.resolve(name).map_err(status::of_problem)?;
        let adapter = (!selector.adapter_path.is_empty()).then(|| PathBuf::from(selector.adapter_path));
        Ok(ModelFiles { name: name.to_owned(), path, adapter, ..ModelFiles::default() })
    }

    /// The model that a recipe names: a path from the recipe's folder, or a name in the store.
    pub(super) fn recipe_model(&self, name: &str, base_dir: &Path) -> Result<ModelFiles, Status> {
        let beside = base_dir.join(name);
        let path = match beside.exists() {
            true => beside,
            false => self.hub.resolve(name).map_err(status::of_problem)?,
        };
        Ok(ModelFiles { name: name.to_owned(), path, ..ModelFiles::default() })
    }
}

pub(super) fn job_id(name: &str) -> Result<JobId, Status> {
    let id = name.strip_prefix("jobs/").unwrap_or(name);
    JobId::parse(id).ok_or_else(|| {
        let problem = Problem::error(ProblemCode::FileNotFound, "there is no such job", "没有这个任务")
            .found(name)
            .fix("list the jobs with `justtrain jobs list`", "用 `justtrain jobs list` 查看任务");
        status::of_problem(problem)
    })
}

fn nothing_trained(job: &Job) -> Status {
    let problem = Problem::error(
        ProblemCode::Checkpoint,
        format!("job {} has not saved anything yet, so there is no tuned model", job.id),
        format!("任务 {} 尚未保存任何检查点，还没有微调后的模型", job.id),
    )
    .fix("wait for its first checkpoint, or resume it", "请等待第一个检查点，或恢复该任务");
    status::of_problem(problem)
}

/// The finished adapter or model, else that of the newest checkpoint.
fn newest_trained(run_dir: &Path) -> Option<PathBuf> {
    let trained =
        |folder: &Path| ["adapter", "model"].map(|name| folder.join(name)).into_iter().find(|path| path.is_dir());
    if let Some(finished) = trained(run_dir) {
        return Some(finished);
    }
    let checkpoints = std::fs::read_dir(run_dir.join("checkpoints")).ok()?.flatten();
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let newest = checkpoints.filter_map(|entry| Some((step(&entry.path())?, entry.path()))).max()?;
    trained(&newest.1)
}

/// Makes a repeated request recognisable. The id must be a UUID.
pub(super) fn request_key(method: &'static str, id: &str, request: &impl Message) -> Result<RequestKey, Status> {
    if uuid::Uuid::parse_str(id).is_err() {
        return Err(status::invalid("request_id", id, "a UUID that is new for each request"));
    }
    let digest = Sha256::digest(request.encode_to_vec());
    let hash = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(RequestKey { id: id.to_owned(), method, hash })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_trained_is_the_finished_one_or_that_of_the_last_step() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(newest_trained(run.path()), None);
        for step in ["step-9", "step-10", "step-11.partial"] {
            std::fs::create_dir_all(run.path().join("checkpoints").join(step).join("adapter")).unwrap();
        }
        assert_eq!(newest_trained(run.path()), Some(run.path().join("checkpoints/step-10/adapter")));
        std::fs::create_dir_all(run.path().join("checkpoints/step-12/model")).unwrap();
        assert_eq!(newest_trained(run.path()), Some(run.path().join("checkpoints/step-12/model")));
        std::fs::create_dir(run.path().join("adapter")).unwrap();
        assert_eq!(newest_trained(run.path()), Some(run.path().join("adapter")));
    }
}
