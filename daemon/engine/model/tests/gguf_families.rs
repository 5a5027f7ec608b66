//! Each family that llama.cpp has an architecture for: its GGUF is the Hugging Face folder that it was made from
//! (`scripts/golden/families_gguf.py`), tensor by tensor, but for what the format cannot say.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use justtrain_model::families::{decoder_config, from_config};
use justtrain_model::kernels::Numbers;
use justtrain_model::parameters::Parameters;
use justtrain_model::{Decoder, WeightFormat, WeightFormats};
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
    let decoder = |checkpoint, formats| Decoder::load(checkpoint, &Device::flex(), formats).unwrap();
    let kept = decoder(&gguf, WeightFormats::new(WeightFormat::Gguf, WeightFormat::Gguf));
    for (kept, folder) in kept.projections().zip(decoder(&folder, WeightFormats::default()).projections()) {
        let [kept, folder] = [kept, folder].map(|layer| (layer.name.clone(), layer.weight.to_tensor(&Device::flex())));
        assert!(kept.0 == folder.0 && kept.1.to_data() == folder.1.to_data(), "{}", kept.0);
    }
}

/// Blocks that are kept are the numbers that the file decodes to, and those are the folder's but for the rounding.
fn check_blocks(name: &str) {
    let gguf = Checkpoint::open(&fixture(&format!("gguf/{name}-q8_0.gguf"))).unwrap();
    let folder = Checkpoint::open(&fixture(&format!("families/{name}"))).unwrap();
    let load = |checkpoint, formats| Decoder::load(checkpoint, &Device::flex(), formats).unwrap();
    let mut kept = load(&gguf, WeightFormats::new(WeightFormat::Gguf, WeightFormat::Gguf));
    let mut decoded = load(&gguf, WeightFormats::default());
    let mut original = load(&folder, WeightFormats::default());
    let weights = kept.parameters_mut().into_iter().zip(decoded.parameters_mut()).zip(original.parameters_mut());
    let mut rounded = 0;
    for ((kept, decoded), original) in weights {
        let [kept, decoded, original] = [kept, decoded, original].map(|weight| (weight.name.clone(), weight.values()));
        assert!(kept == decoded && decoded.0 == original.0, "{}", original.0);
        let largest = original.1.iter().fold(0.0f32, |largest, number| largest.max(number.abs()));
        let off = decoded.1.iter().zip(&original.1).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        // Half a step of 127, and a scale of 11 bits.
        assert!(off <= largest / 127.0 * (0.5 + 127.0 / 2048.0), "{} is off by {off}", original.0);
        rounded += usize::from(off > 0.0);
    }
    assert!(rounded > 5, "{rounded} tensors in blocks");
}

/// Frozen weights take no more room than in the file, and are its numbers.
#[test]
fn weights_are_held_as_they_are_stored() {
    let files = ["families/gpt2", "families/qwen3_moe", "gguf/qwen3_moe-q8_0.gguf", "gguf/mistral.gguf"];
    for file in files {
        let checkpoint = Checkpoint::open(&fixture(file)).unwrap();
        let load = |format| Decoder::load(&checkpoint, &Device::flex(), WeightFormats::new(format, format)).unwrap();
        let [mut stored, mut dense] = [WeightFormat::AsStored, WeightFormat::F32].map(load);
        for layer in stored.projections() {
            let numbers: usize = layer.weight.dims().iter().product();
            let held = match &layer.weight.numbers {
                Numbers::Dense(_) => numbers * size_of::<f32>(),
                Numbers::Packed(packed) => packed.bytes(),
            };
            // The folders are in bfloat16.
            let blocks = checkpoint.blocks(&format!("{}.weight", layer.name)).unwrap();
            assert_eq!(held, blocks.map_or(numbers * 2, |blocks| blocks.bytes().len()), "{file}: {}", layer.name);
        }
        for (stored, dense) in stored.parameters_mut().into_iter().zip(dense.parameters_mut()) {
            assert!(stored.values() == dense.values(), "{file}: {}", stored.name);
        }
    }
}

#[test]
fn blocks_of_experts_and_of_matrices_turned_round_are_kept() {
    check_blocks("qwen3_moe");
    check_blocks("gpt2");
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
fn gpt2_with_its_matrices_turned_round() {
    check("gpt2", &[]);
}

#[test]
fn phi3() {
    check("phi3", &[]);
    check("phi3_longrope", &[]);
}
