use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::PullProgress;
use crate::hash::hex;
use crate::http::Patience;
use crate::testing::hub::FakeFile;
use crate::testing::{EAGER, FakeServer, Reply};

const BYTES: &[u8] = b"GGUF and then the rest of the file";
const ETAG: &str = "\"v1\"";

struct Outcome {
    result: Result<StoredFile, Problem>,
    progress: Vec<u64>,
}

/// What is known of a file before it is fetched.
#[derive(Default)]
struct Known {
    size: Option<u64>,
    digest: Option<Digest>,
}

impl Known {
    fn all(bytes: &[u8]) -> Self {
        Self { size: Some(bytes.len() as u64), digest: Some(Digest::Sha256(hex(&Sha256::digest(bytes)))) }
    }
}

/// Fetches `/file` from `server` into `blobs`.
async fn fetch(server: &FakeServer, blobs: &TempDir, known: Known) -> Outcome {
    fetch_with(EAGER, server, blobs, known).await
}

async fn fetch_with(patience: Patience, server: &FakeServer, blobs: &TempDir, known: Known) -> Outcome {
    let url = Url::parse(&format!("{}/file", server.address)).unwrap();
    let token = Token { secret: "secret".into(), cookie: None };
    let what = Download {
        url: &url,
        token: Some(&token),
        path: "model.gguf",
        key: known.digest.as_ref().map_or("key", Digest::as_str),
        size: known.size,
        digest: known.digest.as_ref(),
        magic: b"GGUF",
        explain: &|error| error.problem(url.as_str()),
    };
    let mut progress = Vec::new();
    let mut report = |now: PullProgress| progress.push(now.done);
    let mut meter = Meter::new(&mut report);
    let (_keep, cancel) = watch::channel(false);
    let http = Http::new(patience).unwrap();
    let result = download(&http, blobs.path(), &what, &mut meter, &Cancel::new(cancel)).await;
    Outcome { result, progress }
}

