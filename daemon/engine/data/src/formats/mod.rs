//! Data formats: rows of JSON to conversations. One file a format; a new one is a file and a line in `ALL`.
//!
//! A file is a JSON array, or one JSON object a line (JSONL); which of the two, and which format, is read from the
//! content and not from the name.

mod alpaca;
mod classification;
mod file;
mod kto;
mod messages;
mod preference;
mod prompt_completion;
mod sharegpt;
mod text;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use justtrain_worker_api::{DataFile, FormatName, Problem, ProblemCode};
use serde_json::{Map, Value};

use crate::{Chat, Message};

pub type Row = Map<String, Value>;

/// A row as it was understood. The last turn is the assistant's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    pub turns: Vec<Message>,
    /// JSON schemas of the functions that the assistant may call.
    pub tools: Vec<Value>,
    /// Texts to answer from.
    pub documents: Vec<Value>,
    /// What a classifier looks at in place of a text; `turns` has the path as the row gives it.
    pub image: Option<PathBuf>,
    pub judgement: Judgement,
    pub file: Arc<Path>,
    /// 1-based row in `file`.
    pub row: u64,
}

/// What a row says of its last turn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Judgement {
    /// Nothing: it is the answer.
    #[default]
    None,
    /// It was chosen over this one.
    Over(Message),
    /// Whether it is good.
    Good(bool),
    /// It is no answer but a text of its own: there is no template, and all of it counts.
    Plain,
    /// It is the label of what comes before: of one text, of a pair, or of the image.
    Label,
}

impl Conversation {
    /// Everything before the last answer.
    pub fn prompt(&self) -> Chat<'_> {
        let chat = Chat::from(self);
        chat.first(chat.messages.len() - 1)
    }

    /// The last turn's text, which is the label of a row for a classifier.
    pub fn label(&self) -> String {
        self.turns.last().map(Message::text).unwrap_or_default()
    }

    /// The text that the label is of, and the second one of a pair; None where it is of an image.
    pub fn texts(&self) -> Option<(String, Option<String>)> {
        match self.image {
            Some(_) => None,
            None => Some((self.turns[0].text(), (self.turns.len() > 2).then(|| self.turns[1].text()))),
        }
    }

    /// The same with another last turn, of which nothing is said.
    pub fn answered(&self, answer: Message) -> Self {
        let mut other = Self { judgement: Judgement::None, ..self.clone() };
        other.turns.pop();
        other.turns.push(answer);
        other
    }

    /// The row as conversations of one answer each: the chosen one, and the rejected one where it has one.
    pub fn answers(&self) -> Vec<Cow<'_, Self>> {
        let rejected = match &self.judgement {
            Judgement::Over(rejected) => Some(Cow::Owned(self.answered(rejected.clone()))),
            _ => None,
        };
        std::iter::once(Cow::Borrowed(self)).chain(rejected).collect()
    }
}

/// A data file, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub format: FormatName,
    /// Rows in the file, usable or not.
    pub rows: u64,
    pub conversations: Vec<Conversation>,
    /// What is wrong with the other rows.
    pub problems: Vec<Problem>,
}

trait Format: Sync {
    fn name(&self) -> FormatName;

