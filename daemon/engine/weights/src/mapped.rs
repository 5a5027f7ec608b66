//! A file of weights in memory, without a copy.

use std::{fs::File, io, ops::Range, path::Path};

use justtrain_worker_api::{Problem, ProblemCode};
use memmap2::Mmap;

/// Maps a whole file. Fails with `FileNotFound` where it cannot be read and `FileEmpty` where it has no bytes.
pub(crate) fn map(path: &Path) -> Result<Mmap, Problem> {
    let file = File::open(path).map_err(|error| cannot_read(path, &error))?;
    let metadata = file.metadata().map_err(|error| cannot_read(path, &error))?;
    if !metadata.is_file() {
        return Err(Problem::error(ProblemCode::FileFormat, "this is not a regular file", "这不是普通文件")
            .file(path.display())
            .expected("a file of weights"));
    }
    if metadata.len() == 0 {
        return Err(Problem::error(ProblemCode::FileEmpty, "the file is empty", "文件是空的")
            .file(path.display())
            .fix("download the model again", "请重新下载模型"));
    }
    // SAFETY: the mapping is read-only and every read of it is bounds-checked. As for every mapped file, a program that
    // shrinks the file meanwhile would end this process with SIGBUS; the model store replaces files and never edits them.
    unsafe { Mmap::map(&file) }.map_err(|error| cannot_read(path, &error))
}

/// Gives the pages of a range back once it was read: they stay in the system's cache and no longer count as this
/// process's memory.
pub(crate) fn release(map: &Mmap, range: Range<usize>) {
    #[cfg(unix)]
    // SAFETY: nobody writes to the mapping, so a page that is read again comes back from the file unchanged.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
    #[cfg(not(unix))]
    let _ = (map, range);
}

/// `FileNotFound` with the system's reason.
pub(crate) fn cannot_read(path: &Path, error: &io::Error) -> Problem {
    let problem = if error.kind() == io::ErrorKind::NotFound {
        Problem::error(ProblemCode::FileNotFound, "there is no such file", "文件不存在")
    } else {
        Problem::error(
            ProblemCode::FileNotFound,
            format!("the file cannot be read: {error}"),
            format!("无法读取文件：{error}"),
        )
    };
    problem.file(path.display()).fix("check the path and its permissions", "请检查路径和权限")
}

/// `FileTruncated`: the file has `found` bytes and its own header promises at least `expected`.
pub(crate) fn truncated(path: &Path, found: u64, expected: u64) -> Problem {
    Problem::error(
        ProblemCode::FileTruncated,
        "the file ends before its own header says it does",
        "文件不完整：长度小于文件头所声明的长度",
    )
    .file(path.display())
    .found(format!("{found} bytes"))
    .expected(format!("at least {expected} bytes"))
    .fix("the download or copy was cut short; download the model again", "下载或复制被中断，请重新下载模型")
}
