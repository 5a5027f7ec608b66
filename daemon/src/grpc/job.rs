//! `JobService`: training jobs.

use std::time::Duration;

use justtrain_jobs::{Job, JobId, NewJob, Store};
use justtrain_proto::v1::job_service_server::JobService;
use justtrain_proto::v1::{
    self, Bookmark, CancelJobRequest, CreateJobRequest, EstimateJobRequest, GetJobRequest, GetRecipeSchemaRequest,
    GetRecipeSchemaResponse, JobEstimate, JobEvent, ListJobsRequest, ListJobsResponse, ResumeJobRequest,
    WatchJobRequest, job_event,
};
use justtrain_worker_api::{Command, ModelFiles, Outcome, RecipeSource, RecipeSummary};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::dataset::mixed_up;
use super::select::{job_id, request_key};
use super::{Daemon, convert, status};

const PAGE: u32 = 50;
const LARGEST_PAGE: u32 = 1000;
/// Events read from the store at a time.
const CHUNK: u32 = 256;
/// A stream without news says that it is alive.
const BOOKMARK: Duration = Duration::from_secs(15);
/// A watcher that takes no event for so long is cut off.
const PATIENCE: Duration = Duration::from_secs(30);

#[async_trait]
impl JobService for Daemon {
    type WatchJobStream = ReceiverStream<Result<JobEvent, Status>>;

    async fn create_job(&self, request: Request<CreateJobRequest>) -> Result<Response<v1::Job>, Status> {
        let request = request.into_inner();
        let key = request_key("CreateJob", &request.request_id, &request)?;
        // A repeated request gets its job even when the recipe's files have changed since.
        if let Some(id) = self.jobs.store().answered(&key).map_err(status::of_store)? {
            return Ok(Response::new(convert::job(&self.job(&id)?)));
        }
        let (recipe, model, summary) = self.checked(request.recipe).await?;
        if request.validate_only {
            let recipe =
                v1::Recipe { yaml: recipe.text, file: recipe.file, base_dir: recipe.base_dir.display().to_string() };
            let problems = convert::problems(&summary.warnings);
            return Ok(Response::new(v1::Job {
                recipe: Some(recipe),
                model: model.name,
                problems,
                ..v1::Job::default()
            }));
        }
        if !request.ignore_estimate {
            self.refuse_what_cannot_fit(recipe.clone(), model.clone()).await?;
        }
        let job = self.jobs.create(NewJob { recipe, model, device: summary.device }, &key).map_err(status::of_store)?;
        tracing::info!(job = %job.id, model = %job.model.name, "a job was queued");
        Ok(Response::new(convert::job(&job)))
    }

