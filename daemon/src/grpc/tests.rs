//! The services over a real connection, with a shell script as the worker: the token, watching, repeated requests,
//! pages, and refusals as a client receives them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use justtrain_jobs::{Jobs, Operations, Store, WorkerProgram};
use justtrain_proto::v1::export_service_client::ExportServiceClient;
use justtrain_proto::v1::generate_response::Part;
use justtrain_proto::v1::generate_service_client::GenerateServiceClient;
use justtrain_proto::v1::job_service_client::JobServiceClient;
use justtrain_proto::v1::system_service_client::SystemServiceClient;
use justtrain_proto::v1::{
    self, CancelJobRequest, CreateExportRequest, CreateJobRequest, GenerateRequest, GetInfoRequest, JobEvent, JobState,
    ListJobsRequest, ModelSelector, Recipe, Turn, WatchJobRequest,
};
use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use super::*;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Finds nothing wrong with a recipe, unless it says `wrong`; one that says `teacher` has one beside it and one that is not there.
/// Trains in 40 events; exports nothing; warns, and answers once.
const WORKER: &str = r#"
read -r command
case $command in
*'"command":"check_recipe"'*wrong*)
    printf '{"failed":{"reason":"RECIPE_INVALID","problems":['
    for line in $(seq 499); do
        printf '{"code":"UNKNOWN_KEY","severity":"error","line":%s,"message":{"en":"no such key","zh":"没有这个键"}},' $line
    done
    echo '{"code":"UNKNOWN_KEY","severity":"error","message":{"en":"no such key","zh":"没有这个键"}}]}}' ;;
*'"command":"check_recipe"'*teacher*)
    echo '{"outcome":{"outcome":"recipe_checked","model":"model.gguf","teachers":["model.gguf","no/such"],"data":[],"device":"auto","finetuning_type":"lora","warnings":[]}}' ;;
*'"command":"check_recipe"'*)
    echo '{"outcome":{"outcome":"recipe_checked","model":"model.gguf","data":[],"device":"auto","finetuning_type":"lora","warnings":[]}}' ;;
*'"command":"train"'*)
    for event in $(seq 40); do
        echo '{"event":{"event":"phase","phase":"training"}}'
        sleep 0.02
    done
    echo '{"outcome":{"outcome":"trained","stopped":false,"steps":3,"first_loss":2.0,"last_loss":1.0,"validation_loss":null,"tokens_per_second":9.0,"peak_memory_bytes":1,"seconds":1.0,"adapter":"/a"}}' ;;
*'"command":"export"'*)
    echo '{"outcome":{"outcome":"exported","format":"peft","path":"/out","bytes":1}}' ;;
*'"command":"serve"'*)
    echo '{"event":{"event":"ready"}}'
    read -r question
    echo '{"event":{"event":"warned","id":1,"problem":{"code":"CHAT_TEMPLATE","severity":"warning","message":{"en":"no template","zh":"没有模板"}}}}'
    echo '{"event":{"event":"token","id":1,"text":"hi"}}'
    echo '{"event":{"event":"generated","id":1,"end":"stop","prompt_tokens":1,"answer_tokens":1,"seconds":0.1}}'
    read -r end ;;
esac
"#;
/// Queued, running, what the worker says, succeeded.
const EVENTS: u64 = 43;

/// A daemon in a folder of its own, without the queue.
struct Desk {
    home: tempfile::TempDir,
    jobs: Jobs,
    channel: Channel,
}

impl Desk {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let worker = home.path().join("worker");
        fs::write(home.path().join("script"), WORKER).unwrap();
        symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/worker-api/fixtures/scripted-worker"), &worker).unwrap();
        fs::write(home.path().join("model.gguf"), "").unwrap();
        let store = Arc::new(Store::open(&home.path().join("justtrain.db")).unwrap());
        let jobs = Jobs::new(store.clone(), WorkerProgram::new(worker), home.path().join("jobs"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let operations = Operations::new(store).unwrap();
        let hub = Hub::new(home.path().join("models"));
        let daemon =
            Daemon::new(home.path().to_owned(), address, jobs.clone(), operations, hub, watch::Sender::new(false));
        let router = router(daemon, TOKEN, home.path());
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        Self { home, jobs, channel }
    }

    fn client(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone())
    }

