//! ShareGPT: `conversations` of `{from, value}`, with an optional `system`; LLaMA-Factory's `function_call` and
//! `observation` for tools.

use justtrain_worker_api::{FormatName, Problem, ProblemCode};
use serde_json::Value;

use super::{Format, Row, optional_text, required_list, required_text, wrong_type};
use crate::Message;
use crate::message::tool_call;

pub(super) struct ShareGpt;

impl Format for ShareGpt {
    fn name(&self) -> FormatName {
        FormatName::Sharegpt
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["conversations"]]
    }

    fn turns(&self, row: &Row) -> Result<Vec<Message>, Problem> {
        let mut turns = Vec::new();
        if let Some(system) = optional_text(row, "system")?.filter(|text| !text.is_empty()) {
            turns.push(Message::new("system", system));
        }
        for said in required_list(row, "conversations")? {
            turns.push(read_said("conversations", said)?);
        }
        Ok(turns)
    }
}

/// `{from, value}` under `key`.
pub(super) fn read_said(key: &str, said: &Value) -> Result<Message, Problem> {
    let said = said.as_object().ok_or_else(|| wrong_type(key, said, "{\"from\", \"value\"}"))?;
    let value = required_text(said, "value")?;
    Ok(match required_text(said, "from")? {
        "human" | "user" => Message::new("user", value),
        "gpt" | "assistant" => Message::new("assistant", value),
        "system" => Message::new("system", value),
        "observation" | "tool" => Message::new("tool", value),
        "function_call" => calls(value)?,
        other => return Err(unknown_role(other)),
    })
}

/// One call, or a list of them: `{"name", "arguments"}` as JSON text.
fn calls(text: &str) -> Result<Message, Problem> {
    let parsed = serde_json::from_str::<Value>(text).ok();
    let calls = parsed.map(|value| match value {
        Value::Array(calls) => calls,
        call => vec![call],
    });
    let calls = calls.filter(|calls| !calls.is_empty() && calls.iter().all(|call| call["name"].is_string()));
    let calls = calls.ok_or_else(|| {
        Problem::error(ProblemCode::BadConversation, "this is not a call of a tool", "这不是工具调用")
            .key("value")
            .found(text.chars().take(80).collect::<String>())
            .expected("{\"name\": …, \"arguments\": {…}} as JSON text")
            .fix("correct the call, or delete the row", "请更正该调用，或删除该行")
    })?;
    let calls = calls.iter().map(|call| tool_call(&call["name"], &call["arguments"])).collect();
    let keys =
        Row::from_iter([("role".to_owned(), "assistant".into()), ("tool_calls".to_owned(), Value::Array(calls))]);
    Ok(Message::from_keys(&keys))
}

fn unknown_role(found: &str) -> Problem {
    Problem::error(ProblemCode::BadConversation, "nobody of this name takes part", "未知的说话人")
        .key("from")
        .found(found)
        .expected("human, gpt, system, function_call or observation")
        .fix("rename the speaker, or delete the row", "请更正说话人，或删除该行")
}