    async fn estimate_job(&self, request: Request<EstimateJobRequest>) -> Result<Response<JobEstimate>, Status> {
        let (recipe, model, summary) = self.checked(request.into_inner().recipe).await?;
        Ok(Response::new(self.estimate(recipe, model, &summary).await?))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        Ok(Response::new(convert::job(&self.job(&request.into_inner().name)?)))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| status::invalid("page_token", token, "a token of this list"))?),
        };
        let size = u32::try_from(request.page_size).ok().filter(|&size| size > 0).unwrap_or(PAGE).min(LARGEST_PAGE);
        let (jobs, next) = self.jobs.store().jobs(before, size).map_err(status::of_store)?;
        Ok(Response::new(ListJobsResponse {
            jobs: jobs.iter().map(convert::job).collect(),
            next_page_token: next.map(|next| next.to_string()).unwrap_or_default(),
        }))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        let job = self.jobs.cancel(&job_id(&request.into_inner().name)?).map_err(status::of_store)?;
        Ok(Response::new(convert::job(&job)))
    }

    async fn resume_job(&self, request: Request<ResumeJobRequest>) -> Result<Response<v1::Job>, Status> {
        let job = self.jobs.resume(&job_id(&request.into_inner().name)?).map_err(status::of_store)?;
        Ok(Response::new(convert::job(&job)))
    }

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        let job = self.job(&request.name)?;
        let store = self.jobs.store().clone();
        let seen = seen(&store, &job, &request.resume_token)?;
        let (sender, stream) = mpsc::channel(CHUNK as usize);
        tokio::spawn(async move {
            if let Err(error) = watch(&store, &job.id, seen, &sender).await {
                // Waits behind the events that are not read yet: a stream that just ended would look complete.
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_recipe_schema(
        &self,
        _: Request<GetRecipeSchemaRequest>,
    ) -> Result<Response<GetRecipeSchemaResponse>, Status> {
        match self.worker(Command::Schema).await? {
            Outcome::Schema { schema } => {
                Ok(Response::new(GetRecipeSchemaResponse { json_schema: format!("{schema:#}") }))
            }
            other => Err(mixed_up(&other)),
        }
    }
}

impl Daemon {
    /// A recipe that has no problem, and its model.
    async fn checked(&self, recipe: Option<v1::Recipe>) -> Result<(RecipeSource, ModelFiles, RecipeSummary), Status> {
        let recipe = recipe.unwrap_or_default();
        if recipe.base_dir.is_empty() {
            return Err(status::invalid("recipe.base_dir", "", "the absolute folder of the recipe"));
        }
        let recipe = RecipeSource { text: recipe.yaml, file: recipe.file, base_dir: recipe.base_dir.into() };
        let summary = match self.worker(Command::CheckRecipe { recipe: recipe.clone() }).await? {
            Outcome::RecipeChecked(summary) => summary,
            other => return Err(mixed_up(&other)),
        };
        let mut model = self.recipe_model(&summary.model, &recipe.base_dir)?;
        for name in &summary.teachers {
            let teacher = self.recipe_model(name, &recipe.base_dir)?;
            model.teachers.insert(name.clone(), teacher.path);
        }
        Ok((recipe, model, summary))
    }
}

/// Sends stored events after `seen`, then new ones as they are stored, until the job is at rest.
async fn watch(
    store: &Store,
    id: &JobId,
    mut seen: u64,
    sender: &mpsc::Sender<Result<JobEvent, Status>>,
) -> Result<(), Status> {
    let mut changes = store.changes();
    loop {
        changes.mark_unchanged();
        // Read first: an event that is stored later is found by the next round.
        let at_rest = store.job(id).map_err(status::of_store)?.state.is_at_rest();
        loop {
            let events = store.events_after(id, seen, CHUNK).map_err(status::of_store)?;
            let Some(last) = events.last().map(|event| event.seq) else { break };
            for event in events {
                let token = token(store, id, event.seq);
                if !send(sender, convert::job_event(event, token)).await? {
                    return Ok(());
                }
            }
            seen = last;
        }
        if at_rest {
            return Ok(());
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            () = sender.closed() => return Ok(()),
            () = tokio::time::sleep(BOOKMARK) => {
                let event = Some(job_event::Event::Bookmark(Bookmark {}));
                let bookmark = JobEvent { seq: 0, resume_token: token(store, id, seen), time: None, event };
                if !send(sender, bookmark).await? {
                    return Ok(());
                }
            }
        }
    }
}

/// False when the client has left; an error when it takes too long.
async fn send(sender: &mpsc::Sender<Result<JobEvent, Status>>, event: JobEvent) -> Result<bool, Status> {
    match tokio::time::timeout(PATIENCE, sender.send(Ok(event))).await {
        Ok(sent) => Ok(sent.is_ok()),
        Err(_) => Err(Status::resource_exhausted("events are not read; watch again with the last resume_token")),
    }
}

fn token(store: &Store, id: &JobId, seq: u64) -> String {
    format!("{}.{id}.{seq}", store.id())
}

/// The number in a resume token, which must be of this store and this job.
fn seen(store: &Store, job: &Job, resume_token: &str) -> Result<u64, Status> {
    if resume_token.is_empty() {
        return Ok(0);
    }
    let prefix = format!("{}.{}.", store.id(), job.id);
    let seq = resume_token.strip_prefix(&prefix).and_then(|seq| seq.parse().ok());
    seq.ok_or_else(|| Status::out_of_range("this resume_token is not of this job; watch again without one"))
}