    /// Keys of which a row of this format has all of at least one list.
    fn signature(&self) -> &'static [&'static [&'static str]];

    /// Whether a row with these keys is of this format.
    fn fits(&self, row: &Row) -> bool {
        self.signature().iter().any(|keys| keys.iter().all(|&key| row.contains_key(key)))
    }

    /// The row's turns. The caller adds file and row to a problem, and checks the turns' order.
    fn turns(&self, row: &Row) -> Result<Vec<Message>, Problem>;

    /// The path of the row's image, relative to the data file.
    fn image(&self, _row: &Row) -> Result<Option<PathBuf>, Problem> {
        Ok(None)
    }

    /// What the row says of the last of these turns.
    fn judgement(&self, _row: &Row) -> Result<Judgement, Problem> {
        Ok(Judgement::None)
    }
}

/// Of two that fit as many rows, the first is taken.
const ALL: &[&dyn Format] = &[
    &messages::Messages,
    &sharegpt::ShareGpt,
    &alpaca::Alpaca,
    &prompt_completion::PromptCompletion,
    &preference::Preference,
    &classification::Classification,
    &kto::Kto,
    &text::Text,
];

/// Those of [`ALL`] whose rows judge their answers or their texts.
const JUDGED: &[&dyn Format] = &[&preference::Preference, &classification::Classification, &kto::Kto];

/// Reads every row. `Err` where the file as a whole cannot be used; problems of single rows are in [`Loaded`].
pub fn read_conversations(data: &DataFile) -> Result<Loaded, Problem> {
    let shown = data.path.display().to_string();
    let rows = file::read_rows(&data.path)?;
    let format = match data.format {
        Some(name) => *ALL.iter().find(|format| format.name() == name).expect("every name has its format"),
        None => sniff(&rows).ok_or_else(|| unknown_format(&shown, &rows))?,
    };
    let mut loaded =
        Loaded { format: format.name(), rows: rows.len() as u64, conversations: Vec::new(), problems: Vec::new() };
    let file: Arc<Path> = data.path.as_path().into();
    for (row, value) in (1u64..).zip(rows) {
        let conversation = match value {
            Value::Object(object) => read_row(format, &object, &file, row),
            other => Err(wrong_type("", &other, "an object with the keys of the format")),
        };
        match conversation {
            Ok(conversation) => loaded.conversations.push(conversation),
            Err(problem) => loaded.problems.push(problem.file(&shown).row(row)),
        }
    }
    Ok(loaded)
}

fn read_row(format: &dyn Format, object: &Row, file: &Arc<Path>, row: u64) -> Result<Conversation, Problem> {
    let judgement = format.judgement(object)?;
    Ok(Conversation {
        turns: match judgement {
            Judgement::Plain | Judgement::Label => format.turns(object)?,
            Judgement::None | Judgement::Over(_) | Judgement::Good(_) => check_turns(format.turns(object)?)?,
        },
        image: format.image(object)?.map(|image| file.parent().unwrap_or(Path::new("")).join(image)),
        tools: list_or_json(object, "tools")?,
        documents: list_or_json(object, "documents")?,
        judgement,
        file: Arc::clone(file),
        row,
    })
}

/// A list, or JSON text that holds one, as data sets without nested columns have it. Empty where there is none.
fn list_or_json(row: &Row, key: &str) -> Result<Vec<Value>, Problem> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Vec::new()),
        Some(Value::String(text)) => serde_json::from_str(text).map_err(|error| {
            Problem::error(ProblemCode::WrongType, "a value has the wrong type", "值的类型不对")
                .key(key)
                .found(error)
                .expected("a list, or JSON text of one")
                .fix("correct the value", "请更正该值")
        }),
        Some(other) => Err(wrong_type(key, other, "a list, or JSON text of one")),
    }
}

/// The format that most of the first rows fit. Rows that judge have the keys of plain ones as well: half of them are enough.
fn sniff(rows: &[Value]) -> Option<&'static dyn Format> {
    let fits =
        |format: &dyn Format| rows.iter().take(20).filter_map(Value::as_object).filter(|row| format.fits(row)).count();
    let best = ALL.iter().copied().rev().max_by_key(|format| fits(*format)).filter(|best| fits(*best) > 0)?;
    Some(JUDGED.iter().copied().find(|format| 2 * fits(*format) >= fits(best)).unwrap_or(best))
}

