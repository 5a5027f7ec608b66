//! The key-value part of a GGUF file.

use std::collections::BTreeMap;

use justtrain_worker_api::{Problem, ProblemCode};

/// One metadata value, with the type that the file gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Elements of one type; an array of arrays may mix element types.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Any integer type whose value fits.
    pub fn as_u32(&self) -> Option<u32> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::I8(value) => value.try_into().ok(),
            Self::U16(value) => Some(value.into()),
            Self::I16(value) => value.try_into().ok(),
            Self::U32(value) => Some(value),
            Self::I32(value) => value.try_into().ok(),
            Self::U64(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// Either float type; `f64` is rounded.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Self::F32(value) => Some(value),
            Self::F64(value) => Some(value as f32),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Self::Array(value) => Some(value),
            _ => None,
        }
    }

    /// What the value is, for an error message; long ones are not printed.
    fn describe(&self) -> String {
        match self {
            Self::String(text) if text.chars().count() > 40 => format!("a text of {} bytes", text.len()),
            Self::String(text) => format!("the text \"{text}\""),
            Self::Array(array) => format!("an array of {}", array.len()),
            Self::U8(value) => value.to_string(),
            Self::I8(value) => value.to_string(),
            Self::U16(value) => value.to_string(),
            Self::I16(value) => value.to_string(),
            Self::U32(value) => value.to_string(),
            Self::I32(value) => value.to_string(),
            Self::F32(value) => format!("{value:?}"),
            Self::Bool(value) => value.to_string(),
            Self::U64(value) => value.to_string(),
            Self::I64(value) => value.to_string(),
            Self::F64(value) => format!("{value:?}"),
        }
    }
}

impl Array {
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U16(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::String(values) => values.len(),
            Self::Array(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::String(values) => Some(values),
            _ => None,
        }
    }

    /// Any integer type; None when an element does not fit.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        match self {
            Self::U8(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Self::I8(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Self::U16(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Self::I16(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Self::U32(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Self::I32(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Self::U64(values) => values.iter().map(|&value| value.try_into().ok()).collect(),
            Self::I64(values) => Some(values.clone()),
            _ => None,
        }
    }

    /// Either float type; `f64` is rounded.
    pub fn to_f32s(&self) -> Option<Vec<f32>> {
        match self {
            Self::F32(values) => Some(values.clone()),
            Self::F64(values) => Some(values.iter().map(|&value| value as f32).collect()),
            _ => None,
        }
    }
}

/// Keys and values, in the order of the keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// False when the key was there already; the first value stays.
    pub(super) fn insert(&mut self, key: String, value: Value) -> bool {
        if self.values.contains_key(&key) {
            return false;
        }
        self.values.insert(key, value);
        true
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// None when the key is absent or holds another type; so for all `get_*`.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    pub fn get_u32(&self, key: &str) -> Option<u32> {
        self.get(key)?.as_u32()
    }

    pub fn get_f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    pub fn get_bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    pub fn get_strings(&self, key: &str) -> Option<&[String]> {
        self.get(key)?.as_array()?.as_strings()
    }

    pub fn get_i64s(&self, key: &str) -> Option<Vec<i64>> {
        self.get(key)?.as_array()?.to_i64s()
    }

    pub fn get_f32s(&self, key: &str) -> Option<Vec<f32>> {
        self.get(key)?.as_array()?.to_f32s()
    }

    /// `MissingKey` when the key is absent, `WrongType` when it holds another type; so for all `require_*`.
    /// The caller names the file.
    pub fn require_str(&self, key: &str) -> Result<&str, Problem> {
        self.require(key, "a text", Value::as_str)
    }

    pub fn require_u32(&self, key: &str) -> Result<u32, Problem> {
        self.require(key, "a whole number in 0..=4294967295", Value::as_u32)
    }

    pub fn require_f32(&self, key: &str) -> Result<f32, Problem> {
        self.require(key, "a float", Value::as_f32)
    }

    pub fn require_strings(&self, key: &str) -> Result<&[String], Problem> {
        self.require(key, "an array of texts", |value| value.as_array()?.as_strings())
    }

    fn require<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, Problem> {
        let Some(value) = self.get(key) else {
            return Err(Problem::error(
                ProblemCode::MissingKey,
                "the model file lacks a metadata key",
                "模型文件缺少一个元数据键",
            )
            .key(key)
            .expected(expected)
            .fix("use a GGUF file made by a current llama.cpp", "请使用由新版 llama.cpp 生成的 GGUF 文件"));
        };
        read(value).ok_or_else(|| {
            Problem::error(
                ProblemCode::WrongType,
                "a metadata key of the model file has the wrong type",
                "模型文件中一个元数据键的类型不对",
            )
            .key(key)
            .found(value.describe())
            .expected(expected)
            .fix("use a GGUF file made by a current llama.cpp", "请使用由新版 llama.cpp 生成的 GGUF 文件")
        })
    }
}
