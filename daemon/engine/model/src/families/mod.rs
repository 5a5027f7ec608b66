//! Model families by Hugging Face `model_type`: one file each, named after it, and one line in `ALL`.
//!
//! A family turns `config.json` into a [`DecoderConfig`]. Weight names are Hugging Face's; a family whose names differ
//! says so in its file.

mod llama;

use std::path::{Path, PathBuf};

use justtrain_weights::Checkpoint;
use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use crate::DecoderConfig;

trait Family: Sync {
    /// `model_type` in `config.json`.
    fn model_type(&self) -> &'static str;

    fn decoder_config(&self, config: &ConfigReader<'_>) -> Result<DecoderConfig, Problem>;
}

const ALL: &[&dyn Family] = &[&llama::Llama];

/// The description of a checkpoint's decoder. `UnknownArchitecture` where no family fits.
pub fn decoder_config(checkpoint: &Checkpoint) -> Result<DecoderConfig, Problem> {
    let path = checkpoint.folder().map_or_else(|| checkpoint.path().to_owned(), |folder| folder.join("config.json"));
    from_config(checkpoint.config(), &path)
}

/// The same from the values of a `config.json`; `path` is named in errors.
pub fn from_config(values: &Value, path: &Path) -> Result<DecoderConfig, Problem> {
    let config = ConfigReader { values, path: path.to_owned() };
    let model_type = config.values["model_type"].as_str().unwrap_or("nothing");
    let family = ALL.iter().find(|family| family.model_type() == model_type).ok_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|family| family.model_type()).collect();
        Problem::error(ProblemCode::UnknownArchitecture, "this kind of model is not supported", "暂不支持这种模型")
            .file(config.path.display())
            .key("model_type")
            .found(model_type)
            .expected(known.join(", "))
            .fix("choose a model of a supported family", "请选择受支持系列的模型")
    })?;
    family.decoder_config(&config)
}

/// Reads keys of `config.json` with errors that name file and key.
struct ConfigReader<'a> {
    values: &'a Value,
    /// `config.json`, or the GGUF file that its keys were read from.
    path: PathBuf,
}

impl ConfigReader<'_> {
    fn size(&self, key: &str) -> Result<usize, Problem> {
        self.values[key]
            .as_u64()
            .filter(|&size| size > 0)
            .map(|size| size as usize)
            .ok_or_else(|| self.wrong(ProblemCode::MissingKey, key, &self.values[key], "a positive whole number"))
    }

    fn number(&self, key: &str) -> Result<f64, Problem> {
        self.values[key].as_f64().ok_or_else(|| self.wrong(ProblemCode::MissingKey, key, &self.values[key], "a number"))
    }

    fn wrong(&self, code: ProblemCode, key: &str, found: &Value, expected: &str) -> Problem {
        Problem::error(code, "the model's configuration cannot be used", "模型配置无法使用")
            .file(self.path.display())
            .key(key)
            .found(found)
            .expected(expected)
            .fix("download the model again, or choose another one", "请重新下载模型，或选择其他模型")
    }
}
