//! Names, types and ranges, from the schema: every problem at once, each with its line and column.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::{Map, Value};

use super::peers;
use super::yaml::{Content, Mark, Node};

/// Below this similarity a suggestion would be a guess.
const SIMILAR: f64 = 0.8;

/// What a file says, under the keys' own names.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Values that fit their key's schema.
    values: Map<String, Value>,
    /// Where each known key's value stands, whether it fits or not.
    marks: BTreeMap<String, Mark>,
}

impl Written {
    /// Where the value of `key` stands, when it is there and fits its schema.
    pub(super) fn mark(&self, key: &str) -> Option<Mark> {
        self.values.contains_key(key).then(|| self.marks[key])
    }

    /// The values, with a stand-in for what is missing, so that the remaining rules can be checked before all is reported.
    pub(super) fn complete(&self) -> Value {
        let mut values = self.values.clone();
        for key in ["model_name_or_path", "dataset"] {
            values.entry(key).or_insert_with(|| "missing".into());
        }
        values.into()
    }
}

pub(super) fn check(root: &Node, schema: &Value) -> (Written, Vec<Problem>) {
    let mut written = Written::default();
    let mut problems = Vec::new();
    match &root.content {
        Content::Mapping(items) => {
            for [key, value] in items.as_chunks::<2>().0 {
                if let Err(problem) = check_entry(key, value, schema, &mut written) {
                    problems.push(*problem);
                }
            }
        }
        Content::Scalar(Value::Null) => {
            let empty = Problem::error(ProblemCode::FileEmpty, "the recipe is empty", "配方是空的");
            problems.push(
                empty.fix("write at least model_name_or_path and dataset", "至少写上 model_name_or_path 和 dataset"),
            );
            return (written, problems);
        }
        content => {
            let problem = Problem::error(
                ProblemCode::WrongType,
                "a recipe is a list of \"key: value\" lines",
                "配方应由“键: 值”组成",
            );
            problems.push(
                problem
                    .at(root.mark.line, root.mark.column)
                    .found(describe(content))
                    .expected("key: value")
                    .fix("put a space after the colon, and one key on each line", "冒号后加一个空格，每行一个键"),
            );
            return (written, problems);
        }
    }
    problems.extend(missing_keys(schema, &written));
    (written, problems)
}

fn check_entry(key: &Node, value: &Node, schema: &Value, written: &mut Written) -> Result<(), Box<Problem>> {
    let Content::Scalar(name) = &key.content else {
        let problem = Problem::error(ProblemCode::WrongType, "a key is a plain word", "键必须是一个单词");
        return Err(problem.at(key.mark.line, key.mark.column).found(describe(&key.content)).into());
    };
    let name = plain(name);
    let Some((own_name, property)) = property(schema, &name) else {
        return Err(unknown_key(&name, schema).at(key.mark.line, key.mark.column).into());
    };
    if let Some(first) = written.marks.get(own_name) {
        let problem = Problem::error(
            ProblemCode::InvalidValue,
            format!("given twice; {own_name} is already on line {}", first.line),
            format!("重复：第 {} 行已有 {own_name}", first.line),
        );
        return Err(problem
            .key(name)
            .at(key.mark.line, key.mark.column)
            .fix("keep one of the two lines", "只保留其中一行")
            .into());
    }
    written.marks.insert(own_name.to_owned(), value.mark);
    match fit(value, property) {
        Ok(fitted) => {
            written.values.insert(own_name.to_owned(), fitted);
            Ok(())
        }
        Err(misfit) => Err(misfit.problem(own_name, &name, value, property).into()),
    }
}

