//! Adapters on disk in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`
//! (`docs/source/developer_guides/checkpoint.md` in PEFT).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use justtrain_weights::safetensors::{Dtype, Entry, SafetensorsFile, write};
use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::{Value, json};

use super::{LoraConfig, LoraTargets};
use crate::layers::Lora;
use crate::{Decoder, WeightFormat, WeightFormats};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The head of a reward model.
const SCORE: &str = "base_model.model.score.weight";
/// In the weights' free-text header, which PEFT passes over: the form of the base model that the adapter was trained
/// on, where it is not `f32`.
const LINEAR_FORMAT: &str = "base_linear_format";
const TABLES_FORMAT: &str = "base_tables_format";

/// Writes the decoder's adapter into `folder`, which is made where it is missing. Returns the bytes written.
pub fn save_peft(decoder: &Decoder, config: &LoraConfig, base_model: &str, folder: &Path) -> Result<u64, Problem> {
    fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
    let mut tensors: BTreeMap<String, Tensor<2>> = BTreeMap::new();
    let mut targets: Vec<&str> = Vec::new();
    for projection in decoder.projections() {
        let Some(lora) = &projection.lora else { continue };
        let last = projection.name.rsplit('.').next().unwrap_or_default();
        if !targets.contains(&last) {
            targets.push(last);
        }
        tensors.insert(key(&projection.name, "A"), lora.a.clone());
        tensors.insert(key(&projection.name, "B"), lora.b.clone());
    }
    tensors.extend(decoder.score().map(|score| (SCORE.to_owned(), score.clone())));
    let entries: Vec<Entry> = tensors
        .iter()
        .map(|(name, tensor)| Entry { name: name.clone(), shape: tensor.dims().to_vec(), dtype: Dtype::F32 })
        .collect();
    let formats = decoder.formats();
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    for (key, format) in [(LINEAR_FORMAT, formats.linear), (TABLES_FORMAT, formats.tables)] {
        if format != WeightFormat::default() {
            metadata.insert(key.to_owned(), format.name().to_owned());
        }
    }
    let size = write(&folder.join(WEIGHTS), &entries, &metadata, |entry| {
        Ok(tensors[&entry.name].clone().into_data().try_into_vec().expect("adapters are f32"))
    })?;
    // PEFT declares it a whole number, which it nearly always is.
    let alpha = if config.alpha.fract() == 0.0 { json!(config.alpha as i64) } else { json!(config.alpha) };
    let config = json!({
        "peft_type": "LORA",
        "task_type": if decoder.score().is_some() { "SEQ_CLS" } else { "CAUSAL_LM" },
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": decoder.config().names.transposed,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": decoder.score().map(|_| ["score"]),
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": false,
        "use_dora": false,
    });
    let path = folder.join(CONFIG);
    fs::write(&path, format!("{config:#}\n")).map_err(|error| cannot_write(&path, &error))?;
    Ok(size)
}

/// How the base model was held when this adapter was trained, which is how it should be used; `f32` for adapters of
/// other tools.
pub fn base_formats(folder: &Path) -> Result<WeightFormats, Problem> {
    let file = SafetensorsFile::open(&folder.join(WEIGHTS))?;
    let format = |key| file.metadata().get(key).and_then(|name| WeightFormat::from_name(name)).unwrap_or_default();
    Ok(WeightFormats { linear: format(LINEAR_FORMAT), tables: format(TABLES_FORMAT) })
}

