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
        refuse_variants(gguf)?;
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
        match gguf_name {
            "rope_freqs.weight" => None,
            name => Some(common_name(name).unwrap_or_else(|| name.to_owned())),
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

/// Other networks call themselves llama, too: Mixtral with its experts, Mistral with its window, and those that rotate
/// only a part of each head.
fn refuse_variants(gguf: &Gguf) -> Result<(), Problem> {
    let metadata = gguf.metadata();
    let partial = metadata.get_u32("llama.attention.key_length").and_then(|head_dim| {
        metadata.get_u32("llama.rope.dimension_count").filter(|&rotated| rotated != head_dim).zip(Some(head_dim))
    });
    let absent_or_0 = |key| metadata.get_u32(key).filter(|&number| number > 0).map(|number| (key, number, 0));
    let found = absent_or_0("llama.expert_count")
        .or_else(|| absent_or_0("llama.attention.sliding_window"))
        .or_else(|| partial.map(|(rotated, head_dim)| ("llama.rope.dimension_count", rotated, head_dim)));
    match found {
        None => Ok(()),
        Some((key, found, expected)) => Err(Problem::error(
            ProblemCode::UnknownArchitecture,
            "this variant of llama is not supported",
            "暂不支持 llama 的这种变体",
        )
        .key(key)
        .found(found)
        .expected(expected)
        .fix(
            "choose another model: one without experts, window or partial rotation",
            "请选择其他模型：不含专家、滑动窗口或部分旋转",
        )),
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

#[cfg(test)]
mod tests {
    use std::fs;

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
            (vec![("llama.attention.sliding_window", 4096)], "llama.attention.sliding_window", "4096", "0"),
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
