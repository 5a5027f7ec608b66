//! What a family's configuration may ask for and the decoder does not compute: refused by file and key, never computed
//! otherwise.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use justtrain_model::adapters::{LoraConfig, LoraTargets, attach_lora};
use justtrain_model::families::{LINEAR_LAYERS, TABLES, from_config};
use justtrain_model::{Decoder, WeightFormats};
use justtrain_weights::Checkpoint;
use serde_json::{Value, json};

fn config_file(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families").join(family).join("config.json")
}

#[test]
fn what_is_not_computed_is_refused_by_file_and_key() {
    let cases = [
        ("llama_linear", "sliding_window", json!(4)),
        ("llama_linear", "hidden_act", json!("gelu")),
        ("llama_linear", "partial_rotary_factor", json!(0.5)),
        ("mistral", "layer_types", json!(["full_attention", "sliding_attention"])),
        ("mistral", "sliding_window", json!(0)),
        ("qwen2", "layer_types", json!(["full_attention", "chunked_attention"])),
        ("qwen2", "layer_types", json!(["full_attention"])),
        ("qwen3", "head_dim", Value::Null),
        ("qwen3_moe", "output_router_logits", json!(true)),
        ("qwen3_moe", "num_experts_per_tok", json!(9)),
        ("qwen3_moe", "num_local_experts", Value::Null),
        ("qwen3_moe", "decoder_sparse_step", json!(0)),
        ("qwen3_moe", "mlp_only_layers", json!([0.5])),
        ("gemma2", "hidden_activation", json!("gelu")),
        ("gemma2", "use_bidirectional_attention", json!(true)),
        ("gemma2", "attn_logit_softcapping", json!("much")),
        ("gemma3_text", "attn_logit_softcapping", json!(50.0)),
        ("phi3", "partial_rotary_factor", json!(0.75)),
        ("phi3", "rope_scaling", json!({"type": "yarn"})),
    ];
    for (family, key, value) in cases {
        let path = config_file(family);
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        from_config(&config, &path).unwrap();
        config[key] = value;
        let problem = from_config(&config, &path).unwrap_err();
        assert_eq!(problem.key.as_deref(), Some(key), "{family}");
        assert!(problem.file.unwrap().ends_with("config.json"), "{family}");
    }
}

#[test]
fn a_rotation_that_lacks_a_number_is_refused_by_its_place() {
    for (family, place, kind) in [
        ("llama_linear", "rope_parameters", "linear"),
        ("llama_llama3", "rope_parameters", "llama3"),
        ("llama_yarn", "rope_scaling", "yarn"),
        ("llama_dynamic", "rope_scaling", "dynamic"),
    ] {
        let path = config_file(family);
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[place] = json!({"rope_type": kind});
        let problem = from_config(&config, &path).unwrap_err();
        assert_eq!(problem.key, Some(format!("{place}.factor")), "{family}");
    }
    let path = config_file("phi3_longrope");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["rope_parameters"]["long_factor"] = json!([1.0]);
    let problem = from_config(&config, &path).unwrap_err();
    assert_eq!(problem.key.as_deref(), Some("rope_parameters.long_factor"));
}

/// PEFT has no name for what lies beside experts that is not also the experts' own.
#[test]
fn experts_take_no_adapter() {
    let folder = config_file("qwen3_moe_mixed").parent().unwrap().to_owned();
    let load =
        || Decoder::load(&Checkpoint::open(&folder).unwrap(), &Device::flex(), WeightFormats::default()).unwrap();
    let refused = |config: &LoraConfig| attach_lora(&mut load(), config, 1).unwrap_err();
    let mut all = load();
    attach_lora(&mut all, &LoraConfig::default(), 1).unwrap();
    let layers: Vec<&str> = all.projections().map(|layer| layer.name.as_str()).collect();
    assert!(layers.len() == 3 * 4 && layers.iter().all(|name| name.contains(".self_attn.")), "{layers:?}");
    for name in ["gate_proj", "down_proj", "gate"] {
        let targets = LoraTargets::Named(vec![name.to_owned()]);
        let problem = refused(&LoraConfig { targets, ..LoraConfig::default() });
        assert_eq!(problem.key.as_deref(), Some("lora_target"));
        assert_eq!(
            problem.expected.as_deref(),
            Some("all, or some of q_proj, k_proj, v_proj, o_proj, embed_tokens, lm_head")
        );
        let problem = refused(&LoraConfig { modules_to_save: vec![name.to_owned()], ..LoraConfig::default() });
        assert_eq!((problem.key.as_deref(), problem.found.as_deref()), (Some("modules_to_save"), Some(name)));
        assert!(problem.message.en.contains("experts"), "{problem}");
    }
    let saved = ["lm_head", "input_layernorm", "o_proj"].map(str::to_owned).to_vec();
    attach_lora(&mut load(), &LoraConfig { modules_to_save: saved, ..LoraConfig::default() }, 1).unwrap();
}

#[test]
fn a_recipe_may_name_every_linear_layer_of_every_family() {
    let fixtures = config_file("").ancestors().nth(2).unwrap().to_owned();
    let folders = ["families", "classifiers"].map(|kind| fs::read_dir(fixtures.join(kind)).unwrap());
    let (mut seen, mut tables) = (Vec::new(), Vec::new());
    for family in folders.into_iter().flatten() {
        let path = family.unwrap().path().join("config.json");
        let config = from_config(&serde_json::from_slice(&fs::read(&path).unwrap()).unwrap(), &path).unwrap();
        let linears = (0..config.layers.len()).flat_map(|layer| config.linears(layer));
        seen.extend(linears.map(|linear| linear.target()));
        if config.patches.is_none() {
            tables.extend(config.names.tables().filter_map(|name| name.rsplit('.').next()));
        }
    }
    assert!(tables.iter().all(|name| TABLES.contains(name)), "{tables:?}");
    assert!(TABLES.iter().all(|name| tables.contains(name)), "a name that no family has");
    assert!(seen.iter().all(|name| LINEAR_LAYERS.contains(name)), "{seen:?}");
    assert!(LINEAR_LAYERS.iter().all(|name| seen.contains(name)), "a name that no family has");
}
