//! Texts, pairs of texts, or images with a label, for a classifier. The label is the answer; before it stand one or two texts
//! of the user, or the image's path as the row has it.

use std::path::PathBuf;

use justtrain_worker_api::{FormatName, Problem};
use serde_json::Value;

use super::{Format, Judgement, Row, missing, no_answer, required_text, wrong_type};
use crate::Message;

pub(super) struct Classification;

/// Names of a text and of the second one of a pair; `sentence` and `sentence1` are GLUE's.
const TEXTS: [(&str, &str); 3] = [("text", "text_pair"), ("sentence1", "sentence2"), ("sentence", "sentence2")];

/// Keys of rows in which a `label` says whether an answer is good.
const OF_CONVERSATIONS: [&str; 7] =
    ["prompt", "completion", "instruction", "output", "messages", "conversations", "chosen"];

impl Format for Classification {
    fn name(&self) -> FormatName {
        FormatName::Classification
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["text", "label"], &["sentence", "label"], &["sentence1", "label"], &["image", "label"]]
    }

    fn fits(&self, row: &Row) -> bool {
        self.signature().iter().any(|keys| keys.iter().all(|&key| row.contains_key(key)))
            && !OF_CONVERSATIONS.iter().any(|&key| row.contains_key(key))
    }

    fn turns(&self, row: &Row) -> Result<Vec<Message>, Problem> {
        let mut turns = Vec::new();
        if row.contains_key("image") {
            turns.push(Message::new("user", filled(row, "image")?));
        } else {
            let (text, pair) =
                TEXTS.into_iter().find(|(text, _)| row.contains_key(*text)).ok_or_else(|| missing(row, "text"))?;
            turns.push(Message::new("user", filled(row, text)?));
            if row.get(pair).is_some_and(|pair| !pair.is_null()) {
                turns.push(Message::new("user", filled(row, pair)?));
            }
        }
        turns.push(Message::new("assistant", label(row)?));
        Ok(turns)
    }

    fn image(&self, row: &Row) -> Result<Option<PathBuf>, Problem> {
        if row.contains_key("image") { Ok(Some(filled(row, "image")?.into())) } else { Ok(None) }
    }

    fn judgement(&self, _: &Row) -> Result<Judgement, Problem> {
        Ok(Judgement::Label)
    }
}

/// A text that is not empty.
fn filled<'a>(row: &'a Row, key: &str) -> Result<&'a str, Problem> {
    let text = required_text(row, key)?;
    if text.trim().is_empty() {
        return Err(missing(row, key)
            .found("an empty text")
            .expected("a text that is not empty")
            .fix("fill it in, or delete the row", "请补上内容，或删除该行"));
    }
    Ok(text)
}

fn label(row: &Row) -> Result<String, Problem> {
    const EXPECTED: &str = "a text, a whole number, or true or false";
    match row.get("label") {
        None | Some(Value::Null) => Err(missing(row, "label")),
        Some(Value::String(text)) if text.trim().is_empty() => Err(no_answer("label").found("an empty text")),
        Some(Value::String(text)) => Ok(text.trim().to_owned()),
        Some(Value::Bool(label)) => Ok(label.to_string()),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
        Some(Value::Number(number)) => Err(wrong_type("label", &row["label"], EXPECTED).found(number)),
        Some(other) => Err(wrong_type("label", other, EXPECTED)),
    }
}
