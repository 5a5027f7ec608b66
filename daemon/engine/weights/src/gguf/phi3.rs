//! `general.architecture` phi3: Phi-3 and Phi-3.5 mini.

use justtrain_worker_api::Problem;
use serde_json::{Value, json};

use super::Gguf;
use super::architecture::{Architecture, hugging_face_name};
use super::keys::Keys;

pub(super) struct Phi3;

impl Architecture for Phi3 {
    fn name(&self) -> &'static str {
        "phi3"
    }

    fn config(&self, gguf: &Gguf) -> Result<Value, Problem> {
        let keys = Keys { gguf, architecture: self.name() };
        let mut config = keys.shared("phi3", "Phi3ForCausalLM")?;
        config.insert("hidden_act".to_owned(), "silu".into());
        config.insert("sliding_window".to_owned(), keys.positive("attention.sliding_window")?);
        let factors = ["rope_factors_short.weight", "rope_factors_long.weight"].map(|name| keys.factors(name));
        if let [Some(short), Some(long)] = factors {
            let mut scaling = json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long });
            let amplitude = keys.decimal("rope.scaling.attn_factor")?;
            if !amplitude.is_null() {
                scaling["attention_factor"] = amplitude;
            }
            config.insert("rope_scaling".to_owned(), scaling);
            let original = keys.positive("rope.scaling.original_context_length")?;
            config.insert("original_max_position_embeddings".to_owned(), original);
        }
        Ok(config.into())
    }

    fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        let fused = [("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")];
        (!gguf_name.starts_with("rope_factors_")).then(|| hugging_face_name(gguf_name, &fused))
    }
}
