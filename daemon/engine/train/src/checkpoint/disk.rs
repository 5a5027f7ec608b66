//! Room on the disk, looked at before anything is written.

use std::path::Path;

use justtrain_worker_api::{Problem, ProblemCode};

/// `DiskFull` where the file system of `folder` has less than `bytes` left. One that does not tell is trusted.
pub(super) fn require(folder: &Path, bytes: u64) -> Result<(), Problem> {
    let Ok(stat) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if bytes <= free {
        return Ok(());
    }
    Err(Problem::error(
        ProblemCode::DiskFull,
        "there is not enough room on the disk for a checkpoint",
        "磁盘空间不足以保存检查点",
    )
    .file(folder.display())
    .found(format!("{free} bytes free"))
    .expected(format!("{bytes} bytes"))
    .fix("free some disk space, then resume the job", "请释放磁盘空间，然后恢复任务"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_before_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        assert!(require(folder.path(), 1).is_ok());
        let problem = require(folder.path(), u64::MAX).unwrap_err();
        assert_eq!(problem.code, ProblemCode::DiskFull);
        assert!(problem.found.unwrap().ends_with("bytes free"));
    }
}
