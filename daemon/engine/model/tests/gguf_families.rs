//! Each family that llama.cpp has an architecture for: its GGUF is the Hugging Face folder that it was made from
//! (`scripts/golden/families_gguf.py`), tensor by tensor, but for what the format cannot say.

use std::path::{Path, PathBuf};

use justtrain_model::families::{decoder_config, from_config};
use justtrain_weights::Checkpoint;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// `changes` are the keys that a GGUF has another value for.
fn check(name: &str, changes: &[(&str, Value)]) {
    let gguf = Checkpoint::open(&fixture(&format!("gguf/{name}.gguf"))).unwrap();
    let folder = Checkpoint::open(&fixture(&format!("families/{name}"))).unwrap();
    assert_eq!(gguf.names().collect::<Vec<_>>(), folder.names().collect::<Vec<_>>());
    for tensor in folder.names() {
        let shape = folder.shape(tensor).unwrap();
        let (got, expected) = (gguf.read_f32(tensor, shape).unwrap(), folder.read_f32(tensor, shape).unwrap());
        // Gemma's norms went through 1 + w.
        let worst = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-7, "{tensor} is off by {worst}");
    }
    let mut config = folder.config().clone();
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    assert_eq!(decoder_config(&gguf).unwrap(), from_config(&config, &fixture("")).unwrap());
}

#[test]
fn mistral_with_its_window() {
    check("mistral", &[]);
}

#[test]
fn qwen() {
    check("qwen2", &[("use_sliding_window", json!(false)), ("layer_types", Value::Null)]);
    check("qwen3", &[]);
    // An expert's matrices lie in one tensor with those of all others of the block.
    check("qwen3_moe", &[]);
}

#[test]
fn gemma() {
    check("gemma2", &[("query_pre_attn_scalar", json!(8))]);
    check("gemma3_text", &[("query_pre_attn_scalar", json!(8)), ("layer_types", Value::Null)]);
}

#[test]
fn phi3() {
    check("phi3", &[]);
    check("phi3_longrope", &[]);
}
