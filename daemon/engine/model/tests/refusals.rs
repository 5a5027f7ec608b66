//! What a family's configuration may ask for and the decoder does not compute: refused by file and key, never computed
//! otherwise.

use std::fs;
use std::path::{Path, PathBuf};

use justtrain_model::families::{LINEAR_LAYERS, from_config};
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

#[test]
fn a_recipe_may_name_every_linear_layer_of_every_family() {
    let families = fs::read_dir(config_file("").parent().unwrap()).unwrap();
    let mut seen = Vec::new();
    for family in families {
        let path = family.unwrap().path().join("config.json");
        let config = from_config(&serde_json::from_slice(&fs::read(&path).unwrap()).unwrap(), &path).unwrap();
        seen.extend(config.linears().iter().map(|linear| linear.target()));
    }
    assert!(seen.iter().all(|name| LINEAR_LAYERS.contains(name)), "{seen:?}");
    assert!(LINEAR_LAYERS.iter().all(|name| seen.contains(name)), "a name that no family has");
}
