//! `general.architecture` qwen2, qwen3 and qwen3moe: Qwen2, Qwen2.5 and Qwen3, dense or with experts.

use justtrain_worker_api::Problem;
use serde_json::{Map, Value};

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
        let config = Keys { gguf, architecture: self.name() }.shared("qwen3", "Qwen3ForCausalLM")?;
        Ok(qwen3(gguf, config).into())
    }

    fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        Some(hugging_face_name(gguf_name, &NORMS))
    }
}

pub(super) struct Qwen3Moe;

impl Architecture for Qwen3Moe {
    fn name(&self) -> &'static str {
        "qwen3moe"
    }

    /// llama.cpp has experts in every block, and divides the weights of a token's experts by their sum.
    fn config(&self, gguf: &Gguf) -> Result<Value, Problem> {
        let keys = Keys { gguf, architecture: self.name() };
        let mut config = qwen3(gguf, keys.common("qwen3_moe", "Qwen3MoeForCausalLM")?);
        config.insert("num_experts".to_owned(), keys.number("expert_count")?.into());
        config.insert("num_experts_per_tok".to_owned(), keys.number("expert_used_count")?.into());
        config.insert("moe_intermediate_size".to_owned(), keys.number("expert_feed_forward_length")?.into());
        config.insert("norm_topk_prob".to_owned(), true.into());
        Ok(config.into())
    }

    fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        let [q, k] = NORMS;
        let own = [
            q,
            k,
            ("ffn_gate_inp", "mlp.gate"),
            ("ffn_gate_exps", "mlp.experts.*.gate_proj"),
            ("ffn_up_exps", "mlp.experts.*.up_proj"),
            ("ffn_down_exps", "mlp.experts.*.down_proj"),
        ];
        Some(hugging_face_name(gguf_name, &own))
    }
}

const NORMS: [(&str, &str); 2] = [("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];

/// What both kinds of Qwen3 have.
fn qwen3(gguf: &Gguf, mut config: Map<String, Value>) -> Map<String, Value> {
    config.insert("hidden_act".to_owned(), "silu".into());
    config.insert("attention_bias".to_owned(), gguf.tensor("blk.0.attn_q.bias").is_some().into());
    config
}
