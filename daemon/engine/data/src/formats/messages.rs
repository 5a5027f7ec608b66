//! OpenAI's chat format: `messages` of `{role, content}`.

use justtrain_worker_api::{FormatName, Problem, ProblemCode, Turn};
use serde_json::Value;

use super::{Format, Row, required_list, required_text, turn, wrong_type};

pub(super) struct Messages;

impl Format for Messages {
    fn name(&self) -> FormatName {
        FormatName::Messages
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["messages"]]
    }

    fn turns(&self, row: &Row) -> Result<Vec<Turn>, Problem> {
        read_messages("messages", required_list(row, "messages")?)
    }
}

/// A list of `{role, content}` under `key`.
pub(super) fn read_messages(key: &str, messages: &[Value]) -> Result<Vec<Turn>, Problem> {
    messages
        .iter()
        .map(|message| {
            let message = message.as_object().ok_or_else(|| wrong_type(key, message, "{\"role\", \"content\"}"))?;
            let role = required_text(message, "role")?;
            if !["system", "user", "assistant"].contains(&role) {
                return Err(Problem::error(ProblemCode::BadConversation, "this role is not known", "未知的角色")
                    .key("role")
                    .found(role)
                    .expected("system, user or assistant")
                    .fix("rename the role, or delete the row", "请更正角色，或删除该行"));
            }
            Ok(turn(role, required_text(message, "content")?))
        })
        .collect()
}