/// Puts a PEFT LoRA adapter on the decoder. Every tensor of the file must fit a layer, and no layer may have half of
/// one.
pub fn load_peft(decoder: &mut Decoder, folder: &Path) -> Result<LoraConfig, Problem> {
    let config = read_config(&folder.join(CONFIG), decoder.config().names.transposed)?;
    let file = SafetensorsFile::open(&folder.join(WEIGHTS))?;
    let device = decoder.device();
    let scale = config.alpha / config.rank as f32;
    let mut used = 0;
    for (index, projection) in (0u64..).zip(decoder.projections_mut()) {
        let names = [key(&projection.name, "A"), key(&projection.name, "B")];
        if names.iter().all(|name| file.shape(name).is_none()) {
            continue;
        }
        let [outputs, inputs] = projection.shape();
        let read = |name: &str, shape: [usize; 2]| {
            let found = file.shape(name).unwrap_or_default();
            if found != shape {
                return Err(mismatch(&file, name, &format!("{found:?}"), &format!("{shape:?}")));
            }
            Ok(Tensor::from_data(TensorData::new(file.read_f32(name)?, shape), &device))
        };
        let (a, b) = (read(&names[0], [config.rank, inputs])?, read(&names[1], [outputs, config.rank])?);
        projection.lora = Some(Lora { a, b, scale, dropout: config.dropout, index });
        used += 2;
    }
    if file.shape(SCORE).is_some() {
        let (found, width) = (file.shape(SCORE).unwrap_or_default(), decoder.config().hidden_size);
        if found != [1, width] {
            return Err(mismatch(&file, SCORE, &format!("{found:?}"), &format!("{:?}", [1, width])));
        }
        decoder.set_score(file.read_f32(SCORE)?);
        used += 1;
    }
    if used != file.names().count() || used == 0 {
        let layers: Vec<String> = decoder.projections().map(|p| key(&p.name, "")).collect();
        let stranger = file.names().find(|name| !layers.iter().any(|layer| name.starts_with(layer.as_str())));
        let found = stranger.unwrap_or("no LoRA tensors");
        return Err(mismatch(&file, "lora_A/lora_B", found, "LoRA factors of this model's linear layers"));
    }
    Ok(config)
}

/// `base_model.model.<layer>.lora_A.weight`; with no factor, what both names start with.
fn key(layer: &str, factor: &str) -> String {
    match factor {
        "" => format!("base_model.model.{layer}.lora_"),
        factor => format!("base_model.model.{layer}.lora_{factor}.weight"),
    }
}

/// `transposed`: the base model stores its matrices as `[inputs, outputs]`.
fn read_config(path: &Path, transposed: bool) -> Result<LoraConfig, Problem> {
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
    let wrong = |key: &str, expected: &str| {
        Problem::error(ProblemCode::InvalidValue, "this kind of adapter is not supported", "暂不支持这种适配器")
            .file(path.display())
            .key(key)
            .found(&value[key])
            .expected(expected)
    };
    if value["peft_type"] != "LORA" {
        return Err(wrong("peft_type", "\"LORA\""));
    }
    for key in ["use_dora", "use_rslora", "fan_in_fan_out"] {
        if value[key] == Value::Bool(true) && !(transposed && key == "fan_in_fan_out") {
            return Err(wrong(key, "false"));
        }
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        if value[key].as_object().is_some_and(|pattern| !pattern.is_empty()) {
            return Err(wrong(key, "{}"));
        }
    }
    let rank = value["r"].as_u64().filter(|&rank| rank > 0).ok_or_else(|| wrong("r", "a positive whole number"))?;
    let targets = match &value["target_modules"] {
        Value::Array(names) => {
            LoraTargets::Named(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
        }
        _ => LoraTargets::All,
    };
    Ok(LoraConfig {
        rank: rank as usize,
        alpha: value["lora_alpha"].as_f64().ok_or_else(|| wrong("lora_alpha", "a number"))? as f32,
        dropout: value["lora_dropout"].as_f64().unwrap_or(0.0) as f32,
        targets,
    })
}

fn mismatch(file: &SafetensorsFile, key: &str, found: &str, expected: &str) -> Problem {
    Problem::error(ProblemCode::ShapeMismatch, "the adapter does not fit this model", "适配器与模型不匹配")
        .file(file.path().display())
        .key(key)
        .found(found)
        .expected(expected)
        .fix("use the base model that the adapter was trained on", "请使用训练该适配器时的基础模型")
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Problem {
    Problem::error(
        ProblemCode::DiskFull,
        format!("the adapter cannot be written: {error}"),
        format!("无法写入适配器：{error}"),
    )
    .file(path.display())
    .fix("free some disk space, or check the folder's permissions", "请释放磁盘空间，或检查文件夹权限")
}
