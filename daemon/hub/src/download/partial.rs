//! A file that is being downloaded: the bytes so far, and which of them a power cut would leave.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use justtrain_worker_api::{Problem, ProblemCode};
use serde::{Deserialize, Serialize};

use crate::disk::{io_problem, rename_durably, write_durably};

/// Parts of a file are at least this long; shorter files have one.
const SHORTEST_PART: u64 = 16 << 20;
/// So many at most: the sidecar is written every second.
const MOST_PARTS: u64 = 256;

/// `KEY.partial` with its sidecar, locked against a second writer for as long as this lives.
///
/// The hub's own tools call theirs `KEY.incomplete` and go on at its end; ours has holes, so it has another name.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    sidecar: PathBuf,
    pub(super) file: Arc<File>,
    state: State,
    parts: Vec<Arc<Part>>,
    _lock: File,
}

/// The contents of `KEY.parts`: what of `KEY.partial` is on the disk for certain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Unknown where the server does not tell; then there is one part.
    size: Option<u64>,
    part_size: u64,
    /// Bytes from the start of each part.
    done: Vec<u64>,
    validator: Option<Validator>,
}

/// What an answer calls these very bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validator {
    /// Another server calls the same bytes otherwise.
    pub(super) origin: String,
    /// A strong one.
    pub(super) etag: String,
}

/// A stretch of the file that one request at a time fills.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) start: u64,
    /// Behind the last byte; unknown where the file's size is.
    pub(super) end: Option<u64>,
    written: AtomicU64,
}

impl Part {
    fn new(start: u64, end: Option<u64>, written: u64) -> Arc<Self> {
        Arc::new(Self { start, end, written: AtomicU64::new(written) })
    }

