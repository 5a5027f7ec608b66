//! Writes a tokenizer as a Hugging Face folder holds it, so that `AutoTokenizer` loads it.

use std::fs;
use std::path::Path;

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::{Map, Value, json};

use super::{Tokenizer, broken};
use crate::ChatTemplate;

impl Tokenizer {
    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` into a
    /// folder that is there.
    pub fn save(&self, folder: &Path, template: &ChatTemplate) -> Result<(), Problem> {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| {
                Problem::error(
                    ProblemCode::DiskFull,
                    format!("the tokenizer cannot be written: {error}"),
                    format!("无法写入分词器：{error}"),
                )
                .file(path.display())
                .fix("free some disk space, or name another folder", "请释放磁盘空间，或指定其他文件夹")
            })
        };
        write("tokenizer.json", self.inner.to_string(false).map_err(broken)?)?;
        let special: Map<String, Value> = [
            ("bos_token", &self.special.bos),
            ("eos_token", &self.special.eos),
            ("pad_token", &self.special.pad),
            ("unk_token", &self.special.unknown),
        ]
        .into_iter()
        .filter_map(|(key, token)| Some((key.to_owned(), Value::from(token.clone()?))))
        .collect();
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "chat_template": template.source(),
        });
        config.as_object_mut().expect("an object").extend(special.clone());
        write("tokenizer_config.json", format!("{config:#}\n"))?;
        write("special_tokens_map.json", format!("{:#}\n", Value::Object(special)))?;
        write("chat_template.jinja", template.source().to_owned())
    }
}
