//! Reading prompts, and writing answers from a model that fails on some.

use std::pin::Pin;

use justtrain_proto::v1::generate_response::Part;
use justtrain_proto::v1::generate_service_server::{GenerateService, GenerateServiceServer};
use justtrain_proto::v1::{EndReason, GenerateEnd, GenerateRequest, GenerateResponse};
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::*;
use crate::args;
use crate::commands::Command;
use crate::fake::FakeDaemon;
use crate::text::Lang;

#[test]
fn both_kinds_of_rows_are_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "{\"prompt\": \"9.11 和 9.9 哪个大？\", \"id\": 7}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n";
    std::fs::write(file.path(), text).unwrap();
    let prompts = read(file.path()).unwrap();
    assert_eq!(prompts[0].turns[0].content, "9.11 和 9.9 哪个大？");
    assert_eq!((prompts[1].line, prompts[1].turns[0].role.as_str()), (3, "user"));
    let end = GenerateEnd { reason: EndReason::Stop.into(), answer_tokens: 2, ..GenerateEnd::default() };
    let row = row(&prompts[0], &Answer { text: "9.9".into(), end });
    assert_eq!((&row["id"], &row["answer"], &row["end"]), (&7.into(), &"9.9".into(), &"stop".into()));
}

#[test]
fn every_bad_row_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{\"prompt\": 3}\n{\n{\"question\": \"x\"}\n[1]\n{\"messages\": []}").unwrap();
    let failure = read(file.path()).unwrap_err();
    assert_eq!(failure.exit as u8, 6);
    let found: Vec<_> = failure.problems.iter().map(|problem| (problem.line, problem.code.as_str())).collect();
    assert_eq!(
        found,
        [(1, "WRONG_TYPE"), (2, "SYNTAX"), (3, "MISSING_KEY"), (4, "WRONG_TYPE"), (5, "BAD_CONVERSATION")]
    );
}

#[test]
fn an_empty_file_is_a_problem() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(read(file.path()).unwrap_err().problems[0].code, "FILE_EMPTY");
}

/// Warns, and answers with the question in two pieces; refuses the question `bad`.
struct Echo;

type Pieces = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl GenerateService for Echo {
    type GenerateStream = Pieces;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Pieces>, Status> {
        let question = request.into_inner().turns.remove(0).content;
        if question == "bad" {
            return Err(Status::resource_exhausted("no memory"));
        }
        let end = GenerateEnd { reason: EndReason::Length.into(), ..GenerateEnd::default() };
        let message = both!("the model has no chat template", "模型没有对话模板");
        let warning = Problem { severity: Severity::Warning.into(), ..wrong("CHAT_TEMPLATE", message) };
        let parts = [Part::Warning(warning), Part::Text("<".into()), Part::Text(question), Part::End(end)];
        let parts = parts.map(|part| Ok(GenerateResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }
}

/// Runs `generate` over `input`; the outcome, and what the output file holds.
async fn generated(input: &str) -> (Result<Report>, Option<String>) {
    let daemon = FakeDaemon::start(Server::builder().add_service(GenerateServiceServer::new(Echo)));
    let path = |name| daemon.home.path().join(name).to_str().unwrap().to_owned();
    let (prompts, answers) = (path("prompts.jsonl"), path("answers.jsonl"));
    std::fs::write(&prompts, input).unwrap();
    let line = ["justtrain", "generate", "--input", &prompts, "--output", &answers, "--model", "m"];
    let Command::Generate(command) = args::parse(line, Lang::En).unwrap().command else { panic!("another verb") };
    let outcome = command.run(&daemon.session).await;
    (outcome, std::fs::read_to_string(answers).ok())
}

#[tokio::test]
async fn answers_stand_beside_their_prompts() {
    let (outcome, output) = generated("{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n").await;
    let report = outcome.unwrap();
    assert_eq!(report.json["rows"], 2);
    // It came with both answers.
    let problems = report.json["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1);
    assert_eq!((&problems[0]["code"], &problems[0]["severity"]), (&"CHAT_TEMPLATE".into(), &"warning".into()));
    let expected = concat!(
        r#"{"prompt":"a","answer":"<a","end":"length","answer_tokens":0}"#,
        "\n",
        r#"{"prompt":"b","answer":"<b","end":"length","answer_tokens":0}"#,
        "\n"
    );
    assert_eq!(output.unwrap(), expected);
}

#[tokio::test]
async fn a_failing_row_is_named_and_leaves_no_output() {
    let (outcome, output) = generated("{\"prompt\":\"a\"}\n\n{\"prompt\":\"bad\"}\n").await;
    let failure = outcome.unwrap_err();
    assert_eq!(failure.exit as u8, 7);
    assert_eq!(failure.problems[0].line, 3);
    assert!(failure.problems[0].file.ends_with("prompts.jsonl"));
    assert_eq!(output, None);
}
