//! Preferences: two answers to one prompt, `chosen` and `rejected`. The prompt is TRL's `prompt` (a text or messages),
//! LLaMA-Factory's alpaca (`instruction`, `input`) or sharegpt (`conversations`), or `messages`; or both answers are whole
//! conversations that differ in their last turn, as TRL's implicit prompts and UltraFeedback have it.

use justtrain_worker_api::{FormatName, Problem, ProblemCode};
use serde_json::Value;

use super::alpaca::{self, Alpaca};
use super::messages::read_messages;
use super::sharegpt::{ShareGpt, read_said};
use super::{Format, Judgement, Row, answer, missing, no_answer, optional_text, required_list, required_text};
use crate::Message;

pub(super) struct Preference;

impl Format for Preference {
    fn name(&self) -> FormatName {
        FormatName::Preference
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["chosen", "rejected"]]
    }

    fn turns(&self, row: &Row) -> Result<Vec<Message>, Problem> {
        let mut turns = match whole_conversation(row, "chosen")? {
            Some(chosen) => return Ok(chosen),
            None => read_prompt(row)?,
        };
        turns.push(read_answer(row, "chosen")?);
        Ok(turns)
    }

    fn judgement(&self, row: &Row) -> Result<Judgement, Problem> {
        let rejected = match (whole_conversation(row, "chosen")?, whole_conversation(row, "rejected")?) {
            (None, None) => read_answer(row, "rejected")?,
            (Some(mut chosen), Some(mut rejected)) => {
                let answer = rejected.pop().expect("it starts with a question");
                chosen.pop();
                if chosen != rejected {
                    return Err(two_prompts("other turns before the answer", "the same turns as in chosen"));
                }
                answer
            }
            (Some(_), None) => return Err(two_prompts("an answer alone", "a conversation, as chosen is")),
            (None, Some(_)) => return Err(two_prompts("a conversation", "an answer alone, as chosen is")),
        };
        if rejected.role() != "assistant" || rejected.text().trim().is_empty() {
            return Err(no_answer("rejected").found("no text of the assistant at its end"));
        }
        Ok(Judgement::Over(rejected))
    }
}

/// Messages that start with a question, and so hold the prompt themselves.
fn whole_conversation(row: &Row, key: &str) -> Result<Option<Vec<Message>>, Problem> {
    let Some(Value::Array(list)) = row.get(key) else { return Ok(None) };
    let messages = read_list(key, list)?;
    Ok(Some(messages).filter(|messages| messages.first().is_some_and(|first| first.role() != "assistant")))
}

/// The answer alone: a text, a message, or a list of one.
fn read_answer(row: &Row, key: &str) -> Result<Message, Problem> {
    let message = match row.get(key) {
        Some(Value::Array(list)) => match read_list(key, list)?.as_slice() {
            [message] => message.clone(),
            turns => return Err(no_answer(key).found(format!("{} turns", turns.len())).expected("one turn")),
        },
        Some(message @ Value::Object(_)) => read_list(key, std::slice::from_ref(message))?.remove(0),
        _ => Message::new("assistant", answer(row, key)?),
    };
    if message.role() != "assistant" || message.text().trim().is_empty() {
        return Err(no_answer(key).found(format!("a turn of {}: {:?}", message.role(), message.text())));
    }
    Ok(message)
}

/// Messages in OpenAI's keys or in sharegpt's.
fn read_list(key: &str, list: &[Value]) -> Result<Vec<Message>, Problem> {
    match list.first().is_some_and(|said| said.get("from").is_some()) {
        true => list.iter().map(|said| read_said(key, said)).collect(),
        false => read_messages(key, list),
    }
}

fn read_prompt(row: &Row) -> Result<Vec<Message>, Problem> {
    if row.contains_key("conversations") {
        return ShareGpt.turns(row);
    }
    if row.contains_key("messages") {
        return read_messages("messages", required_list(row, "messages")?);
    }
    if Alpaca.fits(row) {
        return alpaca::read_prompt(row);
    }
    let system = optional_text(row, "system")?.filter(|text| !text.is_empty());
    let mut turns: Vec<Message> = system.into_iter().map(|text| Message::new("system", text)).collect();
    match row.get("prompt") {
        Some(Value::Array(messages)) => turns.extend(read_messages("prompt", messages)?),
        Some(_) => turns.push(Message::new("user", required_text(row, "prompt")?)),
        None => return Err(missing(row, "prompt")),
    }
    Ok(turns)
}

fn two_prompts(found: &str, expected: &str) -> Problem {
    Problem::error(
        ProblemCode::BadConversation,
        "chosen and rejected must answer the same prompt",
        "chosen 与 rejected 必须回答同一个提问",
    )
    .key("rejected")
    .found(found)
    .expected(expected)
    .fix("let both differ in their last turn only, or delete the row", "请让两者只在最后一轮不同，或删除该行")
}