    fn run_queue(&self) {
        let jobs = self.jobs.clone();
        tokio::spawn(async move { jobs.run().await });
    }

    fn create(&self, request_id: &str, yaml: &str) -> CreateJobRequest {
        let recipe = recipe(yaml, self.home.path());
        CreateJobRequest {
            request_id: request_id.to_owned(),
            recipe: Some(recipe),
            validate_only: false,
            ignore_estimate: true,
        }
    }

    async fn job(&self) -> v1::Job {
        let request = self.create(&uuid(), "a: 1");
        self.client().create_job(authorised(request)).await.unwrap().into_inner()
    }

    /// At most `limit` events after the token, and whether the stream has ended.
    async fn watch(&self, name: &str, resume_token: &str, limit: usize) -> (Vec<JobEvent>, bool) {
        let request = WatchJobRequest { name: name.to_owned(), resume_token: resume_token.to_owned() };
        let mut stream = self.client().watch_job(authorised(request)).await.unwrap().into_inner();
        let mut events = Vec::new();
        while events.len() < limit {
            match stream.message().await.unwrap() {
                Some(bookmark) if bookmark.seq == 0 => {}
                Some(event) => events.push(event),
                None => return (events, true),
            }
        }
        (events, false)
    }
}

fn recipe(yaml: &str, folder: &Path) -> Recipe {
    Recipe { yaml: yaml.to_owned(), file: "r.yaml".to_owned(), base_dir: folder.display().to_string() }
}

fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn authorised<T>(message: T) -> Request<T> {
    bearing(message, Some(&format!("Bearer {TOKEN}")))
}

fn bearing<T>(message: T, authorization: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(value) = authorization {
        request.metadata_mut().insert(justtrain_proto::AUTHORIZATION, value.parse().unwrap());
    }
    request
}

fn problems_of(status: &tonic::Status) -> Vec<v1::Problem> {
    let details = tonic_types::pb::Status::decode(status.details()).unwrap().details;
    let list = details.iter().find(|any| any.type_url == justtrain_proto::PROBLEMS_TYPE_URL).unwrap();
    v1::Problems::decode(list.value.as_slice()).unwrap().problems
}

/// `/justtrain.v1.Service/Method` of every call of the contract, as the files under `proto/` have it.
fn every_call() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/justtrain/v1");
    let mut calls = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let mut service = String::new();
        for line in text.lines().map(str::trim_start) {
            let name = |rest: &str| rest.split([' ', '(']).next().unwrap().to_owned();
            if let Some(rest) = line.strip_prefix("service ") {
                service = name(rest);
            } else if let Some(rest) = line.strip_prefix("rpc ") {
                calls.push(format!("/justtrain.v1.{service}/{}", name(rest)));
            }
        }
    }
    calls
}

