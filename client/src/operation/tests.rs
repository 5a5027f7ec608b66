//! Following an operation over connections that break.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Mutex;

use justtrain_proto::v1::operation_service_server::{OperationService, OperationServiceServer};
use justtrain_proto::v1::{Export, GetOperationRequest, Problem, operation};
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::*;
use crate::fake::FakeDaemon;

type Updates = Pin<Box<dyn Stream<Item = Result<Operation, Status>> + Send>>;

/// Each call of `WatchOperation` sends the next list.
struct FakeOperations(Mutex<VecDeque<Vec<Result<Operation, Status>>>>);

#[tonic::async_trait]
impl OperationService for FakeOperations {
    type WatchOperationStream = Updates;

    async fn watch_operation(&self, _: Request<WatchOperationRequest>) -> Result<Response<Updates>, Status> {
        let updates = self.0.lock().unwrap().pop_front().ok_or_else(|| Status::not_found("no such operation"))?;
        Ok(Response::new(Box::pin(tokio_stream::iter(updates))))
    }

    async fn get_operation(&self, _: Request<GetOperationRequest>) -> Result<Response<Operation>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_operation(&self, _: Request<CancelOperationRequest>) -> Result<Response<Operation>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn running(done: u64) -> Operation {
    Operation { state: OperationState::Running.into(), done, total: 10, ..Operation::default() }
}

async fn followed(calls: Vec<Vec<Result<Operation, Status>>>) -> Result<Operation> {
    let fake = FakeOperations(Mutex::new(calls.into()));
    let daemon = FakeDaemon::start(Server::builder().add_service(OperationServiceServer::new(fake)));
    follow(&daemon.session, running(0)).await
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_again() {
    let export = operation::Result::Export(Export { path: "/out".into(), ..Export::default() });
    let done = Operation { state: OperationState::Succeeded.into(), result: Some(export.clone()), ..running(10) };
    let calls = vec![vec![Ok(running(3)), Err(Status::unavailable("cut"))], vec![Ok(running(7))], vec![Ok(done)]];
    assert_eq!(followed(calls).await.unwrap().result, Some(export));
}

#[tokio::test]
async fn a_failure_carries_its_problems_and_their_exit_code() {
    let problem = Problem { code: "DISK_FULL".into(), ..Problem::default() };
    let failed = Operation { state: OperationState::Failed.into(), problems: vec![problem], ..running(3) };
    let failure = followed(vec![vec![Ok(failed)]]).await.unwrap_err();
    assert_eq!((failure.exit, failure.problems.len()), (Exit::OutOfResources, 1));
}

#[tokio::test]
async fn an_operation_that_is_unknown_is_not_found() {
    assert_eq!(followed(vec![]).await.unwrap_err().exit, Exit::NotFound);
}
