use std::fs;

use tempfile::TempDir;

use super::*;
use crate::testing::hub::{COMMIT, FakeFile, FakeHub};
use crate::testing::{EAGER, FakeServer, Reply};

mod peers;
mod survival;

const NOWHERE: &str = "http://127.0.0.1:9";

/// A hub of ours whose servers are at these addresses, with a token for the first.
fn hub_at(folder: &TempDir, hub: &str, mirror: &str) -> Hub {
    let settings = Settings { hub_token: Some("secret".to_owned()), ..Settings::at(hub, mirror) };
    hub_with(folder, settings)
}

fn hub_with(folder: &TempDir, settings: Settings) -> Hub {
    Hub { patience: EAGER, ..Hub::with_settings(folder.path().join("models"), settings) }
}

async fn request(hub: &Hub, request: PullRequest) -> Result<PulledModel, Vec<Problem>> {
    let (_keep, cancel) = watch::channel(false);
    hub.pull(request, |_| {}, cancel).await
}

async fn pull(hub: &Hub, model: &str, source: Option<SourceKind>) -> Result<PulledModel, Vec<Problem>> {
    request(hub, PullRequest { model: model.to_owned(), source, ..PullRequest::default() }).await
}

/// A configuration, a tokenizer, weights in storage, a licence, and what a pull leaves.
fn small_files() -> Vec<FakeFile> {
    vec![
        FakeFile::small("README.md", "hello"),
        FakeFile::small("LICENSE", "do what you like"),
        FakeFile::small("config.json", "{}"),
        FakeFile::small("tokenizer.json", "{\"model\": {}}"),
        FakeFile::large("model.safetensors", b"weights".to_vec()),
        FakeFile::large("pytorch_model.bin", b"pickle".to_vec()),
    ]
}

