//! The data folder, its disk, and the models in it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::{CheckResult, Status};

const GIB: u64 = 1 << 30;

pub(crate) fn disk(home: &Path) -> CheckResult {
    let result = CheckResult::new("disk", ("Free disk space", "磁盘剩余空间"), ("at least 5 GiB", "不少于 5 GiB"));
    // The folder itself may not be there yet.
    match home.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok()) {
        Some(stat) => judge_disk(result, stat.f_bavail.saturating_mul(stat.f_frsize), home),
        None => result.found("unknown", "未知").status(Status::Skip, "", ""),
    }
}

fn judge_disk(result: CheckResult, free: u64, home: &Path) -> CheckResult {
    let gib = free as f64 / GIB as f64;
    let result = result.found(
        format!("{gib:.1} GiB free for {}", home.display()),
        format!("{} 所在磁盘剩余 {gib:.1} GiB", home.display()),
    );
    let (en, zh) = (
        "free some space, or put the data folder on another disk with JUSTTRAIN_HOME",
        "请清理磁盘，或用 JUSTTRAIN_HOME 把数据目录放到其他磁盘",
    );
    match free {
        _ if free >= 5 * GIB => result,
        _ if free >= GIB => result.status(Status::Warn, en, zh),
        _ => result.status(Status::Fail, en, zh),
    }
}

pub(crate) fn home(home: &Path) -> CheckResult {
    let result = CheckResult::new("home", ("Data folder", "数据目录"), ("a folder that can be written", "可写的目录"));
    match write_once(home) {
        Ok(()) => result.found_as_is(home.display().to_string()),
        Err(error) => result.found_as_is(format!("{}: {error}", home.display())).status(
            Status::Fail,
            "give this user the folder, or name another with JUSTTRAIN_HOME",
            "请授予当前用户该目录的写权限，或用 JUSTTRAIN_HOME 指定其他目录",
        ),
    }
}

/// Permissions, quotas and read-only mounts show only when something is really written.
fn write_once(home: &Path) -> io::Result<()> {
    fs::create_dir_all(home)?;
    let path = home.join(format!(".check-{}", std::process::id()));
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(b"ok")?;
        file.sync_all()
    });
    let removed = fs::remove_file(&path);
    written.and(removed)
}

pub(crate) fn model(models: &[String]) -> CheckResult {
    let result = CheckResult::new("model", ("Base model", "基础模型"), ("at least one", "至少一个"));
    if models.is_empty() {
        return result.found("none yet", "暂无").status(
            Status::Warn,
            "fetch one: `justtrain models pull smollm2`",
            "请下载一个：`justtrain models pull smollm2`",
        );
    }
    result.found_as_is(models.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_that_is_a_file_fails_with_its_fix() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("home");
        fs::write(&file, "").unwrap();
        let result = home(&file);
        assert_eq!(result.status, Status::Fail);
        assert!(result.fix.en.contains("JUSTTRAIN_HOME"));
        assert!(fs::read_dir(folder.path()).unwrap().count() == 1);
    }

    #[test]
    fn a_nearly_full_disk_warns_and_a_full_one_fails() {
        let result = || CheckResult::new("disk", ("", ""), ("", ""));
        assert_eq!(judge_disk(result(), 6 * GIB, Path::new("/")).status, Status::Pass);
        assert_eq!(judge_disk(result(), 2 * GIB, Path::new("/")).status, Status::Warn);
        assert_eq!(judge_disk(result(), GIB / 2, Path::new("/")).status, Status::Fail);
    }
}
