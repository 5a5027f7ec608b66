//! `general.architecture` llama: SmolLM2, Llama 2 and 3, TinyLlama.

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::{Value, json};

use super::architecture::{Architecture, RowOrder, common_name};
use super::{Gguf, dequantize};

pub(super) struct Llama;

impl Architecture for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn config(&self, gguf: &Gguf) -> Result<Value, Problem> {
        let metadata = gguf.metadata();
        refuse_experts(gguf)?;
        let number = |key: &str| metadata.require_u32(&format!("llama.{key}"));
        let (hidden_size, heads) = (number("embedding_length")?, number("attention.head_count")?);
        // A key that is absent has a default; one that is there and cannot be read is an error.
        let number_or = |key: &str, default: u32| match metadata.get(&format!("llama.{key}")) {
            Some(_) => number(key),
            None => Ok(default),
        };
        let head_dim =
            number_or("attention.key_length", number_or("rope.dimension_count", hidden_size / heads.max(1))?)?;
        let embeddings =
            gguf.tensor("token_embd.weight").ok_or_else(|| crate::missing_tensor(gguf.path(), "token_embd.weight"))?;
        Ok(json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden_size,
            "intermediate_size": number("feed_forward_length")?,
            "num_hidden_layers": number("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": number_or("attention.head_count_kv", heads)?,
            "head_dim": head_dim,
            "rms_norm_eps": decimal(metadata.require_f32("llama.attention.layer_norm_rms_epsilon")?),
            "rope_theta": decimal(metadata.get_f32("llama.rope.freq_base").unwrap_or(10_000.0)),
            "rope_scaling": rope_scaling(gguf),
            "max_position_embeddings": number("context_length")?,
            "vocab_size": embeddings.shape.first().copied().unwrap_or(0),
            "hidden_act": "silu",
            "attention_bias": gguf.tensor("blk.0.attn_q.bias").is_some(),
            "mlp_bias": gguf.tensor("blk.0.ffn_up.bias").is_some(),
            "tie_word_embeddings": gguf.tensor("output.weight").is_none(),
            "bos_token_id": metadata.get_u32("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get_u32("tokenizer.ggml.eos_token_id"),
            "pad_token_id": metadata.get_u32("tokenizer.ggml.padding_token_id"),
            "torch_dtype": "float32",
        }))
    }

    fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        common_name(gguf_name)
    }

    /// llama.cpp rotates neighbouring elements where Hugging Face rotates halves, so its converter interleaves the
    /// halves of each head, in weights and biases (`LlamaModel.permute` in `conversion/llama.py`).
    fn row_order(&self, hugging_face_name: &str, config: &Value) -> RowOrder {
        let heads = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
        if hugging_face_name.contains(".q_proj.") {
            RowOrder::InterleavedHalves { heads: heads("num_attention_heads") }
        } else if hugging_face_name.contains(".k_proj.") {
            RowOrder::InterleavedHalves { heads: heads("num_key_value_heads") }
        } else {
            RowOrder::AsStored
        }
    }
}

/// Mixtral, too, calls itself llama; its experts are another network.
fn refuse_experts(gguf: &Gguf) -> Result<(), Problem> {
    match gguf.metadata().get_u32("llama.expert_count") {
        None | Some(0) => Ok(()),
        Some(experts) => Err(Problem::error(
            ProblemCode::UnknownArchitecture,
            "mixture-of-experts models are not supported",
            "暂不支持混合专家模型",
        )
        .key("llama.expert_count")
        .found(experts)
        .expected("0")
        .fix("choose a dense model", "请选择稠密模型")),
    }
}

/// Hugging Face's `rope_scaling`, null where positions are not scaled.
///
/// For Llama 3.1 and later llama.cpp stores the divisors of the frequencies in a tensor; the largest is `factor`, and
/// the other settings are the same in every such release.
fn rope_scaling(gguf: &Gguf) -> Value {
    if let Some(tensor) = gguf.tensor("rope_freqs.weight") {
        let mut divisors = vec![0.0; tensor.shape.iter().product()];
        dequantize(tensor.tensor_type, gguf.bytes(tensor), &mut divisors);
        return json!({
            "rope_type": "llama3",
            "factor": decimal(divisors.into_iter().fold(1.0, f32::max)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
    }
    match gguf.metadata().get_str("llama.rope.scaling.type") {
        None | Some("none") => Value::Null,
        Some(kind) => json!({
            "rope_type": kind,
            "factor": gguf.metadata().get_f32("llama.rope.scaling.factor").map(decimal),
        }),
    }
}

/// The shortest decimal that is this `f32`: 0.00001, not 0.000009999999747378752.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
