//! One safetensors file, memory-mapped.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use justtrain_worker_api::{Problem, ProblemCode};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use crate::{SixteenBits, mapped};

/// An open file whose header has been checked against the file's length.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Mmap,
    tensors: HashMap<String, Info>,
    metadata: HashMap<String, String>,
}

#[derive(Debug)]
struct Info {
    shape: Vec<usize>,
    dtype: Dtype,
    range: Range<usize>,
}

impl SafetensorsFile {
    /// Fails with `FileNotFound`, `FileEmpty`, `FileTruncated` or `FileFormat`.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        let bytes = mapped::map(path)?;
        let header_end = header_end(path, &bytes)?;
        let (_, header) = SafeTensors::read_metadata(&bytes[..]).map_err(|error| not_safetensors(path, error))?;
        let tensors = header
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let range = header_end + info.data_offsets.0..header_end + info.data_offsets.1;
                (name, Info { shape: info.shape.clone(), dtype: info.dtype, range })
            })
            .collect();
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.to_owned(), bytes, tensors, metadata })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free-text part of the header.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|info| info.shape.as_slice())
    }

    /// The tensor as it is stored.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.tensors.get(name).map(|info| &self.bytes[info.range.clone()])
    }

    /// The tensor, where it is one of bytes.
    pub fn read_u8(&self, name: &str) -> Option<Vec<u8>> {
        let info = self.tensors.get(name).filter(|info| info.dtype == Dtype::U8)?;
        Some(self.bytes[info.range.clone()].to_vec())
    }

    /// Decodes any type of floats, F64 rounded; `UnknownTensorType` for others, `ShapeMismatch` where there is no such
    /// tensor.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, Problem> {
        let elements = self.elements(name)?;
        let mut output = vec![0.0; elements.len()];
        elements.read(0, &mut output);
        Ok(output)
    }

    /// A tensor of floats; fails as [`read_f32`](Self::read_f32).
    pub(crate) fn elements(&self, name: &str) -> Result<Elements<'_>, Problem> {
        let info = self.tensors.get(name).ok_or_else(|| crate::missing_tensor(&self.path, name))?;
        let kind = match info.dtype {
            Dtype::F64 => Some(Float::F64),
            Dtype::F32 => Some(Float::F32),
            Dtype::F16 => Some(Float::F16),
            Dtype::BF16 => Some(Float::Bf16),
            Dtype::F8_E4M3 if !self.is_scaled(name) => Some(Float::E4m3),
            Dtype::F8_E5M2 if !self.is_scaled(name) => Some(Float::E5m2),
            _ => None,
        };
        if let Some(kind) = kind {
            return Ok(Elements { bytes: &self.bytes, range: info.range.clone(), kind });
        }
        let dtype = info.dtype;
        Err(Problem::error(
            ProblemCode::UnknownTensorType,
            format!("tensor {name} is stored in a type that cannot be read"),
            format!("张量 {name} 的存储类型无法读取"),
        )
        .file(self.path.display())
        .found(if self.is_scaled(name) { format!("{dtype:?} with scales apart") } else { format!("{dtype:?}") })
        .expected("F64, F32, F16, BF16, F8_E4M3 or F8_E5M2")
        .fix("download the model's 16-bit or GGUF version", "请下载该模型的 16 位或 GGUF 版本"))
    }

    /// Quantised checkpoints keep what an 8-bit weight is multiplied by in a tensor beside it (`weight_scale` in
    /// compressed-tensors, `weight_scale_inv` in DeepSeek's). Without it the numbers mean something else.
    fn is_scaled(&self, name: &str) -> bool {
        ["_scale", "_scale_inv"].iter().any(|suffix| self.tensors.contains_key(&format!("{name}{suffix}")))
    }
}

#[derive(Clone, Copy)]
enum Float {
    F64,
    F32,
    F16,
    Bf16,
    E4m3,
    E5m2,
}

/// The numbers of one tensor, decoded as they are asked for.
pub(crate) struct Elements<'a> {
    bytes: &'a Mmap,
    range: Range<usize>,
    kind: Float,
}

impl Elements<'_> {
    fn width(&self) -> usize {
        match self.kind {
            Float::F64 => 8,
            Float::F32 => 4,
            Float::F16 | Float::Bf16 => 2,
            Float::E4m3 | Float::E5m2 => 1,
        }
    }

    fn len(&self) -> usize {
        self.range.len() / self.width()
    }

    pub(crate) fn sixteen_bits(&self) -> Option<SixteenBits> {
        match self.kind {
            Float::F64 | Float::F32 => None,
            Float::F16 => Some(SixteenBits::F16),
            Float::Bf16 | Float::E4m3 | Float::E5m2 => Some(SixteenBits::Bf16),
        }
    }

    /// Decodes elements `start .. start + output.len()`, whose bytes no longer count as this process's memory then.
    pub(crate) fn read(&self, start: usize, output: &mut [f32]) {
        let start = self.range.start + start * self.width();
        let range = start..start + output.len() * self.width();
        assert!(range.end <= self.range.end);
        let bytes = &self.bytes[range.clone()];
        match self.kind {
            Float::F64 => decode(bytes, output, |b| f64::from_le_bytes(b) as f32),
            Float::F32 => decode(bytes, output, f32::from_le_bytes),
            Float::F16 => decode(bytes, output, |b| f16::from_le_bytes(b).to_f32()),
            Float::Bf16 => decode(bytes, output, |b| bf16::from_le_bytes(b).to_f32()),
            Float::E4m3 => decode(bytes, output, |[b]| e4m3(b)),
            Float::E5m2 => decode(bytes, output, |[b]| e5m2(b)),
        }
        mapped::release(self.bytes, range);
    }
}

