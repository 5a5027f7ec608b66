//! One file over HTTP: in parts, resumed where each stopped, verified, and durable before it gets its name.

mod partial;
mod transfer;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use justtrain_worker_api::{Problem, ProblemCode, Text};
use reqwest::Url;
use tokio::task::JoinSet;

use self::partial::Partial;
use self::transfer::{Broken, Request, probe};
use crate::disk::{ensure_room, io_problem};
use crate::hash::{Digest, Hashed};
use crate::http::{Http, HttpError, Token};
use crate::progress::{Cancel, Meter};
use crate::store::StoredFile;

/// Requests for one file at the same time.
const CONNECTIONS: usize = 4;
/// The bytes are flushed to the disk, and progress told, this often.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// A pause longer than this is explained to the person who waits.
const NOTICEABLE: Duration = Duration::from_secs(3);

/// What to fetch and how to know that it is right.
pub(crate) struct Download<'a> {
    pub(crate) url: &'a Url,
    pub(crate) token: Option<&'a Token>,
    /// Path inside the model's folder.
    pub(crate) path: &'a str,
    /// Name of the partial file: the digest where it is known, so that every source goes on with the same bytes.
    pub(crate) key: &'a str,
    pub(crate) size: Option<u64>,
    pub(crate) digest: Option<&'a Digest>,
    /// What a file of this name must start with.
    pub(crate) magic: &'static [u8],
    /// What a refusal means to the person: only the source knows.
    pub(crate) explain: &'a (dyn Fn(&HttpError) -> Problem + Sync),
}

/// Fetches into `blobs`, under the digest that was promised, else under the SHA-256. A partial file survives every
/// error but bytes that are wrong.
pub(crate) async fn download(
    http: &Http,
    blobs: &Path,
    what: &Download<'_>,
    meter: &mut Meter<'_>,
    cancel: &Cancel,
) -> Result<StoredFile, Problem> {
    if let Some(file) = already_there(blobs, what) {
        meter.file_ended(file.size);
        return Ok(file);
    }
    let partial = Partial::open(blobs, what.key, what.size)?;
    ensure_room(blobs, what.size.unwrap_or(0).saturating_sub(partial.durable()))?;
    meter.file_has(partial.durable());
    let mut fetch = Fetch { http, what, partial, meter };
    let fetched = cancel.guard(fetch.run()).await;
    if fetched.is_err() {
        // What the stopped requests have written since the last flush stays too.
        let _ = fetch.flush();
    }
    fetched??;
    let Fetch { partial, .. } = fetch;
    meter.status(Text::new(format!("verifying {}", what.path), format!("正在校验 {}", what.path)));
    let file = cancel.guard(finish(partial, blobs, what)).await??;
    meter.file_ended(file.size);
    Ok(file)
}

/// A blob of the promised size under the promised digest was verified when it got its name.
fn already_there(blobs: &Path, what: &Download<'_>) -> Option<StoredFile> {
    let digest = what.digest?;
    let blob = blobs.join(digest.as_str());
    let size = fs::metadata(&blob).ok()?.len();
    if what.size.is_some_and(|expected| expected != size) {
        return None;
    }
    let sha256 = match digest {
        Digest::Sha256(sha256) => sha256.clone(),
        Digest::GitSha1(_) => Hashed::of(&blob, |_| Ok(())).ok()?.sha256,
    };
    Some(StoredFile { path: what.path.to_owned(), size, sha256, blob: Some(digest.as_str().to_owned()) })
}

/// One file on its way.
struct Fetch<'a, 'm> {
    http: &'a Http,
    what: &'a Download<'a>,
    partial: Partial,
    meter: &'a mut Meter<'m>,
}

impl Fetch<'_, '_> {
    /// Rounds of requests until every part is full.
    async fn run(&mut self) -> Result<(), Problem> {
        if self.partial.written() == 0 {
            self.plan().await?;
        }
        let (mut failed, mut best) = (0, self.partial.durable());
        loop {
            let Err(broken) = self.round().await else { return Ok(()) };
            let advanced = self.partial.durable() > best;
            best = best.max(self.partial.durable());
            failed = if advanced { 1 } else { failed + 1 };
            tracing::debug!(url = %self.what.url, ?broken, at = best, "download broke off");
            let error = match broken {
                Broken::Disk(error) => return Err(self.disk(error)),
                Broken::WrongSize(found) => {
                    return Err(wrong_size(self.what, found, self.partial.size().unwrap_or(0)));
                }
                // Whatever is here, its digest decides.
                Broken::OutOfRange if self.partial.size().is_none() && self.what.digest.is_some() => return Ok(()),
                Broken::WholeFile | Broken::OutOfRange => {
                    self.restart()?;
                    HttpError::Cut("the server does not give the rest of this file".into())
                }
                Broken::Http(error) => error,
            };
            if self.what.digest.is_none() && self.partial.validator().is_none() && self.partial.written() > 0 {
                // Nothing would tell whether the rest belongs to the same file.
                self.restart()?;
            }
            let unreachable = matches!(error, HttpError::Unreachable(_));
            if !(error.is_transient() || (best > 0 && unreachable)) || failed >= self.http.patience.tries {
                return Err((self.what.explain)(&error));
            }
            self.pause(self.http.patience.before_retry(&error, failed)).await;
        }
    }

