//! PEFT's `adapter_config.json`, written and read.

use std::fs;
use std::path::Path;

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::{Map, Value, json};

use super::{LoraConfig, LoraTargets, Patterns};

/// `targets` are the ends of the names of all adapted layers.
pub(super) fn value(config: &LoraConfig, base_model: &str, targets: &[&str], transposed: bool) -> Value {
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": whole(config.alpha),
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": config.rank_pattern.iter().map(|(pattern, rank)| (pattern.to_owned(), json!(rank))).collect::<Map<_, _>>(),
        "alpha_pattern": config.alpha_pattern.iter().map(|(pattern, alpha)| (pattern.to_owned(), whole(alpha))).collect::<Map<_, _>>(),
        "use_rslora": config.rslora,
        "use_dora": false,
    })
}

/// PEFT declares an alpha a whole number, which it nearly always is.
fn whole(alpha: f64) -> Value {
    if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) }
}

/// `transposed`: the base model stores its matrices as `[inputs, outputs]`.
pub(super) fn read(path: &Path, transposed: bool) -> Result<LoraConfig, Problem> {
    let text = fs::read_to_string(path).map_err(|error| {
        Problem::error(
            ProblemCode::FileNotFound,
            format!("the adapter cannot be read: {error}"),
            format!("无法读取适配器：{error}"),
        )
        .file(path.display())
        .expected("a folder with adapter_config.json and adapter_model.safetensors")
    })?;
    let value: Value = serde_json::from_str(&text).map_err(|error| {
        Problem::error(ProblemCode::Syntax, "this is not JSON", "这不是合法的 JSON")
            .file(path.display())
            .at(error.line() as u64, error.column() as u64)
    })?;
    Reader { path, value: &value }.config(transposed)
}

struct Reader<'a> {
    path: &'a Path,
    value: &'a Value,
}

impl Reader<'_> {
    fn config(&self, transposed: bool) -> Result<LoraConfig, Problem> {
        let value = self.value;
        if value["peft_type"] != "LORA" {
            return Err(self.wrong("peft_type", "\"LORA\""));
        }
        for key in ["use_dora", "fan_in_fan_out"] {
            if value[key] == Value::Bool(true) && !(transposed && key == "fan_in_fan_out") {
                return Err(self.wrong(key, "false"));
            }
        }
        let rank = |value: &Value| value.as_u64().filter(|&rank| rank > 0).map(|rank| rank as usize);
        Ok(LoraConfig {
            rank: rank(&value["r"]).ok_or_else(|| self.wrong("r", "a positive whole number"))?,
            alpha: value["lora_alpha"].as_f64().ok_or_else(|| self.wrong("lora_alpha", "a number"))?,
            dropout: value["lora_dropout"].as_f64().unwrap_or(0.0),
            targets: match &value["target_modules"] {
                Value::Array(names) => {
                    LoraTargets::Named(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
                }
                _ => LoraTargets::All,
            },
            rslora: value["use_rslora"] == Value::Bool(true),
            rank_pattern: self.patterns("rank_pattern", rank)?,
            alpha_pattern: self.patterns("alpha_pattern", Value::as_f64)?,
        })
    }

    fn patterns<T: Copy>(&self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Patterns<T>, Problem> {
        let written = self.value[key].as_object().into_iter().flatten();
        let values = written.map(|(pattern, value)| Some((pattern.clone(), read(value)?)));
        let values: Option<Vec<_>> = values.collect();
        let values = values.ok_or_else(|| self.wrong(key, "positive numbers"))?;
        Patterns::new(values).map_err(|(pattern, _)| self.wrong(key, "regular expressions").found(pattern))
    }

    fn wrong(&self, key: &str, expected: &str) -> Problem {
        Problem::error(ProblemCode::InvalidValue, "this kind of adapter is not supported", "暂不支持这种适配器")
            .file(self.path.display())
            .key(key)
            .found(&self.value[key])
            .expected(expected)
    }
}
