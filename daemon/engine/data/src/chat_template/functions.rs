//! What transformers gives chat templates beyond Jinja's own functions and filters.

use std::fmt::Write as _;

use chrono::Local;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::python::{self, JsonStyle};

/// How a template refuses a conversation, such as two turns of the same role.
pub(super) fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The local date and time; templates put today's date into the system prompt with it.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", Local::now().format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("the date format {format:?} is not known")))?;
    Ok(text)
}

/// Python's `json.dumps`, not ASCII by default; Jinja's own filter escapes HTML.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "what is undefined cannot be written as JSON"));
    }
    let flag = |name: &str| options.get::<Option<bool>>(name).map(|flag| flag.unwrap_or(false));
    // A number of spaces, or the text itself.
    let indent = match options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none()) {
        Some(text) if text.kind() == ValueKind::String => Some(text.to_string()),
        Some(spaces) => Some(" ".repeat(usize::try_from(spaces)?)),
        None => None,
    };
    let (item_separator, key_separator) = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two texts")),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle {
        ensure_ascii: flag("ensure_ascii")?,
        indent,
        item_separator,
        key_separator,
        sort_keys: flag("sort_keys")?,
    };
    options.assert_all_used()?;
    Ok(style.write(&python::json(value)?))
}

/// Jinja's tests `iterable` and `sequence`: texts and mappings are, none is not.
pub(super) fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), String | Seq | Map | Iterable | Undefined)
}