#[tokio::test]
async fn every_call_wants_the_token_and_health_wants_none() {
    let desk = Desk::new().await;
    let calls = every_call();
    assert!(calls.len() > 20, "{calls:?}");
    for call in calls {
        for given in [None, Some("Bearer wrong"), Some(TOKEN), Some(&*format!("Bearer {TOKEN}0"))] {
            let mut grpc = tonic::client::Grpc::new(desk.channel.clone());
            grpc.ready().await.unwrap();
            let path: PathAndQuery = call.parse().unwrap();
            let codec = tonic_prost::ProstCodec::<(), ()>::default();
            let status = grpc.unary(bearing((), given), path, codec).await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{call} with {given:?}");
            let expected = problems_of(&status)[0].expected.clone();
            assert!(expected.ends_with("/token") && !expected.contains(TOKEN), "{expected}");
        }
    }
    let mut system = SystemServiceClient::new(desk.channel.clone());
    assert!(system.get_info(authorised(GetInfoRequest {})).await.is_ok());
    let mut health = tonic_health::pb::health_client::HealthClient::new(desk.channel.clone());
    assert!(health.check(tonic_health::pb::HealthCheckRequest::default()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_leaves_and_comes_back_sees_every_event_once() {
    let desk = Desk::new().await;
    let name = desk.job().await.name;
    desk.run_queue();
    let patient = desk.watch(&name, "", usize::MAX);
    let restless = async {
        let (mut seen, mut token) = (Vec::<JobEvent>::new(), String::new());
        loop {
            let (events, ended) = desk.watch(&name, &token, 3).await;
            token = events.last().map_or(token, |event| event.resume_token.clone());
            seen.extend(events);
            if ended {
                return seen;
            }
        }
    };
    let ((whole, _), pieces) = tokio::join!(patient, restless);
    assert_eq!(whole.iter().map(|event| event.seq).collect::<Vec<_>>(), Vec::from_iter(1..=EVENTS));
    assert_eq!(pieces, whole);
    // Long after the end, every token still means the same place.
    for event in &whole {
        let (rest, _) = desk.watch(&name, &event.resume_token, usize::MAX).await;
        assert_eq!(rest, whole[event.seq as usize..]);
    }
}

#[tokio::test]
async fn a_token_of_another_job_is_no_place_to_go_on_from() {
    let desk = Desk::new().await;
    let (one, other) = (desk.job().await, desk.job().await);
    let (events, _) = desk.watch(&one.name, "", 1).await;
    for token in [events[0].resume_token.as_str(), "nonsense"] {
        let request = WatchJobRequest { name: other.name.clone(), resume_token: token.to_owned() };
        let status = desk.client().watch_job(authorised(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{token}");
    }
}

#[tokio::test]
async fn a_repeated_request_makes_one_job_and_its_id_serves_no_other() {
    let desk = Desk::new().await;
    let id = uuid();
    let create = |id: &str, yaml: &str| {
        let (mut client, request) = (desk.client(), desk.create(id, yaml));
        async move { client.create_job(authorised(request)).await.map(|job| job.into_inner().name) }
    };
    let (first, second) = tokio::join!(create(&id, "a: 1"), create(&id, "a: 1"));
    assert_eq!((first.clone().unwrap(), create(&id, "a: 1").await.unwrap()), (second.unwrap(), first.unwrap()));
    assert_eq!(create(&id, "a: 2").await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(create("7", "a: 1").await.unwrap_err().code(), Code::InvalidArgument);
    let jobs = desk.client().list_jobs(authorised(ListJobsRequest::default())).await.unwrap().into_inner().jobs;
    assert_eq!(jobs.len(), 1);

    let export = |format: v1::ExportFormat| {
        let path = |name| desk.home.path().join(name).display().to_string();
        let model = ModelSelector { model: path("model.gguf"), adapter_path: path("adapter"), ..Default::default() };
        let request_id = "44444444-4444-4444-8444-444444444444".to_owned();
        let output_path = path("out");
        let request = CreateExportRequest { request_id, model: Some(model), format: format.into(), output_path };
        let mut client = ExportServiceClient::new(desk.channel.clone());
        async move { client.create_export(authorised(request)).await.map(|operation| operation.into_inner().name) }
    };
    let operation = export(v1::ExportFormat::Peft).await.unwrap();
    assert_eq!(export(v1::ExportFormat::Peft).await.unwrap(), operation);
    assert_eq!(export(v1::ExportFormat::Merged).await.unwrap_err().code(), Code::AlreadyExists);
}

#[tokio::test]
async fn pages_hold_every_job_once_newest_first_while_new_ones_come() {
    let desk = Desk::new().await;
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.insert(0, desk.job().await.name);
    }
    let (mut listed, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let request = ListJobsRequest { page_size: 2, page_token };
        let page = desk.client().list_jobs(authorised(request)).await.unwrap().into_inner();
        sizes.push(page.jobs.len());
        listed.extend(page.jobs.into_iter().map(|job| job.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        desk.job().await;
    }
    assert_eq!((listed, sizes), (expected, vec![2, 2, 1]));
    let request = ListJobsRequest { page_token: "x".to_owned(), ..ListJobsRequest::default() };
    assert_eq!(desk.client().list_jobs(authorised(request)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_job_that_has_saved_nothing_does_not_answer_as_its_base_model() {
    let desk = Desk::new().await;
    let model = Some(ModelSelector { job: desk.job().await.name, ..ModelSelector::default() });
    let turns = vec![Turn { role: "user".to_owned(), content: "hello".to_owned() }];
    let request = GenerateRequest { model, turns, ..GenerateRequest::default() };
    let mut client = GenerateServiceClient::new(desk.channel.clone());
    let status = client.generate(authorised(request)).await.unwrap_err();
    assert_eq!((status.code(), &*problems_of(&status)[0].code), (Code::FailedPrecondition, "CHECKPOINT"));
}

#[tokio::test]
async fn what_a_model_lacks_is_said_before_its_answer() {
    let desk = Desk::new().await;
    let path = desk.home.path().join("model.gguf").display().to_string();
    let model = Some(ModelSelector { model: path, ..ModelSelector::default() });
    let turns = vec![Turn { role: "user".to_owned(), content: "hello".to_owned() }];
    let request = GenerateRequest { model, turns, ..GenerateRequest::default() };
    let mut client = GenerateServiceClient::new(desk.channel.clone());
    let mut stream = client.generate(authorised(request)).await.unwrap().into_inner();
    let mut parts = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        parts.push(response.part.unwrap());
    }
    let [Part::Warning(warning), Part::Text(text), Part::End(_)] = parts.as_slice() else { panic!("{parts:?}") };
    assert_eq!(
        (warning.code.as_str(), warning.severity(), text.as_str()),
        ("CHAT_TEMPLATE", v1::Severity::Warning, "hi")
    );
}

#[tokio::test]
async fn a_queued_job_is_cancelled_at_once_and_only_once() {
    let desk = Desk::new().await;
    let name = desk.job().await.name;
    let cancel = || authorised(CancelJobRequest { name: name.clone() });
    let cancelled = desk.client().cancel_job(cancel()).await.unwrap().into_inner();
    assert_eq!(cancelled.state(), JobState::Cancelled);
    let status = desk.client().cancel_job(cancel()).await.unwrap_err();
    assert_eq!((status.code(), &*problems_of(&status)[0].found), (Code::FailedPrecondition, "cancelled"));
}

#[tokio::test]
async fn more_problems_than_a_header_holds_arrive_as_problems() {
    let desk = Desk::new().await;
    let status = desk.client().create_job(authorised(desk.create(&uuid(), "wrong"))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let problems = problems_of(&status);
    assert_eq!(problems[0].line, 1);
    let more = 500 - (problems.len() - 1);
    assert_eq!(problems.last().unwrap().message.as_ref().unwrap().en, format!("there are {more} more problems"));
}

#[tokio::test]
async fn a_teacher_that_is_not_there_is_refused_before_the_job_is_made() {
    let desk = Desk::new().await;
    let status = desk.client().create_job(authorised(desk.create(&uuid(), "teacher: no/such"))).await.unwrap_err();
    assert!(status.message().contains("no/such"), "{status:?}");
    let jobs = desk.client().list_jobs(authorised(ListJobsRequest::default())).await.unwrap().into_inner().jobs;
    assert!(jobs.is_empty());
}
