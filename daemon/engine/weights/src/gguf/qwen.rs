//! `general.architecture` qwen2 and qwen3: Qwen2, Qwen2.5 and dense Qwen3.

use justtrain_worker_api::Problem;
use serde_json::Value;

use super::Gguf;
use super::architecture::{Architecture, hugging_face_name};
use super::keys::Keys;

pub(super) struct Qwen2;

impl Architecture for Qwen2 {
    fn name(&self) -> &'static str {
        "qwen2"
    }

    fn config(&self, gguf: &Gguf) -> Result<Value, Problem> {
        let mut config = Keys { gguf, architecture: self.name() }.shared("qwen2", "Qwen2ForCausalLM")?;
        config.insert("hidden_act".to_owned(), "silu".into());
        Ok(config.into())
    }

    fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        (gguf_name != "rope_freqs.weight").then(|| hugging_face_name(gguf_name, &[]))
    }
}

pub(super) struct Qwen3;

impl Architecture for Qwen3 {
    fn name(&self) -> &'static str {
        "qwen3"
    }

    fn config(&self, gguf: &Gguf) -> Result<Value, Problem> {
        let mut config = Keys { gguf, architecture: self.name() }.shared("qwen3", "Qwen3ForCausalLM")?;
        config.insert("hidden_act".to_owned(), "silu".into());
        config.insert("attention_bias".to_owned(), gguf.tensor("blk.0.attn_q.bias").is_some().into());
        Ok(config.into())
    }

    fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        let norms = [("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];
        Some(hugging_face_name(gguf_name, &norms))
    }
}
