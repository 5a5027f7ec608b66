//! TRL's prompt-completion: two texts, or two lists of messages.

use justtrain_worker_api::{FormatName, Problem};
use serde_json::Value;

use super::{Format, Row, answer, messages::read_messages, missing, required_text};
use crate::Message;

pub(super) struct PromptCompletion;

impl Format for PromptCompletion {
    fn name(&self) -> FormatName {
        FormatName::PromptCompletion
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["prompt"]]
    }

    fn turns(&self, row: &Row) -> Result<Vec<Message>, Problem> {
        let mut turns = match row.get("prompt") {
            Some(Value::Array(messages)) => read_messages("prompt", messages)?,
            Some(_) => vec![Message::new("user", required_text(row, "prompt")?)],
            None => return Err(missing(row, "prompt")),
        };
        match row.get("completion") {
            Some(Value::Array(messages)) => turns.extend(read_messages("completion", messages)?),
            _ => turns.push(Message::new("assistant", answer(row, "completion")?)),
        }
        Ok(turns)
    }
}