/// OCP's 8-bit float with 4 exponent bits (bias 7) and 3 of mantissa; no infinity, and NaN where all are set.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// OCP's other 8-bit float: the upper half of a half.
fn e5m2(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

fn decode<const N: usize>(bytes: &[u8], output: &mut [f32], number: impl Fn([u8; N]) -> f32 + Sync) {
    let (numbers, _) = bytes.as_chunks();
    output.par_iter_mut().zip(numbers).with_min_len(16 * 1024).for_each(|(output, &bytes)| *output = number(bytes));
}

/// Where the header ends, by its own length field; the file must reach as far as its last tensor does.
fn header_end(path: &Path, bytes: &[u8]) -> Result<usize, Problem> {
    let len = bytes.len() as u64;
    let Some(first) = bytes.first_chunk::<8>() else { return Err(mapped::truncated(path, len, 8)) };
    let end = u64::from_le_bytes(*first).saturating_add(8);
    if bytes.get(8) != Some(&b'{') {
        return Err(not_safetensors(path, "its header is not JSON"));
    }
    if end > len {
        return Err(mapped::truncated(path, len, end));
    }
    let header: serde_json::Value =
        serde_json::from_slice(&bytes[8..end as usize]).map_err(|error| not_safetensors(path, error))?;
    let last = header.as_object().into_iter().flatten().filter_map(|(_, tensor)| tensor["data_offsets"][1].as_u64());
    let needed = end.saturating_add(last.max().unwrap_or(0));
    if needed > len {
        return Err(mapped::truncated(path, len, needed));
    }
    Ok(end as usize)
}

fn not_safetensors(path: &Path, why: impl std::fmt::Display) -> Problem {
    Problem::error(ProblemCode::FileFormat, "this is not a safetensors file", "这不是 safetensors 文件")
        .file(path.display())
        .found(why)
        .expected("a length of 8 bytes, a JSON header, then the tensors")
        .fix("download the file again", "请重新下载该文件")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn fixture() -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny/model.safetensors");
        fs::read(path).unwrap()
    }

    /// Opens `bytes` and decodes whatever they claim to hold.
    fn read_all(bytes: &[u8]) -> Result<(), Problem> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        fs::write(&path, bytes).unwrap();
        let file = SafetensorsFile::open(&path)?;
        file.names().try_for_each(|name| file.read_f32(name).map(drop))
    }

    #[test]
    fn what_is_not_safetensors_is_named() {
        assert_eq!(read_all(b"").unwrap_err().code, ProblemCode::FileEmpty);
        assert_eq!(read_all(b"hello, world").unwrap_err().code, ProblemCode::FileFormat);
        let header = br#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}  "#;
        let file = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &[0; 8]].concat();
        let problem = read_all(&file).unwrap_err();
        assert_eq!((problem.code, problem.found.as_deref()), (ProblemCode::UnknownTensorType, Some("I64")));
    }

    /// Every 8-bit float and some 64-bit ones, beside what PyTorch makes of them (`scripts/golden/float_types.py`).
    #[test]
    fn every_type_of_floats_is_read_as_pytorch_does() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/float_types.safetensors");
        let file = SafetensorsFile::open(&path).unwrap();
        for name in ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"] {
            let (got, want) = (file.read_f32(name).unwrap(), file.read_f32(&format!("{name}.values")).unwrap());
            assert!(want.len() >= 8);
            for (got, want) in got.iter().zip(&want) {
                assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{name}: {got} {want}");
            }
        }
        let problem = file.read_f32("scaled.weight").unwrap_err();
        assert_eq!(problem.code, ProblemCode::UnknownTensorType);
        assert!(problem.found.unwrap().contains("scales"));
    }

    proptest! {
        /// Digits become other digits: offsets and shapes that do not belong together. Some changes are harmless; none
        /// may panic.
        #[test]
        fn no_changed_header_panics(changes in prop::collection::vec((0..1000usize, any::<u8>(), b'0'..=b'9'), 1..8)) {
            let mut bytes = fixture();
            for (at, byte, digit) in changes {
                bytes[at] = if bytes[at].is_ascii_digit() { digit } else { byte };
            }
            let _ = read_all(&bytes);
        }
    }
}