fn assert_whole(blobs: &TempDir, outcome: &Outcome, bytes: &[u8]) {
    let file = outcome.result.as_ref().unwrap();
    let sha256 = hex(&Sha256::digest(bytes));
    assert_eq!((file.size, file.sha256.as_str()), (bytes.len() as u64, sha256.as_str()));
    assert!(fs::read(blobs.path().join(file.blob())).unwrap() == bytes, "other bytes on the disk");
    assert!(outcome.progress.is_sorted(), "{:?}", outcome.progress);
    assert_eq!(outcome.progress.last(), Some(&(bytes.len() as u64)));
    let left = fs::read_dir(blobs.path()).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let left: Vec<_> = left.filter(|name| name.contains(".part")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_cut_transfer_goes_on_where_it_stopped() {
    let server = FakeServer::start(|asked, before| match before {
        0 => Reply::range(asked, BYTES, ETAG).cut_after(10),
        _ => Reply::range(asked, BYTES, ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert_whole(&blobs, &fetch(&server, &blobs, Known::all(BYTES)).await, BYTES);
    let asked = server.asked();
    assert_eq!((asked[1].header("range"), asked[1].header("if-range")), (Some("bytes=10-33"), Some(ETAG)));
    assert!(asked.iter().all(|asked| asked.header("accept-encoding") == Some("identity")));
}

#[tokio::test]
async fn a_file_of_unknown_size_is_measured_and_resumed() {
    let server = FakeServer::start(|asked, before| match before {
        1 => Reply::range(asked, BYTES, ETAG).cut_after(10),
        _ => Reply::range(asked, BYTES, ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert_whole(&blobs, &fetch(&server, &blobs, Known::default()).await, BYTES);
    let asked = server.asked();
    assert_eq!(asked[0].header("range"), Some("bytes=0-0"));
    assert_eq!((asked[2].header("range"), asked[2].header("if-range")), (Some("bytes=10-33"), Some(ETAG)));
}

#[tokio::test]
async fn without_an_etag_or_a_hash_a_cut_file_starts_again() {
    let server = FakeServer::start(|asked, before| match before {
        1 => Reply::new(200, BYTES).cut_after(10),
        _ if asked.header("range") == Some("bytes=0-0") => Reply::new(200, BYTES),
        _ => Reply::new(200, BYTES),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert_whole(&blobs, &fetch(&server, &blobs, Known::default()).await, BYTES);
    assert_eq!(server.asked()[2].header("range"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_comes_in_parts_and_a_broken_one_is_taken_up_again() {
    let bytes: Vec<u8> = b"GGUF".iter().copied().chain((0..9_000_000u32).flat_map(u32::to_le_bytes)).collect();
    let sent = bytes.clone();
    let server = FakeServer::start(move |asked, before| {
        let reply = Reply::range(asked, &sent, ETAG);
        if before == 1 { reply.cut_after(1 << 20) } else { reply }
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert_whole(&blobs, &fetch(&server, &blobs, Known::all(&bytes)).await, &bytes);
    let starts: Vec<_> = server.asked().iter().take(3).map(|asked| asked.header("range").unwrap().to_owned()).collect();
    for range in ["bytes=0-16777215", "bytes=16777216-33554431", "bytes=33554432-36000003"] {
        assert!(starts.iter().any(|start| start == range), "{starts:?}");
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
    let failed = fetch(&server, &blobs, Known::all(BYTES)).await;
    assert_eq!(failed.result.unwrap_err().code, ProblemCode::SourceFailed);
    assert_whole(&blobs, &fetch(&server, &blobs, Known::all(BYTES)).await, BYTES);
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
    assert_whole(&blobs, &fetch(&server, &blobs, Known::all(BYTES)).await, BYTES);
}

#[tokio::test]
async fn a_file_that_changed_meanwhile_starts_again() {
    let server = FakeServer::start(|asked, before| match before {
        0 | 1 => Reply::range(asked, &[b'x'; 34], "\"v0\"").cut_after(10),
        _ => Reply::range(asked, BYTES, ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert_whole(&blobs, &fetch(&server, &blobs, Known::default()).await, BYTES);
}

#[tokio::test]
async fn another_range_than_the_one_asked_for_is_not_written() {
    let wrong = ["bytes 4-33/34", "bytes 10-40/34", "bytes 10-33", "nonsense"];
    for range in wrong {
        let server = FakeServer::start(move |asked, before| match before {
            0 => Reply::range(asked, BYTES, ETAG).cut_after(10),
            1 => {
                Reply::new(206, &BYTES[4..28]).header(format!("Content-Range: {range}")).header(format!("ETag: {ETAG}"))
            }
            _ => Reply::range(asked, BYTES, ETAG),
        })
        .await;
        let blobs = tempfile::tempdir().unwrap();
        assert_whole(&blobs, &fetch(&server, &blobs, Known::all(BYTES)).await, BYTES);
        assert_eq!(server.asked()[2].offset(), 10, "{range}");
    }
}

#[tokio::test]
async fn a_page_of_another_length_costs_none_of_the_bytes() {
    let server = FakeServer::start(|asked, before| match before {
        0 => Reply::range(asked, BYTES, ETAG).cut_after(10),
        1 => Reply::new(200, "<html>please sign in to the hotel's network</html>"),
        _ => Reply::range(asked, BYTES, ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    let failed = fetch(&server, &blobs, Known::all(BYTES)).await.result.unwrap_err();
    assert_eq!(failed.code, ProblemCode::ChecksumMismatch);
    assert_whole(&blobs, &fetch(&server, &blobs, Known::all(BYTES)).await, BYTES);
    assert_eq!(server.asked()[2].offset(), 10);
}

#[tokio::test]
async fn nothing_behind_the_end_means_that_what_is_here_decides() {
    // The server's file is shorter than what was promised.
    let server = FakeServer::start(|asked, before| match before {
        0 => Reply::range(asked, BYTES, ETAG).cut_after(20),
        _ => Reply::range(asked, &BYTES[..15], ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    let problem = fetch(&server, &blobs, Known::all(BYTES)).await.result.unwrap_err();
    assert_eq!((problem.code, problem.found.as_deref()), (ProblemCode::ChecksumMismatch, Some("15 bytes")));
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let server = FakeServer::start(|asked, before| match before {
        0 => Reply::new(429, "").header("Retry-After: 0"),
        _ => Reply::range(asked, BYTES, ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert_whole(&blobs, &fetch(&server, &blobs, Known::all(BYTES)).await, BYTES);
}

#[tokio::test]
async fn a_server_that_wants_an_hour_is_left() {
    let server = FakeServer::start(|_, _| Reply::new(429, "").header("Retry-After: 3600")).await;
    let blobs = tempfile::tempdir().unwrap();
    let problem = fetch(&server, &blobs, Known::all(BYTES)).await.result.unwrap_err();
    assert!(problem.found.unwrap().contains("wait 3600 s"));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_connection_that_drips_or_falls_silent_is_given_up() {
    for silent in [false, true] {
        let server = FakeServer::start(move |asked, before| {
            let reply = Reply::range(asked, BYTES, ETAG);
            match (before, silent) {
                (0, true) => reply.stalling_after(8),
                (0, false) => reply.dripping(Duration::from_millis(40)),
                _ => reply,
            }
        })
        .await;
        let blobs = tempfile::tempdir().unwrap();
        let hasty = Patience { stall: Duration::from_millis(200), ..EAGER };
        assert_whole(&blobs, &fetch_with(hasty, &server, &blobs, Known::all(BYTES)).await, BYTES);
        assert_eq!(server.asked().len(), 2);
        assert!(server.asked()[1].offset() > 0);
    }
}

#[tokio::test]
async fn encoded_bytes_are_refused() {
    let server = FakeServer::start(|asked, before| {
        let reply = Reply::range(asked, BYTES, ETAG);
        if before == 0 { reply.header("Content-Encoding: gzip") } else { reply }
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    assert_whole(&blobs, &fetch(&server, &blobs, Known::all(BYTES)).await, BYTES);
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn wrong_bytes_are_discarded() {
    let mut sent = BYTES.to_vec();
    sent[20] ^= 1;
    let git = Digest::GitSha1(FakeFile { path: "", bytes: BYTES.to_vec(), large: false }.git_sha1());
    for known in [Known::all(BYTES), Known { size: Some(34), digest: Some(git) }] {
        let wrong = sent.clone();
        let server = FakeServer::start(move |asked, _| Reply::range(asked, &wrong, ETAG)).await;
        let blobs = tempfile::tempdir().unwrap();
        let problem = fetch(&server, &blobs, known).await.result.unwrap_err();
        assert_eq!(problem.code, ProblemCode::ChecksumMismatch);
        assert!(fs::read_dir(blobs.path()).unwrap().flatten().all(|entry| entry.path().extension().unwrap() == "lock"));
    }
}

#[tokio::test]
async fn a_small_file_is_known_by_its_git_hash() {
    let server = FakeServer::start(|asked, _| Reply::range(asked, BYTES, ETAG)).await;
    let blobs = tempfile::tempdir().unwrap();
    let git = FakeFile { path: "", bytes: BYTES.to_vec(), large: false }.git_sha1();
    let known = || Known { size: None, digest: Some(Digest::GitSha1(git.clone())) };
    let outcome = fetch(&server, &blobs, known()).await;
    assert_whole(&blobs, &outcome, BYTES);
    assert_eq!(outcome.result.unwrap().blob(), git);
    let asked = server.asked().len();
    assert_whole(&blobs, &fetch(&server, &blobs, known()).await, BYTES);
    assert_eq!(server.asked().len(), asked, "it was there already");
}

#[tokio::test]
async fn a_page_instead_of_a_model_is_named() {
    let server = FakeServer::start(|asked, _| Reply::range(asked, b"<!DOCTYPE html>", ETAG)).await;
    let blobs = tempfile::tempdir().unwrap();
    assert_eq!(fetch(&server, &blobs, Known::default()).await.result.unwrap_err().code, ProblemCode::FileFormat);
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
    assert_whole(&blobs, &fetch(&server, &blobs, Known::all(BYTES)).await, BYTES);
    let asked = server.asked();
    assert_eq!(asked[1].path, "/moved");
    assert!(asked.iter().all(|asked| asked.header("authorization") == Some("Bearer secret")));
    assert_eq!(other.asked()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_file_that_is_being_written_has_one_writer() {
    let server = FakeServer::start(|asked, _| Reply::range(asked, BYTES, ETAG)).await;
    let blobs = tempfile::tempdir().unwrap();
    let _other = partial::lock(&blobs.path().join("key.lock")).unwrap();
    let problem = fetch(&server, &blobs, Known::default()).await.result.unwrap_err();
    assert_eq!(problem.code, ProblemCode::SourceFailed);
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn cancelling_keeps_what_is_there() {
    let (cancel, receiver) = watch::channel(false);
    let server = FakeServer::start(move |asked, before| match before {
        0 => Reply::range(asked, BYTES, ETAG).cut_after(10),
        1 => {
            cancel.send(true).unwrap();
            Reply::new(503, "")
        }
        _ => Reply::range(asked, BYTES, ETAG),
    })
    .await;
    let blobs = tempfile::tempdir().unwrap();
    let url = Url::parse(&server.address).unwrap();
    let known = Known::all(BYTES);
    let key = known.digest.as_ref().unwrap().as_str().to_owned();
    let what = Download {
        url: &url,
        token: None,
        path: "model.gguf",
        key: &key,
        size: known.size,
        digest: known.digest.as_ref(),
        magic: b"",
        explain: &|error| error.problem(url.as_str()),
    };
    let mut report = |_: PullProgress| {};
    let mut meter = Meter::new(&mut report);
    let http = Http::new(EAGER).unwrap();
    let result = download(&http, blobs.path(), &what, &mut meter, &Cancel::new(receiver)).await;
    assert_eq!(result.unwrap_err().code, ProblemCode::Cancelled);
    assert_whole(&blobs, &fetch(&server, &blobs, Known::all(BYTES)).await, BYTES);
    assert_eq!(server.asked().last().unwrap().offset(), 10);
}