async fn small_hub() -> FakeHub {
    FakeHub::start("org/small", small_files()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_pulled_whole_and_resolved() {
    let (fake, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let hub = hub_at(&folder, fake.address(), NOWHERE);
    let pulled = pull(&hub, "org/small", None).await.unwrap();
    assert!(pulled.attempts[0].en.starts_with("hub: has it"), "{:?}", pulled.attempts);
    let model = &pulled.model;
    assert_eq!((model.revision.as_str(), model.license.as_deref()), (COMMIT, Some("apache-2.0")));
    assert_eq!(model.format, ModelFormat::Safetensors);
    let names: Vec<_> = model.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["LICENSE", "config.json", "tokenizer.json", "model.safetensors"]);
    assert_eq!(model.last_used, None);

    let path = hub.resolve("models/org--small").unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), b"weights");
    assert!(hub.get("org/small").unwrap().last_used.is_some());
    // Blobs are named as the hub's own tools name them.
    let config = fs::read_link(path.join("config.json")).unwrap();
    assert_eq!(config.file_name().unwrap().to_str().unwrap(), FakeFile::small("", "{}").git_sha1());

    let asked = fake.server.asked().len();
    assert_eq!(pull(&hub, "org/small", None).await.unwrap().model.files, pulled.model.files);
    assert_eq!(fake.server.asked().len(), asked, "a model that is there was fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_goes_to_the_hub_and_not_to_its_storage() {
    let (fake, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    pull(&hub_at(&folder, fake.address(), NOWHERE), "org/small", None).await.unwrap();
    assert!(fake.server.asked().iter().all(|asked| asked.header("authorization") == Some("Bearer secret")));
    assert!(!fake.storage.asked().is_empty());
    assert!(fake.storage.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mirror_helps_without_the_token_and_the_report_says_why() {
    let (mirror, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let hub = hub_at(&folder, NOWHERE, mirror.address());
    let pulled = pull(&hub, "org/small", None).await.unwrap();
    assert_eq!(pulled.model.source, SourceKind::Mirror);
    let lines: Vec<_> = pulled.attempts.iter().map(|line| line.en.as_str()).collect();
    assert!(lines.iter().any(|line| line.starts_with("hub: the server cannot be reached")), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("mirror: has it")), "{lines:?}");
    assert!(mirror.server.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn modelscope_delivers_what_the_others_cannot() {
    let (fake, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let settings = Settings {
        modelscope_endpoint: fake.address().to_owned(),
        modelscope_token: Some("ms-secret".into()),
        ..Settings::at(NOWHERE, NOWHERE)
    };
    let hub = hub_with(&folder, settings);
    let model = pull(&hub, "org/small", None).await.unwrap().model;
    assert_eq!((model.source, model.license.as_deref()), (SourceKind::ModelScope, Some("apache-2.0")));
    assert_eq!(fs::read(model.path.join("model.safetensors")).unwrap(), b"weights");
    let asked = fake.server.asked();
    assert!(asked.iter().all(|asked| asked.header("cookie") == Some("m_session_id=ms-secret")));
    assert!(asked.iter().all(|asked| asked.header("authorization") == Some("Bearer ms-secret")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_modelscope_has_cut_is_not_trusted() {
    let files: Vec<_> = (0..3000).map(|n| serde_json::json!({"Path": format!("{n}.json"), "Type": "blob"})).collect();
    let listing = serde_json::json!({"Code": 200, "Data": {"Files": files}}).to_string();
    let server = FakeServer::start(move |_, _| Reply::new(200, listing.clone())).await;
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { modelscope_endpoint: server.address.clone(), ..Settings::at(NOWHERE, NOWHERE) };
    let problems = pull(&hub_with(&folder, settings), "org/huge", Some(SourceKind::ModelScope)).await.unwrap_err();
    assert_eq!(problems[0].found.as_deref(), Some("3000 entries"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_breaks_off_is_followed_by_the_next_with_the_same_bytes() {
    let weights: Vec<u8> = b"weights".repeat(1000);
    let files = || vec![FakeFile::small("config.json", "{}"), FakeFile::large("model.safetensors", weights.clone())];
    // The hub's storage gives ten bytes, then nothing but errors.
    let cut = weights.clone();
    let hub = FakeHub::faulty(
        "org/m",
        files(),
        |_, _| None,
        move |asked, before| {
            Some(match before {
                0 => Reply::range(asked, &cut, "\"x\"").cut_after(10),
                _ => Reply::new(503, ""),
            })
        },
    )
    .await;
    let mirror = FakeHub::start("org/m", files()).await;
    let folder = tempfile::tempdir().unwrap();
    let pulled = pull(&hub_at(&folder, hub.address(), mirror.address()), "org/m", None).await.unwrap();
    assert_eq!(pulled.model.source, SourceKind::Mirror);
    assert_eq!(mirror.storage.asked()[0].offset(), 10, "the mirror goes on where the hub stopped");
    assert_eq!(fs::read(pulled.model.path.join("model.safetensors")).unwrap(), weights);
    assert!(pulled.attempts.iter().any(|line| line.en.contains("503")), "{:?}", pulled.attempts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_hub_does_not_hold_up_a_pull_that_another_can_serve() {
    let silent =
        FakeServer::start(|_, _| Reply::new(200, "x".repeat(1000)).dripping(std::time::Duration::from_secs(1))).await;
    let (mirror, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let pulled = pull(&hub_at(&folder, &silent.address, mirror.address()), "org/small", None).await.unwrap();
    assert_eq!(pulled.model.source, SourceKind::Mirror);
    assert!(pulled.attempts.iter().any(|line| line.en.starts_with("hub: no answer yet")), "{:?}", pulled.attempts);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_that_failed_is_reported() {
    let (fake, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let hub = hub_at(&folder, fake.address(), NOWHERE);
    let problems = pull(&hub, "org/missing", None).await.unwrap_err();
    let sources: Vec<_> = problems.iter().map(|problem| problem.key.as_deref()).collect();
    assert_eq!(sources, [Some("hub"), Some("mirror"), Some("modelscope")]);
    assert!(problems[0].found.as_deref().unwrap().contains("404"));
    assert!(hub.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gated_model_says_what_to_click() {
    // The hub lists its files to anyone and refuses to hand them out.
    let refusal = |asked: &crate::testing::Asked, _| {
        asked.path.contains("/resolve/").then(|| Reply::new(403, "").header("X-Error-Code: GatedRepo"))
    };
    let fake = FakeHub::faulty("org/gated", small_files(), refusal, |_, _| None).await;
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_at(&folder, fake.address(), NOWHERE);
    let problems = pull(&hub, "org/gated", Some(SourceKind::Hub)).await.unwrap_err();
    assert!(problems[0].fix.en.contains("Agree and access repository"), "{:?}", problems);
    assert!(problems[0].fix.zh.contains("HF_TOKEN"));
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
    let problems = pull(&hub_at(&folder, &server.address, NOWHERE), "org/huge", None).await.unwrap_err();
    assert_eq!(problems.iter().map(|problem| problem.code).collect::<Vec<_>>(), [ProblemCode::DiskFull]);
    assert!(server.asked().iter().all(|asked| asked.path.starts_with("/api/")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_address_and_a_local_file_become_models() {
    let server = FakeServer::start(|asked, _| Reply::range(asked, b"GGUF web", "\"u\"")).await;
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_at(&folder, NOWHERE, NOWHERE);
    let web = pull(&hub, &format!("{}/files/tiny.Q8.gguf", server.address), None).await.unwrap().model;
    assert_eq!((web.name.as_str(), web.source), ("tiny.Q8", SourceKind::Url));
    assert_eq!(server.asked()[0].header("authorization"), None);

    let file = folder.path().join("local.gguf");
    fs::write(&file, "GGUF local").unwrap();
    let local = pull(&hub, file.to_str().unwrap(), None).await.unwrap().model;
    assert_eq!(fs::read(hub.resolve("local").unwrap()).unwrap(), b"GGUF local");
    assert_eq!(hub.list().iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["local", "tiny.Q8"]);
    assert_eq!(hub.remove(&local.id).unwrap(), 10);

    let named = PullRequest {
        model: file.display().to_string(),
        name: Some(ModelName::parse("me/mine").unwrap()),
        ..PullRequest::default()
    };
    assert_eq!(request(&hub, named).await.unwrap().model.name.as_str(), "me/mine");

    fs::write(&file, "not a model").unwrap();
    let problems = pull(&hub, file.to_str().unwrap(), None).await.unwrap_err();
    assert_eq!(problems[0].code, ProblemCode::FileFormat);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_taken_with_its_configuration_and_a_pickle_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("my model");
    fs::create_dir(&source).unwrap();
    for (name, text) in [("config.json", "{}"), ("model.safetensors", "w"), ("notes.md", "mine")] {
        fs::write(source.join(name), text).unwrap();
    }
    let hub = hub_at(&folder, NOWHERE, NOWHERE);
    let model = pull(&hub, source.to_str().unwrap(), Some(SourceKind::File)).await.unwrap().model;
    assert_eq!(model.name.as_str(), "my-model");
    let mut files: Vec<_> = fs::read_dir(&model.path).unwrap().flatten().map(|entry| entry.file_name()).collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors"]);

    fs::rename(source.join("model.safetensors"), source.join("pytorch_model.bin")).unwrap();
    for path in [source.clone(), source.join("pytorch_model.bin")] {
        let problems = pull(&hub, path.to_str().unwrap(), None).await.unwrap_err();
        assert!(problems[0].message.en.contains("pickle"), "{problems:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_found_and_only_it_is_fetched_again() {
    let (fake, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let hub = hub_at(&folder, fake.address(), NOWHERE);
    let model = pull(&hub, "org/small", None).await.unwrap().model;
    let verify = || {
        let mut wrong = Vec::new();
        hub.verify("org/small", |file| {
            wrong.extend(file.problem.map(|problem| (file.path, problem.code)));
            true
        })
        .map(|()| wrong)
    };
    assert_eq!(verify().unwrap(), []);
    fs::write(model.path.join("model.safetensors"), b"WEIGHTS").unwrap();
    assert_eq!(verify().unwrap(), [("model.safetensors".to_owned(), ProblemCode::ChecksumMismatch)]);
    assert_eq!(hub.get("org/small").unwrap_err().code, ProblemCode::ModelNotFound);
    let before = fake.server.asked().len();
    pull(&hub, "org/small", None).await.unwrap();
    let asked = fake.server.asked().split_off(before);
    let fetched: Vec<_> = asked.iter().filter(|asked| asked.path.contains("/resolve/")).collect();
    assert_eq!(fetched.len(), 1, "{fetched:?}");
    assert_eq!(verify().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_asks_both_hubs_and_a_look_up_shows_what_a_pull_would_take() {
    let (fake, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let settings = Settings { modelscope_endpoint: fake.address().into(), ..Settings::at(NOWHERE, fake.address()) };
    let hub = hub_with(&folder, settings);
    let found = hub.search("small model", 5).await.unwrap();
    let rows: Vec<_> = found.models.iter().map(|model| (model.source, model.size_bytes, model.downloads)).collect();
    assert_eq!(rows, [(SourceKind::Mirror, Some(2000), Some(42)), (SourceKind::ModelScope, Some(2000), Some(7))]);
    assert_eq!(found.problems[0].key.as_deref(), Some("hub"));
    assert!(fake.server.asked()[0].path.contains("search=small%20model"));

    let offered = hub.look_up("org/small", &Selection::default()).await.unwrap();
    assert_eq!((offered.source, offered.files.len()), (SourceKind::Mirror, 4));
    assert!(hub.search("x", 5).await.is_ok());
    assert_eq!(hub_at(&folder, NOWHERE, NOWHERE).search("x", 5).await.unwrap_err().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_under_terms_is_asked_for_only_once_they_are_accepted() {
    let files = vec![FakeFile::small("config.json", "{}"), FakeFile::large("model.safetensors", b"weights".to_vec())];
    let fake = FakeHub::start("google/gemma-3-270m", files).await;
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_at(&folder, fake.address(), NOWHERE);
    let problems = pull(&hub, "gemma-3-270m", None).await.unwrap_err();
    assert_eq!(problems.iter().map(|problem| problem.code).collect::<Vec<_>>(), [ProblemCode::LicenseNotAccepted]);
    assert_eq!(problems[0].expected.as_deref(), Some("https://ai.google.dev/gemma/terms"));
    assert!(problems[0].message.zh.contains("Gemma Terms of Use"), "{}", problems[0]);
    assert!(problems[0].fix.en.contains("--accept-license"), "{}", problems[0]);
    assert!(fake.server.asked().is_empty());

    let accepting = PullRequest { model: "gemma-3-270m".into(), accept_license: true, ..PullRequest::default() };
    let pulled = request(&hub, accepting).await.unwrap();
    assert_eq!((pulled.model.name.as_str(), pulled.model.source), ("google/gemma-3-270m", SourceKind::Hub));
    assert!(pulled.attempts[0].en.contains("Gemma Terms of Use"), "{:?}", pulled.attempts);
    // What is here has been accepted.
    pull(&hub, "gemma-3-270m", None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wheels_of_the_catalogue_are_found_where_no_server_answers() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_at(&folder, NOWHERE, NOWHERE);
    let found = hub.search("gemma 270M", 5).await.unwrap();
    let [model] = &found.models[..] else { panic!("{found:?}") };
    assert_eq!((model.source, model.size_bytes, model.gated), (SourceKind::Wheel, Some(253_113_024), true));
    assert_eq!(found.problems.len(), 3);
    let offered = hub.look_up("smollm2", &Selection::default()).await.unwrap();
    assert_eq!(
        (offered.source, offered.files[0].path.as_str()),
        (SourceKind::Wheel, "SmolLM2-135M-Instruct.Q4_1.gguf")
    );
    assert_eq!(hub.look_up("org/unknown", &Selection::default()).await.unwrap_err().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_have_it_is_refused_with_those_that_can() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_at(&folder, NOWHERE, NOWHERE);
    let problems = pull(&hub, "org/unknown", Some(SourceKind::Wheel)).await.unwrap_err();
    assert_eq!(problems[0].code, ProblemCode::InvalidValue);
    assert_eq!(problems[0].expected.as_deref(), Some("hub, mirror, modelscope"));
}

#[test]
fn a_missing_model_names_the_command_that_fetches_it() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_at(&folder, NOWHERE, NOWHERE);
    let problem = hub.resolve("smollm2").unwrap_err();
    assert_eq!(problem.code, ProblemCode::ModelNotFound);
    assert!(problem.fix.en.contains("justtrain models pull HuggingFaceTB/SmolLM2-135M-Instruct"), "{}", problem.fix.en);
}
