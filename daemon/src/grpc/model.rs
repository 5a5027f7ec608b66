//! `ModelService`: the store of base models.

use justtrain_hub::{
    FoundModel, ModelFormat, ModelName, OfferedModel, PullRequest, Selection, SourceKind, StoredFile, StoredModel,
};
use justtrain_jobs::{OperationKind, OperationResult, PullSummary};
use justtrain_proto::v1::model_service_server::ModelService;
use justtrain_proto::v1::{
    self, DeleteModelRequest, DeleteModelResponse, Fit, GetModelRequest, ListModelsRequest, ListModelsResponse,
    LookUpModelRequest, Model, ModelFile, Operation, PullModelRequest, SearchModelsRequest, SearchModelsResponse,
    VerifiedFile, VerifyModelRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::select::request_key;
use super::{Daemon, convert, status};

const PAGE: usize = 50;
const FOUND: usize = 20;
const MOST_FOUND: usize = 100;

#[async_trait]
impl ModelService for Daemon {
    type VerifyModelStream = ReceiverStream<Result<VerifiedFile, Status>>;

    async fn list_models(&self, request: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        let request = request.into_inner();
        let models = self.hub.list();
        // The token is the last name of the page before: a model that comes or goes meanwhile moves no other.
        let rest = models.iter().filter(|model| model.id > request.page_token);
        let size = if request.page_size > 0 { request.page_size as usize } else { PAGE };
        let page: Vec<&StoredModel> = rest.take(size + 1).collect();
        let next_page_token = if page.len() > size { page[size - 1].id.clone() } else { String::new() };
        let models = page.into_iter().take(size).map(model).collect();
        Ok(Response::new(ListModelsResponse { models, next_page_token }))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<Model>, Status> {
        let name = request.into_inner().name;
        let name = name.strip_prefix("models/").unwrap_or(&name);
        self.hub.get(name).map(|found| Response::new(model(&found))).map_err(status::of_problem)
    }

    async fn pull_model(&self, request: Request<PullModelRequest>) -> Result<Response<Operation>, Status> {
        let request = request.into_inner();
        let key = request_key("PullModel", &request.request_id, &request)?;
        let source = match request.source.as_str() {
            "" => None,
            source => Some(source.parse::<SourceKind>().map_err(status::of_problem)?),
        };
        let name = match request.display_name.as_str() {
            "" => None,
            name => Some(ModelName::parse(name).map_err(status::of_problem)?),
        };
        let selection = Selection { allow: request.allow, ignore: request.ignore };
        let (model, accept_license) = (request.model, request.accept_license);
        let (hub, pull) = (self.hub.clone(), PullRequest { model, source, selection, name, accept_license });
        let operation = self.operations.start(OperationKind::Pull, &key, |handle| async move {
            let cancel = handle.cancelled();
            let report = move |progress: justtrain_hub::PullProgress| {
                handle.progress(progress.done, progress.total);
                handle.status(progress.status);
            };
            let pulled = hub.pull(pull, report, cancel).await?;
            Ok(OperationResult::Pull(PullSummary {
                model: pulled.model.id,
                path: pulled.model.path,
                size_bytes: pulled.model.size_bytes,
                sha256: pulled.model.sha256,
                source: pulled.model.source.to_string(),
                attempts: pulled.attempts,
            }))
        });
        Ok(Response::new(convert::operation(&operation.map_err(status::of_store)?)))
    }

    async fn delete_model(
        &self,
        request: Request<DeleteModelRequest>,
    ) -> Result<Response<DeleteModelResponse>, Status> {
        let name = request.into_inner().name;
        let name = name.strip_prefix("models/").unwrap_or(&name);
        let freed_bytes = self.hub.remove(name).map_err(status::of_problem)?;
        Ok(Response::new(DeleteModelResponse { freed_bytes }))
    }

    async fn search_models(
        &self,
        request: Request<SearchModelsRequest>,
    ) -> Result<Response<SearchModelsResponse>, Status> {
        let SearchModelsRequest { query, limit } = request.into_inner();
        let limit = if limit > 0 { (limit as usize).min(MOST_FOUND) } else { FOUND };
        let findings = self.hub.search(&query, limit).await.map_err(|problems| status::of_problems(&problems))?;
        Ok(Response::new(SearchModelsResponse {
            models: findings.models.iter().map(|model| self.found(model)).collect(),
            problems: convert::problems(&findings.problems),
        }))
    }

    async fn look_up_model(&self, request: Request<LookUpModelRequest>) -> Result<Response<v1::OfferedModel>, Status> {
        let LookUpModelRequest { model, allow, ignore } = request.into_inner();
        let model = model.strip_prefix("models/").unwrap_or(&model);
        let offered = self.hub.look_up(model, &Selection { allow, ignore }).await;
        let offered = offered.map_err(|problems| status::of_problems(&problems))?;
        let found = FoundModel {
            name: offered.name.clone(),
            source: offered.source,
            license: offered.license.clone(),
            downloads: offered.downloads,
            size_bytes: Some(offered.size_bytes()),
            parameters: None,
            gated: offered.gated,
        };
        let OfferedModel { revision, files, .. } = offered;
        let files = files.iter().map(file).collect();
        Ok(Response::new(v1::OfferedModel { model: Some(self.found(&found)), revision, files }))
    }

    async fn verify_model(
        &self,
        request: Request<VerifyModelRequest>,
    ) -> Result<Response<Self::VerifyModelStream>, Status> {
        let name = request.into_inner().name;
        let name = name.strip_prefix("models/").unwrap_or(&name).to_owned();
        // A model that is not there fails the call, not the stream.
        self.hub.get(&name).map_err(status::of_problem)?;
        let (sender, stream) = mpsc::channel(4);
        let hub = self.hub.clone();
        tokio::task::spawn_blocking(move || {
            let verified = hub.verify(&name, |file| {
                let problem = file.problem.as_ref().map(convert::problem);
                // A client that has left needs no more.
                sender.blocking_send(Ok(VerifiedFile { path: file.path, size_bytes: file.size, problem })).is_ok()
            });
            if let Err(problem) = verified {
                let _ = sender.blocking_send(Err(status::of_problem(problem)));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Daemon {
    fn found(&self, model: &FoundModel) -> v1::FoundModel {
        let fit = model
            .size_bytes
            .map_or(Fit::Unspecified, |size| fit(size, self.hub.free_space(), justtrain_doctor::total_memory()));
        v1::FoundModel {
            display_name: model.name.to_string(),
            source: model.source.to_string(),
            license: model.license.clone().unwrap_or_default(),
            downloads: model.downloads.unwrap_or_default(),
            size_bytes: model.size_bytes.unwrap_or_default(),
            parameters: model.parameters.unwrap_or_default(),
            gated: model.gated,
            fit: fit.into(),
        }
    }
}

/// Where the system does not tell how much there is, nothing speaks against it.
fn fit(size: u64, free_space: Option<u64>, total_memory: Option<u64>) -> Fit {
    if free_space.is_some_and(|free| size > free) {
        Fit::DiskTooSmall
    } else if total_memory.is_some_and(|total| size > total) {
        Fit::MemoryTooSmall
    } else {
        Fit::Yes
    }
}

fn file(file: &StoredFile) -> ModelFile {
    ModelFile { path: file.path.clone(), size_bytes: file.size, sha256: file.sha256.clone() }
}

fn model(model: &StoredModel) -> Model {
    Model {
        name: format!("models/{}", model.id),
        display_name: model.name.to_string(),
        size_bytes: model.size_bytes,
        format: match model.format {
            ModelFormat::Gguf => "gguf",
            ModelFormat::Safetensors => "safetensors",
        }
        .to_owned(),
        source: model.source.to_string(),
        revision: model.revision.clone(),
        license: model.license.clone().unwrap_or_default(),
        sha256: model.sha256.clone(),
        create_time: Some(convert::time(model.created as i64 * 1000)),
        path: model.path.display().to_string(),
        last_use_time: model.last_used.map(|used| convert::time(used as i64 * 1000)),
        files: model.files.iter().map(file).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_says_for_what() {
        assert_eq!(fit(5, Some(10), Some(10)), Fit::Yes);
        assert_eq!(fit(11, Some(10), Some(20)), Fit::DiskTooSmall);
        assert_eq!(fit(11, Some(20), Some(10)), Fit::MemoryTooSmall);
        assert_eq!(fit(11, None, None), Fit::Yes);
    }
}
