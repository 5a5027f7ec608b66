//! Taking JustTrain away again.

use std::fs;
use std::io;
use std::path::Path;

use justtrain_worker_api::Problem;

use crate::daemon;
use crate::say::Say;
use crate::versions::{Home, io_problem};

/// What the installer has put into the data folder.
const PROGRAMS: [&str; 3] = ["current", "versions", "install.lock"];
/// What the daemon has put there. Anything else in the folder is the person's.
const DATA: [&str; 9] = [
    "daemon.json",
    "daemon.lock",
    "token",
    "justtrain.db",
    "justtrain.db-wal",
    "justtrain.db-shm",
    "logs",
    "models",
    "jobs",
];

/// Stops the daemon and removes the programs; with `purge` also models, jobs and settings.
pub(crate) fn uninstall(home: &Home, purge: bool, say: &Say) -> Result<(), Problem> {
    daemon::stop(home, say);
    if let Some(link) = home.command_link().filter(|link| home.is_our_link(link)) {
        remove(&link)?;
    }
    let data: &[&str] = if purge { &DATA } else { &[] };
    for name in PROGRAMS.iter().chain(data) {
        remove(&home.path().join(name))?;
    }
    let path = home.path().display();
    if purge {
        // Only when nothing of the person's is left in it.
        match fs::remove_dir(home.path()) {
            Ok(()) => say.line("JustTrain and its data are removed.", "JustTrain 及其数据已删除。"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                say.line("There was nothing to remove.", "没有需要删除的内容。");
            }
            Err(_) => say.line(
                format!("JustTrain and its data are removed; other files in {path} stay."),
                format!("JustTrain 及其数据已删除；{path} 中的其他文件保留。"),
            ),
        }
    } else {
        say.line(
            format!(
                "JustTrain is removed. Models, jobs and settings stay in {path}; --uninstall --purge removes them too."
            ),
            format!("JustTrain 已卸载。模型、任务和设置保留在 {path}；使用 --uninstall --purge 可一并删除。"),
        );
    }
    Ok(())
}

/// Removes a file, a link (not what it points to) or a folder; nothing there is fine.
fn remove(path: &Path) -> Result<(), Problem> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| io_problem(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A home with a version, a model, and a file of the person's own.
    fn installed(folder: &Path) -> Home {
        let home = Home::at(&folder.join("home"), Some(&folder.join("bin")));
        let lock = home.lock().unwrap();
        let incoming = home.incoming().unwrap();
        fs::create_dir(incoming.path().join("bin")).unwrap();
        home.place("1.0.0", incoming).unwrap();
        home.link_command(&Say::english());
        drop(lock);
        fs::create_dir(home.path().join("models")).unwrap();
        fs::write(home.path().join("models/weights"), "precious").unwrap();
        fs::write(home.path().join("notes.txt"), "mine").unwrap();
        home
    }

    #[test]
    fn uninstall_keeps_the_data() {
        let folder = tempfile::tempdir().unwrap();
        let home = installed(folder.path());
        uninstall(&home, false, &Say::english()).unwrap();
        assert!(!home.versions().exists() && fs::symlink_metadata(home.current()).is_err());
        assert!(fs::symlink_metadata(folder.path().join("bin/justtrain")).is_err());
        assert_eq!(fs::read_to_string(home.path().join("models/weights")).unwrap(), "precious");
    }

    #[test]
    fn purge_removes_the_data_and_not_the_persons_own_files() {
        let folder = tempfile::tempdir().unwrap();
        let home = installed(folder.path());
        uninstall(&home, true, &Say::english()).unwrap();
        let left: Vec<_> = fs::read_dir(home.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
        fs::remove_file(home.path().join("notes.txt")).unwrap();
        uninstall(&home, true, &Say::english()).unwrap();
        assert!(!home.path().exists());
    }
}
