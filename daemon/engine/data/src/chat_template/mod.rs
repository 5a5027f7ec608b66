//! Chat templates as Hugging Face writes them (Jinja), rendered with what transformers gives them
//! (`utils/chat_template_utils.py`).

mod functions;
mod marks;
mod named;
mod python;

use std::fs;
use std::ops::Range;
use std::path::Path;

use justtrain_weights::Checkpoint;
use justtrain_weights::gguf::Metadata;
use justtrain_worker_api::{Problem, ProblemCode};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde_json::Value;

use crate::{Conversation, Message, Tokenizer};

pub use named::choose;

/// The template of conversations without tools, and of all where the model has one only.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Follows the text that an answer is continued from; afterwards everything from here on is cut off. A noncharacter, and
/// a space that shows whether the template trims.
const CONTINUE: &str = "\u{fdd2} ";

/// Names under which a message's reasoning is passed; templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What a template is given.
#[derive(Debug, Clone, Copy)]
pub struct Chat<'a> {
    pub messages: &'a [Message],
    /// JSON schemas of functions that the assistant may call.
    pub tools: &'a [Value],
    /// Texts to answer from, each with `title` and `text`.
    pub documents: &'a [Value],
}

/// Where the rendered text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// After the last message.
    Complete,
    /// Where the assistant begins.
    GenerationPrompt,
    /// Within the last message, which is to be continued.
    Open,
}

/// A model's template, and another one for tools where it has two.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    tool_use: Option<String>,
    /// The template says what the assistant says.
    marks: bool,
    special: minijinja::Value,
}

impl<'a> Chat<'a> {
    /// Without tools and documents.
    pub fn new(messages: &'a [Message]) -> Self {
        Self { messages, tools: &[], documents: &[] }
    }

    /// Its first messages.
    pub(crate) fn first(self, messages: usize) -> Self {
        Self { messages: &self.messages[..messages], ..self }
    }
}

impl<'a> From<&'a Conversation> for Chat<'a> {
    fn from(conversation: &'a Conversation) -> Self {
        Self { messages: &conversation.turns, tools: &conversation.tools, documents: &conversation.documents }
    }
}

