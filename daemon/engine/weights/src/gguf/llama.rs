//! `general.architecture` llama: SmolLM2, Llama 2 and 3, TinyLlama; and Mistral, which llama.cpp calls a llama, too.

use justtrain_worker_api::Problem;
use serde_json::{Value, json};

use super::Gguf;
use super::architecture::{Architecture, RowOrder, hugging_face_name};
use super::keys::Keys;

pub(super) struct Llama;

impl Architecture for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn config(&self, gguf: &Gguf) -> Result<Value, Problem> {
        let keys = Keys { gguf, architecture: self.name() };
        // llama.cpp's converter drops the window of early Mistrals and computes without one, as transformers does with
        // such a file. Where a file does name a window, it counts.
        let window = keys.positive("attention.sliding_window")?;
        let mut config = match window.is_null() {
            true => keys.shared("llama", "LlamaForCausalLM")?,
            false => keys.shared("mistral", "MistralForCausalLM")?,
        };
        config.insert("sliding_window".to_owned(), window);
        if let Some(divisors) = keys.factors("rope_freqs.weight") {
            config.insert("rope_scaling".to_owned(), llama3_scaling(divisors));
        }
        config.insert("hidden_act".to_owned(), "silu".into());
        config.insert("attention_bias".to_owned(), gguf.tensor("blk.0.attn_q.bias").is_some().into());
        config.insert("mlp_bias".to_owned(), gguf.tensor("blk.0.ffn_up.bias").is_some().into());
        Ok(config.into())
    }

    fn hugging_face_name(&self, gguf_name: &str) -> Option<String> {
        match gguf_name {
            "rope_freqs.weight" => None,
            name => Some(hugging_face_name(name, &[])),
        }
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

/// For Llama 3.1 and later llama.cpp stores the divisors of the frequencies in a tensor; the largest is `factor`, and
/// the other settings are the same in every such release.
fn llama3_scaling(divisors: Vec<f64>) -> Value {
    json!({
        "rope_type": "llama3",
        "factor": divisors.into_iter().fold(1.0, f64::max),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use justtrain_worker_api::ProblemCode;

    use super::*;
    use crate::Checkpoint;

    /// A GGUF of version 3 with the metadata a llama must have, plus `numbers` (u32) and `tensors` (f32).
    fn open(numbers: &[(&str, u32)], tensors: &[(&str, &[u64], &[f32])]) -> Result<Checkpoint, Problem> {
        let text = |file: &mut Vec<u8>, text: &str| {
            file.extend((text.len() as u64).to_le_bytes());
            file.extend(text.as_bytes());
        };
        let needed = [
            ("llama.embedding_length", 4),
            ("llama.feed_forward_length", 4),
            ("llama.block_count", 1),
            ("llama.attention.head_count", 1),
            ("llama.context_length", 8),
        ];
        let numbers: Vec<_> = needed.iter().chain(numbers).collect();
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend((tensors.len() as u64 + 1).to_le_bytes());
        file.extend((numbers.len() as u64 + 2).to_le_bytes());
        text(&mut file, "general.architecture");
        file.extend(8u32.to_le_bytes());
        text(&mut file, "llama");
        text(&mut file, "llama.attention.layer_norm_rms_epsilon");
        file.extend(6u32.to_le_bytes());
        file.extend(1e-5f32.to_le_bytes());
        for (key, number) in numbers {
            text(&mut file, key);
            file.extend(4u32.to_le_bytes());
            file.extend(number.to_le_bytes());
        }
        let embeddings = ("token_embd.weight", [4u64, 2].as_slice(), [0.5f32; 8].as_slice());
        let mut data = Vec::new();
        for (name, dims, values) in std::iter::once(&embeddings).chain(tensors) {
            text(&mut file, name);
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(0u32.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            values.iter().for_each(|value| data.extend(value.to_le_bytes()));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        fs::write(&path, file).unwrap();
        Checkpoint::open(&path)
    }

    #[test]
    fn absent_keys_have_llamas_defaults() {
        let checkpoint = open(&[], &[]).unwrap();
        let config = checkpoint.config();
        assert_eq!((&config["num_key_value_heads"], &config["head_dim"]), (&json!(1), &json!(4)));
        assert_eq!((&config["rope_theta"], &config["rope_scaling"]), (&json!(10_000.0), &Value::Null));
        assert_eq!((&config["rms_norm_eps"], &config["vocab_size"]), (&json!(0.00001), &json!(2)));
        assert_eq!((&config["tie_word_embeddings"], &config["attention_bias"]), (&json!(true), &json!(false)));
    }

    #[test]
    fn scaled_positions_are_told() {
        let checkpoint = open(&[], &[("rope_freqs.weight", &[2], &[1.0, 32.0])]).unwrap();
        let scaling = &checkpoint.config()["rope_scaling"];
        assert_eq!((&scaling["rope_type"], &scaling["factor"]), (&json!("llama3"), &json!(32.0)));
    }

    #[test]
    fn a_query_bias_is_told_and_put_in_order() {
        let checkpoint = open(&[], &[("blk.0.attn_q.bias", &[4], &[0.0, 2.0, 1.0, 3.0])]).unwrap();
        assert_eq!(checkpoint.config()["attention_bias"], json!(true));
        let bias = checkpoint.read_f32("model.layers.0.self_attn.q_proj.bias", &[4]).unwrap();
        assert_eq!(bias, [0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn a_tensor_that_hugging_face_does_not_know_keeps_its_name() {
        let checkpoint = open(&[], &[("blk.0.attn_q_norm.weight", &[4], &[1.0; 4])]).unwrap();
        assert!(checkpoint.names().any(|name| name == "blk.0.attn_q_norm.weight"));
        assert_eq!(checkpoint.read_f32("blk.0.attn_q_norm.weight", &[4]).unwrap(), [1.0; 4]);
        let scaled = open(&[], &[("rope_freqs.weight", &[2], &[1.0, 32.0])]).unwrap();
        assert_eq!(scaled.names().collect::<Vec<_>>(), ["model.embed_tokens.weight"]);
    }

    #[test]
    fn other_networks_of_the_same_name_and_parts_are_refused() {
        let rotation = ("llama.rope.dimension_count", 2);
        for (numbers, key, found, expected) in [
            (vec![("llama.expert_count", 8)], "llama.expert_count", "8", "0"),
            (vec![("llama.attention.key_length", 4), rotation], "llama.rope.dimension_count", "2", "4"),
        ] {
            let problem = open(&numbers, &[]).unwrap_err();
            assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::UnknownArchitecture, Some(key)));
            assert_eq!((problem.found.as_deref(), problem.expected.as_deref()), (Some(found), Some(expected)));
            assert!(problem.file.unwrap().ends_with("x.gguf"));
        }
        let problem = open(&[("split.count", 3)], &[]).unwrap_err();
        assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::FileFormat, Some("split.count")));
    }
}
