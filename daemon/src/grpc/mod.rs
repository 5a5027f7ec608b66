//! The services: one file each. They turn requests into calls of `jobs`, `hub` and `doctor`, and back.

mod auth;
mod convert;
mod dataset;
mod estimate;
mod evaluation;
mod export;
mod generate;
mod job;
mod model;
mod operation;
mod select;
mod status;
mod system;
#[cfg(test)]
mod tests;
mod warm;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use justtrain_hub::Hub;
use justtrain_jobs::{Jobs, Operations};
use justtrain_proto::v1::{
    dataset_service_server::DatasetServiceServer, evaluation_service_server::EvaluationServiceServer,
    export_service_server::ExportServiceServer, generate_service_server::GenerateServiceServer,
    job_service_server::JobServiceServer, model_service_server::ModelServiceServer,
    operation_service_server::OperationServiceServer, system_service_server::SystemServiceServer,
};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::Router;

use auth::Auth;
use warm::WarmModel;

/// What all services share.
#[derive(Clone)]
pub(crate) struct Daemon(Arc<Parts>);

pub(crate) struct Parts {
    home: PathBuf,
    address: SocketAddr,
    jobs: Jobs,
    operations: Operations,
    hub: Hub,
    warm: WarmModel,
    shutdown: watch::Sender<bool>,
    started: Instant,
}

impl Daemon {
    pub(crate) fn new(
        home: PathBuf,
        address: SocketAddr,
        jobs: Jobs,
        operations: Operations,
        hub: Hub,
        shutdown: watch::Sender<bool>,
    ) -> Self {
        let warm = WarmModel::new(jobs.program().clone());
        Self(Arc::new(Parts { home, address, jobs, operations, hub, warm, shutdown, started: Instant::now() }))
    }
}

impl std::ops::Deref for Daemon {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// All services behind the token, and health for anyone.
pub(crate) fn router(daemon: Daemon, token: &str, home: &Path) -> Router {
    let auth = Auth::new(token, home);
    let (_, health) = tonic_health::server::health_reporter();
    macro_rules! guarded {
        ($server:ident) => {
            $server::with_interceptor(daemon.clone(), auth.clone())
        };
    }
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(health)
        .add_service(guarded!(SystemServiceServer))
        .add_service(guarded!(ModelServiceServer))
        .add_service(guarded!(OperationServiceServer))
        .add_service(guarded!(DatasetServiceServer))
        .add_service(guarded!(JobServiceServer))
        .add_service(guarded!(EvaluationServiceServer))
        .add_service(guarded!(ExportServiceServer))
        .add_service(guarded!(GenerateServiceServer))
}
