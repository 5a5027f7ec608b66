//! A process that is killed while it downloads, and the next one that goes on.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

const SIZE: usize = 80 << 20;

/// Numbers, so that a part in the wrong place does not go unnoticed.
fn weights() -> Vec<u8> {
    (0..SIZE as u64 / 8).flat_map(u64::to_le_bytes).collect()
}

/// Not a test of its own: what the process that is killed does.
#[tokio::test(flavor = "multi_thread")]
async fn downloads_until_it_is_killed() {
    let (Ok(address), Ok(home)) = (std::env::var("JUSTTRAIN_TEST_HUB"), std::env::var("JUSTTRAIN_TEST_HOME")) else {
        return;
    };
    let hub = Hub::with_settings(home.into(), Settings::at(&address, NOWHERE));
    pull(&hub, "org/big", Some(SourceKind::Hub)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_was_killed_goes_on_in_every_part() {
    let files = vec![FakeFile::small("config.json", "{}"), FakeFile::large("model.safetensors", weights())];
    // The first four requests give a mebibyte of their part and then drip.
    let bytes = weights();
    let sha256 = FakeFile::large("", weights()).sha256();
    let etag = format!("ETag: \"s3-{sha256}\"");
    let fake = FakeHub::faulty(
        "org/big",
        files,
        |_, _| None,
        move |asked, before| {
            (before < 4).then(|| {
                let start = asked.offset();
                let part = &bytes[start..start + (16 << 20)];
                let range = format!("Content-Range: bytes {start}-{}/{SIZE}", start + part.len() - 1);
                Reply::new(206, part).header(range).header(etag.clone()).stalling_after(1 << 20)
            })
        },
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::survival::downloads_until_it_is_killed"])
        .env("JUSTTRAIN_TEST_HUB", fake.address())
        .env("JUSTTRAIN_TEST_HOME", folder.path().join("models"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let sidecar = folder.path().join(format!("models/models--org--big/blobs/{sha256}.parts"));
    let deadline = Instant::now() + Duration::from_secs(60);
    let durable = loop {
        assert!(Instant::now() < deadline, "nothing was made durable");
        let text = fs::read_to_string(&sidecar).unwrap_or_default();
        let state: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let done: Vec<_> = state["done"].as_array().into_iter().flatten().filter_map(|done| done.as_u64()).collect();
        if done.iter().filter(|done| **done > 0).count() == 4 {
            break done;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    child.kill().unwrap();
    child.wait().unwrap();

    let hub = hub_at(&folder, fake.address(), NOWHERE);
    let mut progress = Vec::new();
    let wanted = PullRequest { model: "org/big".into(), source: Some(SourceKind::Hub), ..PullRequest::default() };
    let (_keep, cancel) = watch::channel(false);
    let model = hub.pull(wanted, |now| progress.push(now.done), cancel).await.unwrap().model;
    assert!(fs::read(model.path.join("model.safetensors")).unwrap() == weights());
    assert!(progress.is_sorted(), "{progress:?}");
    let offsets: Vec<_> = fake.storage.asked().iter().skip(4).map(|asked| asked.offset() as u64).collect();
    for (index, done) in durable.iter().enumerate().take(4) {
        let first = index as u64 * (16 << 20) + done;
        assert!(
            offsets.iter().any(|offset| *offset >= first && *offset < (index as u64 + 1) * (16 << 20)),
            "{offsets:?}"
        );
    }
}
