//! ShareGPT: `conversations` of `{from, value}`, with an optional `system`.

use justtrain_worker_api::{FormatName, Problem, ProblemCode, Turn};

use super::{Format, Row, optional_text, required_list, required_text, turn, wrong_type};

pub(super) struct ShareGpt;

impl Format for ShareGpt {
    fn name(&self) -> FormatName {
        FormatName::Sharegpt
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["conversations"]]
    }

    fn turns(&self, row: &Row) -> Result<Vec<Turn>, Problem> {
        let mut turns = Vec::new();
        if let Some(system) = optional_text(row, "system")?.filter(|text| !text.is_empty()) {
            turns.push(turn("system", system));
        }
        for said in required_list(row, "conversations")? {
            let said = said.as_object().ok_or_else(|| wrong_type("conversations", said, "{\"from\", \"value\"}"))?;
            let role = match required_text(said, "from")? {
                "human" | "user" => "user",
                "gpt" | "assistant" => "assistant",
                "system" => "system",
                other => return Err(unknown_role(other)),
            };
            turns.push(turn(role, required_text(said, "value")?));
        }
        Ok(turns)
    }
}

fn unknown_role(found: &str) -> Problem {
    Problem::error(ProblemCode::BadConversation, "nobody of this name takes part", "未知的说话人")
        .key("from")
        .found(found)
        .expected("human, gpt or system")
        .fix("rename the speaker, or delete the row", "请更正说话人，或删除该行")
}
