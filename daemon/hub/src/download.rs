//! One file over HTTP: resumed where it stopped, verified, and durable before it gets its name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use justtrain_worker_api::{Problem, ProblemCode};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest, Sha256};

use crate::disk::{ensure_room, io_problem, rename_durably};
use crate::hash::hex;
use crate::http::{Http, HttpError, reason};
use crate::progress::{Cancel, Meter};

/// The file is flushed to the disk, and progress told, after this much or this long.
const FLUSH_BYTES: u64 = 8 << 20;
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// What to fetch and how to know that it is right.
#[derive(Debug)]
pub(crate) struct Download<'a> {
    pub(crate) url: &'a Url,
    pub(crate) token: Option<&'a str>,
    /// Name of the partial file: the SHA-256 where it is known, so that every source goes on with the same bytes.
    pub(crate) key: &'a str,
    pub(crate) size: Option<u64>,
    /// Lower-case hex.
    pub(crate) sha256: Option<&'a str>,
    /// What a file of this name must start with.
    pub(crate) magic: &'static [u8],
}

/// Fetches into `blobs/SHA256` and returns size and SHA-256. A partial file survives every error but a wrong hash.
pub(crate) async fn download(
    http: &Http,
    blobs: &Path,
    what: &Download<'_>,
    meter: &mut Meter<'_>,
    cancel: &Cancel,
) -> Result<(u64, String), Problem> {
    if let (Some(sha256), Some(size)) = (what.sha256, what.size)
        && fs::metadata(blobs.join(sha256)).is_ok_and(|blob| blob.len() == size)
    {
        meter.file_ended(size);
        return Ok((size, sha256.to_owned()));
    }
    let mut partial = Partial::open(blobs, what.key)?;
    ensure_room(blobs, what.size.unwrap_or(0).saturating_sub(partial.len))?;
    meter.file_has(partial.len);
    let mut failed = 0;
    while what.size.is_none_or(|size| partial.len < size) {
        let before = partial.len;
        let error = match cancel.guard(attempt(http, what, &mut partial, meter)).await? {
            Ok(()) => break,
            Err(Broken::Disk(error)) => return Err(io_problem(&partial.path, &error)),
            Err(Broken::Wrong(problem)) => return Err(*problem),
            Err(Broken::Http(error)) => error,
        };
        failed = if partial.len > before { 1 } else { failed + 1 };
        tracing::debug!(url = %what.url, ?error, at = partial.len, "download broke off");
        let resumable = error.is_transient() || (partial.len > 0 && matches!(error, HttpError::Unreachable(_)));
        if !resumable || failed >= http.patience.tries {
            return Err(error.problem(what.url.as_str()));
        }
        let pause = error.retry_after().unwrap_or(http.patience.pause(failed));
        cancel.guard(tokio::time::sleep(pause)).await?;
    }
    let (size, sha256) = partial.finish(blobs, what)?;
    meter.file_ended(size);
    Ok((size, sha256))
}

/// Why one attempt ended early.
enum Broken {
    Http(HttpError),
    Disk(io::Error),
    Wrong(Box<Problem>),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// One request, appended to what is there.
async fn attempt(http: &Http, what: &Download<'_>, partial: &mut Partial, meter: &mut Meter<'_>) -> Result<(), Broken> {
    if partial.len > 0 && partial.etag.is_none() && what.sha256.is_none() {
        // Nothing would tell whether the rest belongs to the same file.
        partial.restart()?;
    }
    let mut headers = HeaderMap::new();
    if partial.len > 0 {
        headers.insert(RANGE, HeaderValue::try_from(format!("bytes={}-", partial.len)).expect("digits are ASCII"));
        if let Some(etag) = partial.etag.as_deref().and_then(|etag| HeaderValue::from_str(etag).ok()) {
            headers.insert(IF_RANGE, etag);
        }
    }
    let mut response = match http.get(what.url, what.token, &headers).await {
        Ok(response) => response,
        Err(HttpError::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) => {
            partial.restart()?;
            return Err(Broken::Http(HttpError::Cut("the part that is here does not fit the server's file".into())));
        }
        Err(error) => return Err(Broken::Http(error)),
    };
    if partial.len > 0 && !continues_at(&response, partial.len) {
        partial.restart()?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            return Err(Broken::Http(HttpError::Cut("the server sent another part than the one asked for".into())));
        }
    }
    partial.remember_etag(strong_etag(&response))?;

    let mut told = Instant::now();
    let mut unflushed = 0;
    loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                partial.file.sync_data()?;
                meter.file_has(partial.len);
                return Err(Broken::Http(HttpError::Cut(reason(&error))));
            }
        };
        partial.append(&chunk)?;
        if let Some(size) = what.size.filter(|size| partial.len > *size) {
            partial.restart()?;
            return Err(Broken::Wrong(Box::new(wrong_size(what, partial.len, size))));
        }
        unflushed += chunk.len() as u64;
        if unflushed >= FLUSH_BYTES || told.elapsed() >= FLUSH_EVERY {
            partial.file.sync_data()?;
            meter.file_has(partial.len);
            (told, unflushed) = (Instant::now(), 0);
        }
    }
    match what.size {
        Some(size) if partial.len < size => Err(Broken::Http(HttpError::Cut("the server closed early".into()))),
        _ => Ok(()),
    }
}

