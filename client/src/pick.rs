//! Finds what a person means: a job by the start of its id, a model by its name.

use std::path::{Path, PathBuf};

use clap::Args;
use justtrain_proto::v1::{GetJobRequest, Job, ListJobsRequest, ListModelsRequest, ModelSelector};
use tonic::Code;

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::session::{Daemon, absolute_text};
use crate::show;
use crate::text::both;

/// What to run: the output of a job, or a model with or without an adapter.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// The output of this job: its id, the start of its id, or `latest`
    #[arg(long, conflicts_with_all = ["model", "adapter"])]
    pub job: Option<String>,
    /// A model in the store, or a path
    #[arg(long)]
    pub model: Option<String>,
    /// A PEFT adapter folder for --model
    #[arg(long, value_name = "DIR", requires = "model")]
    pub adapter: Option<PathBuf>,
}

impl ModelArgs {
    /// As the contract says it; `None` where nothing was named.
    pub(crate) async fn selector(&self, daemon: &Daemon) -> Result<Option<ModelSelector>> {
        if let Some(job) = &self.job {
            return Ok(Some(ModelSelector { job: job_name(daemon, job).await?, ..ModelSelector::default() }));
        }
        let Some(model) = &self.model else { return Ok(None) };
        let adapter_path = absolute_text(self.adapter.as_deref())?;
        Ok(Some(ModelSelector { model: model_text(model)?, adapter_path, ..ModelSelector::default() }))
    }

    /// The newest job where nothing was named.
    pub(crate) async fn selector_or_latest(&self, daemon: &Daemon) -> Result<ModelSelector> {
        match self.selector(daemon).await? {
            Some(selector) => Ok(selector),
            None => Ok(ModelSelector { job: job_name(daemon, "latest").await?, ..ModelSelector::default() }),
        }
    }

    /// The only model of the store where nothing was named.
    pub(crate) async fn selector_or_only_model(&self, daemon: &Daemon) -> Result<ModelSelector> {
        if let Some(selector) = self.selector(daemon).await? {
            return Ok(selector);
        }
        let models = daemon.models().list_models(ListModelsRequest::default()).await?.into_inner().models;
        match models.as_slice() {
            [only] => Ok(ModelSelector { model: only.name.clone(), ..ModelSelector::default() }),
            [] => Err(Failure::new(
                Exit::NotFound,
                both!(
                    "there is no model yet; fetch one with: justtrain models pull NAME",
                    "还没有模型；先获取一个：justtrain models pull 名称"
                ),
            )),
            several => {
                let names: Vec<_> = several.iter().map(|model| model.display_name.as_str()).collect();
                let names = names.join(", ");
                Err(Failure::usage(both!("name a model with --model: {names}", "请用 --model 指定模型：{names}")))
            }
        }
    }
}

/// A path that is here is made absolute; anything else is a name, and the daemon's to know.
pub(crate) fn model_text(model: &str) -> Result<String> {
    let path = Path::new(model);
    let is_path = path.exists() || model.starts_with('.') || model.starts_with('~');
    if is_path { absolute_text(Some(path)) } else { Ok(model.to_owned()) }
}

/// `models/{id}` of a repository name, an id or a resource name.
pub(crate) fn model_name(model: &str) -> String {
    let id = model.strip_prefix("models/").unwrap_or(model).replace('/', "--");
    format!("models/{id}")
}

/// `jobs/{id}` of what a person wrote: `jobs/ID`, `ID`, the start of one, or `latest`.
///
/// # Errors
/// [`Exit::NotFound`] when there is no such job, [`Exit::InvalidInput`] when several ids start like this.
pub(crate) async fn job_name(daemon: &Daemon, written: &str) -> Result<String> {
    Ok(job(daemon, written).await?.name)
}

/// As [`job_name`], the whole job.
pub(crate) async fn job(daemon: &Daemon, written: &str) -> Result<Job> {
    if written == "latest" {
        let request = ListJobsRequest { page_size: 1, ..ListJobsRequest::default() };
        let newest = daemon.jobs().list_jobs(request).await?.into_inner().jobs.into_iter().next();
        return newest.ok_or_else(|| {
            let message = both!(
                "there is no job yet; start one with: justtrain train RECIPE",
                "还没有任务；先开始一个：justtrain train 配方文件"
            );
            Failure::new(Exit::NotFound, message)
        });
    }
    let id = written.strip_prefix("jobs/").unwrap_or(written);
    match daemon.jobs().get_job(GetJobRequest { name: format!("jobs/{id}") }).await {
        Ok(job) => Ok(job.into_inner()),
        Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => {
            one_that_starts_with(id, all_jobs(daemon).await?)
        }
        Err(status) => Err(status.into()),
    }
}

/// Every job, newest first.
pub(crate) async fn all_jobs(daemon: &Daemon) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    let mut request = ListJobsRequest { page_size: 200, ..ListJobsRequest::default() };
    loop {
        let page = daemon.jobs().list_jobs(request.clone()).await?.into_inner();
        jobs.extend(page.jobs);
        if page.next_page_token.is_empty() {
            return Ok(jobs);
        }
        request.page_token = page.next_page_token;
    }
}

fn one_that_starts_with(start: &str, jobs: Vec<Job>) -> Result<Job> {
    let mut matching: Vec<Job> = jobs.into_iter().filter(|job| show::id(&job.name).starts_with(start)).collect();
    match matching.len() {
        1 => Ok(matching.remove(0)),
        0 => Err(Failure::new(
            Exit::NotFound,
            both!(
                "there is no job {start}; see: justtrain jobs list",
                "没有任务 {start}；查看全部：justtrain jobs list"
            ),
        )),
        several => {
            let names: Vec<_> = matching.iter().take(5).map(|job| show::id(&job.name)).collect();
            let names = names.join(", ");
            Err(Failure::new(
                Exit::InvalidInput,
                both!("{several} jobs start with {start}: {names}", "有 {several} 个任务以 {start} 开头：{names}"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(ids: &[&str]) -> Vec<Job> {
        ids.iter().map(|id| Job { name: format!("jobs/{id}"), ..Job::default() }).collect()
    }

    #[test]
    fn the_start_of_an_id_is_enough_when_it_is_unique() {
        assert_eq!(one_that_starts_with("ab", jobs(&["abc", "xyz"])).unwrap().name, "jobs/abc");
        assert_eq!(one_that_starts_with("q", jobs(&["abc"])).unwrap_err().exit, Exit::NotFound);
        let failure = one_that_starts_with("a", jobs(&["abc", "axy"])).unwrap_err();
        assert_eq!(failure.exit, Exit::InvalidInput);
        assert!(failure.message.en.contains("abc, axy"));
    }

    #[test]
    fn repository_names_become_resource_names() {
        assert_eq!(model_name("HuggingFaceTB/SmolLM2-135M-Instruct"), "models/HuggingFaceTB--SmolLM2-135M-Instruct");
        assert_eq!(model_name("models/a--b"), "models/a--b");
    }
}
