//! `OperationService`: work that takes longer than a call.

use justtrain_jobs::{OperationId, OperationState};
use justtrain_proto::v1::operation_service_server::OperationService;
use justtrain_proto::v1::{CancelOperationRequest, GetOperationRequest, Operation, WatchOperationRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::{Daemon, convert, status};

#[async_trait]
impl OperationService for Daemon {
    type WatchOperationStream = ReceiverStream<Result<Operation, Status>>;

    async fn get_operation(&self, request: Request<GetOperationRequest>) -> Result<Response<Operation>, Status> {
        let operation = self.operations.get(&id(request.into_inner().name)).map_err(status::of_store)?;
        Ok(Response::new(convert::operation(&operation)))
    }

    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> Result<Response<Operation>, Status> {
        let operation = self.operations.cancel(&id(request.into_inner().name)).map_err(status::of_store)?;
        Ok(Response::new(convert::operation(&operation)))
    }

    async fn watch_operation(
        &self,
        request: Request<WatchOperationRequest>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        let mut watched = self.operations.watch(&id(request.into_inner().name)).map_err(status::of_store)?;
        let (sender, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let operation = watched.borrow_and_update().clone();
                let over = operation.state != OperationState::Running;
                if sender.send(Ok(convert::operation(&operation))).await.is_err() || over {
                    return;
                }
                tokio::select! {
                    changed = watched.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn id(name: String) -> OperationId {
    name.strip_prefix("operations/").map(str::to_owned).unwrap_or(name).into()
}