fn unknown_format(file: &str, rows: &[Value]) -> Problem {
    let keys = match &rows[0] {
        Value::Object(row) => key_list(row),
        other => kind(other).to_owned(),
    };
    Problem::error(ProblemCode::UnknownFormat, "the rows fit none of the data formats", "数据行不符合任何已知格式")
        .file(file)
        .row(1)
        .found(keys)
        .expected(
            "alpaca (\"instruction\", \"output\"), sharegpt (\"conversations\"), messages (\"messages\"), \
             prompt_completion (\"prompt\", \"completion\"), preference (\"prompt\", \"chosen\", \"rejected\"), \
             kto (\"prompt\", \"completion\", \"label\"), classification (\"text\" or \"image\", \"label\") or text (\"text\")",
        )
        .fix("rename the keys of your rows to one of these formats", "请把数据的键改为以上格式之一")
}

/// Roles must make a conversation that ends with an answer: system, then user and assistant in turn; between an
/// assistant that calls tools and the next answer come the tools' results.
fn check_turns(turns: Vec<Message>) -> Result<Vec<Message>, Problem> {
    let bad = |found: String, expected: &str| {
        Problem::error(
            ProblemCode::BadConversation,
            "the turns of this row make no conversation",
            "该行的轮次不构成对话",
        )
        .found(found)
        .expected(expected)
        .fix(
            "put the turns in order: system, then user and assistant in turn",
            "请按 system、user、assistant 的顺序排列轮次",
        )
    };
    let system = usize::from(turns.first().is_some_and(|turn| turn.role() == "system"));
    let mut before: Option<&Message> = None;
    for (number, turn) in (1..).zip(&turns).skip(system) {
        let expected: &[&str] = match before {
            None => &["user"],
            Some(before) if before.role() == "assistant" && before.calls_tools() => &["tool"],
            Some(before) if before.role() == "assistant" => &["user"],
            Some(before) if before.role() == "tool" => &["assistant", "tool"],
            Some(_) => &["assistant"],
        };
        if !expected.contains(&turn.role()) {
            return Err(bad(
                format!("turn {number} of {}", turn.role()),
                &format!("a turn of {}", expected.join(" or ")),
            ));
        }
        before = Some(turn);
    }
    let Some(answer) = turns.last().filter(|turn| turn.role() == "assistant") else {
        return Err(no_answer("").found("a conversation without an assistant's turn at its end"));
    };
    if answer.text().trim().is_empty() {
        return Err(no_answer("").found("an empty answer"));
    }
    Ok(turns)
}

fn no_answer(key: &str) -> Problem {
    let problem =
        Problem::error(ProblemCode::NoAnswer, "this row has no answer to learn from", "该行没有可供学习的回答")
            .expected("a text that is not empty")
            .fix("fill in the answer, or delete the row", "请补上回答，或删除该行");
    if key.is_empty() { problem } else { problem.key(key) }
}

/// The text under a key; None where the key is missing or null.
fn optional_text<'a>(row: &'a Row, key: &str) -> Result<Option<&'a str>, Problem> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong_type(key, other, "a text")),
    }
}

fn required_text<'a>(row: &'a Row, key: &str) -> Result<&'a str, Problem> {
    optional_text(row, key)?.ok_or_else(|| missing(row, key))
}

/// The text of the answer.
fn answer<'a>(row: &'a Row, key: &str) -> Result<&'a str, Problem> {
    match optional_text(row, key)? {
        None => Err(no_answer(key).found(key_list(row))),
        Some(text) if text.trim().is_empty() => Err(no_answer(key).found("an empty text")),
        Some(text) => Ok(text),
    }
}

fn required_list<'a>(row: &'a Row, key: &str) -> Result<&'a [Value], Problem> {
    match row.get(key) {
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(wrong_type(key, other, "a list")),
        None => Err(missing(row, key)),
    }
}

fn missing(row: &Row, key: &str) -> Problem {
    Problem::error(ProblemCode::MissingKey, "this row lacks a key", "该行缺少一个键")
        .key(key)
        .found(key_list(row))
        .expected(format!("\"{key}\""))
        .fix("add the key, or delete the row", "请补上该键，或删除该行")
}

fn key_list(row: &Row) -> String {
    let keys: Vec<String> = row.keys().map(|key| format!("\"{key}\"")).collect();
    if keys.is_empty() { "no keys".to_owned() } else { keys.join(", ") }
}

