//! `general.architecture` llama: SmolLM2, Llama 2 and 3, TinyLlama.

use justtrain_worker_api::Problem;
use serde_json::{Value, json};

use super::Metadata;
use super::architecture::{Architecture, RowOrder, common_name};

pub(super) struct Llama;

impl Architecture for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn config(&self, metadata: &Metadata, vocab_size: usize, tied: bool) -> Result<Value, Problem> {
        let number = |key: &str| metadata.require_u32(&format!("llama.{key}"));
        let (hidden_size, heads) = (number("embedding_length")?, number("attention.head_count")?);
        Ok(json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden_size,
            "intermediate_size": number("feed_forward_length")?,
            "num_hidden_layers": number("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": number("attention.head_count_kv").unwrap_or(heads),
            "head_dim": number("rope.dimension_count").unwrap_or(hidden_size / heads.max(1)),
            "rms_norm_eps": decimal(metadata.require_f32("llama.attention.layer_norm_rms_epsilon")?),
            "rope_theta": decimal(metadata.get_f32("llama.rope.freq_base").unwrap_or(10_000.0)),
            "max_position_embeddings": number("context_length")?,
            "vocab_size": vocab_size,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": tied,
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
    /// halves of each head (`LlamaModel.permute` in `conversion/llama.py`).
    fn row_order(&self, hugging_face_name: &str, config: &Value) -> RowOrder {
        let heads = |key: &str| config[key].as_u64().unwrap_or(1) as usize;
        if hugging_face_name.ends_with("q_proj.weight") {
            RowOrder::InterleavedHalves { heads: heads("num_attention_heads") }
        } else if hugging_face_name.ends_with("k_proj.weight") {
            RowOrder::InterleavedHalves { heads: heads("num_key_value_heads") }
        } else {
            RowOrder::AsStored
        }
    }
}

/// The shortest decimal that is this `f32`: 0.00001, not 0.000009999999747378752.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
