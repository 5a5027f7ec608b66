//! A log that stays small: a full one becomes `NAME.old`, in place of the one before it, and a new one is begun.
//!
//! Nothing here panics: a log that cannot be written is no reason to stop a daemon.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Appends to a file of at most `limit` bytes. With the old file beside it a log takes twice that and no more.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limit: u64,
    file: File,
    size: u64,
}

impl LogFile {
    /// Goes on with a log that is there.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = append_to(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), limit, file, size })
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        fs::rename(&self.path, self.path.with_added_extension("old"))?;
        self.file = append_to(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

impl Write for LogFile {
    /// Bytes that are written together stay together, unless they alone are more than a whole log.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(usize::try_from(self.limit).unwrap_or(usize::MAX))];
        if self.size > 0 && self.size + bytes.len() as u64 > self.limit {
            self.begin_anew()?;
        }
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_and_its_old_one_are_all_there_ever_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        // Opened anew in between, as by a daemon that was restarted.
        for start in [0, 50] {
            let mut log = LogFile::open(&path, 100).unwrap();
            for line in start..start + 50 {
                log.write_all(format!("line {line:04}\n").as_bytes()).unwrap();
            }
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let kept = read("x.log.old") + &read("x.log");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        // Ten lines are a whole log: the newest are there, whole and in order.
        let expected: String = (80..100).map(|line| format!("line {line:04}\n")).collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn what_is_longer_than_a_log_is_cut_and_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        LogFile::open(&path, 10).unwrap().write_all(b"0123456789abcdef").unwrap();
        assert_eq!(fs::read(path.with_added_extension("old")).unwrap(), b"0123456789");
        assert_eq!(fs::read(path).unwrap(), b"abcdef");
    }
}
