//! Values as Python writes them: `str(value)` for what a template prints, `json.dumps` for `tojson`.

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};
use serde_json::Value as Json;

/// `str(value)`: a text as it is, everything else as [`repr`]; nothing for what is undefined.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.to_string()),
        _ => Ok(repr(&json(value)?)),
    }
}

pub(super) fn json(value: &Value) -> Result<Json, Error> {
    serde_json::to_value(value)
        .map_err(|error| Error::new(minijinja::ErrorKind::BadSerialization, "not a plain value").with_source(error))
}

/// `repr(value)` of what JSON can hold.
fn repr(value: &Json) -> String {
    match value {
        Json::Null => "None".to_owned(),
        Json::Bool(true) => "True".to_owned(),
        Json::Bool(false) => "False".to_owned(),
        Json::Number(number) => number_text(number),
        Json::String(text) => quoted(text),
        Json::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Json::Object(keys) => {
            let pairs = keys.iter().map(|(key, value)| format!("{}: {}", quoted(key), repr(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Single quotes, or double ones where the text holds only single ones.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut written = String::from(quote);
    for character in text.chars() {
        match character {
            '\n' => written.push_str("\\n"),
            '\r' => written.push_str("\\r"),
            '\t' => written.push_str("\\t"),
            '\\' => written.push_str("\\\\"),
            other if other == quote => written.extend(['\\', other]),
            other if other.is_control() && u32::from(other) < 256 => {
                write!(written, "\\x{:02x}", u32::from(other)).expect("a String takes all");
            }
            other => written.push(other),
        }
    }
    written.push(quote);
    written
}

/// Whole numbers as they are; floats shortest, with an exponent below 1e-4 and from 1e16 on.
fn number_text(number: &serde_json::Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`e` formats with an exponent");
    let exponent: i32 = exponent.parse().expect("a number");
    if (-4..16).contains(&exponent) || float == 0.0 {
        let text = float.to_string();
        return if text.contains('.') { text } else { format!("{text}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The options of `json.dumps`.
pub(super) struct JsonStyle {
    pub(super) ensure_ascii: bool,
    /// What each level is indented with; None keeps all on one line.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
}

impl JsonStyle {
    pub(super) fn write(&self, value: &Json) -> String {
        let mut out = String::new();
        self.append(&mut out, value, 0);
        out
    }

    fn append(&self, out: &mut String, value: &Json, depth: usize) {
        match value {
            Json::Null | Json::Bool(_) => out.push_str(&value.to_string()),
            Json::Number(number) => out.push_str(&number_text(number)),
            Json::String(text) => self.append_text(out, text),
            Json::Array(items) => self.append_all(out, ['[', ']'], items.iter(), depth, |out, item| {
                self.append(out, item, depth + 1);
            }),
            Json::Object(keys) => {
                let mut pairs: Vec<_> = keys.iter().collect();
                if self.sort_keys {
                    pairs.sort_by_key(|&(key, _)| key);
                }
                self.append_all(out, ['{', '}'], pairs.into_iter(), depth, |out, (key, value)| {
                    self.append_text(out, key);
                    out.push_str(&self.key_separator);
                    self.append(out, value, depth + 1);
                });
            }
        }
    }

    fn append_all<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        append: impl Fn(&mut String, T),
    ) {
        let empty = items.len() == 0;
        let new_line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent.as_ref().filter(|_| !empty) {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for (at, item) in items.enumerate() {
            if at > 0 {
                out.push_str(&self.item_separator);
            }
            new_line(out, depth + 1);
            append(out, item);
        }
        new_line(out, depth);
        out.push(close);
    }

    fn append_text(&self, out: &mut String, text: &str) {
        let written = Json::from(text).to_string();
        if !self.ensure_ascii {
            out.push_str(&written);
            return;
        }
        for character in written.chars() {
            if character.is_ascii() {
                out.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("a String takes all");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What Python 3.11 prints.
    #[test]
    fn values_print_as_in_python() {
        let value =
            json!([null, true, 1, 1.0, 1e16, 1e15, 1e-5, 0.0001, -2.5e-7, 0.1, "it's", "a\"b'c\n\u{7f}", {"k": []}]);
        let expected = r#"[None, True, 1, 1.0, 1e+16, 1000000000000000.0, 1e-05, 0.0001, -2.5e-07, 0.1, "it's", 'a"b\'c\n\x7f', {'k': []}]"#;
        assert_eq!(repr(&value), expected);
    }

    #[test]
    fn json_is_written_as_in_python() {
        let style = |ensure_ascii, indent: Option<&str>, sort_keys| JsonStyle {
            ensure_ascii,
            indent: indent.map(str::to_owned),
            item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys,
        };
        let value = json!({"b": [1e-7, "é😀</a>"], "a": {}, "c": []});
        assert_eq!(style(false, None, false).write(&value), r#"{"b": [1e-07, "é😀</a>"], "a": {}, "c": []}"#);
        assert_eq!(
            style(true, None, true).write(&value),
            r#"{"a": {}, "b": [1e-07, "\u00e9\ud83d\ude00</a>"], "c": []}"#
        );
        let indented = "{\n  \"b\": [\n    1e-07,\n    \"é😀</a>\"\n  ],\n  \"a\": {},\n  \"c\": []\n}";
        assert_eq!(style(false, Some("  "), false).write(&value), indented);
    }
}
