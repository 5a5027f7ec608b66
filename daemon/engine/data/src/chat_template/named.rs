//! The templates that come with JustTrain, one file each, and those that a person names instead of the model's own.

use std::fs;
use std::path::Path;

use justtrain_worker_api::{Problem, ProblemCode};

/// What a model without a template of its own is trained and asked with.
pub(super) const DEFAULT: &str = "chatml";

macro_rules! templates {
    ($($name:literal),+ $(,)?) => {
        const TEMPLATES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../templates/", $name, ".jinja")))),+];
    };
}

templates!["chatml", "deepseek", "gemma", "llama3", "mistral", "phi3", "qwen2_5", "qwen3", "smollm2"];

/// The text of a template that comes with JustTrain.
pub(super) fn built_in(name: &str) -> Option<&'static str> {
    TEMPLATES.iter().find(|(known, _)| *known == name).map(|&(_, source)| source)
}

/// What `template` in a recipe says: the name of a template above, or a file, starting from the recipe's `folder`.
///
/// `InvalidValue` for a name that is none and no file either.
pub fn choose(template: &str, folder: &Path) -> Result<String, Problem> {
    if let Some(source) = built_in(template) {
        return Ok(source.to_owned());
    }
    let path = folder.join(template);
    fs::read_to_string(&path).map_err(|error| {
        let known: Vec<&str> = TEMPLATES.iter().map(|&(name, _)| name).collect();
        Problem::error(ProblemCode::InvalidValue, "there is no such chat template", "没有这个对话模板")
            .key("template")
            .found(format!("{template} ({}: {error})", path.display()))
            .expected(format!("auto, {}, or a file with a Jinja template", known.join(", ")))
            .fix("correct the name or the path", "请更正名称或路径")
    })
}
