//! `llama`: SmolLM2, Llama 2, TinyLlama.

use justtrain_kernels::Heads;
use justtrain_worker_api::{Problem, ProblemCode};

use super::{ConfigReader, Family};
use crate::DecoderConfig;

/// What transformers' llama can be and this one is not: each key with its one value, as JSON. An absent key has it.
const FIXED: [(&str, &str); 5] = [
    ("hidden_act", "\"silu\""),
    ("attention_bias", "false"),
    ("mlp_bias", "false"),
    ("sliding_window", "null"),
    ("quantization_config", "null"),
];

pub(super) struct Llama;

impl Family for Llama {
    fn model_type(&self) -> &'static str {
        "llama"
    }

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem> {
        for (key, only) in FIXED {
            let value = &config.values[key];
            let written = value.to_string();
            if !value.is_null() && written != only {
                return Err(config.wrong(ProblemCode::InvalidValue, key, value, only));
            }
        }
        let hidden_size = config.size("hidden_size")?;
        let query = config.size("num_attention_heads")?;
        let heads = Heads {
            query,
            key_value: config.size("num_key_value_heads").unwrap_or(query),
            dim: config.size("head_dim").unwrap_or(hidden_size / query),
        };
        if !heads.query.is_multiple_of(heads.key_value) || !heads.dim.is_multiple_of(2) {
            let found = &config.values["num_key_value_heads"];
            let expected = "a divisor of num_attention_heads, and an even head_dim";
            return Err(config.wrong(ProblemCode::InvalidValue, "num_key_value_heads", found, expected));
        }
        Ok(DecoderConfig {
            hidden_size,
            intermediate_size: config.size("intermediate_size")?,
            layers: config.size("num_hidden_layers")?,
            heads,
            rms_norm_eps: config.number("rms_norm_eps")? as f32,
            inverse_frequencies: DecoderConfig::default_frequencies(heads.dim, rope_theta(config)?),
            vocab_size: config.size("vocab_size")?,
            tied_embeddings: config.values["tie_word_embeddings"].as_bool().unwrap_or(false),
            max_positions: config.size("max_position_embeddings")?,
        })
    }
}

/// transformers 5 keeps rotary settings in `rope_parameters`, earlier ones in `rope_theta` and `rope_scaling`.
fn rope_theta(config: &ConfigReader<'_>) -> Result<f64, Problem> {
    for key in ["rope_parameters", "rope_scaling"] {
        let settings = &config.values[key];
        let kind = settings.get("rope_type").or_else(|| settings.get("type"));
        if let Some(kind) = kind.filter(|kind| kind.as_str() != Some("default")) {
            return Err(config.wrong(ProblemCode::InvalidValue, &format!("{key}.rope_type"), kind, "\"default\""));
        }
    }
    for settings in [config.values, &config.values["rope_parameters"]] {
        let part = &settings["partial_rotary_factor"];
        if part.as_f64().is_some_and(|part| part != 1.0) {
            return Err(config.wrong(ProblemCode::InvalidValue, "partial_rotary_factor", part, "1.0"));
        }
    }
    let nested = config.values["rope_parameters"]["rope_theta"].as_f64();
    Ok(nested.or(config.values["rope_theta"].as_f64()).unwrap_or(10_000.0))
}
