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
    let config = read_optional(&folder.join("tokenizer_config.json"))?;
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
    // One id, or a list of them.
    let end = &read_optional(&folder.join("generation_config.json"))?["eos_token_id"];
    let end_ids = end.as_array().map_or(std::slice::from_ref(end), Vec::as_slice);
    let end_ids = end_ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect();
    Ok(Tokenizer::new(inner, special, end_ids))
}

/// A JSON file that not every model has; null where it is not there.
fn read_optional(path: &Path) -> Result<Value, Problem> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| broken(error).file(path.display())),
        Err(_) => Ok(Value::Null),
    }
}