fn wrong_type(key: &str, found: &Value, expected: &str) -> Problem {
    let problem = Problem::error(ProblemCode::WrongType, "a value has the wrong type", "值的类型不对")
        .found(kind(found))
        .expected(expected)
        .fix("correct the value", "请更正该值");
    if key.is_empty() { problem } else { problem.key(key) }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(text: &str) -> Result<Loaded, Problem> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        read_conversations(&DataFile { path: file.path().to_owned(), format: None })
    }

    fn turns(text: &str) -> Vec<(String, String)> {
        let loaded = read(text).unwrap();
        assert_eq!(loaded.problems, []);
        loaded.conversations[0].turns.iter().map(|turn| (turn.role().to_owned(), turn.text())).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|&(role, content)| (role.to_owned(), content.to_owned())).collect()
    }

    #[test]
    fn each_format_is_recognised_and_read() {
        let alpaca =
            r#"[{"instruction":"Add.","input":"1+1","output":"2","system":"Be brief.","history":[["hi","hello"]]}]"#;
        let expected = [
            ("system", "Be brief."),
            ("user", "hi"),
            ("assistant", "hello"),
            ("user", "Add.\n1+1"),
            ("assistant", "2"),
        ];
        assert_eq!(turns(alpaca), pairs(&expected));
        let sharegpt =
            r#"{"conversations":[{"from":"human","value":"hi"},{"from":"gpt","value":"hello"}],"system":"S"}"#;
        assert_eq!(turns(sharegpt), pairs(&[("system", "S"), ("user", "hi"), ("assistant", "hello")]));
        let messages = "{\"messages\":[{\"role\":\"user\",\"content\":\"你好\"},{\"role\":\"assistant\",\"content\":\"您好\"}]}\n\n";
        assert_eq!(turns(messages), pairs(&[("user", "你好"), ("assistant", "您好")]));
        let completion = r#"[{"prompt":"hi","completion":"hello"}]"#;
        assert_eq!(turns(completion), pairs(&[("user", "hi"), ("assistant", "hello")]));
    }

    #[test]
    fn labels_of_texts_pairs_and_images_are_read() {
        let rows = [
            (r#"{"text":"fine","label":"good"}"#, "good", 2),
            (r#"{"text":"fine","label":true}"#, "true", 2),
            (r#"{"text":"a","text_pair":"b","label":3}"#, "3", 3),
            (r#"{"text":"a","text_pair":null,"label":" x "}"#, "x", 2),
            (r#"{"sentence1":"a","sentence2":"b","label":-1,"idx":0}"#, "-1", 3),
            (r#"{"sentence":"a","label":0}"#, "0", 2),
        ];
        for (row, label, turns) in rows {
            let loaded = read(row).unwrap();
            assert_eq!((loaded.format, loaded.problems.len()), (FormatName::Classification, 0), "{row}");
            let row = &loaded.conversations[0];
            assert_eq!((row.label().as_str(), row.turns.len(), &row.image), (label, turns, &None));
            assert_eq!(row.judgement, Judgement::Label);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), r#"[{"image":"cats/1.png","label":"cat"}]"#).unwrap();
        let loaded = read_conversations(&DataFile { path: file.path().to_owned(), format: None }).unwrap();
        let row = &loaded.conversations[0];
        assert_eq!((row.turns[0].text(), row.label()), ("cats/1.png".to_owned(), "cat".to_owned()));
        assert_eq!(row.image.as_deref(), Some(file.path().parent().unwrap().join("cats/1.png").as_path()));
    }

    #[test]
    fn a_label_that_is_none_is_a_problem_of_its_row() {
        let loaded = read(
            r#"[{"text":"a","label":"x"}, {"text":"a"}, {"text":"a","label":null}, {"text":"a","label":0.5},
                {"text":"a","label":["x"]}, {"text":" ","label":"x"}, {"label":"x"}, {"text":"a","label":""},
                {"text":"a","text_pair":5,"label":"x"}, {"image":7,"label":"x"}]"#,
        )
        .unwrap();
        assert_eq!((loaded.format, loaded.conversations.len()), (FormatName::Classification, 1));
        let found: Vec<_> =
            loaded.problems.iter().map(|p| (p.code, p.row.unwrap(), p.key.as_deref().unwrap_or(""))).collect();
        let expected = [
            (ProblemCode::MissingKey, 2, "label"),
            (ProblemCode::MissingKey, 3, "label"),
            (ProblemCode::WrongType, 4, "label"),
            (ProblemCode::WrongType, 5, "label"),
            (ProblemCode::MissingKey, 6, "text"),
            (ProblemCode::MissingKey, 7, "text"),
            (ProblemCode::NoAnswer, 8, "label"),
            (ProblemCode::WrongType, 9, "text_pair"),
            (ProblemCode::WrongType, 10, "image"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_byte_order_mark_is_no_problem() {
        assert_eq!(read("\u{feff}[{\"prompt\":\"a\",\"completion\":\"b\"}]").unwrap().conversations.len(), 1);
    }

    #[test]
    fn broken_json_is_placed_by_line_and_column() {
        let problem = read("[\n  {\"prompt\": \"a\",\n   \"completion\" \"b\"}\n]").unwrap_err();
        assert_eq!((problem.code, problem.line, problem.column), (ProblemCode::Syntax, Some(3), Some(17)));
        let problem = read("{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"a\" \"b\"}\n").unwrap_err();
        assert_eq!((problem.code, problem.line, problem.row), (ProblemCode::Syntax, Some(2), Some(2)));
    }

    #[test]
    fn every_bad_row_is_reported_and_the_good_ones_are_kept() {
        let loaded = read(
            r#"[{"instruction":"a","output":"b"},
                {"instruction":"a"},
                {"instruction":"a","output":"  "},
                {"instruction":7,"output":"b"},
                {"output":"b"},
                5]"#,
        )
        .unwrap();
        assert_eq!((loaded.rows, loaded.conversations.len()), (6, 1));
        let found: Vec<_> =
            loaded.problems.iter().map(|p| (p.code, p.row.unwrap(), p.key.as_deref().unwrap_or(""))).collect();
        let expected = [
            (ProblemCode::NoAnswer, 2, "output"),
            (ProblemCode::NoAnswer, 3, "output"),
            (ProblemCode::WrongType, 4, "instruction"),
            (ProblemCode::MissingKey, 5, "instruction"),
            (ProblemCode::WrongType, 6, ""),
        ];
        assert_eq!(found, expected);
        assert!(loaded.problems.iter().all(|p| !p.message.zh.is_empty() && !p.fix.en.is_empty() && p.file.is_some()));
    }

    #[test]
    fn tools_and_their_calls_are_read_from_either_format() {
        let openai = r#"[{"tools": [{"type": "function", "function": {"name": "add"}}], "messages": [
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function",
                "function": {"name": "add", "arguments": "{\"a\": 1, \"b\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "assistant", "content": "2"}]}]"#;
        let sharegpt = r#"[{"tools": "[{\"type\": \"function\", \"function\": {\"name\": \"add\"}}]", "conversations": [
            {"from": "human", "value": "1+1?"},
            {"from": "function_call", "value": "{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": 1}}"},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "2"}]}]"#;
        let arguments = serde_json::json!({"a": 1, "b": 1});
        for text in [openai, sharegpt] {
            let loaded = read(text).unwrap();
            assert_eq!(loaded.problems, []);
            let conversation = &loaded.conversations[0];
            assert_eq!(conversation.tools[0]["function"]["name"], "add");
            let roles: Vec<&str> = conversation.turns.iter().map(Message::role).collect();
            assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
            let call = &conversation.turns[1].get("tool_calls").unwrap()[0]["function"];
            assert_eq!((&call["name"], &call["arguments"]), (&"add".into(), &arguments));
            assert_eq!(conversation.turns[1].content(), None);
            assert!(conversation.turns[1].text().contains("add"));
        }
        let unanswered = openai.replace(r#"{"role": "tool", "tool_call_id": "c1", "content": "2"},"#, "");
        assert_eq!(read(&unanswered).unwrap().problems[0].code, ProblemCode::BadConversation);
        let broken = read(&sharegpt.replace("[{\\\"type", "{\\\"type")).unwrap();
        assert_eq!(
            (broken.problems[0].code, broken.problems[0].key.as_deref()),
            (ProblemCode::WrongType, Some("tools"))
        );
    }

    /// Each way in which others write the same pair.
    #[test]
    fn pairs_are_read_from_every_layout() {
        let turn = |role: &str, text: &str| format!(r#"{{"role":"{role}","content":"{text}"}}"#);
        let (question, good, bad) = (turn("user", "hi"), turn("assistant", "hello"), turn("assistant", "go away"));
        for row in [
            r#"{"prompt":"hi","chosen":"hello","rejected":"go away"}"#.to_owned(),
            r#"{"instruction":"hi","input":"","chosen":"hello","rejected":"go away"}"#.to_owned(),
            r#"{"conversations":[{"from":"human","value":"hi"}],"chosen":{"from":"gpt","value":"hello"},
                "rejected":{"from":"gpt","value":"go away"}}"#
                .to_owned(),
            format!(r#"{{"prompt":[{question}],"chosen":[{good}],"rejected":[{bad}]}}"#),
            format!(r#"{{"messages":[{question}],"chosen":{good},"rejected":{bad}}}"#),
            format!(r#"{{"chosen":[{question},{good}],"rejected":[{question},{bad}]}}"#),
            format!(r#"{{"prompt":"hi","chosen":[{question},{good}],"rejected":[{question},{bad}]}}"#),
        ] {
            let loaded = read(&row).unwrap();
            assert_eq!((loaded.format, loaded.problems.as_slice()), (FormatName::Preference, &[][..]), "{row}");
            let pair = &loaded.conversations[0];
            let said: Vec<String> = pair.turns.iter().map(Message::text).collect();
            assert_eq!(said, ["hi", "hello"], "{row}");
            assert_eq!(pair.judgement, Judgement::Over(Message::new("assistant", "go away")), "{row}");
            let answers = pair.answers();
            assert_eq!((answers.len(), answers[1].turns[1].text()), (2, "go away".to_owned()));
        }
    }

    #[test]
    fn a_pair_that_is_none_is_reported() {
        let loaded = read(
            r#"[{"prompt":"a","chosen":"b","rejected":"c"},
                {"prompt":"a","chosen":"b"},
                {"prompt":"a","chosen":" ","rejected":"c"},
                {"chosen":"b","rejected":"c"},
                {"prompt":"a","chosen":"b","rejected":7},
                {"chosen":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],
                 "rejected":[{"role":"user","content":"x"},{"role":"assistant","content":"c"}]},
                {"prompt":"a","chosen":"b","rejected":[{"role":"user","content":"a"}]}]"#,
        )
        .unwrap();
        assert_eq!(loaded.conversations.len(), 1);
        let found: Vec<_> =
            loaded.problems.iter().map(|p| (p.code, p.row.unwrap(), p.key.as_deref().unwrap_or(""))).collect();
        let expected = [
            (ProblemCode::NoAnswer, 2, "rejected"),
            (ProblemCode::NoAnswer, 3, "chosen"),
            (ProblemCode::MissingKey, 4, "prompt"),
            (ProblemCode::WrongType, 5, "rejected"),
            (ProblemCode::BadConversation, 6, "rejected"),
            (ProblemCode::BadConversation, 7, "rejected"),
        ];
        assert_eq!(found, expected);
        assert!(loaded.problems.iter().all(|p| !p.message.zh.is_empty() && !p.fix.zh.is_empty()));
    }

    #[test]
    fn texts_are_no_conversation() {
        let loaded = read(r#"[{"text":"once upon a time"},{"text":" "},{"text":3},{"other":1}]"#).unwrap();
        assert_eq!(loaded.format, FormatName::Text);
        assert_eq!(loaded.conversations.len(), 1);
        assert_eq!(
            (loaded.conversations[0].turns[0].text(), &loaded.conversations[0].judgement),
            ("once upon a time".to_owned(), &Judgement::Plain)
        );
        let found: Vec<_> = loaded.problems.iter().map(|p| (p.row.unwrap(), p.key.as_deref().unwrap_or(""))).collect();
        assert_eq!(found, [(2, "text"), (3, "text"), (4, "text")]);
        // A conversation may have a text beside it.
        assert_eq!(read(r#"{"prompt":"a","completion":"b","text":"c"}"#).unwrap().format, FormatName::PromptCompletion);
    }

    #[test]
    fn rated_answers_are_read_beside_the_keys_of_any_format() {
        for row in [
            r#"{"prompt":"hi","completion":"hello","label":true}"#,
            r#"{"instruction":"hi","output":"hello","kto_tag":true}"#,
            r#"{"conversations":[{"from":"human","value":"hi"},{"from":"gpt","value":"hello"}],"kto_tag":true}"#,
            r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"hello"}],"label":true}"#,
        ] {
            let loaded = read(row).unwrap();
            assert_eq!((loaded.format, loaded.problems.as_slice()), (FormatName::Kto, &[][..]), "{row}");
            let row = &loaded.conversations[0];
            assert_eq!((row.turns[1].text(), &row.judgement), ("hello".to_owned(), &Judgement::Good(true)));
        }
        let loaded = read(
            r#"[{"prompt":"a","completion":"b","label":false},{"prompt":"a","completion":"b"},
                {"prompt":"a","completion":"b","label":"good"},{"label":true}]"#,
        )
        .unwrap();
        let found: Vec<_> =
            loaded.problems.iter().map(|p| (p.code, p.row.unwrap(), p.key.as_deref().unwrap_or(""))).collect();
        let expected = [
            (ProblemCode::MissingKey, 2, "label"),
            (ProblemCode::WrongType, 3, "label"),
            (ProblemCode::MissingKey, 4, "prompt"),
        ];
        assert_eq!(found, expected);
        // A label of another kind says nothing of the answer.
        let other = read(r#"{"prompt":"a","completion":"b","label":"sports"}"#).unwrap();
        assert_eq!(other.format, FormatName::PromptCompletion);
    }

    #[test]
    fn turns_out_of_order_are_no_conversation() {
        let loaded = read(
            r#"[{"messages":[{"role":"assistant","content":"x"}]},
                {"messages":[{"role":"user","content":"x"}]},
                {"messages":[{"role":"wizard","content":"x"}]},
                {"messages":[]}]"#,
        )
        .unwrap();
        let codes: Vec<_> = loaded.problems.iter().map(|problem| problem.code).collect();
        let bad = ProblemCode::BadConversation;
        assert_eq!(codes, [bad, ProblemCode::NoAnswer, bad, ProblemCode::NoAnswer]);
    }

    #[test]
    fn files_that_hold_no_rows_say_so() {
        assert_eq!(read("").unwrap_err().code, ProblemCode::FileEmpty);
        assert_eq!(read(" [ ] ").unwrap_err().code, ProblemCode::FileEmpty);
        assert_eq!(read("hello").unwrap_err().code, ProblemCode::Syntax);
        let problem = read(r#"[{"question":"a","answer":"b"}]"#).unwrap_err();
        assert_eq!(problem.code, ProblemCode::UnknownFormat);
        assert_eq!(problem.found.as_deref(), Some("\"question\", \"answer\""));
        let missing = read_conversations(&DataFile { path: "/nowhere/x.json".into(), format: None }).unwrap_err();
        assert_eq!(missing.code, ProblemCode::FileNotFound);
    }
}
