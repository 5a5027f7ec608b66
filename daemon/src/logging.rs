//! `logs/daemon.log`, and standard error beside it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// A log larger than this is put aside when the daemon starts; one old log is kept.
const LARGEST: u64 = 16 << 20;

pub(crate) fn start(home: &Path) -> Result<()> {
    let folder = home.join("logs");
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let path = folder.join("daemon.log");
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LARGEST) {
        fs::rename(&path, folder.join("daemon.log.old"))?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    let filter = EnvFilter::try_from_env("JUSTTRAIN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::registry()
        .with(filter)
        .with(fmt::layer().with_ansi(false).with_writer(std::sync::Mutex::new(file)))
        .with(fmt::layer().with_writer(std::io::stderr))
        .init();
    Ok(())
}

/// Before there is a log.
pub(crate) fn to_standard_error(line: &str) {
    // Nothing is left to do where even this fails.
    let _ = writeln!(std::io::stderr(), "{line}");
}
