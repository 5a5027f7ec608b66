//! Repository names, and the forms that the store and the API give them.

use std::fmt;

use justtrain_worker_api::{Problem, ProblemCode};
use serde::{Deserialize, Serialize};

/// A repository name: `ORG/NAME` or `NAME`, from letters, digits, `.`, `_` and `-`.
///
/// `--` and `..` are not allowed, as on the Hugging Face hub; so the folder name and the id can be read back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

impl ModelName {
    /// # Errors
    /// `INVALID_VALUE` when `text` is not such a name.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let part_is_fine = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
                && !part.contains("--")
                && !part.contains("..")
                && !part.starts_with(['.', '-'])
                && !part.ends_with(['.', '-'])
        };
        if text.len() <= 96 && text.split('/').count() <= 2 && text.split('/').all(part_is_fine) {
            return Ok(Self(text.to_owned()));
        }
        Err(Problem::error(ProblemCode::InvalidValue, "this is not a model name", "这不是模型名称")
            .found(text)
            .expected("ORG/NAME")
            .fix(
                "write the name as the model's page does, such as HuggingFaceTB/SmolLM2-135M-Instruct, a URL, or a path",
                "请按模型页面的写法填写名称（例如 HuggingFaceTB/SmolLM2-135M-Instruct），或填写网址、本地路径",
            ))
    }

    /// A name made of a file or folder name; characters that names do not have become `-`.
    pub(crate) fn from_file_name(text: &str) -> Result<Self, Problem> {
        let mut name = String::with_capacity(text.len());
        for letter in text.chars() {
            let letter = if letter.is_ascii_alphanumeric() || "._".contains(letter) { letter } else { '-' };
            let repeats = "-.".contains(letter) && name.ends_with(letter);
            if !repeats {
                name.push(letter);
            }
        }
        Self::parse(name.trim_matches(['.', '-']))
    }

    /// Reads an id back: `ORG--NAME`, with or without `models/` before it.
    pub(crate) fn from_id(id: &str) -> Result<Self, Problem> {
        Self::parse(&id.strip_prefix("models/").unwrap_or(id).replacen("--", "/", 1))
    }

    /// `ORG--NAME`.
    pub fn id(&self) -> String {
        self.0.replace('/', "--")
    }

    /// `models--ORG--NAME`, as the Hugging Face cache has it.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.id())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ModelName {
    type Error = Problem;

    fn try_from(text: String) -> Result<Self, Problem> {
        Self::parse(&text)
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leaves_the_store() {
        for bad in ["", "/", "a/", "../a", "a/b/c", "a/..", ".", "a--b", "/etc/passwd", "a b", "模型", "a/.hidden"] {
            assert!(ModelName::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn ids_can_be_read_back() {
        for text in ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "a-b/c_d.e"] {
            let name = ModelName::parse(text).unwrap();
            assert_eq!(ModelName::from_id(&name.id()).unwrap(), name);
        }
    }

    #[test]
    fn file_names_become_names() {
        assert_eq!(ModelName::from_file_name("My model (v2)..Q4").unwrap().as_str(), "My-model-v2-.Q4");
        assert!(ModelName::from_file_name("模型").is_err());
    }
}
