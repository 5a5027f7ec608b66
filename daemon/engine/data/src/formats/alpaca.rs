//! Alpaca: `instruction`, `input`, `output`, with LLaMA-Factory's `system` and `history`.

use justtrain_worker_api::{FormatName, Problem, Turn};
use serde_json::Value;

use super::{Format, Row, answer, optional_text, required_text, turn, wrong_type};

pub(super) struct Alpaca;

impl Format for Alpaca {
    fn name(&self) -> FormatName {
        FormatName::Alpaca
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["instruction"]]
    }

    fn turns(&self, row: &Row) -> Result<Vec<Turn>, Problem> {
        let mut turns = Vec::new();
        if let Some(system) = optional_text(row, "system")?.filter(|text| !text.is_empty()) {
            turns.push(turn("system", system));
        }
        match row.get("history") {
            None | Some(Value::Null) => {}
            Some(Value::Array(pairs)) => {
                for pair in pairs {
                    let [Value::String(question), Value::String(answer)] = pair.as_array().map_or(&[][..], |p| p)
                    else {
                        return Err(wrong_type("history", pair, "a list of two texts: [question, answer]"));
                    };
                    turns.extend([turn("user", question), turn("assistant", answer)]);
                }
            }
            Some(other) => return Err(wrong_type("history", other, "a list of [question, answer]")),
        }
        let instruction = required_text(row, "instruction")?;
        let prompt = match optional_text(row, "input")?.filter(|text| !text.is_empty()) {
            Some(input) => format!("{instruction}\n{input}"),
            None => instruction.to_owned(),
        };
        turns.extend([turn("user", prompt), turn("assistant", answer(row, "output")?)]);
        Ok(turns)
    }
}
