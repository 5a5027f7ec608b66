//! Reads keys of `config.json` with errors that name file and key.

use std::path::PathBuf;

use justtrain_kernels::Heads;
use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

pub(super) struct ConfigReader<'a> {
    pub(super) values: &'a Value,
    /// `config.json`, or the GGUF file that its keys were read from.
    pub(super) path: PathBuf,
}

impl ConfigReader<'_> {
    pub(super) fn size(&self, key: &str) -> Result<usize, Problem> {
        self.values[key]
            .as_u64()
            .filter(|&size| size > 0)
            .map(|size| size as usize)
            .ok_or_else(|| self.wrong(ProblemCode::MissingKey, key, &self.values[key], "a positive whole number"))
    }

    /// `default` where the key is absent or null.
    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, Problem> {
        if self.values[key].is_null() { Ok(default) } else { self.size(key) }
    }

    pub(super) fn number(&self, key: &str) -> Result<f64, Problem> {
        self.values[key].as_f64().ok_or_else(|| self.wrong(ProblemCode::MissingKey, key, &self.values[key], "a number"))
    }

    /// None where the key is null; `default` where it is absent.
    pub(super) fn number_or_null(&self, key: &str, default: Option<f64>) -> Result<Option<f64>, Problem> {
        match self.values.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.number(key).map(Some),
        }
    }

    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool, Problem> {
        match &self.values[key] {
            Value::Null => Ok(default),
            Value::Bool(flag) => Ok(*flag),
            other => Err(self.wrong(ProblemCode::InvalidValue, key, other, "true or false")),
        }
    }

    /// Keys that may have one value only, as JSON; an absent key has it.
    pub(super) fn require(&self, fixed: &[(&str, &str)]) -> Result<(), Problem> {
        for (key, only) in fixed {
            let value = &self.values[*key];
            let written = value.to_string();
            if !value.is_null() && written != *only {
                return Err(self.wrong(ProblemCode::InvalidValue, key, value, only));
            }
        }
        Ok(())
    }

    /// `head_dim` is what a head's width is where the configuration does not say it.
    pub(super) fn heads(&self, head_dim: usize) -> Result<Heads, Problem> {
        let query = self.size("num_attention_heads")?;
        let heads = Heads {
            query,
            key_value: self.size_or("num_key_value_heads", query)?,
            dim: self.size_or("head_dim", head_dim)?,
        };
        if !heads.query.is_multiple_of(heads.key_value) || !heads.dim.is_multiple_of(2) {
            let found = &self.values["num_key_value_heads"];
            let expected = "a divisor of num_attention_heads, and an even head_dim";
            return Err(self.wrong(ProblemCode::InvalidValue, "num_key_value_heads", found, expected));
        }
        Ok(heads)
    }

    /// The width of a head that divides the hidden state among the query heads.
    pub(super) fn equal_head_dim(&self) -> Result<usize, Problem> {
        Ok(self.size("hidden_size")? / self.size("num_attention_heads")?)
    }

    /// Of each layer whether its attention has a window: what `layer_types` says, else `by_index`.
    pub(super) fn sliding_layers(&self, by_index: impl Fn(usize) -> bool) -> Result<Vec<bool>, Problem> {
        let (layers, types) = (self.size("num_hidden_layers")?, &self.values["layer_types"]);
        if types.is_null() {
            return Ok((0..layers).map(by_index).collect());
        }
        let kind = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        };
        let sliding: Option<Vec<bool>> = types.as_array().and_then(|types| types.iter().map(kind).collect());
        sliding.filter(|sliding| sliding.len() == layers).ok_or_else(|| {
            let expected = format!("full_attention or sliding_attention for each of {layers} layers");
            self.wrong(ProblemCode::InvalidValue, "layer_types", types, &expected)
        })
    }

    pub(super) fn wrong(&self, code: ProblemCode, key: &str, found: &Value, expected: &str) -> Problem {
        Problem::error(code, "the model's configuration cannot be used", "模型配置无法使用")
            .file(self.path.display())
            .key(key)
            .found(found)
            .expected(expected)
            .fix("download the model again, or choose another one", "请重新下载模型，或选择其他模型")
    }
}
