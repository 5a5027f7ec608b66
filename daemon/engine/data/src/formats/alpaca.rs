//! Alpaca: `instruction`, `input`, `output`, with LLaMA-Factory's `system` and `history`.

use justtrain_worker_api::{FormatName, Problem};
use serde_json::Value;

use super::{Format, Row, answer, optional_text, required_text, wrong_type};
use crate::Message;

pub(super) struct Alpaca;

impl Format for Alpaca {
    fn name(&self) -> FormatName {
        FormatName::Alpaca
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["instruction"]]
    }

    fn turns(&self, row: &Row) -> Result<Vec<Message>, Problem> {
        let mut turns = read_prompt(row)?;
        turns.push(Message::new("assistant", answer(row, "output")?));
        Ok(turns)
    }
}

/// Everything before the answer.
pub(super) fn read_prompt(row: &Row) -> Result<Vec<Message>, Problem> {
    let mut turns = Vec::new();
    if let Some(system) = optional_text(row, "system")?.filter(|text| !text.is_empty()) {
        turns.push(Message::new("system", system));
    }
    match row.get("history") {
        None | Some(Value::Null) => {}
        Some(Value::Array(pairs)) => {
            for pair in pairs {
                let [Value::String(question), Value::String(answer)] = pair.as_array().map_or(&[][..], |p| p) else {
                    return Err(wrong_type("history", pair, "a list of two texts: [question, answer]"));
                };
                turns.extend([Message::new("user", question.as_str()), Message::new("assistant", answer.as_str())]);
            }
        }
        Some(other) => return Err(wrong_type("history", other, "a list of [question, answer]")),
    }
    let instruction = required_text(row, "instruction")?;
    let prompt = match optional_text(row, "input")?.filter(|text| !text.is_empty()) {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction.to_owned(),
    };
    turns.push(Message::new("user", prompt));
    Ok(turns)
}