    /// Where the next byte belongs.
    pub(super) fn position(&self) -> u64 {
        self.start + self.written.load(Ordering::Acquire)
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(super) fn is_full(&self) -> bool {
        self.end.is_some_and(|end| self.position() >= end)
    }
}

impl Partial {
    /// Opens what an earlier try has left, or begins.
    pub(super) fn open(blobs: &Path, key: &str, size: Option<u64>) -> Result<Self, Problem> {
        let lock = lock(&blobs.join(format!("{key}.lock")))?;
        let path = blobs.join(format!("{key}.partial"));
        let sidecar = blobs.join(format!("{key}.parts"));
        let open = || {
            let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(|error| io_problem(&path, &error))?;
        let state = fs::read(&sidecar).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let state = state.filter(|state: &State| state.fits(length, size));
        let mut partial =
            Self { path, sidecar, file: Arc::new(file), state: State::default(), parts: Vec::new(), _lock: lock };
        match state {
            Some(state) => partial.resume(state),
            None => partial.plan(size, false).map_err(|error| io_problem(&partial.path, &error))?,
        }
        Ok(partial)
    }

    fn resume(&mut self, state: State) {
        let part = |(index, done): (usize, &u64)| {
            let start = index as u64 * state.part_size;
            Part::new(start, state.size.map(|size| size.min(start + state.part_size)), *done)
        };
        self.parts = state.done.iter().enumerate().map(part).collect();
        self.state = state;
    }

    /// Begins anew: with the bytes that an earlier plan had, if any, dropped.
    pub(super) fn plan(&mut self, size: Option<u64>, many_parts: bool) -> io::Result<()> {
        self.file.set_len(0)?;
        let whole = size.unwrap_or(0);
        let (part_size, count) = match size {
            Some(size) if many_parts && size > SHORTEST_PART => {
                let part_size = SHORTEST_PART.max(size.div_ceil(MOST_PARTS));
                (part_size, size.div_ceil(part_size))
            }
            _ => (whole, 1),
        };
        let _ = fs::remove_file(&self.sidecar);
        self.resume(State { size, part_size, done: vec![0; count as usize], validator: None });
        Ok(())
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.state.size
    }

    pub(super) fn parts(&self) -> &[Arc<Part>] {
        &self.parts
    }

    pub(super) fn validator(&self) -> Option<&Validator> {
        self.state.validator.as_ref()
    }

    pub(super) fn learn(&mut self, validator: Option<Validator>) {
        if self.state.validator.is_none() {
            self.state.validator = validator;
        }
    }

    /// Bytes that are on the disk for certain.
    pub(super) fn durable(&self) -> u64 {
        self.state.done.iter().sum()
    }

    pub(super) fn written(&self) -> u64 {
        self.parts.iter().map(|part| part.position() - part.start).sum()
    }

    /// Flushes first the bytes, then the sidecar that speaks of them. Blocks; returns [`Self::durable`].
    pub(super) fn flush(&mut self) -> io::Result<u64> {
        let written: Vec<_> = self.parts.iter().map(|part| part.position() - part.start).collect();
        if written != self.state.done {
            self.file.sync_data()?;
            self.state.done = written;
            let text = serde_json::to_vec(&self.state).map_err(io::Error::other)?;
            write_durably(&self.sidecar, &text)?;
        }
        Ok(self.durable())
    }

    /// Gives the finished file its name.
    pub(super) fn rename(self, to: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        rename_durably(&self.path, to)?;
        let _ = fs::remove_file(&self.sidecar);
        Ok(())
    }

    /// Deletes bytes that have turned out to be wrong.
    pub(super) fn discard(self) {
        let _ = fs::remove_file(&self.sidecar);
        let _ = fs::remove_file(&self.path);
    }
}

impl State {
    /// Whether this can be about a partial file of `length` bytes of a file of `size`.
    fn fits(&self, length: u64, size: Option<u64>) -> bool {
        let same_size = size.is_none() || self.size == size;
        let count = match self.size {
            Some(size) if self.part_size > 0 => size.div_ceil(self.part_size),
            _ => 1,
        };
        let covered = self.done.iter().enumerate().all(|(index, done)| {
            let start = index as u64 * self.part_size;
            let longest = self.size.map_or(u64::MAX, |size| (size - start.min(size)).min(self.part_size));
            *done <= longest && (*done == 0 || start + done <= length)
        });
        same_size && self.done.len() as u64 == count && covered
    }
}

/// Held by whoever writes the file. The lock file stays; the lock is what counts.
pub(super) fn lock(path: &Path) -> Result<File, Problem> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_that_claims_more_than_there_is_counts_for_nothing() {
        let state = State { size: Some(25), part_size: 10, done: vec![10, 3, 0], validator: None };
        assert!(state.fits(13, Some(25)) && state.fits(25, None));
        assert!(!state.fits(12, Some(25)), "the file is shorter than the sidecar says");
        assert!(!state.fits(25, Some(26)), "another file");
        assert!(!State { done: vec![10, 3], ..state.clone() }.fits(25, Some(25)), "a part is missing");
        assert!(!State { done: vec![10, 3, 6], ..state.clone() }.fits(30, Some(25)), "the last part is too long");
        assert!(!State { done: vec![11, 0, 0], ..state }.fits(25, Some(25)), "a part is too long");
    }

    #[test]
    fn what_was_flushed_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let size = Some(3 * SHORTEST_PART + 1);
        let mut partial = Partial::open(folder.path(), "key", size).unwrap();
        partial.plan(size, true).unwrap();
        assert_eq!(partial.parts().len(), 4);
        assert_eq!(partial.parts()[3].end, size);
        std::os::unix::fs::FileExt::write_all_at(&*partial.file, b"abc", SHORTEST_PART).unwrap();
        partial.parts()[1].advance(3);
        assert_eq!((partial.durable(), partial.written()), (0, 3));
        assert_eq!(partial.flush().unwrap(), 3);
        partial.parts()[1].advance(5);
        drop(partial);
        let again = Partial::open(folder.path(), "key", size).unwrap();
        assert_eq!(again.parts()[1].position(), SHORTEST_PART + 3);
        assert_eq!(again.durable(), 3);
    }
}
