//! `payload.zip`: looked at as a whole before a single byte of it is written.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use justtrain_worker_api::{Problem, ProblemCode};
use tempfile::TempDir;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::say::Say;
use crate::versions::{Home, io_problem};

/// Weights do not belong to a version: they go into the store.
const MODELS: &str = "models";
/// A file with the version's name.
const VERSION: &str = "VERSION";

/// An archive whose every entry is safe to unpack.
#[derive(Debug)]
pub(crate) struct Payload {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
    entries: Vec<Entry>,
    pub(crate) version: String,
}

#[derive(Debug)]
struct Entry {
    index: usize,
    path: PathBuf,
    size: u64,
}

/// Unpacked and flushed to the disk.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) programs: TempDir,
    pub(crate) models: TempDir,
}

/// Opens `path` and refuses an archive with an entry that could be written anywhere else than into its own folder.
///
/// # Errors
/// `FILE_NOT_FOUND`; `FILE_TRUNCATED` for a cut archive; `FILE_FORMAT` for an unsafe or foreign one.
pub(crate) fn open(path: &Path) -> Result<Payload, Problem> {
    let file = File::open(path).map_err(|error| io_problem(path, &error))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| unreadable(path, &error))?;
    let mut entries = Vec::with_capacity(archive.len());
    let mut seen = HashSet::new();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|error| unreadable(path, &error))?;
        if entry.is_dir() {
            continue;
        }
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let kind = entry.unix_mode().map_or(REGULAR, |mode| mode & KIND);
        let plain = safe_path(&name).filter(|_| kind == REGULAR || kind == 0);
        let inside = plain.filter(|inside| seen.insert(inside.clone())).ok_or_else(|| unsafe_entry(path, &name))?;
        entries.push(Entry { index, path: inside, size: entry.size() });
    }
    let version = read_version(&mut archive).ok_or_else(|| {
        Problem::error(ProblemCode::FileFormat, "this archive is not a JustTrain payload", "这不是 JustTrain 安装包")
            .file(path.display())
            .expected("a file VERSION in it")
    })?;
    Ok(Payload { path: path.to_owned(), archive, entries, version })
}

/// The file type bits of a Unix mode, and their value for a regular file.
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// The path inside the version's folder; `None` when it is absolute, climbs, or is not plain.
fn safe_path(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(name);
    let plain = !name.is_empty() && !name.contains(['\\', '\0', ':']);
    (plain && path.components().all(|part| matches!(part, Component::Normal(_)))).then_some(path)
}

fn read_version(archive: &mut ZipArchive<BufReader<File>>) -> Option<String> {
    let version = io::read_to_string(archive.by_name(VERSION).ok()?).ok()?;
    let version = version.trim();
    let plain = version.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte));
    (plain && version.starts_with(|first: char| first.is_ascii_digit())).then(|| version.to_owned())
}

impl Payload {
    /// Unpacks into fresh folders, which vanish again when anything goes wrong.
    pub(crate) fn unpack(mut self, home: &Home, say: &Say) -> Result<Unpacked, Problem> {
        let unpacked = Unpacked { programs: home.incoming()?, models: home.incoming()? };
        let total = self.entries.iter().map(|entry| entry.size).sum();
        ensure_room(home.path(), total)?;
        let bar = say.bar(total);
        for entry in std::mem::take(&mut self.entries) {
            let target = match entry.path.strip_prefix(MODELS) {
                Ok(model) => unpacked.models.path().join(model),
                Err(_) => unpacked.programs.path().join(&entry.path),
            };
            bar.set_message(entry.path.display().to_string());
            self.unpack_entry(&entry, &target)?;
            bar.inc(entry.size);
        }
        bar.finish_and_clear();
        sync_folders(unpacked.programs.path()).map_err(|error| io_problem(home.path(), &error))?;
        fs::set_permissions(unpacked.programs.path(), fs::Permissions::from_mode(0o755))
            .map_err(|error| io_problem(home.path(), &error))?;
        Ok(unpacked)
    }

    fn unpack_entry(&mut self, entry: &Entry, target: &Path) -> Result<(), Problem> {
        let written = |error| io_problem(target, &error);
        fs::create_dir_all(target.with_file_name("")).map_err(written)?;
        let mut file = File::create_new(target).map_err(written)?;
        let mut source = self.archive.by_index(entry.index).map_err(|error| unreadable(&self.path, &error))?;
        // Execute bits as packed; never writable for others, never set-user-id.
        let mode = if source.unix_mode().is_some_and(|mode| mode & 0o100 != 0) { 0o755 } else { 0o644 };
        io::copy(&mut source, &mut file).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
                unreadable(&self.path, &ZipError::Io(error))
            }
            _ => written(error),
        })?;
        file.set_permissions(fs::Permissions::from_mode(mode)).and_then(|()| file.sync_all()).map_err(written)
    }
}

fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}

