//! The data folder: programs of several versions beside each other, one of them current.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use justtrain_worker_api::{Problem, ProblemCode};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use crate::say::Say;

/// Where JustTrain lives for this user.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    /// The folder in the user's home where commands are found; only with the default folder.
    commands: Option<PathBuf>,
}

/// What placing a version came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    New,
    /// The version that was current before.
    Upgraded {
        from: String,
    },
    /// The same version, again.
    Repaired,
}

impl Home {
    /// `dir` as an absolute path, else the user's data folder.
    pub(crate) fn find(dir: Option<&Path>) -> Result<Self, Problem> {
        let folders = directories::BaseDirs::new();
        let default = folders.as_ref().map(|folders| folders.data_dir().join("justtrain"));
        let path = match dir {
            Some(dir) => std::path::absolute(dir).map_err(|error| io_problem(dir, &error))?,
            None => default.clone().ok_or_else(|| {
                Problem::error(ProblemCode::FileNotFound, "this user has no home folder", "当前用户没有主目录")
                    .fix("name a folder with --dir", "请用 --dir 指定安装目录")
            })?,
        };
        let commands = folders.filter(|_| Some(&path) == default.as_ref());
        Ok(Self { path, commands: commands.map(|folders| folders.home_dir().join(".local/bin")) })
    }

    #[cfg(test)]
    pub(crate) fn at(path: &Path, commands: Option<&Path>) -> Self {
        Self { path: path.to_owned(), commands: commands.map(Path::to_owned) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_default(&self) -> bool {
        self.commands.is_some()
    }

    pub(crate) fn versions(&self) -> PathBuf {
        self.path.join("versions")
    }

    /// The link to the version in use.
    pub(crate) fn current(&self) -> PathBuf {
        self.path.join("current")
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.current().join("bin").join(name)
    }

    /// One installer at a time; what a former one left half done is removed.
    pub(crate) fn lock(&self) -> Result<File, Problem> {
        let versions = self.versions();
        fs::create_dir_all(&versions).map_err(|error| io_problem(&versions, &error))?;
        let path = self.path.join("install.lock");
        let file = File::create(&path).map_err(|error| io_problem(&path, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Problem::error(
                    ProblemCode::InvalidValue,
                    "another installer is at work",
                    "另一个安装程序正在运行",
                )
                .file(path.display())
                .fix("wait until it has ended", "请等待其结束"));
            }
            Err(TryLockError::Error(error)) => return Err(io_problem(&path, &error)),
        }
        for entry in fs::read_dir(&versions).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(INCOMING) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(file)
    }

    /// An empty folder on the same disk as the versions; gone again unless it is [placed](Self::place).
    pub(crate) fn incoming(&self) -> Result<TempDir, Problem> {
        let versions = self.versions();
        tempfile::Builder::new().prefix(INCOMING).tempdir_in(&versions).map_err(|error| io_problem(&versions, &error))
    }

    /// Makes whole, flushed `programs` the version in use, by renames only.
    pub(crate) fn place(&self, version: &str, programs: TempDir) -> Result<Place, Problem> {
        let before = self.current_version();
        let target = self.versions().join(version);
        let rename = || {
            keep_installer(programs.path())?;
            if target.exists() {
                // The former files of this version leave with `programs`.
                renameat_with(CWD, programs.path(), CWD, &target, RenameFlags::EXCHANGE)?;
            } else {
                fs::rename(programs.path(), &target)?;
            }
            File::open(self.versions())?.sync_all()?;
            let fresh = self.path.join(".current");
            let _ = fs::remove_file(&fresh);
            symlink(Path::new("versions").join(version), &fresh)?;
            fs::rename(&fresh, self.current())?;
            File::open(&self.path)?.sync_all()
        };
        rename().map_err(|error: io::Error| io_problem(&target, &error))?;
        Ok(match before {
            None => Place::New,
            Some(before) if before == version => Place::Repaired,
            Some(from) => Place::Upgraded { from },
        })
    }

    pub(crate) fn current_version(&self) -> Option<String> {
        let target = fs::read_link(self.current()).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// Makes `justtrain` a command and returns how to write it. A file that is not ours stays.
    pub(crate) fn link_command(&self, say: &Say) -> String {
        let program = self.program("justtrain");
        let Some(link) = self.command_link() else { return program.display().to_string() };
        if fs::symlink_metadata(&link).is_ok() && !self.is_our_link(&link) {
            let path = link.display();
            say.line(
                format!("{path} is another program and stays as it is."),
                format!("{path} 是其他程序，保持不变。"),
            );
            return program.display().to_string();
        }
        let fresh = link.with_file_name(".justtrain.new");
        let linked = fs::create_dir_all(link.with_file_name(""))
            .and_then(|()| symlink(&program, &fresh))
            .and_then(|()| fs::rename(&fresh, &link));
        let on_path = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| Some(&*folder) == link.parent()));
        if linked.is_ok() && on_path { "justtrain".to_owned() } else { program.display().to_string() }
    }

