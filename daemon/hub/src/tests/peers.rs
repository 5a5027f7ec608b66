//! Others' programs on both sides of us. Hugging Face's own Python library downloads from our fake hub, which proves that
//! the fake speaks the protocol; each finds in its cache what the other has put there. `olah`, a mirror that others have
//! written, fetches from our fake hub, and we fetch from it. `scripts/test` runs these where `JUSTTRAIN_PYTHON` names an
//! interpreter that has `huggingface_hub`.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

/// What the script prints.
async fn python(script: &str, environment: &[(&str, &str)]) -> String {
    let interpreter = std::env::var_os("JUSTTRAIN_PYTHON").expect("JUSTTRAIN_PYTHON names an interpreter");
    let mut command = Command::new(interpreter);
    command.args(["-c", script]).env("HF_HUB_DISABLE_XET", "1").env("HF_HUB_DISABLE_PROGRESS_BARS", "1");
    command.env_remove("HF_TOKEN").envs(environment.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs JUSTTRAIN_PYTHON"]
async fn python_downloads_from_the_fake_hub_and_we_find_its_model() {
    let (fake, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let cache = folder.path().join("hub");
    let script = "import huggingface_hub as h; print(h.snapshot_download('org/small')); print(h.list_models(search='x').__next__().id)";
    let environment = [("HF_ENDPOINT", fake.address()), ("HF_HUB_CACHE", cache.to_str().unwrap())];
    let printed = python(script, &environment).await;
    let path = printed.lines().next().unwrap();
    assert!(path.ends_with(COMMIT) && printed.ends_with("org/small"), "{printed}");
    assert_eq!(fs::read(format!("{path}/model.safetensors")).unwrap(), b"weights");

    let settings = Settings { hub_cache: Some(cache), ..Settings::at(NOWHERE, NOWHERE) };
    let hub = hub_with(&folder, settings);
    let model = pull(&hub, "org/small", None).await.unwrap().model;
    assert_eq!((model.source, model.path.to_str().unwrap()), (SourceKind::Cache, path));
    assert_eq!(hub.resolve("org/small").unwrap(), model.path);
    let mut verified = 0;
    hub.verify("org/small", |file| {
        assert!(file.problem.is_none(), "{file:?}");
        verified += 1;
        true
    })
    .unwrap();
    assert_eq!(verified, 4);
    assert_eq!(hub.remove("org/small").unwrap_err().code, ProblemCode::InvalidValue);
    assert!(model.path.exists());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs JUSTTRAIN_PYTHON"]
async fn python_finds_our_model_without_a_network_and_online_fetches_nothing_twice() {
    let (fake, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let hub = hub_at(&folder, fake.address(), NOWHERE);
    let model = pull(&hub, "org/small", None).await.unwrap().model;
    let cache = folder.path().join("models");
    let offline = "import huggingface_hub as h; print(h.snapshot_download('org/small', local_files_only=True))";
    let environment = [("HF_ENDPOINT", fake.address()), ("HF_HUB_CACHE", cache.to_str().unwrap())];
    let printed = python(offline, &environment).await;
    assert_eq!(printed, model.path.to_str().unwrap());

    let before = fake.storage.asked().len();
    let online = "import huggingface_hub as h; print(h.snapshot_download('org/small', ignore_patterns=['*.bin']))";
    assert_eq!(python(online, &environment).await, printed);
    assert_eq!(fake.storage.asked().len(), before, "the weights were fetched again");
    assert_eq!(hub.get("org/small").unwrap().files, model.files);
}

/// A running mirror of `hub`; it ends with the value.
async fn olah(hub: &FakeHub, folder: &Path) -> (String, tokio::process::Child) {
    let program = std::env::var_os("JUSTTRAIN_OLAH").expect("JUSTTRAIN_OLAH names olah-cli");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let upstream = hub.address().trim_start_matches("http://");
    let server = tokio::process::Command::new(program)
        .args(["--host", "127.0.0.1", "--port", &port, "--hf-scheme", "http", "--hf-netloc", upstream])
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let address = format!("127.0.0.1:{port}");
    for _ in 0..600 {
        if TcpStream::connect(&address).is_ok() {
            return (format!("http://{address}"), server);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("olah does not answer");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs JUSTTRAIN_OLAH"]
async fn a_mirror_by_others_delivers_to_us_in_parts() {
    // Numbers, so that a part in the wrong place does not go unnoticed; more than one part of ours and block of its own.
    let weights: Vec<u8> = (0..5u64 << 20).flat_map(u64::to_le_bytes).collect();
    let files = [
        FakeFile::small("config.json", "{}"),
        FakeFile::small("tokenizer.json", "{\"model\": {}}"),
        FakeFile::large("model.safetensors", weights.clone()),
    ];
    let (fake, folder) = (FakeHub::start("org/big", files.to_vec()).await, tempfile::tempdir().unwrap());
    let (address, _server) = olah(&fake, folder.path()).await;
    for client in ["first", "second"] {
        let settings = Settings::at(NOWHERE, &address);
        let hub = Hub::with_settings(folder.path().join(client), settings);
        let model = pull(&hub, "org/big", None).await.unwrap().model;
        assert_eq!((model.source, model.revision.as_str()), (SourceKind::Mirror, COMMIT));
        assert_eq!(model.files.len(), 3);
        assert!(fs::read(model.path.join("model.safetensors")).unwrap() == weights, "other bytes than the hub's");
        assert!(!fake.server.asked().is_empty());
    }
}