fn ensure_room(home: &Path, bytes: u64) -> Result<(), Problem> {
    let Ok(stat) = rustix::fs::statvfs(home) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= bytes {
        return Ok(());
    }
    Err(io_problem(home, &io::Error::from(io::ErrorKind::StorageFull))
        .found(format!("{} MiB free", free >> 20))
        .expected(format!("{} MiB", bytes >> 20)))
}

fn unreadable(path: &Path, error: &ZipError) -> Problem {
    Problem::error(ProblemCode::FileTruncated, "the archive is cut or damaged", "安装包不完整或已损坏")
        .file(path.display())
        .found(error)
        .fix(
            "download it again, then run install again; nothing was changed",
            "请重新下载后再运行 install，本机未做任何更改",
        )
}

fn unsafe_entry(path: &Path, name: &str) -> Problem {
    Problem::error(
        ProblemCode::FileFormat,
        "the archive holds an entry that would be written outside its folder",
        "安装包中有试图写到安装目录之外的条目",
    )
    .file(path.display())
    .found(name)
    .expected("plain files with relative paths")
    .fix(
        "do not use this archive; download it from where JustTrain is published",
        "请勿使用此安装包，请从官方发布处重新下载",
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    use super::*;

    const SCRIPT: &[u8] = b"#!/bin/sh\n";

    struct Built {
        folder: TempDir,
        home: Home,
    }

    impl Built {
        fn archive(&self) -> PathBuf {
            self.folder.path().join("payload.zip")
        }
    }

    fn build(add: impl FnOnce(&mut ZipWriter<File>)) -> Built {
        let folder = tempfile::tempdir().unwrap();
        let mut zip = ZipWriter::new(File::create(folder.path().join("payload.zip")).unwrap());
        let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file("VERSION", plain).unwrap();
        zip.write_all(b"1.2.3\n").unwrap();
        zip.start_file("bin/justtrain", plain.unix_permissions(0o4755)).unwrap();
        zip.write_all(SCRIPT).unwrap();
        zip.start_file("models/small.gguf", plain.unix_permissions(0o644)).unwrap();
        zip.write_all(&[7; 4096]).unwrap();
        add(&mut zip);
        zip.finish().unwrap();
        let home = Home::at(&folder.path().join("home"), None);
        Built { folder, home }
    }

    #[test]
    fn programs_keep_their_execute_bit_and_models_lie_apart() {
        let built = build(|_| {});
        let _lock = built.home.lock().unwrap();
        let payload = open(&built.archive()).unwrap();
        assert_eq!(payload.version, "1.2.3");
        let unpacked = payload.unpack(&built.home, &Say::english()).unwrap();
        let mode = fs::metadata(unpacked.programs.path().join("bin/justtrain")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert_eq!(fs::metadata(unpacked.models.path().join("small.gguf")).unwrap().len(), 4096);
        assert!(!unpacked.programs.path().join("models").exists());
    }

    #[test]
    fn entries_that_leave_the_folder_are_refused_before_anything_is_written() {
        for bad in ["../evil", "/etc/evil", "bin/../../evil", "C:\\evil", "bin\\..\\evil"] {
            let built = build(|zip| {
                zip.start_file(bad, SimpleFileOptions::default()).unwrap();
                zip.write_all(b"evil").unwrap();
            });
            let problem = open(&built.archive()).unwrap_err();
            assert_eq!((problem.code, problem.found.as_deref()), (ProblemCode::FileFormat, Some(bad)));
            assert_eq!(fs::read_dir(built.folder.path()).unwrap().count(), 1, "{bad}");
        }
    }

    #[test]
    fn a_symbolic_link_is_refused() {
        let built = build(|zip| zip.add_symlink("bin/link", "/etc", SimpleFileOptions::default()).unwrap());
        assert_eq!(open(&built.archive()).unwrap_err().found.as_deref(), Some("bin/link"));
    }

    #[test]
    fn a_cut_or_damaged_archive_leaves_nothing_behind() {
        let built = build(|_| {});
        let bytes = fs::read(built.archive()).unwrap();
        fs::write(built.archive(), &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(open(&built.archive()).unwrap_err().code, ProblemCode::FileTruncated);

        let mut damaged = bytes;
        let script = damaged.windows(SCRIPT.len()).position(|window| window == SCRIPT).unwrap();
        damaged[script] ^= 1;
        fs::write(built.archive(), damaged).unwrap();
        let _lock = built.home.lock().unwrap();
        let payload = open(&built.archive()).unwrap();
        let problem = payload.unpack(&built.home, &Say::english()).unwrap_err();
        assert_eq!(problem.code, ProblemCode::FileTruncated);
        assert_eq!(fs::read_dir(built.home.versions()).unwrap().count(), 0);
    }

    #[test]
    fn an_archive_of_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.zip");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        zip.start_file("readme", SimpleFileOptions::default()).unwrap();
        zip.finish().unwrap();
        assert_eq!(open(&path).unwrap_err().code, ProblemCode::FileFormat);
    }
}
