//! `SystemService`: the daemon itself and the machine it runs on.

use justtrain_doctor::{CheckResult, Context, Port, Server, Status as CheckStatus};
use justtrain_jobs::JobState;
use justtrain_proto::v1::system_service_server::SystemService;
use justtrain_proto::v1::{self, GetInfoRequest, GetInfoResponse, RunChecksRequest, ShutdownRequest, ShutdownResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::{Daemon, convert, status};

#[async_trait]
impl SystemService for Daemon {
    type RunChecksStream = UnboundedReceiverStream<Result<v1::CheckResult, Status>>;

    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        let store = self.jobs.store();
        let count = |state| store.count(state).map_err(status::of_store);
        Ok(Response::new(GetInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api_versions: vec!["justtrain.v1".to_owned()],
            data_dir: self.home.display().to_string(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            running_jobs: count(JobState::Running)? + count(JobState::Cancelling)?,
            queued_jobs: count(JobState::Queued)?,
        }))
    }

    async fn run_checks(&self, _: Request<RunChecksRequest>) -> Result<Response<Self::RunChecksStream>, Status> {
        let servers = self.hub.servers().map(|(kind, address)| {
            let (hub, asked) = (self.hub.clone(), address.clone());
            let answer =
                async move { hub.reach(&asked).await.map_err(|problem| problem.found.unwrap_or(problem.message.en)) };
            Server { id: kind.as_str(), address, answer: Box::pin(answer) }
        });
        let context = Context {
            home: self.home.clone(),
            port: Port::Ours(self.address),
            models: self.hub.list().iter().map(|model| model.name.to_string()).collect(),
            worker: self.jobs.program().path().to_owned(),
            servers: servers.into(),
        };
        let (results, stream) = mpsc::unbounded_channel();
        let daemon = self.clone();
        tokio::spawn(async move {
            // A client that has left needs no more results.
            let send = |result: &CheckResult| drop(results.send(Ok(check(result))));
            justtrain_doctor::run(context, |result| send(&result)).await;
            send(&justtrain_doctor::verdict(daemon.largest_models().await));
        });
        Ok(Response::new(UnboundedReceiverStream::new(stream)))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Result<Response<ShutdownResponse>, Status> {
        tracing::info!("a client asked the daemon to end");
        self.shutdown.send_replace(true);
        Ok(Response::new(ShutdownResponse {}))
    }
}

fn check(result: &CheckResult) -> v1::CheckResult {
    v1::CheckResult {
        id: result.id.to_owned(),
        status: match result.status {
            CheckStatus::Pass => v1::CheckStatus::Pass,
            CheckStatus::Warn => v1::CheckStatus::Warn,
            CheckStatus::Fail => v1::CheckStatus::Fail,
            CheckStatus::Skip => v1::CheckStatus::Skip,
        }
        .into(),
        title: Some(convert::text(&result.title)),
        found: Some(convert::text(&result.found)),
        expected: Some(convert::text(&result.expected)),
        fix: (!result.fix.is_empty()).then(|| convert::text(&result.fix)),
    }
}