/// Whether the answer to a range request goes on at `offset`. A 200 is the whole file again.
fn continues_at(response: &Response, offset: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range
            .and_then(|range| range.strip_prefix("bytes "))
            .and_then(|range| range.split_once('-'))
            .is_some_and(|(start, _)| start.parse() == Ok(offset))
}

/// A weak one does not promise the same bytes.
fn strong_etag(response: &Response) -> Option<String> {
    let etag = response.headers().get(ETAG)?.to_str().ok()?;
    (etag.starts_with('"')).then(|| etag.to_owned())
}

fn wrong_size(what: &Download<'_>, found: u64, expected: u64) -> Problem {
    Problem::error(ProblemCode::ChecksumMismatch, "the file has another size than was promised", "文件大小与声明不符")
        .file(what.url)
        .found(format!("{found} bytes"))
        .expected(format!("{expected} bytes"))
}

/// A file that is being downloaded, locked against a second writer for as long as this lives.
struct Partial {
    path: PathBuf,
    etag_path: PathBuf,
    etag: Option<String>,
    file: File,
    len: u64,
    hasher: Sha256,
    _lock: File,
}

impl Partial {
    /// Opens `KEY.incomplete`, which may hold the beginning already.
    fn open(blobs: &Path, key: &str) -> Result<Self, Problem> {
        let lock = lock(&blobs.join(format!("{key}.lock")))?;
        let path = blobs.join(format!("{key}.incomplete"));
        let etag_path = blobs.join(format!("{key}.etag"));
        let open = || {
            let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
            let (hasher, len) = hash_rest(&mut file)?;
            Ok((file, hasher, len))
        };
        let (file, hasher, len) = open().map_err(|error| io_problem(&path, &error))?;
        let etag = fs::read_to_string(&etag_path).ok();
        Ok(Self { path, etag_path, etag, file, len, hasher, _lock: lock })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.hasher = Sha256::new();
        self.len = 0;
        self.remember_etag(None)
    }

    fn remember_etag(&mut self, etag: Option<String>) -> io::Result<()> {
        match &etag {
            Some(etag) => fs::write(&self.etag_path, etag)?,
            None => drop(fs::remove_file(&self.etag_path)),
        }
        self.etag = etag;
        Ok(())
    }

    /// Checks the whole file and gives it its name; a file that is wrong is deleted.
    fn finish(mut self, blobs: &Path, what: &Download<'_>) -> Result<(u64, String), Problem> {
        let sha256 = hex(&std::mem::take(&mut self.hasher).finalize());
        if let Err(problem) = self.check(what, &sha256) {
            let _ = self.restart();
            let _ = fs::remove_file(&self.path);
            return Err(problem);
        }
        let name = || {
            self.file.sync_all()?;
            rename_durably(&self.path, &blobs.join(&sha256))
        };
        name().map_err(|error| io_problem(&self.path, &error))?;
        let _ = fs::remove_file(&self.etag_path);
        Ok((self.len, sha256))
    }

    fn check(&self, what: &Download<'_>, sha256: &str) -> Result<(), Problem> {
        if let Some(size) = what.size.filter(|size| *size != self.len) {
            return Err(wrong_size(what, self.len, size));
        }
        if let Some(expected) = what.sha256.filter(|expected| *expected != sha256) {
            return Err(wrong_hash(what.url.as_str(), sha256, expected));
        }
        check_magic(&self.path, what.magic, what.url.as_str())
    }
}

pub(crate) fn wrong_hash(file: &str, found: &str, expected: &str) -> Problem {
    Problem::error(
        ProblemCode::ChecksumMismatch,
        "the file's SHA-256 is not the one that was promised",
        "文件的 SHA-256 校验不通过",
    )
    .file(file)
    .found(found)
    .expected(expected)
    .fix(
        "the file was discarded; try again, or another source with --source",
        "该文件已丢弃，请重试，或用 --source 指定其他来源",
    )
}

/// # Errors
/// `FILE_FORMAT` when the file does not start with `magic`: a login page instead of a model, for one.
pub(crate) fn check_magic(path: &Path, magic: &[u8], shown: &str) -> Result<(), Problem> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(magic.len() as u64).read_to_end(&mut start));
    read.map_err(|error| io_problem(path, &error))?;
    if start == magic {
        return Ok(());
    }
    Err(Problem::error(ProblemCode::FileFormat, "this is not a GGUF file", "这不是 GGUF 文件")
        .file(shown)
        .found(format!("{:?} at its start", String::from_utf8_lossy(&start)))
        .expected("\"GGUF\""))
}

/// Held by whoever writes the file. The lock file stays; the lock is what counts.
fn lock(path: &Path) -> Result<File, Problem> {
    let file = File::create(path).map_err(|error| io_problem(path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Problem::error(
            ProblemCode::SourceFailed,
            "another program is downloading this file",
            "另一个程序正在下载该文件",
        )
        .file(path.display())
        .fix("wait for it, then run the command again", "请等待其完成后再试")),
        Err(TryLockError::Error(error)) => Err(io_problem(path, &error)),
    }
}

/// Hashes what is there and leaves the cursor at the end.
fn hash_rest(file: &mut File) -> io::Result<(Sha256, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hasher, len)),
            read => {
                hasher.update(&buffer[..read]);
                len += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests;
