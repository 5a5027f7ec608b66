//! Metadata of an architecture as keys of Hugging Face's `config.json`.

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::{Map, Value, json};

use super::{Gguf, dequantize};

/// The keys that start with the architecture's name: `qwen2.block_count`.
pub(super) struct Keys<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) architecture: &'static str,
}

impl Keys<'_> {
    pub(super) fn number(&self, key: &str) -> Result<u32, Problem> {
        self.gguf.metadata().require_u32(&self.full(key))
    }

    /// A key that is absent has a default; one that is there and cannot be read is an error.
    pub(super) fn number_or(&self, key: &str, default: u32) -> Result<u32, Problem> {
        if self.has(key) { self.number(key) } else { Ok(default) }
    }

    /// The shortest decimal that is the stored `f32`; null where the key is absent.
    pub(super) fn decimal(&self, key: &str) -> Result<Value, Problem> {
        match self.has(key) {
            false => Ok(Value::Null),
            true => self.gguf.metadata().require_f32(&self.full(key)).map(|value| decimal(value).into()),
        }
    }

    /// A number above 0; null where the key is absent or 0.
    pub(super) fn positive(&self, key: &str) -> Result<Value, Problem> {
        Ok(Some(self.number_or(key, 0)?).filter(|&number| number > 0).into())
    }

    /// What all our architectures have, of a network without experts.
    pub(super) fn shared(&self, model_type: &str, class: &str) -> Result<Map<String, Value>, Problem> {
        match self.positive("expert_count")?.as_u64() {
            Some(experts) => Err(self.variant("expert_count", experts as u32, 0)),
            None => self.common(model_type, class),
        }
    }

    /// What all our architectures have.
    pub(super) fn common(&self, model_type: &str, class: &str) -> Result<Map<String, Value>, Problem> {
        let (gguf, metadata) = (self.gguf, self.gguf.metadata());
        let (hidden_size, heads) = (self.number("embedding_length")?, self.number("attention.head_count")?);
        let rotated = self.number_or("rope.dimension_count", hidden_size / heads.max(1))?;
        let head_dim = self.number_or("attention.key_length", rotated)?;
        if rotated != head_dim && self.has("rope.dimension_count") {
            return Err(self.variant("rope.dimension_count", rotated, head_dim));
        }
        let embeddings =
            gguf.tensor("token_embd.weight").ok_or_else(|| crate::missing_tensor(gguf.path(), "token_embd.weight"))?;
        let theta = self.decimal("rope.freq_base")?;
        let config = json!({
            "architectures": [class],
            "model_type": model_type,
            "hidden_size": hidden_size,
            "intermediate_size": self.number("feed_forward_length")?,
            "num_hidden_layers": self.number("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.number_or("attention.head_count_kv", heads)?,
            "head_dim": head_dim,
            "rms_norm_eps": decimal(metadata.require_f32(&self.full("attention.layer_norm_rms_epsilon"))?),
            "rope_theta": if theta.is_null() { 10_000.0.into() } else { theta },
            "rope_scaling": self.rope_scaling()?,
            "max_position_embeddings": self.number("context_length")?,
            "vocab_size": embeddings.shape.first().copied().unwrap_or(0),
            "tie_word_embeddings": gguf.tensor("output.weight").is_none(),
            "bos_token_id": metadata.get_u32("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get_u32("tokenizer.ggml.eos_token_id"),
            "pad_token_id": metadata.get_u32("tokenizer.ggml.padding_token_id"),
            "torch_dtype": "float32",
        });
        let Value::Object(config) = config else { unreachable!("an object was written") };
        Ok(config)
    }

    /// Hugging Face's `rope_scaling`, null where positions are not scaled.
    fn rope_scaling(&self) -> Result<Value, Problem> {
        let kind = self.gguf.metadata().get_str(&self.full("rope.scaling.type"));
        let Some(kind) = kind.filter(|&kind| kind != "none") else { return Ok(Value::Null) };
        let mut scaling = json!({ "rope_type": kind, "factor": self.decimal("rope.scaling.factor")? });
        let original = self.positive("rope.scaling.original_context_length")?;
        if !original.is_null() {
            scaling["original_max_position_embeddings"] = original;
        }
        Ok(scaling)
    }

    /// All numbers of a tensor of factors, as the shortest decimals; None where there is no such tensor.
    pub(super) fn factors(&self, name: &str) -> Option<Vec<f64>> {
        let tensor = self.gguf.tensor(name)?;
        let mut factors = vec![0.0; tensor.shape.iter().product()];
        dequantize(tensor.tensor_type, self.gguf.bytes(tensor), &mut factors);
        Some(factors.into_iter().map(decimal).collect())
    }

    /// The network has the architecture's name and another structure.
    pub(super) fn variant(&self, key: &str, found: u32, expected: u32) -> Problem {
        let name = self.architecture;
        Problem::error(
            ProblemCode::UnknownArchitecture,
            format!("this variant of {name} is not supported"),
            format!("暂不支持 {name} 的这种变体"),
        )
        .key(self.full(key))
        .found(found)
        .expected(expected)
        .fix("choose another model: one without experts or partial rotation", "请选择其他模型：不含专家或部分旋转")
    }

    fn has(&self, key: &str) -> bool {
        self.gguf.metadata().get(&self.full(key)).is_some()
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
}

/// The shortest decimal that is this `f32`: 0.00001, not 0.000009999999747378752.
pub(super) fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
