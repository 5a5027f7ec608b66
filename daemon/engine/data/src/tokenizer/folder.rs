//! A tokenizer out of a Hugging Face folder: `tokenizer.json` and `tokenizer_config.json`.

use std::fs;
use std::path::Path;

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

use super::{SpecialTokens, Tokenizer, broken};

pub(super) fn open(folder: &Path) -> Result<Tokenizer, Problem> {
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        return Err(Problem::error(ProblemCode::FileNotFound, "the model brings no tokenizer", "模型没有附带分词器")
            .file(path.display())
            .fix("download the model again with its tokenizer.json", "请重新下载模型，并包含 tokenizer.json"));
    }
    let mut inner = tokenizers::Tokenizer::from_file(&path).map_err(|error| broken(error).file(path.display()))?;
    // Files saved after a training run often carry that run's truncation and padding; cutting is `cutoff_len`'s work.
    inner.with_truncation(None).map_err(broken)?;
    inner.with_padding(None);
    let config_path = folder.join("tokenizer_config.json");
    let config: Value = match fs::read(&config_path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| broken(error).file(config_path.display()))?,
        Err(_) => Value::Null,
    };
    // Older files hold an object with the token's flags, newer ones the text alone.
    let special = |key: &str| {
        let value = &config[key];
        value.as_str().or(value["content"].as_str()).map(str::to_owned)
    };
    let special = SpecialTokens {
        bos: special("bos_token"),
        eos: special("eos_token"),
        pad: special("pad_token"),
        unknown: special("unk_token"),
    };
    Ok(Tokenizer { inner, special })
}
