use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::PullProgress;
use crate::testing::{EAGER, FakeServer, Reply};

const BYTES: &[u8] = b"GGUF and then the rest of the file";
const ETAG: &str = "\"v1\"";

struct Outcome {
    result: Result<(u64, String), Problem>,
    progress: Vec<u64>,
}

/// Fetches `/file` from `server` into `blobs`, knowing hash and size or not.
async fn fetch(server: &FakeServer, blobs: &TempDir, known: bool) -> Outcome {
    let url = Url::parse(&format!("{}/file", server.address)).unwrap();
    let sha256 = hex(&Sha256::digest(BYTES));
    let what = Download {
        url: &url,
        token: Some("secret"),
        key: if known { &sha256 } else { "key" },
        size: known.then_some(BYTES.len() as u64),
        sha256: known.then_some(&sha256),
        magic: b"GGUF",
    };
    let mut progress = Vec::new();
    let mut report = |now: PullProgress| progress.push(now.done);
    let mut meter = Meter::new(&mut report);
    let (_keep, cancel) = watch::channel(false);
    let http = Http::new(EAGER).unwrap();
    let result = download(&http, blobs.path(), &what, &mut meter, &Cancel::new(cancel)).await;
    Outcome { result, progress }
}

fn is_whole(blobs: &TempDir, outcome: &Outcome) -> bool {
    let sha256 = hex(&Sha256::digest(BYTES));
    outcome.result.as_ref().is_ok_and(|result| *result == (BYTES.len() as u64, sha256.clone()))
        && fs::read(blobs.path().join(sha256)).is_ok_and(|read| read == BYTES)
}

#[tokio::test]
async fn a_cut_transfer_goes_on_where_it_stopped() {
    for known in [true, false] {
        let server = FakeServer::start(|asked, before| match before {
            0 => Reply::range(asked, BYTES, ETAG).cut_after(10),
            _ => Reply::range(asked, BYTES, ETAG),
        })
        .await;
        let blobs = tempfile::tempdir().unwrap();
        let outcome = fetch(&server, &blobs, known).await;
        assert!(is_whole(&blobs, &outcome), "{:?}", outcome.result);
        let asked = server.asked();
        assert_eq!((asked[1].header("range"), asked[1].header("if-range")), (Some("bytes=10-"), Some(ETAG)));
        assert!(outcome.progress.is_sorted(), "{:?}", outcome.progress);
    }
}

#[tokio::test]
async fn a_partial_file_survives_a_failed_download() {
    let server = FakeServer::start(|asked, before| match before {
        0 => Reply::range(asked, BYTES, ETAG).cut_after(10),
        1..4 => Reply::new(503, ""),
        _ => Reply::range(asked, BYTES, ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert_eq!(fetch(&server, &blobs, false).await.result.unwrap_err().code, ProblemCode::SourceFailed);
    let outcome = fetch(&server, &blobs, false).await;
    assert!(is_whole(&blobs, &outcome));
    assert_eq!(server.asked().last().unwrap().offset(), 10);
}

#[tokio::test]
async fn a_server_that_ignores_the_range_starts_again() {
    let server = FakeServer::start(|asked, before| match before {
        0 => Reply::range(asked, BYTES, ETAG).cut_after(10),
        _ => Reply::new(200, BYTES),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    let outcome = fetch(&server, &blobs, true).await;
    assert!(is_whole(&blobs, &outcome), "{:?}", outcome.result);
    assert!(outcome.progress.is_sorted(), "{:?}", outcome.progress);
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_starts_again() {
    let server = FakeServer::start(|asked, before| match before {
        0 => Reply::range(asked, &[b'x'; 34], "\"v0\"").cut_after(10),
        _ => Reply::range(asked, BYTES, ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert!(is_whole(&blobs, &fetch(&server, &blobs, false).await));
}

#[tokio::test]
async fn another_range_than_the_one_asked_for_is_not_appended() {
    let server = FakeServer::start(|asked, before| match before {
        0 => Reply::range(asked, BYTES, ETAG).cut_after(10),
        1 => Reply::new(206, &BYTES[4..]).header("Content-Range: bytes 4-33/34").header(format!("ETag: {ETAG}")),
        _ => Reply::range(asked, BYTES, ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert!(is_whole(&blobs, &fetch(&server, &blobs, true).await));
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let server = FakeServer::start(|asked, before| match before {
        0 => Reply::new(429, "").header("Retry-After: 0"),
        _ => Reply::range(asked, BYTES, ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert!(is_whole(&blobs, &fetch(&server, &blobs, true).await));
}

#[tokio::test]
async fn wrong_bytes_are_discarded() {
    let server = FakeServer::start(|asked, _| Reply::range(asked, &[b'G'; 34], ETAG)).await;
    let blobs = tempfile::tempdir().unwrap();
    let problem = fetch(&server, &blobs, true).await.result.unwrap_err();
    assert_eq!(problem.code, ProblemCode::ChecksumMismatch);
    assert!(fs::read_dir(blobs.path()).unwrap().flatten().all(|entry| entry.path().extension().unwrap() == "lock"));
}

#[tokio::test]
async fn a_page_instead_of_a_model_is_named() {
    let server = FakeServer::start(|asked, _| Reply::range(asked, b"<!DOCTYPE html>", ETAG)).await;
    let blobs = tempfile::tempdir().unwrap();
    assert_eq!(fetch(&server, &blobs, false).await.result.unwrap_err().code, ProblemCode::FileFormat);
}

#[tokio::test]
async fn the_token_stays_with_its_host() {
    let other = FakeServer::start(|asked, _| Reply::range(asked, BYTES, ETAG)).await;
    let location = format!("Location: {}/elsewhere", other.address);
    let server = FakeServer::start(move |_, before| match before {
        0 => Reply::new(307, "").header("Location: /moved"),
        _ => Reply::new(302, "").header(location.clone()),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert!(is_whole(&blobs, &fetch(&server, &blobs, true).await));
    let asked = server.asked();
    assert_eq!(asked[1].path, "/moved");
    assert!(asked.iter().all(|asked| asked.header("authorization") == Some("Bearer secret")));
    assert_eq!(other.asked()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_file_that_is_being_written_has_one_writer() {
    let server = FakeServer::start(|asked, _| Reply::range(asked, BYTES, ETAG)).await;
    let blobs = tempfile::tempdir().unwrap();
    let _other = lock(&blobs.path().join("key.lock")).unwrap();
    assert_eq!(fetch(&server, &blobs, false).await.result.unwrap_err().code, ProblemCode::SourceFailed);
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn cancelling_keeps_what_is_there() {
    let (cancel, receiver) = watch::channel(false);
    let server = FakeServer::start(move |asked, before| match before {
        0 => Reply::range(asked, BYTES, ETAG).cut_after(10),
        _ => {
            cancel.send(true).unwrap();
            Reply::new(503, "")
        }
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    let url = Url::parse(&server.address).unwrap();
    let what = Download { url: &url, token: None, key: "key", size: None, sha256: None, magic: b"" };
    let mut report = |_: PullProgress| {};
    let mut meter = Meter::new(&mut report);
    let http = Http::new(EAGER).unwrap();
    let result = download(&http, blobs.path(), &what, &mut meter, &Cancel::new(receiver)).await;
    assert_eq!(result.unwrap_err().code, ProblemCode::Cancelled);
    assert_eq!(fs::read(blobs.path().join("key.incomplete")).unwrap(), &BYTES[..10]);
}
