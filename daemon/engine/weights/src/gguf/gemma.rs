//! `general.architecture` gemma2 and gemma3, language models alone.

use justtrain_worker_api::Problem;
use serde_json::{Map, Value};

use super::Gguf;
use super::architecture::{Architecture, hugging_face_name};
use super::keys::Keys;

const NAMES: &[(&str, &str)] = &[
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

pub(super) struct Gemma2;

impl Architecture for Gemma2 {
    fn name(&self) -> &'static str {
        "gemma2"
    }

    fn config(&self, gguf: &Gguf) -> Result<Value, Problem> {
        let keys = Keys { gguf, architecture: self.name() };
        // The key is not in the file. As llama.cpp has it, the 27B model (46 blocks) is the one that differs.
        let mut config = shared(&keys, "gemma2", "Gemma2ForCausalLM", 46)?;
        config.insert("attn_logit_softcapping".to_owned(), keys.decimal("attn_logit_softcapping")?);
        Ok(config.into())
    }

    fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        Some(hugging_face_name(gguf_name, NAMES))
    }

    fn norms_hold_one_more(&self) -> bool {
        true
    }
}

pub(super) struct Gemma3;

impl Architecture for Gemma3 {
    fn name(&self) -> &'static str {
        "gemma3"
    }

    fn config(&self, gguf: &Gguf) -> Result<Value, Problem> {
        let keys = Keys { gguf, architecture: self.name() };
        let mut config = shared(&keys, "gemma3_text", "Gemma3ForCausalLM", 62)?;
        // Not in the file either; every Gemma 3 has them.
        config.insert("rope_local_base_freq".to_owned(), 10_000.0.into());
        config.insert("sliding_window_pattern".to_owned(), 6.into());
        Ok(config.into())
    }

    fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        Some(hugging_face_name(gguf_name, NAMES))
    }

    fn norms_hold_one_more(&self) -> bool {
        true
    }
}

/// `of_27b` is the number of blocks of the one model whose queries are scaled by the hidden state's share of a head and
/// not by the head's width.
fn shared(keys: &Keys<'_>, model_type: &str, class: &str, of_27b: u64) -> Result<Map<String, Value>, Problem> {
    let mut config = keys.shared(model_type, class)?;
    let scalar = match config["num_hidden_layers"].as_u64() == Some(of_27b) {
        true => Value::from(keys.number("embedding_length")? / keys.number("attention.head_count")?.max(1)),
        false => config["head_dim"].clone(),
    };
    config.insert("query_pre_attn_scalar".to_owned(), scalar);
    config.insert("hidden_activation".to_owned(), "gelu_pytorch_tanh".into());
    config.insert("sliding_window".to_owned(), keys.positive("attention.sliding_window")?);
    config.insert("final_logit_softcapping".to_owned(), keys.decimal("final_logit_softcapping")?);
    Ok(config)
}
