//! OpenAI's chat format: `messages` of `{role, content}`, with `tool_calls` and the tools' results.

use justtrain_worker_api::{FormatName, Problem, ProblemCode};
use serde_json::Value;

use super::{Format, Row, required_list, required_text, wrong_type};
use crate::Message;

pub(super) struct Messages;

const ROLES: &[&str] = &["system", "user", "assistant", "tool"];

impl Format for Messages {
    fn name(&self) -> FormatName {
        FormatName::Messages
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["messages"]]
    }

    fn turns(&self, row: &Row) -> Result<Vec<Message>, Problem> {
        read_messages("messages", required_list(row, "messages")?)
    }
}

/// A list of `{role, content}` under `key`. Only an assistant that calls tools may say nothing.
pub(super) fn read_messages(key: &str, messages: &[Value]) -> Result<Vec<Message>, Problem> {
    messages
        .iter()
        .map(|message| {
            let keys = message.as_object().ok_or_else(|| wrong_type(key, message, "{\"role\", \"content\"}"))?;
            let role = required_text(keys, "role")?;
            if !ROLES.contains(&role) {
                return Err(Problem::error(ProblemCode::BadConversation, "this role is not known", "未知的角色")
                    .key("role")
                    .found(role)
                    .expected("system, user, assistant or tool")
                    .fix("rename the role, or delete the row", "请更正角色，或删除该行"));
            }
            let mut message = Message::from_keys(keys);
            if !message.calls_tools() && !matches!(message.content(), Some(Value::Array(_))) {
                required_text(keys, "content")?;
            }
            if let Some(Value::Array(calls)) = message.get("tool_calls") {
                let calls = calls.iter().cloned().map(with_arguments_as_object).collect();
                message.set("tool_calls", Value::Array(calls));
            }
            Ok(message)
        })
        .collect()
}

/// OpenAI writes the arguments of a call as JSON text; templates want the object.
fn with_arguments_as_object(mut call: Value) -> Value {
    let parsed = call["function"]["arguments"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let Some(arguments) = parsed.filter(Value::is_object) {
        call["function"]["arguments"] = arguments;
    }
    call
}
