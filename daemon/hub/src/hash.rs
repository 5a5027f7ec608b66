//! SHA-256 as lower-case hexadecimal, and copying while hashing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
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
