//! The data folder's files that belong to the running daemon: lock, token, address.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rand::RngExt;

/// Held as long as the daemon lives; the kernel lets go of it when the process ends, however it ends.
pub(crate) struct Lock(#[allow(dead_code, reason = "held, not read")] File);

/// Takes `daemon.lock`. Fails with the pid of the daemon that holds it.
pub(crate) fn lock(home: &Path) -> Result<Lock> {
    let path = home.join("daemon.lock");
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("{} cannot be opened", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            write!(file, "{}", std::process::id())?;
            Ok(Lock(file))
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            bail!(
                "another daemon (pid {pid}) already uses {}; stop it with `justtrain daemon stop`, or set JUSTTRAIN_HOME",
                home.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
    }
}

/// The bearer token; made at the first start, readable by its owner only.
pub(crate) fn token(home: &Path) -> Result<String> {
    let path = home.join("token");
    match fs::read_to_string(&path) {
        Ok(token) if token.trim().len() >= 32 => return Ok(token.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
    let bytes: [u8; 32] = rand::rng().random();
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path).with_context(|| format!("{} cannot be written", path.display()))?;
    file.write_all(token.as_bytes())?;
    file.sync_all()?;
    Ok(token)
}

/// Tells clients where this daemon listens. Appears whole.
pub(crate) fn announce(home: &Path, address: SocketAddr) -> Result<()> {
    let text = serde_json::json!({
        "address": address.to_string(),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    let (path, partial) = (home.join("daemon.json"), home.join("daemon.json.partial"));
    fs::write(&partial, text.to_string())?;
    fs::rename(&partial, &path).with_context(|| format!("{} cannot be written", path.display()))
}

/// The daemon listens no more.
pub(crate) fn withdraw(home: &Path) {
    // A file that stays is recognised by its pid.
    let _ = fs::remove_file(home.join("daemon.json"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_is_there() {
        let home = tempfile::tempdir().unwrap();
        let _first = lock(home.path()).unwrap();
        let error = lock(home.path()).map(drop).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()) && error.contains("daemon stop"), "{error}");
    }

    #[test]
    fn the_token_is_made_once_for_the_owner_alone() {
        let home = tempfile::tempdir().unwrap();
        let made = token(home.path()).unwrap();
        assert_eq!((made.len(), token(home.path()).unwrap()), (64, made.clone()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(home.path().join("token")).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
