//! `ModelService`: the store of base models.

use justtrain_hub::{ModelFormat, PullRequest, SourceKind, StoredModel};
use justtrain_jobs::{OperationKind, OperationResult, PullSummary};
use justtrain_proto::v1::model_service_server::ModelService;
use justtrain_proto::v1::{
    DeleteModelRequest, DeleteModelResponse, GetModelRequest, ListModelsRequest, ListModelsResponse, Model, Operation,
    PullModelRequest,
};
use tonic::{Request, Response, Status, async_trait};

use super::select::request_key;
use super::{Daemon, convert, status};

const PAGE: usize = 50;

#[async_trait]
impl ModelService for Daemon {
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
        let (hub, model) = (self.hub.clone(), request.model);
        let operation = self.operations.start(OperationKind::Pull, &key, |handle| async move {
            let cancel = handle.cancelled();
            let report = move |progress: justtrain_hub::PullProgress| {
                handle.progress(progress.done, progress.total);
                handle.status(progress.status);
            };
            let pulled = hub.pull(PullRequest { model, source }, report, cancel).await?;
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
    }
}
