//! PEFT's `adapter_config.json`, written and read.

use std::fs;
use std::path::{Path, PathBuf};

use justtrain_worker_api::{Problem, ProblemCode};
use regex::Regex;
use serde_json::{Value, json};

use super::{LoraConfig, LoraTargets, Patterns, TrainedBias};
use crate::DecoderConfig;

pub(super) const CONFIG: &str = "adapter_config.json";

/// `targets` are the ends of the names of all adapted layers, `saved` the modules that are trained in full.
pub(super) fn value(
    config: &LoraConfig,
    base_model: &str,
    targets: &[&str],
    saved: &[String],
    decoder: &DecoderConfig,
) -> Value {
    let saved = if saved.is_empty() { Value::Null } else { json!(saved) };
    // A table that is the output layer as well has stayed one. Earlier versions of PEFT do not know the key.
    let names = decoder.names;
    let tied = decoder.tied_embeddings && names.tables().any(|name| config.in_full(name, false).weight);
    let patterns = |of: &mut dyn Iterator<Item = (String, Value)>| Value::Object(of.collect());
    let mut value = json!({
        "peft_type": "LORA",
        "task_type": if decoder.seq2seq.is_some() { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" },
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": whole(config.alpha),
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "bias": config.bias.name(),
        "fan_in_fan_out": names.transposed,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": saved,
        "rank_pattern": patterns(&mut config.rank_pattern.iter().map(|(name, rank)| (name.to_owned(), json!(rank)))),
        "alpha_pattern": patterns(&mut config.alpha_pattern.iter().map(|(name, alpha)| (name.to_owned(), whole(alpha)))),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "layers_to_transform": config.layers,
    });
    if tied {
        value["ensure_weight_tying"] = true.into();
    }
    // Earlier versions of PEFT take the last number in a name for that of a block, unless they know what stands before it.
    if config.layers.is_some() && decoder.seq2seq.is_some() {
        value["layers_pattern"] = names.blocks.rsplit('.').next().into();
    }
    value
}

/// PEFT declares an alpha a whole number, which it nearly always is.
fn whole(alpha: f64) -> Value {
    if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) }
}

/// Reads the configuration alone.
pub fn read_peft_config(folder: &Path) -> Result<LoraConfig, Problem> {
    let (path, value) = parse(folder)?;
    // Which matrices are transposed is the model's business.
    Reader { path: &path, value: &value }.config(true)
}

/// The name of the model that the adapter was trained on.
pub fn base_model(folder: &Path) -> Option<String> {
    parse(folder).ok()?.1["base_model_name_or_path"].as_str().map(str::to_owned)
}

/// Reads what is an adapter for this decoder.
pub(super) fn read(folder: &Path, decoder: &DecoderConfig) -> Result<LoraConfig, Problem> {
    let (path, value) = parse(folder)?;
    let reader = Reader { path: &path, value: &value };
    let config = reader.config(decoder.names.transposed)?;
    if decoder.tied_embeddings
        && value["ensure_weight_tying"] != Value::Bool(true)
        && decoder.names.tables().any(|name| config.in_full(name, false).weight)
    {
        return Err(reader.wrong("ensure_weight_tying", "true, as this model has one table for both ends"));
    }
    // PEFT then has one pair for both ends.
    if decoder.tied_embeddings
        && value["ensure_weight_tying"] == Value::Bool(true)
        && decoder.names.tables().any(|name| config.targets_table(name))
    {
        return Err(reader.wrong("ensure_weight_tying", "false: a pair for each end of the table"));
    }
    Ok(config)
}

fn parse(folder: &Path) -> Result<(PathBuf, Value), Problem> {
    let path = folder.join(CONFIG);
    let text = fs::read_to_string(&path).map_err(|error| {
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
    Ok((path, value))
}

/// Kinds of LoRA that the decoder does not compute, and what their keys must be where they are there.
const ABSENT: [&str; 12] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Initialisations that change the base model. An adapter that PEFT has not converted when it was saved goes with that
/// other base.
const CHANGES_BASE: [&str; 4] = ["pissa", "olora", "corda", "lora_ga"];

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
        let absent = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        if let Some(key) = ABSENT.into_iter().find(|key| !absent(&value[*key])) {
            return Err(self.wrong(key, "null"));
        }
        if value["fan_in_fan_out"] == Value::Bool(true) && !transposed {
            return Err(self.wrong("fan_in_fan_out", "false"));
        }
        let init = value["init_lora_weights"].as_str().unwrap_or_default();
        if CHANGES_BASE.iter().any(|name| init.starts_with(name)) {
            return Err(self.wrong("init_lora_weights", "true").fix(
                "save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA adapter",
                "保存时使用 path_initial_model_for_weight_conversion，将其转换为普通 LoRA 适配器",
            ));
        }
        let number = |value: &Value| value.as_u64().map(|number| number as usize);
        let numbers_wanted = || self.wrong("layers_to_transform", "numbers of blocks");
        let rank = |value: &Value| value.as_u64().filter(|&rank| rank > 0).map(|rank| rank as usize);
        Ok(LoraConfig {
            rank: rank(&value["r"]).ok_or_else(|| self.wrong("r", "a positive whole number"))?,
            alpha: value["lora_alpha"].as_f64().ok_or_else(|| self.wrong("lora_alpha", "a number"))?,
            dropout: value["lora_dropout"].as_f64().unwrap_or(0.0),
            targets: match &value["target_modules"] {
                Value::Array(names) => {
                    LoraTargets::Named(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
                }
                Value::String(pattern) if pattern != "all-linear" => match Regex::new(pattern) {
                    Ok(_) => LoraTargets::Matching(pattern.clone()),
                    Err(_) => return Err(self.wrong("target_modules", "names, or a regular expression")),
                },
                _ => LoraTargets::All,
            },
            layers: match &value["layers_to_transform"] {
                Value::Null => None,
                Value::Array(numbers) => {
                    numbers.iter().map(number).collect::<Option<_>>().map(Some).ok_or_else(numbers_wanted)?
                }
                one => Some(vec![number(one).ok_or_else(numbers_wanted)?]),
            },
            rslora: value["use_rslora"] == Value::Bool(true),
            dora: value["use_dora"] == Value::Bool(true),
            modules_to_save: match &value["modules_to_save"] {
                Value::Array(names) => names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
                _ => Vec::new(),
            },
            bias: match value["bias"].as_str() {
                None => TrainedBias::None,
                Some(name) => {
                    TrainedBias::from_name(name).ok_or_else(|| self.wrong("bias", "none | all | lora_only"))?
                }
            },
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
