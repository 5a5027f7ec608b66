//! Reference values as they lie in the repository.

use std::path::{Path, PathBuf};

use justtrain_weights::safetensors::SafetensorsFile;

pub(crate) fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(path)
}

pub(crate) fn doubles(file: &SafetensorsFile, name: &str) -> Vec<f64> {
    let (numbers, _) = file.bytes(name).unwrap().as_chunks::<8>();
    numbers.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
}
