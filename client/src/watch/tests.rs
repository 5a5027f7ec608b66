//! The stream of events against a daemon that cuts it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use justtrain_proto::v1::job_service_server::{JobService, JobServiceServer};
use justtrain_proto::v1::{
    CancelJobRequest, CreateJobRequest, EstimateJobRequest, GetJobRequest, GetRecipeSchemaRequest,
    GetRecipeSchemaResponse, Job, JobEstimate, ListJobsRequest, ListJobsResponse, ResumeJobRequest, StateChanged, Step,
};
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::{Request, Response};

use super::*;
use crate::fake::FakeDaemon;

/// What the fake does with one call of `WatchJob`: sends the events of these numbers, then ends as told.
struct Script {
    events: Vec<u64>,
    end: Option<Code>,
}

#[derive(Clone, Default)]
struct FakeJobs {
    scripts: Arc<Mutex<VecDeque<Script>>>,
    tokens: Arc<Mutex<Vec<String>>>,
}

const LAST: u64 = 5;

fn event(seq: u64) -> JobEvent {
    let event = match seq {
        0 => Event::Bookmark(Default::default()),
        LAST => {
            Event::StateChanged(StateChanged { job: Some(Job { state: JobState::Succeeded.into(), ..Job::default() }) })
        }
        _ => Event::Step(Step { step: seq, ..Step::default() }),
    };
    JobEvent { seq, resume_token: format!("after-{seq}"), event: Some(event), ..JobEvent::default() }
}

type EventStream = Pin<Box<dyn Stream<Item = Result<JobEvent, Status>> + Send>>;

#[tonic::async_trait]
impl JobService for FakeJobs {
    type WatchJobStream = EventStream;

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Result<Response<EventStream>, Status> {
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer secret");
        self.tokens.lock().unwrap().push(request.into_inner().resume_token);
        let script = self.scripts.lock().unwrap().pop_front().ok_or_else(|| Status::not_found("no more"))?;
        let events = script.events.into_iter().map(|seq| Ok(event(seq)));
        let end = script.end.map(|code| Err(Status::new(code, "cut")));
        Ok(Response::new(Box::pin(tokio_stream::iter(events.chain(end)))))
    }

    async fn create_job(&self, _: Request<CreateJobRequest>) -> Result<Response<Job>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn estimate_job(&self, _: Request<EstimateJobRequest>) -> Result<Response<JobEstimate>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_job(&self, _: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_jobs(&self, _: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<Job>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn resume_job(&self, _: Request<ResumeJobRequest>) -> Result<Response<Job>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_recipe_schema(
        &self,
        _: Request<GetRecipeSchemaRequest>,
    ) -> Result<Response<GetRecipeSchemaResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// The numbers of the events that came out, how it ended, and the tokens that were asked with.
async fn watched(scripts: Vec<Script>) -> (Vec<u64>, Result<()>, Vec<String>) {
    let fake = FakeJobs { scripts: Arc::new(Mutex::new(scripts.into())), ..FakeJobs::default() };
    let daemon = FakeDaemon::start(Server::builder().add_service(JobServiceServer::new(fake.clone())));
    let mut events = JobEvents::new(&daemon.session, "jobs/a", Backoff::new(Duration::ZERO, Duration::ZERO, 3));
    let mut seen = Vec::new();
    let end = loop {
        match events.next().await {
            Ok(Some(event)) => seen.push(event.seq),
            Ok(None) => break Ok(()),
            Err(failure) => break Err(failure),
        }
    };
    let tokens = fake.tokens.lock().unwrap().clone();
    (seen, end, tokens)
}

#[tokio::test]
async fn a_cut_stream_goes_on_after_the_last_event_seen() {
    let (seen, end, tokens) = watched(vec![
        Script { events: vec![1, 2], end: Some(Code::Unavailable) },
        Script { events: vec![3], end: Some(Code::ResourceExhausted) },
        Script { events: vec![0, 4], end: None },
        Script { events: vec![5], end: None },
    ])
    .await;
    end.unwrap();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    assert_eq!(tokens, ["", "after-2", "after-3", "after-4"]);
}

#[tokio::test]
async fn repeated_events_are_dropped_and_missing_ones_asked_for_again() {
    let (seen, end, tokens) =
        watched(vec![Script { events: vec![1, 2, 4], end: None }, Script { events: vec![2, 3, 3, 4, 5], end: None }])
            .await;
    end.unwrap();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    assert_eq!(tokens, ["", "after-2"]);
}

#[tokio::test]
async fn a_refusal_is_not_tried_again() {
    let (seen, end, tokens) = watched(vec![]).await;
    assert_eq!((seen.len(), tokens.len()), (0, 1));
    assert_eq!(end.unwrap_err().exit, Exit::NotFound);
}

#[tokio::test]
async fn a_daemon_that_stays_away_is_given_up() {
    let cut = || Script { events: vec![], end: Some(Code::Unavailable) };
    let (seen, end, tokens) = watched(vec![cut(), cut(), cut(), cut(), cut()]).await;
    assert_eq!((seen.len(), tokens.len()), (0, 4));
    assert_eq!(end.unwrap_err().exit, Exit::DaemonUnreachable);
}
