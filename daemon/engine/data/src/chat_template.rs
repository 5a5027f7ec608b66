//! Chat templates as Hugging Face writes them (Jinja), rendered with what transformers gives them
//! (`utils/chat_template_utils.py`).

mod functions;

use std::fs;
use std::path::Path;

use justtrain_weights::Checkpoint;
use justtrain_worker_api::{Problem, ProblemCode, Turn};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use serde_json::Value;

use crate::Tokenizer;

/// What a model without a template of its own is trained and asked with.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
                      '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
                      {% endif %}";

#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// The model's own template: a GGUF's `tokenizer.chat_template`, or a folder's `chat_template.jinja` or
    /// `tokenizer_config.json`. A model without one gets ChatML and a warning.
    pub fn open(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<(Self, Option<Problem>), Problem> {
        let own = match (checkpoint.gguf(), checkpoint.folder()) {
            (Some(gguf), _) => gguf.metadata().get_str("tokenizer.chat_template").map(str::to_owned),
            (None, Some(folder)) => find_in_folder(folder),
            (None, None) => None,
        };
        let warning = own.is_none().then(|| {
            Problem::warning(
                ProblemCode::ChatTemplate,
                "the model has no chat template; ChatML is used",
                "模型没有对话模板，将使用 ChatML",
            )
            .file(checkpoint.path().display())
        });
        let template = Self::new(own.as_deref().unwrap_or(CHATML), tokenizer)
            .map_err(|problem| problem.file(checkpoint.path().display()))?;
        Ok((template, warning))
    }

    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, Problem> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", functions::raise_exception);
        environment.add_function("strftime_now", functions::strftime_now);
        environment.add_filter("tojson", functions::tojson);
        environment.add_template_owned("chat", source.to_owned()).map_err(failed)?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            bos_token: tokenizer.bos_token().unwrap_or_default().to_owned(),
            eos_token: tokenizer.eos_token().unwrap_or_default().to_owned(),
        })
    }

    /// The Jinja text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as the model sees it; with `add_generation_prompt` it ends where the assistant begins.
    pub fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String, Problem> {
        let template = self.environment.get_template("chat").map_err(failed)?;
        let messages: Vec<minijinja::Value> =
            turns.iter().map(|turn| context! { role => &turn.role, content => &turn.content }).collect();
        let context = context! {
            messages,
            tools => (),
            documents => (),
            add_generation_prompt,
            bos_token => &self.bos_token,
            eos_token => &self.eos_token,
        };
        template.render(context).map_err(failed)
    }
}

fn find_in_folder(folder: &Path) -> Option<String> {
    if let Ok(source) = fs::read_to_string(folder.join("chat_template.jinja")) {
        return Some(source);
    }
    let text = fs::read_to_string(folder.join("tokenizer_config.json")).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    // Models with several templates list them by name.
    let own = &config["chat_template"];
    let named = own.as_array().and_then(|list| list.iter().find(|entry| entry["name"] == "default"));
    named.map_or(own, |entry| &entry["template"]).as_str().map(str::to_owned)
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn failed(error: minijinja::Error) -> Problem {
    Problem::error(ProblemCode::ChatTemplate, "the chat template fails", "对话模板出错")
        .found(format!("{error:#}").lines().next().unwrap_or_default())
        .fix("check the roles of the conversation, or the model's template", "请检查对话的角色，或模型的模板")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, turns: &[Turn], add_generation_prompt: bool) -> Result<String, Problem> {
        let tokenizer = Tokenizer::without_vocabulary("<s>", "</s>");
        ChatTemplate::new(source, &tokenizer)?.render(turns, add_generation_prompt)
    }

    /// `scripts/golden/tokenizer.py`.
    #[test]
    fn templates_of_every_kind_are_rendered_as_transformers_does() {
        let templates: Vec<Value> = serde_json::from_str(include_str!("../fixtures/chat_templates.json")).unwrap();
        assert!(templates.len() >= 5);
        let mut refused = 0;
        for template in &templates {
            for case in template["cases"].as_array().unwrap() {
                let turns: Vec<Turn> = serde_json::from_value(case["messages"].clone()).unwrap();
                let add_generation_prompt = case["add_generation_prompt"].as_bool().unwrap();
                match render(template["source"].as_str().unwrap(), &turns, add_generation_prompt) {
                    Ok(text) => assert_eq!(text, case["rendered"], "{}", template["name"]),
                    Err(problem) => {
                        refused += 1;
                        let reason =
                            case["refused"].as_str().unwrap_or_else(|| panic!("{}: {problem}", template["name"]));
                        assert!(problem.found.unwrap().contains(reason));
                    }
                }
            }
        }
        assert!(refused > 0);
    }

    #[test]
    fn a_template_knows_the_date() {
        let year = render("{{ strftime_now('%Y') }}", &[], false).unwrap();
        assert!(year.parse::<u32>().unwrap() >= 2024, "{year}");
        assert_eq!(render("{{ strftime_now('%!') }}", &[], false).unwrap_err().code, ProblemCode::ChatTemplate);
    }

    #[test]
    fn a_broken_template_is_a_problem() {
        assert_eq!(render("{% for %}", &[], false).unwrap_err().code, ProblemCode::ChatTemplate);
    }
}
