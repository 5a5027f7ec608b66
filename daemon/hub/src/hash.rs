//! Hashes of files: SHA-256, and the one that git gives to small files.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a source promises about a file's bytes, in lower-case hexadecimal. It is also the blob's name in the cache,
/// as with the hub's own tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Digest {
    Sha256(String),
    /// Of `blob LENGTH\0` and the bytes: how git names a file.
    GitSha1(String),
}

impl Digest {
    /// By its length: 64 digits or 40. Anything else is no digest.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.len() {
            64 if is_hex => Some(Self::Sha256(text)),
            40 if is_hex => Some(Self::GitSha1(text)),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitSha1(hex) => hex,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "SHA-256 {hex}"),
            Self::GitSha1(hex) => write!(f, "git SHA-1 {hex}"),
        }
    }
}

/// A file as it is on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hashed {
    pub(crate) size: u64,
    pub(crate) sha256: String,
    git_sha1: String,
}

impl Hashed {
    /// Reads the whole file; `progress` gets the bytes so far, an error from it stops the reading.
    pub(crate) fn of(path: &Path, mut progress: impl FnMut(u64) -> io::Result<()>) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut hasher = Hasher::new(length);
        let mut buffer = vec![0; 1 << 20];
        let mut size = 0;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(hasher.finish(size));
            }
            hasher.update(&buffer[..read]);
            size += read as u64;
            progress(size)?;
        }
    }

    pub(crate) fn is(&self, digest: &Digest) -> bool {
        *digest == self.like(digest)
    }

    /// The digest of the same kind as `other`.
    pub(crate) fn like(&self, other: &Digest) -> Digest {
        match other {
            Digest::Sha256(_) => Digest::Sha256(self.sha256.clone()),
            Digest::GitSha1(_) => Digest::GitSha1(self.git_sha1.clone()),
        }
    }
}

/// Above this size no repository names a file by git's hash, and hashing twice would cost.
const LARGEST_GIT_FILE: u64 = 64 << 20;

struct Hasher {
    sha256: Sha256,
    git_sha1: Option<Sha1>,
}

impl Hasher {
    fn new(length: u64) -> Self {
        let git_sha1 = (length <= LARGEST_GIT_FILE).then(|| Sha1::new_with_prefix(format!("blob {length}\0")));
        Self { sha256: Sha256::new(), git_sha1 }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(git_sha1) = &mut self.git_sha1 {
            git_sha1.update(bytes);
        }
    }

    fn finish(self, size: u64) -> Hashed {
        let git_sha1 = self.git_sha1.map(|hasher| hex(&hasher.finalize())).unwrap_or_default();
        Hashed { size, sha256: hex(&self.sha256.finalize()), git_sha1 }
    }
}

/// Copies `source` into a new file at `to`, flushes it to the disk, and returns its size and SHA-256.
///
/// `progress` gets the bytes so far after each piece; an error from it stops the copy.
pub(crate) fn copy_hashed(
    mut source: impl Read,
    to: &Path,
    mut progress: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<(u64, String)> {
    let mut file = File::create(to)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = source.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read])?;
        hasher.update(&buffer[..read]);
        size += read as u64;
        progress(size)?;
    }
    file.sync_all()?;
    Ok((size, hex(&hasher.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second is what `printf 'hello\n' | git hash-object --stdin` prints.
    #[test]
    fn both_hashes_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello");
        std::fs::write(&path, "hello\n").unwrap();
        let hashed = Hashed::of(&path, |_| Ok(())).unwrap();
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for digest in [sha256, "ce013625030ba8dba906f756967f9e9ca394464a"] {
            assert!(hashed.is(&Digest::parse(digest).unwrap()), "{hashed:?}");
        }
        assert!(!hashed.is(&Digest::parse(&"0".repeat(64)).unwrap()));
        assert_eq!(Digest::parse("v1"), None);
    }
}