    /// How many parts, once it is known how long the file is and whether the server gives parts.
    async fn plan(&mut self) -> Result<(), Problem> {
        if self.what.size.is_some() && self.what.digest.is_some() {
            return self.partial.plan(self.what.size, true).map_err(|error| self.disk(error));
        }
        let mut failed = 0;
        let probed = loop {
            match probe(self.http, self.what.url, self.what.token).await {
                Ok(probed) => break probed,
                // An empty file has no first byte; some servers refuse any range they do not like.
                Err(HttpError::Status { status, .. }) if status == reqwest::StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(());
                }
                Err(error) => {
                    failed += 1;
                    if !error.is_transient() || failed >= self.http.patience.tries {
                        return Err((self.what.explain)(&error));
                    }
                    self.pause(self.http.patience.before_retry(&error, failed)).await;
                }
            }
        };
        let size = self.what.size.or(probed.size);
        ensure_room(self.partial.path.parent().unwrap_or(Path::new(".")), size.unwrap_or(0))?;
        self.meter.learned_size(size);
        // Parts that are put together must be of the same file.
        let many = probed.ranges && (probed.validator.is_some() || self.what.digest.is_some());
        self.partial.plan(size, many).map_err(|error| self.disk(error))?;
        self.partial.learn(probed.validator);
        Ok(())
    }

    /// Requests for all that is missing, a few at a time. The first that breaks ends the round; what the others have
    /// brought is kept.
    async fn round(&mut self) -> Result<(), Broken> {
        let learned = Arc::new(OnceLock::new());
        let request = Request {
            http: self.http.clone(),
            url: self.what.url.clone(),
            token: self.what.token.cloned(),
            file: self.partial.file.clone(),
            size: self.partial.size(),
            validator: self.partial.validator().cloned(),
            learned: learned.clone(),
        };
        let mut missing: VecDeque<_> = self.partial.parts().iter().filter(|part| !part.is_full()).cloned().collect();
        let mut running = JoinSet::new();
        let mut tick = tokio::time::interval(FLUSH_EVERY);
        let ended = loop {
            while running.len() < CONNECTIONS
                && let Some(part) = missing.pop_front()
            {
                running.spawn(request.clone().fill(part));
            }
            tokio::select! {
                ended = running.join_next() => match ended {
                    None => break Ok(()),
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(broken))) => break Err(broken),
                    Some(Err(panicked)) => break Err(io::Error::other(panicked).into()),
                },
                _ = tick.tick() => {
                    self.partial.learn(learned.get().cloned());
                    if let Err(error) = self.flush() {
                        break Err(error.into());
                    }
                }
            }
        };
        running.shutdown().await;
        self.partial.learn(learned.get().cloned());
        self.flush()?;
        ended
    }

    fn flush(&mut self) -> io::Result<()> {
        let durable = self.partial.flush()?;
        self.meter.file_has(durable);
        Ok(())
    }

    /// From the first byte, in one piece.
    fn restart(&mut self) -> Result<(), Problem> {
        tracing::info!(url = %self.what.url, "the download starts again");
        self.meter.status(Text::new(
            format!("{}: the server does not go on where the download stopped; starting again", self.what.path),
            format!("{}：服务器不支持续传，重新下载", self.what.path),
        ));
        self.partial.plan(self.partial.size(), false).map_err(|error| self.disk(error))
    }

    async fn pause(&mut self, pause: Duration) {
        if pause >= NOTICEABLE {
            let (path, seconds) = (self.what.path, pause.as_secs());
            self.meter.status(Text::new(
                format!("{path}: waiting {seconds} s before the next try"),
                format!("{path}：{seconds} 秒后重试"),
            ));
        }
        tokio::time::sleep(pause).await;
    }

    fn disk(&self, error: io::Error) -> Problem {
        io_problem(&self.partial.path, &error)
    }
}

/// Checks the whole file as it is on the disk and gives it its name; a file that is wrong is deleted.
async fn finish(partial: Partial, blobs: &Path, what: &Download<'_>) -> Result<StoredFile, Problem> {
    let path = partial.path.clone();
    let hashed = tokio::task::spawn_blocking(move || Hashed::of(&path, |_| Ok(()))).await;
    let hashed = hashed.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
    let hashed = hashed.map_err(|error| io_problem(&partial.path, &error))?;
    if let Err(problem) = check(&partial.path, &hashed, what) {
        partial.discard();
        return Err(problem);
    }
    let blob = what.digest.map_or(hashed.sha256.as_str(), Digest::as_str).to_owned();
    let path = partial.path.clone();
    partial.rename(&blobs.join(&blob)).map_err(|error| io_problem(&path, &error))?;
    Ok(StoredFile { path: what.path.to_owned(), size: hashed.size, sha256: hashed.sha256, blob: Some(blob) })
}

fn check(path: &Path, hashed: &Hashed, what: &Download<'_>) -> Result<(), Problem> {
    if let Some(size) = what.size.filter(|size| *size != hashed.size) {
        return Err(wrong_size(what, hashed.size, size));
    }
    if let Some(digest) = what.digest.filter(|digest| !hashed.is(digest)) {
        return Err(wrong_hash(what.url.as_str(), &hashed.like(digest), digest));
    }
    check_magic(path, what.magic, what.url.as_str())
}

fn wrong_size(what: &Download<'_>, found: u64, expected: u64) -> Problem {
    Problem::error(ProblemCode::ChecksumMismatch, "the file has another size than was promised", "文件大小与声明不符")
        .file(what.url)
        .found(format!("{found} bytes"))
        .expected(format!("{expected} bytes"))
}

pub(crate) fn wrong_hash(file: &str, found: &Digest, expected: &Digest) -> Problem {
    Problem::error(
        ProblemCode::ChecksumMismatch,
        "the file's hash is not the one that was promised",
        "文件的哈希校验不通过",
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

#[cfg(test)]
mod tests;
