//! One message of a conversation, with everything that a chat template may look at.

use justtrain_worker_api::Turn;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A message with the keys that OpenAI's chat format gives it: `role`, `content`, and where there are any, `tool_calls`,
/// `name`, `tool_call_id`, `reasoning_content` and others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self(Map::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content.into().into())]))
    }

    /// Keys without a value are left out, as transformers does before a template sees them.
    pub(crate) fn from_keys(keys: &Map<String, Value>) -> Self {
        let given = keys.iter().filter(|(_, value)| !value.is_null());
        Self(given.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// What is said, as text; of an assistant that only calls tools, the calls as JSON.
    pub fn text(&self) -> String {
        match self.0.get("content") {
            Some(Value::String(text)) if !text.is_empty() || !self.calls_tools() => text.clone(),
            Some(Value::Array(parts)) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
            _ => self.0.get("tool_calls").map(Value::to_string).unwrap_or_default(),
        }
    }

    pub fn calls_tools(&self) -> bool {
        self.0.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
    }

    /// The content as it is: a text, a list of parts, or None.
    pub(crate) fn content(&self) -> Option<&Value> {
        self.0.get("content")
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.0.insert(key.to_owned(), value);
    }
}

impl From<&Turn> for Message {
    fn from(turn: &Turn) -> Self {
        Self::new(&turn.role, &turn.content)
    }
}

impl From<&Message> for Turn {
    fn from(message: &Message) -> Self {
        Self { role: message.role().to_owned(), content: message.text() }
    }
}

/// A call of one tool, as the assistant's message lists it.
pub(crate) fn tool_call(name: &Value, arguments: &Value) -> Value {
    json!({ "type": "function", "function": { "name": name, "arguments": arguments } })
}
