//! Hugging Face's own Python library on both sides of us: it downloads from our fake hub, which proves that the fake
//! speaks the protocol; each finds in its cache what the other has put there. `JUSTTRAIN_TEST_PYTHON` names an
//! interpreter that has `huggingface_hub`; without it these tests do nothing.

use std::process::Command;

use super::*;

/// What the script prints, or `None` where no interpreter is named.
async fn python(script: &str, environment: &[(&str, &str)]) -> Option<String> {
    let interpreter = std::env::var_os("JUSTTRAIN_TEST_PYTHON")?;
    let mut command = Command::new(interpreter);
    command.args(["-c", script]).env("HF_HUB_DISABLE_XET", "1").env("HF_HUB_DISABLE_PROGRESS_BARS", "1");
    command.env_remove("HF_TOKEN").envs(environment.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn python_downloads_from_the_fake_hub_and_we_find_its_model() {
    let (fake, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let cache = folder.path().join("hub");
    let script = "import huggingface_hub as h; print(h.snapshot_download('org/small')); print(h.list_models(search='x').__next__().id)";
    let environment = [("HF_ENDPOINT", fake.address()), ("HF_HUB_CACHE", cache.to_str().unwrap())];
    let Some(printed) = python(script, &environment).await else { return };
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
async fn python_finds_our_model_without_a_network_and_online_fetches_nothing_twice() {
    let (fake, folder) = (small_hub().await, tempfile::tempdir().unwrap());
    let hub = hub_at(&folder, fake.address(), NOWHERE);
    let model = pull(&hub, "org/small", None).await.unwrap().model;
    let cache = folder.path().join("models");
    let offline = "import huggingface_hub as h; print(h.snapshot_download('org/small', local_files_only=True))";
    let environment = [("HF_ENDPOINT", fake.address()), ("HF_HUB_CACHE", cache.to_str().unwrap())];
    let Some(printed) = python(offline, &environment).await else { return };
    assert_eq!(printed, model.path.to_str().unwrap());

    let before = fake.storage.asked().len();
    let online = "import huggingface_hub as h; print(h.snapshot_download('org/small', ignore_patterns=['*.bin']))";
    assert_eq!(python(online, &environment).await.unwrap(), printed);
    assert_eq!(fake.storage.asked().len(), before, "the weights were fetched again");
    assert_eq!(hub.get("org/small").unwrap().files, model.files);
}