    pub(crate) fn command_link(&self) -> Option<PathBuf> {
        self.commands.as_ref().map(|folder| folder.join("justtrain"))
    }

    pub(crate) fn is_our_link(&self, link: &Path) -> bool {
        fs::read_link(link).is_ok_and(|target| target == self.program("justtrain"))
    }
}

/// Prefix of folders that are not whole yet.
const INCOMING: &str = ".incoming-";

/// This very program stays with the version, for `--uninstall` later.
fn keep_installer(programs: &Path) -> io::Result<()> {
    let bin = programs.join("bin");
    fs::create_dir_all(&bin)?;
    let kept = bin.join("install");
    if !kept.exists() {
        fs::copy(std::env::current_exe()?, &kept)?;
        File::open(&kept)?.sync_all()?;
        File::open(&bin)?.sync_all()?;
    }
    Ok(())
}

pub(crate) fn io_problem(path: &Path, error: &io::Error) -> Problem {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ProblemCode::DiskFull,
        _ => ProblemCode::FileNotFound,
    };
    let (en, zh) = match code {
        ProblemCode::DiskFull => ("the disk is full", "磁盘已满"),
        _ => ("the file or folder cannot be read or written", "无法读取或写入文件（夹）"),
    };
    Problem::error(code, en, zh).file(path.display()).found(error).fix(
        "free some space or choose another folder with --dir, then run install again",
        "请清理磁盘或用 --dir 指定其他目录，然后重新运行 install",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(home: &Home, version: &str, text: &str) -> Place {
        let incoming = home.incoming().unwrap();
        fs::create_dir(incoming.path().join("bin")).unwrap();
        fs::write(incoming.path().join("bin/justtrain"), text).unwrap();
        home.place(version, incoming).unwrap()
    }

    #[test]
    fn an_upgrade_switches_and_keeps_the_former_version_and_the_data() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path(), None);
        let _lock = home.lock().unwrap();
        fs::write(folder.path().join("justtrain.db"), "jobs").unwrap();
        assert_eq!(place(&home, "1.0.0", "one"), Place::New);
        assert_eq!(place(&home, "1.1.0", "two"), Place::Upgraded { from: "1.0.0".into() });
        assert_eq!(fs::read_to_string(home.program("justtrain")).unwrap(), "two");
        assert_eq!(fs::read_to_string(home.versions().join("1.0.0/bin/justtrain")).unwrap(), "one");
        assert_eq!(fs::read_to_string(folder.path().join("justtrain.db")).unwrap(), "jobs");
    }

    #[test]
    fn the_same_version_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path(), None);
        let _lock = home.lock().unwrap();
        place(&home, "1.0.0", "broken");
        assert_eq!(place(&home, "1.0.0", "mended"), Place::Repaired);
        assert_eq!(fs::read_to_string(home.program("justtrain")).unwrap(), "mended");
        assert_eq!(fs::read_dir(home.versions()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_installer_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path(), None);
        drop(home.lock().unwrap());
        let half = home.incoming().unwrap().keep();
        let _lock = home.lock().unwrap();
        assert!(!half.exists());
        assert!(home.lock().is_err());
    }

    #[test]
    fn a_command_of_someone_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let commands = folder.path().join("bin");
        let home = Home::at(&folder.path().join("home"), Some(&commands));
        fs::create_dir(&commands).unwrap();
        fs::write(commands.join("justtrain"), "another program").unwrap();
        home.link_command(&Say::english());
        assert_eq!(fs::read_to_string(commands.join("justtrain")).unwrap(), "another program");
        fs::remove_file(commands.join("justtrain")).unwrap();
        home.link_command(&Say::english());
        assert!(home.is_our_link(&commands.join("justtrain")));
    }
}
