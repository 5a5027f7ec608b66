//! Reads and checks what precedes the tensors: magic, version, metadata, tensor table.

use std::{collections::HashSet, path::Path};

use justtrain_worker_api::{Problem, ProblemCode};

use super::{Metadata, TensorInfo, TensorType, reader::Reader, tensor_type::describe_id};
use crate::mapped;

const MAGIC: [u8; 4] = *b"GGUF";
/// Where `general.alignment` does not say otherwise.
const DEFAULT_ALIGNMENT: u32 = 32;
/// `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;

pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
}

pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Header, Problem> {
    if !bytes.starts_with(&MAGIC) {
        return Err(Problem::error(ProblemCode::FileFormat, "this is not a GGUF file", "这不是 GGUF 文件")
            .file(path.display())
            .found(format!("a file that starts with {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(4)])))
            .expected("a file that starts with \"GGUF\"")
            .fix("name a .gguf model file, or download the model again", "请指定 .gguf 模型文件，或重新下载模型"));
    }
    let mut reader = Reader::new(path, bytes);
    reader.take(MAGIC.len())?;
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(reader
            .malformed("this version of GGUF is not known", "未知的 GGUF 版本")
            .found(format!("version {version}"))
            .expected("version 2 or 3, little-endian"));
    }
    // A tensor's entry takes at least a name length, a dimension count, a type and an offset.
    let tensor_count = reader.count(8 + 4 + 4 + 8)?;
    let metadata = read_metadata(&mut reader)?;
    let entries = (0..tensor_count).map(|_| read_entry(&mut reader)).collect::<Result<Vec<_>, _>>()?;

    let alignment = metadata.get_u32("general.alignment").unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() {
        return Err(reader
            .malformed("general.alignment is not a power of two", "general.alignment 不是 2 的幂")
            .found(alignment));
    }
    let data_start = reader.position().next_multiple_of(alignment as usize);
    let mut names = HashSet::new();
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        if !names.insert(entry.name.clone()) {
            return Err(reader
                .malformed(format!("tensor {} appears twice", entry.name), format!("张量 {} 出现了两次", entry.name)));
        }
        tensors.push(place(&reader, path, bytes.len(), data_start, entry)?);
    }
    Ok(Header { metadata, tensors })
}

fn read_metadata(reader: &mut Reader<'_>) -> Result<Metadata, Problem> {
    // A key length, a type and a value of at least one byte.
    let count = reader.count(8 + 4 + 1)?;
    let mut metadata = Metadata::default();
    for _ in 0..count {
        let key = reader.string()?;
        let value = reader.value()?;
        if !metadata.insert(key.clone(), value) {
            return Err(
                reader.malformed(format!("metadata key {key} appears twice"), format!("元数据键 {key} 出现了两次"))
            );
        }
    }
    Ok(metadata)
}

/// A tensor as the table lists it; `offset` counts from the start of the data.
struct Entry {
    name: String,
    shape: Vec<usize>,
    tensor_type: TensorType,
    offset: u64,
}

fn read_entry(reader: &mut Reader<'_>) -> Result<Entry, Problem> {
    let name = reader.string()?;
    let dims = reader.u32()?;
    if dims > MAX_DIMS {
        return Err(reader.malformed(
            format!("tensor {name} has {dims} dimensions, more than {MAX_DIMS}"),
            format!("张量 {name} 有 {dims} 个维度，超过 {MAX_DIMS}"),
        ));
    }
    let mut shape = (0..dims)
        .map(|_| reader.u64().map(|dim| usize::try_from(dim).unwrap_or(usize::MAX)))
        .collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    let id = reader.u32()?;
    let tensor_type = TensorType::from_id(id).ok_or_else(|| {
        let known: Vec<String> = TensorType::ALL.iter().map(ToString::to_string).collect();
        let mut problem = reader.malformed(
            format!("tensor {name} is stored in an encoding that cannot be read"),
            format!("张量 {name} 的存储类型无法读取"),
        );
        problem.code = ProblemCode::UnknownTensorType;
        problem.found(describe_id(id)).expected(known.join(", "))
    })?;
    Ok(Entry { name, shape, tensor_type, offset: reader.u64()? })
}

/// Finds the entry's bytes in the file and checks that all of them are there.
fn place(
    reader: &Reader<'_>,
    path: &Path,
    file_len: usize,
    data_start: usize,
    entry: Entry,
) -> Result<TensorInfo, Problem> {
    let Entry { name, shape, tensor_type, offset } = entry;
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(tensor_type.block_len()) {
        return Err(reader.malformed(
            format!("tensor {name} has rows of {row} elements, not whole blocks of {tensor_type}"),
            format!("张量 {name} 每行 {row} 个元素，不是 {tensor_type} 块的整数倍"),
        ));
    }
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let range = elements.and_then(|elements| {
        let len = (elements / tensor_type.block_len()).checked_mul(tensor_type.block_bytes())?;
        let start = data_start.checked_add(usize::try_from(offset).ok()?)?;
        Some(start..start.checked_add(len)?)
    });
    match range {
        Some(range) if range.end <= file_len => Ok(TensorInfo { name, shape, tensor_type, range }),
        Some(range) => Err(mapped::truncated(path, file_len as u64, range.end as u64)),
        None => Err(mapped::truncated(path, file_len as u64, u64::MAX)),
    }
}