impl ChatTemplate {
    /// The model's own template: of a GGUF, `tokenizer.chat_template`; of a folder, `chat_template.jinja`, or
    /// `chat_template` in `tokenizer_config.json`. A model without one gets ChatML and a warning.
    pub fn open(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<(Self, Option<Problem>), Problem> {
        let sources = match (checkpoint.gguf(), checkpoint.folder()) {
            (Some(gguf), _) => find_in_gguf(gguf.metadata()),
            (None, Some(folder)) => find_in_folder(folder),
            (None, None) => Sources::default(),
        };
        let warning = sources.default.is_none().then(|| {
            Problem::warning(
                ProblemCode::ChatTemplate,
                format!("the model has no chat template; {} is used", named::DEFAULT),
                format!("模型没有对话模板，将使用 {}", named::DEFAULT),
            )
            .file(checkpoint.path().display())
            .fix("name another one with template: in the recipe", "可在配方中用 template: 指定其他模板")
        });
        let default = named::built_in(named::DEFAULT).expect("it comes with JustTrain");
        let template =
            Self::with_tool_use(sources.default.as_deref().unwrap_or(default), sources.tool_use.as_deref(), tokenizer)
                .map_err(|problem| problem.file(checkpoint.path().display()))?;
        Ok((template, warning))
    }

    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, Problem> {
        Self::with_tool_use(source, None, tokenizer)
    }

    fn with_tool_use(source: &str, tool_use: Option<&str>, tokenizer: &Tokenizer) -> Result<Self, Problem> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, _, value| Ok(out.write_str(&python::text(value)?)?));
        environment.add_function("raise_exception", functions::raise_exception);
        environment.add_function("strftime_now", functions::strftime_now);
        environment.add_filter("tojson", functions::tojson);
        environment.add_filter("string", |value: &minijinja::Value| python::text(value));
        environment.add_test("iterable", functions::is_iterable);
        environment.add_test("sequence", functions::is_iterable);
        environment.add_filter(marks::FILTER, marks::mark);
        let (rewritten, marks) = marks::rewrite(source);
        environment.add_template_owned(DEFAULT, rewritten).map_err(failed)?;
        if let Some(source) = tool_use {
            environment.add_template_owned(TOOL_USE, marks::rewrite(source).0).map_err(failed)?;
        }
        let special = context! {
            bos_token => tokenizer.bos_token().unwrap_or_default(),
            eos_token => tokenizer.eos_token().unwrap_or_default(),
            pad_token => tokenizer.pad_token(),
            unk_token => tokenizer.unknown_token(),
        };
        Ok(Self { environment, source: source.to_owned(), tool_use: tool_use.map(str::to_owned), marks, special })
    }

    /// The Jinja text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The Jinja text for conversations with tools, where the model has one of its own for them.
    pub fn tool_use_source(&self) -> Option<&str> {
        self.tool_use.as_deref()
    }

    /// The conversation as the model sees it.
    pub fn render(&self, chat: Chat<'_>, end: End) -> Result<String, Problem> {
        let mut messages: Vec<Message> = chat.messages.iter().map(with_reasoning).collect();
        if end == End::Open {
            let last = messages.last_mut().ok_or_else(|| refused("there is no message to continue"))?;
            last.set("content", format!("{}{CONTINUE}", last.text()).into());
        }
        let text = marks::extract(&self.render_marked(&messages, chat, end)?).0;
        if end != End::Open {
            return Ok(text);
        }
        let at = text.rfind(CONTINUE.trim_end()).ok_or_else(|| refused("the template leaves the last message out"))?;
        let before = &text[..at];
        Ok(if text[at..].starts_with(CONTINUE) { before } else { before.trim_end() }.to_owned())
    }

    /// The whole conversation, and the bytes of it that the assistant says, where the template marks them with
    /// `{% generation %}`.
    pub(crate) fn render_said(&self, chat: Chat<'_>) -> Result<(String, Said), Problem> {
        let messages: Vec<Message> = chat.messages.iter().map(with_reasoning).collect();
        let (text, said) = marks::extract(&self.render_marked(&messages, chat, End::Complete)?);
        Ok((text, self.marks.then_some(said)))
    }

    fn render_marked(&self, messages: &[Message], chat: Chat<'_>, end: End) -> Result<String, Problem> {
        let name = if self.tool_use.is_some() && !chat.tools.is_empty() { TOOL_USE } else { DEFAULT };
        let template = self.environment.get_template(name).map_err(failed)?;
        // transformers says none, not an empty list.
        let list = |list: &[Value]| (!list.is_empty()).then(|| minijinja::Value::from(Serde(list)));
        let context = context! {
            messages => minijinja::Value::from(Serde(messages)),
            tools => list(chat.tools),
            documents => list(chat.documents),
            add_generation_prompt => end == End::GenerationPrompt,
            ..self.special.clone()
        };
        template.render(context).map_err(failed)
    }
}

/// Bytes of a rendered conversation, where its template tells.
pub(crate) type Said = Option<Vec<Range<usize>>>;

/// A message whose reasoning has all the names that templates know it by.
fn with_reasoning(message: &Message) -> Message {
    let mut message = message.clone();
    if let Some(reasoning) = REASONING.iter().find_map(|key| message.get(key)).cloned() {
        if message.get("thinking").is_none() {
            message.set("thinking", reasoning.clone());
        }
        message.set("reasoning_content", reasoning);
    }
    message
}

#[derive(Default)]
struct Sources {
    default: Option<String>,
    tool_use: Option<String>,
}

fn find_in_gguf(metadata: &Metadata) -> Sources {
    let text = |key: &str| metadata.get_str(key).map(str::to_owned);
    Sources { default: text("tokenizer.chat_template"), tool_use: text("tokenizer.chat_template.tool_use") }
}

fn find_in_folder(folder: &Path) -> Sources {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    if let Some(default) = read("chat_template.jinja") {
        return Sources { default: Some(default), tool_use: read("additional_chat_templates/tool_use.jinja") };
    }
    let config: Option<Value> = read("tokenizer_config.json").and_then(|text| serde_json::from_str(&text).ok());
    let own = config.map_or(Value::Null, |mut config| config["chat_template"].take());
    // Models with several templates list them by name.
    let named = |name: &str| own.as_array()?.iter().find(|entry| entry["name"] == name)?["template"].as_str();
    let default = own.as_str().or_else(|| named(DEFAULT)).map(str::to_owned);
    Sources { default, tool_use: named(TOOL_USE).map(str::to_owned) }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn failed(error: minijinja::Error) -> Problem {
    refused(format!("{error:#}").lines().next().unwrap_or_default())
}

fn refused(why: &str) -> Problem {
    Problem::error(ProblemCode::ChatTemplate, "the chat template fails", "对话模板出错")
        .found(why)
        .fix("check the roles of the conversation, or the model's template", "请检查对话的角色，或模型的模板")
}

#[cfg(test)]
mod tests;
