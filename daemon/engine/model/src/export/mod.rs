//! Tuned models in formats that other tools load. One file a format.

mod merged;
mod model;

pub use merged::export_merged;
pub use model::{load_model, save_model};

use serde_json::{Value, json};

use crate::Decoder;

/// Weight files are split above this size, as transformers splits them.
const SHARD_BYTES: u64 = 5_000_000_000;

/// A model's `config.json` for weights in `f32`. transformers 5 writes `dtype`, earlier ones `torch_dtype`.
fn in_float32(config: &Value) -> Value {
    let mut config = config.clone();
    let key = if config["dtype"].is_string() { "dtype" } else { "torch_dtype" };
    config[key] = "float32".into();
    config
}

/// What transformers calls the classes of models for other tasks, after a family's name.
const CLASSES: [&str; 7] = [
    "ForCausalLM",
    "LMHeadModel",
    "ForMaskedLM",
    "ForPreTraining",
    "ForSequenceClassification",
    "ForImageClassification",
    "Model",
];

/// A model's `config.json` for a classifier, which transformers loads as `AutoModelForSequenceClassification` or as that for
/// images.
fn with_classifier(config: &Value, decoder: &Decoder) -> Value {
    let mut config = config.clone();
    let Some(classifier) = decoder.classifier() else { return config };
    if let Some(name) = config["architectures"][0].as_str() {
        let family = CLASSES.iter().find_map(|class| name.strip_suffix(class)).unwrap_or(name);
        config["architectures"][0] = format!("{family}{}", decoder.config().names.classifier.class).into();
    }
    let labels = || classifier.labels().iter().enumerate();
    config["id2label"] = labels().map(|(class, label)| (class.to_string(), json!(label))).collect();
    config["label2id"] = labels().map(|(class, label)| (label.clone(), json!(class))).collect();
    config
}
