//! GGUF, llama.cpp's model file: metadata and tensors in one file (versions 2 and 3, little-endian).
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

pub(crate) mod architecture;
pub(crate) mod blocks;
mod dequantize;
mod gemma;
mod gpt2;
mod header;
mod keys;
mod llama;
mod metadata;
mod phi3;
mod qwen;
mod reader;
mod tensor_type;

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
};

use justtrain_worker_api::Problem;
use memmap2::Mmap;

pub use blocks::Blocks;
pub use dequantize::{decode_blocks, dequantize, half_to_f32};
pub use metadata::{Array, Metadata, Value};
pub use tensor_type::TensorType;

use crate::mapped;

/// An open GGUF file whose header has been checked against the file's length.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Mmap,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

/// Where a tensor lies and how it is encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The file's own name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Row-major, slowest dimension first: `[out, in]` for a matrix. (The file lists dimensions the other way round.)
    pub shape: Vec<usize>,
    pub tensor_type: TensorType,
    /// Bytes of the file that hold the tensor.
    pub range: Range<usize>,
}

impl Gguf {
    /// Maps the file and reads its header; no tensor is touched.
    ///
    /// Fails with `FileNotFound`, `FileEmpty`, `FileFormat` (not a GGUF, or one that contradicts itself),
    /// `FileTruncated`, or `UnknownTensorType`. A hostile file costs at most a small multiple of its own length.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        let bytes = mapped::map(path)?;
        let header = header::read(path, &bytes)?;
        let index = header.tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.clone(), at)).collect();
        Ok(Self { path: path.to_owned(), bytes, metadata: header.metadata, tensors: header.tensors, index })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// In the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&at| &self.tensors[at])
    }

    /// The tensor as it is stored, encoded.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.bytes[tensor.range.clone()]
    }

    /// The tensor's bytes were read and are not needed soon.
    pub(crate) fn release(&self, tensor: &TensorInfo) {
        mapped::release(&self.bytes, tensor.range.clone());
    }
}
