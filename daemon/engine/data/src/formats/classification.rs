//! Classification: a text, or a pair of them, and its `label`; with the names of transformers' examples or of GLUE.

use justtrain_worker_api::{FormatName, Problem};
use serde_json::Value;

use super::{Format, Judgement, Row, missing, no_answer, required_text, wrong_type};
use crate::Message;

pub(super) struct Classification;

/// Keys of the text, and of the second text of a pair.
const TEXTS: [(&str, &str); 3] = [("text", "text_pair"), ("sentence", "sentence2"), ("sentence1", "sentence2")];

impl Format for Classification {
    fn name(&self) -> FormatName {
        FormatName::Classification
    }

    fn signature(&self) -> &'static [&'static [&'static str]] {
        &[&["text", "label"], &["sentence", "label"], &["sentence1", "label"]]
    }

    /// The texts, and the label as the last turn.
    fn turns(&self, row: &Row) -> Result<Vec<Message>, Problem> {
        let found = TEXTS.iter().find(|(text, _)| row.contains_key(*text));
        let (text, pair) = found.ok_or_else(|| missing(row, "text"))?;
        let mut turns = vec![Message::new("user", required_text(row, text)?)];
        if row.get(*pair).is_some_and(|value| !value.is_null()) {
            turns.push(Message::new("user", required_text(row, pair)?));
        }
        turns.push(Message::new("assistant", label(row)?));
        Ok(turns)
    }

    fn judgement(&self, _: &Row) -> Result<Judgement, Problem> {
        Ok(Judgement::Label)
    }
}

/// A text as it is; numbers, true and false as JSON writes them.
fn label(row: &Row) -> Result<String, Problem> {
    match row.get("label") {
        None | Some(Value::Null) => Err(no_answer("label").found("no label").expected("the class of the text")),
        Some(Value::String(text)) if text.trim().is_empty() => Err(no_answer("label").found("an empty text")),
        Some(Value::String(text)) => Ok(text.trim().to_owned()),
        Some(Value::Bool(value)) => Ok(value.to_string()),
        Some(Value::Number(number)) if !number.is_f64() => Ok(number.to_string()),
        Some(other) => Err(wrong_type("label", other, "a text or a whole number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Row {
        serde_json::from_str(text).unwrap()
    }

    fn turns(text: &str) -> Vec<String> {
        Classification.turns(&row(text)).unwrap().iter().map(Message::text).collect()
    }

    #[test]
    fn a_label_may_be_a_text_a_number_or_a_truth() {
        assert_eq!(turns(r#"{"text": "fine", "label": " good "}"#), ["fine", "good"]);
        assert_eq!(turns(r#"{"sentence": "fine", "label": 1}"#), ["fine", "1"]);
        assert_eq!(turns(r#"{"text": "fine", "text_pair": null, "label": true}"#), ["fine", "true"]);
        assert_eq!(turns(r#"{"sentence1": "a", "sentence2": "b", "label": "same"}"#), ["a", "b", "same"]);
    }

    #[test]
    fn a_row_without_a_label_or_text_says_so() {
        let problem = |text: &str| Classification.turns(&row(text)).unwrap_err();
        assert_eq!(problem(r#"{"text": "fine", "label": ""}"#).key.as_deref(), Some("label"));
        assert_eq!(problem(r#"{"text": "fine", "label": null}"#).found.as_deref(), Some("no label"));
        assert_eq!(problem(r#"{"text": "fine", "label": 0.5}"#).expected.as_deref(), Some("a text or a whole number"));
        assert_eq!(problem(r#"{"text": 3, "label": "good"}"#).key.as_deref(), Some("text"));
        assert_eq!(problem(r#"{"label": "good"}"#).key.as_deref(), Some("text"));
    }
}
