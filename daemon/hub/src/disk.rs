//! Room on the disk, and files that survive a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use justtrain_worker_api::{Problem, ProblemCode};

/// Kept free for the database and the logs of running jobs.
const RESERVE: u64 = 64 << 20;

/// Of the disk that `folder` is on, or will be.
pub(crate) fn free_space(folder: &Path) -> Option<u64> {
    let stat = folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok())?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// # Errors
/// `DISK_FULL` when `folder`'s disk has less than `bytes` and a small reserve left.
pub(crate) fn ensure_room(folder: &Path, bytes: u64) -> Result<(), Problem> {
    let Some(free) = free_space(folder) else { return Ok(()) };
    if free >= bytes.saturating_add(RESERVE) {
        return Ok(());
    }
    Err(disk_full(folder).found(mebibytes(free)).expected(mebibytes(bytes.saturating_add(RESERVE))))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn disk_full(path: &Path) -> Problem {
    Problem::error(ProblemCode::DiskFull, "there is not enough room on the disk", "磁盘空间不足").file(path.display()).fix(
        "free some space (`justtrain models rm NAME` removes a model), then run the same command again: it goes on where it stopped",
        "请先清理磁盘（`justtrain models rm 名称` 可删除模型），再执行同一命令，下载会从中断处继续",
    )
}

/// A failed read or write as a problem: `DISK_FULL` where that is why, else `FILE_NOT_FOUND`.
pub(crate) fn io_problem(path: &Path, error: &io::Error) -> Problem {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return disk_full(path).found(error);
    }
    Problem::error(
        ProblemCode::FileNotFound,
        "the file or folder cannot be read or written",
        "无法读取或写入文件（夹）",
    )
    .file(path.display())
    .found(error)
    .fix("check that it is there and that this user may use it", "请确认它存在，并且当前用户有权限")
}

/// Writes `bytes` beside `path`, flushes them to the disk and renames: readers see the old file or the new one whole.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Renames a file whose bytes are already flushed.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(to.parent().unwrap_or(Path::new(".")))
}

/// Makes the entries of `folder` themselves durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_disk_holds_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let problem = ensure_room(folder.path(), u64::MAX / 2).unwrap_err();
        assert_eq!(problem.code, ProblemCode::DiskFull);
        ensure_room(folder.path(), 1).unwrap();
    }

    #[test]
    fn a_full_disk_is_named() {
        let problem = io_problem(Path::new("x"), &io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(problem.code, ProblemCode::DiskFull);
    }
}