/// A property by its own name or by another tool's.
fn property<'a>(schema: &'a Value, name: &str) -> Option<(&'a str, &'a Value)> {
    let found =
        properties(schema).find(|(own, property)| *own == name || aliases(property).any(|alias| alias == name))?;
    Some((found.0.as_str(), found.1))
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

pub(super) fn aliases(property: &Value) -> impl Iterator<Item = &str> {
    property["x-aliases"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn missing_keys(schema: &Value, written: &Written) -> Vec<Problem> {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let missing = required.filter(|key| !written.marks.contains_key(*key));
    let example = |key| {
        if key == "dataset" {
            "dataset: my_data.json"
        } else {
            "model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct"
        }
    };
    missing
        .map(|key| {
            Problem::error(ProblemCode::MissingKey, "must be there and is not", "缺少必填项")
                .key(key)
                .fix(format!("add a line such as \"{}\"", example(key)), format!("加上一行，例如“{}”", example(key)))
        })
        .collect()
}

fn unknown_key(name: &str, schema: &Value) -> Problem {
    let plain_name = name.trim().replace('-', "_").to_lowercase();
    if let Some(problem) = peers::known_elsewhere(&plain_name) {
        return problem;
    }
    let problem = Problem::error(ProblemCode::UnknownKey, "there is no such key", "没有这个键").key(name);
    let names = properties(schema).flat_map(|(own, property)| std::iter::once(own.as_str()).chain(aliases(property)));
    let similarity = |candidate: &str| strsim::jaro_winkler(&plain_name, candidate);
    match names.max_by(|a, b| similarity(a).total_cmp(&similarity(b))) {
        Some(nearest) if similarity(nearest) >= SIMILAR => {
            problem.expected(nearest).fix(format!("write \"{nearest}\""), format!("改为“{nearest}”"))
        }
        _ => problem.fix(
            "remove this line; \"justtrain recipe schema\" lists all keys",
            "删除这一行；“justtrain recipe schema”会列出所有键",
        ),
    }
}

enum Misfit {
    Type,
    Range,
}

impl Misfit {
    fn problem(&self, own_name: &str, name: &str, value: &Node, property: &Value) -> Problem {
        let text = match &value.content {
            Content::Scalar(Value::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let problem = match self {
            Self::Type => Problem::error(ProblemCode::WrongType, "the value has the wrong type", "值的类型不对"),
            Self::Range if text.is_some_and(|text| peers::comes_later(own_name, text)) => {
                Problem::error(ProblemCode::InvalidValue, "not in this version yet", "当前版本尚不支持")
            }
            Self::Range => Problem::error(ProblemCode::InvalidValue, "the value is not allowed", "值不在允许的范围内"),
        };
        let problem = problem
            .key(name)
            .at(value.mark.line, value.mark.column)
            .found(describe(&value.content))
            .expected(expected(property));
        if let Some(text) = text
            && let Ok(unquoted) = serde_json::from_str::<Value>(text)
            && fit_value(&unquoted, property).is_ok()
        {
            return problem.fix("remove the quotes", "去掉引号");
        }
        if let Some(ours) = text.and_then(|text| peers::instead(own_name, text)) {
            return problem.fix(format!("write {ours}"), format!("请写 {ours}"));
        }
        match &property["default"] {
            Value::Null => problem.fix("correct the value", "请修改这个值"),
            default => problem.fix(
                format!("correct the value, or remove the line: the default is {}", plain(default)),
                format!("请修改这个值，或删除这一行（默认值为 {}）", plain(default)),
            ),
        }
    }
}

/// The value as JSON, when it is what the schema asks for.
fn fit(node: &Node, schema: &Value) -> Result<Value, Misfit> {
    let value = match &node.content {
        Content::Scalar(value) => value.clone(),
        Content::Sequence(items) => {
            let scalars = items.iter().map(|item| match &item.content {
                Content::Scalar(value) => Ok(value.clone()),
                _ => Err(Misfit::Type),
            });
            scalars.collect::<Result<_, _>>()?
        }
        Content::Mapping(_) => return Err(Misfit::Type),
    };
    fit_value(&value, schema)
}

/// Covers the part of JSON Schema that `Recipe` uses; `tests.rs` holds the list.
fn fit_value(value: &Value, schema: &Value) -> Result<Value, Misfit> {
    if let Some(alternatives) = schema["anyOf"].as_array() {
        let mut worst = Misfit::Type;
        for alternative in alternatives {
            match fit_value(value, alternative) {
                Ok(fitted) => return fit_bounds(fitted, schema),
                Err(Misfit::Range) => worst = Misfit::Range,
                Err(Misfit::Type) => {}
            }
        }
        return Err(worst);
    }
    let choices = choices(schema);
    if !choices.is_empty() {
        let text = value.as_str().ok_or(Misfit::Type)?;
        return if choices.contains(&text) { Ok(value.clone()) } else { Err(Misfit::Range) };
    }
    let fitted = types(schema).find_map(|kind| fit_type(value, kind, schema)).ok_or(Misfit::Type)??;
    fit_bounds(fitted, schema)
}

fn fit_type(value: &Value, kind: &str, schema: &Value) -> Option<Result<Value, Misfit>> {
    match (kind, value) {
        ("null", Value::Null)
        | ("boolean", Value::Bool(_))
        | ("string", Value::String(_))
        | ("number", Value::Number(_)) => Some(Ok(value.clone())),
        ("integer", Value::Number(number)) if number.is_i64() || number.is_u64() => Some(Ok(value.clone())),
        // JSON Schema counts 3.0 as an integer, serde does not.
        ("integer", Value::Number(number)) => {
            let whole = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9e15)?;
            Some(Ok(Value::from(whole as i64)))
        }
        ("array", Value::Array(items)) => Some(items.iter().map(|item| fit_value(item, &schema["items"])).collect()),
        _ => None,
    }
}

fn fit_bounds(value: Value, schema: &Value) -> Result<Value, Misfit> {
    let bound = |name: &str| schema[name].as_f64();
    let number_fits = value.as_f64().is_none_or(|number| {
        bound("minimum").is_none_or(|least| number >= least)
            && bound("exclusiveMinimum").is_none_or(|least| number > least)
            && bound("maximum").is_none_or(|most| number <= most)
            && bound("exclusiveMaximum").is_none_or(|most| number < most)
    });
    let length = match &value {
        Value::String(text) => Some((text.trim().chars().count(), "minLength")),
        Value::Array(items) => Some((items.len(), "minItems")),
        _ => None,
    };
    let length_fits = length.is_none_or(|(length, name)| bound(name).is_none_or(|least| length as f64 >= least));
    if number_fits && length_fits { Ok(value) } else { Err(Misfit::Range) }
}

fn types(schema: &Value) -> impl Iterator<Item = &str> {
    let one = schema["type"].as_str();
    one.into_iter().chain(schema["type"].as_array().into_iter().flatten().filter_map(Value::as_str))
}

/// The words that an enum allows.
fn choices(schema: &Value) -> Vec<&str> {
    let listed = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let described = schema["oneOf"].as_array().into_iter().flatten().flat_map(choices);
    listed.chain(schema["const"].as_str()).chain(described).collect()
}

/// The value as a person would have written it, short.
fn describe(content: &Content) -> String {
    match content {
        Content::Scalar(Value::Null) => "nothing".to_owned(),
        Content::Scalar(value) => value.to_string(),
        Content::Sequence(items) => {
            let items: Vec<_> = items.iter().map(|item| describe(&item.content)).collect();
            format!("[{}]", items.join(", "))
        }
        Content::Mapping(_) => "{…}".to_owned(),
    }
}

/// Text without quotes, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// In notation that needs no translation: `integer ≥ 1, ≤ 1024`, `cosine | linear`.
pub(super) fn expected(schema: &Value) -> String {
    if let Some(alternatives) = schema["anyOf"].as_array() {
        let names = alternatives.iter().map(expected).filter(|name| !name.is_empty());
        return names.collect::<Vec<_>>().join(" | ");
    }
    let choices = choices(schema);
    if !choices.is_empty() {
        return choices.join(" | ");
    }
    if let Some(values) = schema["x-values"].as_str() {
        return values.to_owned();
    }
    let names = types(schema).filter(|kind| *kind != "null").map(|kind| match kind {
        "boolean" => "true | false".to_owned(),
        "array" => format!("[{}, …]", expected(&schema["items"])),
        kind => kind.to_owned(),
    });
    let mut text = names.collect::<Vec<_>>().join(" | ");
    let bounds = [("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")];
    let known = bounds.iter().filter_map(|(name, sign)| Some((sign, schema[*name].as_f64()?)));
    for (index, (sign, bound)) in known.enumerate() {
        let _ = write!(text, "{} {sign} {bound}", if index == 0 { "" } else { "," });
    }
    text
}
