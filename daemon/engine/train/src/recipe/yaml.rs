//! YAML text to values with line and column.
//!
//! Built on parser events and not on a ready document, because a document forgets the first of two equal keys.

use std::borrow::Cow;

use justtrain_worker_api::{Problem, ProblemCode};
use saphyr::Scalar;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};
use serde_json::Value;

/// A recipe is almost flat; deeper nesting than this is refused before it can exhaust the stack.
const MAX_DEPTH: usize = 16;

/// 1-based, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl Mark {
    const START: Self = Self { line: 1, column: 1 };
}

impl From<&Marker> for Mark {
    fn from(marker: &Marker) -> Self {
        Self { line: marker.line() as u64, column: marker.col() as u64 + 1 }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) content: Content,
}

impl Node {
    /// Whether this is just that word.
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(&self.content, Content::Scalar(text) if text == word)
    }
}

#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Null, a boolean, a number or a string.
    Scalar(Value),
    Sequence(Vec<Node>),
    /// Keys and values by turns, equal keys kept.
    Mapping(Vec<Node>),
}

/// The only document in `text`; a text without one gives null.
pub(super) fn parse(text: &str) -> Result<Node, Box<Problem>> {
    let mut parser = Parser::new_from_str(text.trim_start_matches('\u{feff}'));
    let mut open: Vec<Node> = Vec::new();
    let mut root = None;
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| syntax_error(text, &error))?;
        let mark = Mark::from(&span.start);
        let node = match event {
            Event::Scalar(text, style, ..) => Node { mark, content: Content::Scalar(scalar(text, style)) },
            Event::SequenceStart(..) => {
                open.push(Node { mark, content: Content::Sequence(Vec::new()) });
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Node { mark, content: Content::Mapping(Vec::new()) });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(node) => node,
                None => continue,
            },
            Event::Alias(_) => {
                return Err(at(mark, "anchors and aliases are not read in a recipe", "配方不支持锚点与引用")
                    .fix("write the value out", "直接写出这个值")
                    .into());
            }
            Event::DocumentStart(_) if root.is_some() => {
                return Err(at(mark, "a recipe is one YAML document", "一个配方只能有一个 YAML 文档")
                    .fix("remove this \"---\" and what follows", "删除这个 \"---\" 及其后的内容")
                    .into());
            }
            _ => continue,
        };
        if open.len() > MAX_DEPTH {
            return Err(at(mark, "nested too deeply", "嵌套过深").into());
        }
        match open.last_mut() {
            Some(Node { content: Content::Sequence(items) | Content::Mapping(items), .. }) => items.push(node),
            _ => root = Some(node),
        }
    }
    Ok(root.unwrap_or(Node { mark: Mark::START, content: Content::Scalar(Value::Null) }))
}

/// YAML 1.2's core schema; infinities and NaN, which no key takes, stay text.
fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::from(text);
    }
    if text.is_empty() {
        return Value::Null;
    }
    match Scalar::parse_from_cow(text.clone()) {
        Scalar::Null => Value::Null,
        Scalar::Boolean(value) => value.into(),
        Scalar::Integer(value) => value.into(),
        Scalar::FloatingPoint(value) if value.is_finite() => value.0.into(),
        Scalar::FloatingPoint(_) | Scalar::String(_) => Value::from(text),
    }
}

fn at(mark: Mark, en: &str, zh: &str) -> Problem {
    Problem::error(ProblemCode::Syntax, en, zh).at(mark.line, mark.column)
}

fn syntax_error(text: &str, error: &ScanError) -> Problem {
    let mark = Mark::from(error.marker());
    let problem = at(mark, &format!("not valid YAML: {}", error.info()), &format!("YAML 语法错误：{}", error.info()));
    // The parser often notices on the next line.
    let last = usize::try_from(mark.line).unwrap_or(usize::MAX);
    let suspects = || text.lines().take(last).skip(last.saturating_sub(2));
    if suspects().any(|line| line.contains('：')) {
        return problem
            .found("：")
            .expected(": ")
            .fix("use the ASCII colon, followed by a space", "请使用英文冒号，后面加一个空格");
    }
    if suspects().any(|line| line.trim_start_matches(' ').starts_with('\t')) {
        return problem.fix("indent with spaces, not with a tab", "请用空格缩进，不要用制表符");
    }
    problem.fix("write one \"key: value\" a line", "每行写一个“键: 值”")
}
