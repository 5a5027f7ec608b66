//! Tuned models in formats that other tools load. One file a format.

mod merged;
mod model;

pub use merged::export_merged;
pub use model::{load_model, save_model};

use serde_json::{Value, json};

/// Weight files are split above this size, as transformers splits them.
const SHARD_BYTES: u64 = 5_000_000_000;

/// A model's `config.json` for weights in `f32`. transformers 5 writes `dtype`, earlier ones `torch_dtype`.
fn in_float32(config: &Value) -> Value {
    let mut config = config.clone();
    let key = if config["dtype"].is_string() { "dtype" } else { "torch_dtype" };
    config[key] = "float32".into();
    config
}

/// A model's `config.json` for a reward model, which transformers loads as `AutoModelForSequenceClassification`.
fn with_score(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(name) = config["architectures"][0].as_str() {
        config["architectures"][0] = name.replace("ForCausalLM", "ForSequenceClassification").into();
    }
    config["id2label"] = json!({"0": "LABEL_0"});
    config["label2id"] = json!({"LABEL_0": 0});
    config
}
