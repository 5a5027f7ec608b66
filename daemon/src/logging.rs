//! `logs/daemon.log`, and standard error where a person sees it.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use justtrain_jobs::LogFile;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// The largest `daemon.log`; there may be an old one of the same size.
const LARGEST: u64 = 8 << 20;

pub(crate) fn start(home: &Path) -> Result<()> {
    let folder = home.join("logs");
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let path = folder.join("daemon.log");
    let file = LogFile::open(&path, LARGEST).with_context(|| format!("{} cannot be written", path.display()))?;
    let filter = EnvFilter::try_from_env("JUSTTRAIN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // In the background standard error is a file, too, and nobody would cut that one.
    let terminal = std::io::stderr().is_terminal().then(|| fmt::layer().with_writer(std::io::stderr));
    tracing_subscriber::registry()
        .with(filter)
        .with(fmt::layer().with_ansi(false).with_writer(Mutex::new(file)))
        .with(terminal)
        .init();
    Ok(())
}

/// Before there is a log.
pub(crate) fn to_standard_error(line: &str) {
    // Nothing is left to do where even this fails.
    let _ = writeln!(std::io::stderr(), "{line}");
}
