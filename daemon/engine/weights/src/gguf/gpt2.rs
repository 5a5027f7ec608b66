//! `general.architecture` gpt2: GPT-2 and DistilGPT2.

use justtrain_worker_api::Problem;
use serde_json::{Value, json};

use super::Gguf;
use super::architecture::Architecture;
use super::keys::{Keys, decimal};

pub(super) struct Gpt2;

/// A block's tensors: llama.cpp's names and Hugging Face's.
const BLOCK: &[(&str, &str)] = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];

impl Architecture for Gpt2 {
    fn name(&self) -> &'static str {
        "gpt2"
    }

    fn config(&self, gguf: &Gguf) -> Result<Value, Problem> {
        let (keys, metadata) = (Keys { gguf, architecture: self.name() }, gguf.metadata());
        let embeddings =
            gguf.tensor("token_embd.weight").ok_or_else(|| crate::missing_tensor(gguf.path(), "token_embd.weight"))?;
        Ok(json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_embd": keys.number("embedding_length")?,
            "n_inner": keys.number("feed_forward_length")?,
            "n_layer": keys.number("block_count")?,
            "n_head": keys.number("attention.head_count")?,
            "n_positions": keys.number("context_length")?,
            "layer_norm_epsilon": decimal(metadata.require_f32("gpt2.attention.layer_norm_epsilon")?),
            "activation_function": "gelu_new",
            "vocab_size": embeddings.shape.first().copied().unwrap_or(0),
            "tie_word_embeddings": gguf.tensor("output.weight").is_none(),
            "bos_token_id": metadata.get_u32("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get_u32("tokenizer.ggml.eos_token_id"),
            "torch_dtype": "float32",
        }))
    }

    fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        let of_block = || {
            let (layer, part) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
            let (module, kind) = part.rsplit_once('.')?;
            let (_, module) = BLOCK.iter().find(|(gguf, _)| *gguf == module)?;
            Some(format!("transformer.h.{}.{module}.{kind}", layer.parse::<u32>().ok()?))
        };
        Some(match gguf_name {
            "token_embd.weight" => "transformer.wte.weight".to_owned(),
            "position_embd.weight" => "transformer.wpe.weight".to_owned(),
            "output_norm.weight" => "transformer.ln_f.weight".to_owned(),
            "output_norm.bias" => "transformer.ln_f.bias".to_owned(),
            "output.weight" => "lm_head.weight".to_owned(),
            name => of_block().unwrap_or_else(|| name.to_owned()),
        })
    }

    /// transformers' `Conv1D` holds `[inputs, outputs]`; llama.cpp's converter turns that round (`GPT2Model` in
    /// `conversion/gpt2.py`).
    fn is_transposed(&self, hugging_face_name: &str) -> bool {
        [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"].iter().any(|end| hugging_face_name.ends_with(end))
    }
}
