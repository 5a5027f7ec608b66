//! A cursor over the header's bytes that never reads past the end and never trusts a length.

use std::path::Path;

use justtrain_worker_api::{Problem, ProblemCode};

use super::metadata::{Array, Value};
use crate::mapped;

/// Arrays of arrays deeper than this are refused; no known file nests at all.
const MAX_ARRAY_DEPTH: usize = 4;

pub(super) struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn malformed(&self, en: impl Into<String>, zh: impl Into<String>) -> Problem {
        Problem::error(ProblemCode::FileFormat, en, zh)
            .file(self.path.display())
            .fix("the file is damaged; download the model again", "文件已损坏，请重新下载模型")
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let taken = self.bytes[self.position..].get(..count).ok_or_else(|| self.too_short(count as u64))?;
        self.position += count;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.take_array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.take_array()?))
    }

    /// A count of things of which each takes at least `min_bytes`: one that the rest of the file cannot hold is refused
    /// before anything is allocated for it.
    pub(super) fn count(&mut self, min_bytes: usize) -> Result<usize, Problem> {
        let count = self.u64()?;
        let needed = count.saturating_mul(min_bytes as u64);
        if needed > (self.bytes.len() - self.position) as u64 {
            return Err(self.too_short(needed));
        }
        // The file is mapped, so its length, and with it the count, fits `usize`.
        Ok(count as usize)
    }

    pub(super) fn string(&mut self) -> Result<String, Problem> {
        let start = self.position;
        let length = self.count(1)?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| {
            self.malformed(
                format!("the text at byte {start} of the header is not UTF-8"),
                format!("文件头第 {start} 字节处的文本不是 UTF-8"),
            )
        })
    }

    /// A value type number, then the value.
    pub(super) fn value(&mut self) -> Result<Value, Problem> {
        Ok(match self.u32()? {
            0 => Value::U8(u8::from_le_bytes(self.take_array()?)),
            1 => Value::I8(i8::from_le_bytes(self.take_array()?)),
            2 => Value::U16(u16::from_le_bytes(self.take_array()?)),
            3 => Value::I16(i16::from_le_bytes(self.take_array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.take_array()?)),
            6 => Value::F32(f32::from_le_bytes(self.take_array()?)),
            7 => Value::Bool(u8::from_le_bytes(self.take_array()?) != 0),
            8 => Value::String(self.string()?),
            9 => Value::Array(self.array(MAX_ARRAY_DEPTH)?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.take_array()?)),
            12 => Value::F64(f64::from_le_bytes(self.take_array()?)),
            id => return Err(self.unknown_value_type(id)),
        })
    }

    /// An element type number, a count, then the elements.
    fn array(&mut self, depth: usize) -> Result<Array, Problem> {
        Ok(match self.u32()? {
            0 => Array::U8(self.numbers(u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(f32::from_le_bytes)?),
            7 => Array::Bool(self.numbers(|[byte]: [u8; 1]| byte != 0)?),
            8 => {
                let count = self.count(8)?;
                Array::String((0..count).map(|_| self.string()).collect::<Result<_, _>>()?)
            }
            9 if depth > 0 => {
                let count = self.count(12)?;
                Array::Array((0..count).map(|_| self.array(depth - 1)).collect::<Result<_, _>>()?)
            }
            9 => return Err(self.malformed("arrays are nested too deeply", "数组嵌套过深")),
            10 => Array::U64(self.numbers(u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(f64::from_le_bytes)?),
            id => return Err(self.unknown_value_type(id)),
        })
    }

    fn numbers<T, const N: usize>(&mut self, decode: impl Fn([u8; N]) -> T) -> Result<Vec<T>, Problem> {
        let count = self.count(N)?;
        let (elements, _) = self.take(count * N)?.as_chunks();
        Ok(elements.iter().map(|&element| decode(element)).collect())
    }

    fn too_short(&self, more: u64) -> Problem {
        mapped::truncated(self.path, self.bytes.len() as u64, (self.position as u64).saturating_add(more))
    }

    fn unknown_value_type(&self, id: u32) -> Problem {
        self.malformed(format!("metadata has a value of unknown type {id}"), format!("元数据中有未知类型 {id} 的值"))
    }
}
