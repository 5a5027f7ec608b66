//! Reads and checks what precedes the tensors: magic, version, metadata, tensor table.

use std::{collections::HashSet, path::Path};

use justtrain_worker_api::{Problem, ProblemCode};

use super::{
    Metadata, TensorInfo, TensorType,
    reader::Reader,
    tensor_type::describe_id,
};
use crate::mapped;

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Where `general.alignment` does not say otherwise.
const DEFAULT_ALIGNMENT: u32 = 32;
/// `GGML_MAX_DIMS`.
const MAX_DIMS: usize = 4;

pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
}

pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Header, Problem> {
    check_magic(path, bytes)?;
    let mut reader = Reader::new(path, bytes);
    reader.take(MAGIC.len())?;
    check_version(&reader, path, {
        let mut at_version = Reader::new(path, bytes);
        at_version.take(MAGIC.len())?;
        at_version.u32()?
    })?;
    todo!()
}
