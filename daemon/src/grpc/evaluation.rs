//! `EvaluationService`: base model beside tuned model.

use justtrain_jobs::{OperationKind, OperationResult};
use justtrain_proto::v1::evaluation_service_server::EvaluationService;
use justtrain_proto::v1::{CreateEvaluationRequest, ModelSelector, Operation};
use justtrain_worker_api::{Command, EvaluateOptions, Event, Outcome, Problem, ProblemCode};
use tonic::{Request, Response, Status, async_trait};

use super::select::request_key;
use super::{Daemon, convert, status};

#[async_trait]
impl EvaluationService for Daemon {
    async fn create_evaluation(
        &self,
        request: Request<CreateEvaluationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let request = request.into_inner();
        let key = request_key("CreateEvaluation", &request.request_id, &request)?;
        let job = self.job(&request.job)?;
        let model = self.model(Some(ModelSelector { job: request.job, ..ModelSelector::default() }))?;
        let defaults = EvaluateOptions::default();
        let command = Command::Evaluate {
            recipe: job.recipe,
            model,
            data: request.data.map(|data| convert::data_file(Some(data))).transpose()?,
            options: EvaluateOptions {
                max_samples: request.max_samples,
                max_new_tokens: if request.max_new_tokens == 0 {
                    defaults.max_new_tokens
                } else {
                    request.max_new_tokens
                },
            },
        };
        let operation = self.run_worker(OperationKind::Evaluate, &key, command, |outcome| match outcome {
            Outcome::Evaluated(report) => Some(OperationResult::Evaluation(report)),
            _ => None,
        });
        Ok(Response::new(operation?))
    }
}

impl Daemon {
    /// Starts an operation that is one worker's work.
    pub(super) fn run_worker(
        &self,
        kind: OperationKind,
        key: &justtrain_jobs::RequestKey,
        command: Command,
        result: fn(Outcome) -> Option<OperationResult>,
    ) -> Result<Operation, Status> {
        let program = self.jobs.program().clone();
        let operation = self.operations.start(kind, key, |handle| async move {
            let cancel = handle.cancelled();
            let on_event = |event| {
                if let Event::Progress { done, total } = event {
                    handle.progress(done, total);
                }
            };
            let outcome = program.run(&command, cancel, on_event).await.map_err(|failure| failure.problems)?;
            result(outcome).ok_or_else(|| {
                vec![Problem::error(ProblemCode::Internal, "the worker did another thing", "工作进程执行了其他操作")]
            })
        });
        Ok(convert::operation(&operation.map_err(status::of_store)?))
    }
}
