//! Tuned models in formats that other tools load. One file a format.

mod merged;
mod model;

pub use merged::export_merged;
pub use model::{load_model, save_model};

use serde_json::Value;

/// Weight files are split above this size, as transformers splits them.
const SHARD_BYTES: u64 = 5_000_000_000;

/// A model's `config.json` for weights in `f32`. transformers 5 writes `dtype`, earlier ones `torch_dtype`.
fn in_float32(config: &Value) -> Value {
    let mut config = config.clone();
    let key = if config["dtype"].is_string() { "dtype" } else { "torch_dtype" };
    config[key] = "float32".into();
    config
}
