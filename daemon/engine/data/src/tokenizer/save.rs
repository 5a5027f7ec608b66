//! Writes a tokenizer as a Hugging Face folder holds it, so that `AutoTokenizer` loads it.

use std::path::Path;
use std::{fs, io};

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::{Map, Value, json};

use super::{Tokenizer, broken};
use crate::ChatTemplate;

impl Tokenizer {
    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` into a
    /// folder that is there; a second template for tools into `additional_chat_templates/`. An empty template is none.
    pub fn save(&self, folder: &Path, template: &ChatTemplate) -> Result<(), Problem> {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| cannot_write(&path, &error))
        };
        write("tokenizer.json", self.inner.to_string(false).map_err(broken)?)?;
        let special: Map<String, Value> = [
            ("bos_token", &self.special.bos),
            ("eos_token", &self.special.eos),
            ("pad_token", &self.special.pad),
            ("unk_token", &self.special.unknown),
            ("cls_token", &self.special.cls),
            ("sep_token", &self.special.sep),
            ("mask_token", &self.special.mask),
        ]
        .into_iter()
        .filter_map(|(key, token)| Some((key.to_owned(), Value::from(token.clone()?))))
        .collect();
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
        });
        let chat = !template.source().is_empty();
        let template_key = chat.then(|| ("chat_template".to_owned(), template.source().into()));
        config.as_object_mut().expect("an object").extend(special.clone().into_iter().chain(template_key));
        write("tokenizer_config.json", format!("{config:#}\n"))?;
        write("special_tokens_map.json", format!("{:#}\n", Value::Object(special)))?;
        if let Some(source) = template.tool_use_source() {
            let templates = folder.join("additional_chat_templates");
            fs::create_dir_all(&templates).map_err(|error| cannot_write(&templates, &error))?;
            write("additional_chat_templates/tool_use.jinja", source.to_owned())?;
        }
        if chat { write("chat_template.jinja", template.source().to_owned()) } else { Ok(()) }
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Problem {
    Problem::error(
        ProblemCode::DiskFull,
        format!("the tokenizer cannot be written: {error}"),
        format!("无法写入分词器：{error}"),
    )
    .file(path.display())
    .fix("free some disk space, or name another folder", "请释放磁盘空间，或指定其他文件夹")
}
