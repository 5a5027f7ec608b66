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
    /// Of each known key by its path: `lr_scheduler_kwargs.power` is inside the value of `lr_scheduler_kwargs`.
    places: BTreeMap<String, Place>,
}

/// Where a key's value stands, and whether it fits.
#[derive(Debug)]
struct Place {
    mark: Mark,
    fits: bool,
}

impl Written {
    /// Where the value of the key with this path stands, when it is there and fits its schema.
    pub(super) fn mark(&self, path: &str) -> Option<Mark> {
        self.places.get(path).filter(|place| place.fits).map(|place| place.mark)
    }

    /// Whether a value stands there, fitting or not.
    pub(super) fn is_there(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// The keys inside the value of `key`, those that fit.
    pub(super) fn inside(&self, key: &str) -> impl Iterator<Item = &str> {
        let fitting = self.places.iter().filter(|(_, place)| place.fits);
        fitting.filter_map(move |(path, _)| path.strip_prefix(key)?.strip_prefix('.'))
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
            written.values = check_mapping(items, schema, "", &mut written.places, &mut problems);
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

/// The entries of a mapping that fit, and what is wrong with the others.
pub(super) fn check_mapping_alone(items: &[Node], schema: &Value, path: &str) -> (Map<String, Value>, Vec<Problem>) {
    let (mut places, mut problems) = (BTreeMap::new(), Vec::new());
    let values = check_mapping(items, schema, path, &mut places, &mut problems);
    (values, problems)
}

/// The entries that fit. `path` is what stands before the name of each key.
fn check_mapping(
    items: &[Node],
    schema: &Value,
    path: &str,
    places: &mut BTreeMap<String, Place>,
    problems: &mut Vec<Problem>,
) -> Map<String, Value> {
    let mut values = Map::new();
    for [key, value] in items.as_chunks::<2>().0 {
        let checked = place_entry(key, value, schema, path, places).and_then(|(entry, property)| {
            let fitted = match (&value.content, mapping_schema(property)) {
                (Content::Mapping(items), Some(inner)) => {
                    check_mapping(items, inner, &format!("{}.", entry.path), places, problems).into()
                }
                _ => fit(value, property).map_err(|misfit| misfit.problem(&entry, value, property))?,
            };
            places.insert(entry.path, Place { mark: value.mark, fits: true });
            values.insert(entry.own_name, fitted);
            Ok(())
        });
        if let Err(problem) = checked {
            problems.push(*problem);
        }
    }
    values
}

/// A key under its own name, and as it is written.
struct Entry {
    own_name: String,
    /// From the root, by own names.
    path: String,
    /// From the root, the last name as it is written.
    written: String,
}

fn place_entry<'a>(
    key: &Node,
    value: &Node,
    schema: &'a Value,
    path: &str,
    places: &mut BTreeMap<String, Place>,
) -> Result<(Entry, &'a Value), Box<Problem>> {
    let Content::Scalar(name) = &key.content else {
        let problem = Problem::error(ProblemCode::WrongType, "a key is a plain word", "键必须是一个单词");
        return Err(problem.at(key.mark.line, key.mark.column).found(describe(&key.content)).into());
    };
    let name = plain(name);
    let Some((own_name, property)) = property(schema, &name) else {
        return Err(unknown_key(path, &name, schema).at(key.mark.line, key.mark.column).into());
    };
    let entry = Entry { path: format!("{path}{own_name}"), written: format!("{path}{name}"), own_name };
    if let Some(first) = places.get(&entry.path) {
        let problem = Problem::error(
            ProblemCode::InvalidValue,
            format!("given twice; {} is already on line {}", entry.own_name, first.mark.line),
            format!("重复：第 {} 行已有 {}", first.mark.line, entry.own_name),
        );
        return Err(problem
            .key(entry.written)
            .at(key.mark.line, key.mark.column)
            .fix("keep one of the two lines", "只保留其中一行")
            .into());
    }
    places.insert(entry.path.clone(), Place { mark: value.mark, fits: false });
    Ok((entry, property))
}

/// A property by its own name or by another tool's. A schema without names takes any.
pub(super) fn property<'a>(schema: &'a Value, name: &str) -> Option<(String, &'a Value)> {
    if schema["additionalProperties"].is_object() {
        return Some((name.to_owned(), &schema["additionalProperties"]));
    }
    let found =
        properties(schema).find(|(own, property)| *own == name || aliases(property).any(|alias| alias == name))?;
    Some((found.0.clone(), found.1))
}

/// The schema of a value that is a mapping itself.
pub(super) fn mapping_schema(property: &Value) -> Option<&Value> {
    let alternatives = property["anyOf"].as_array().into_iter().flatten();
    std::iter::once(property).chain(alternatives).find(|schema| types(schema).any(|kind| kind == "object"))
}

pub(super) fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

pub(super) fn aliases(property: &Value) -> impl Iterator<Item = &str> {
    property["x-aliases"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn missing_keys(schema: &Value, written: &Written) -> Vec<Problem> {
    // Where one of several keys must be there, the others have been put in the place of the first.
    let required = [&schema["required"], &schema["anyOf"][0]["required"]];
    let required = required.into_iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str);
    let missing = required.filter(|key| !written.places.contains_key(*key));
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

fn unknown_key(path: &str, name: &str, schema: &Value) -> Problem {
    let plain_name = name.trim().replace('-', "_").to_lowercase();
    if let Some(problem) = peers::known_elsewhere(&plain_name).filter(|_| path.is_empty()) {
        return problem;
    }
    let problem =
        Problem::error(ProblemCode::UnknownKey, "there is no such key", "没有这个键").key(format!("{path}{name}"));
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
    fn problem(&self, entry: &Entry, value: &Node, property: &Value) -> Problem {
        let own_name = &entry.own_name;
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
            .key(&entry.written)
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
        "object" => match &schema["additionalProperties"] {
            Value::Object(_) => format!("{{name: {}, …}}", expected(&schema["additionalProperties"])),
            _ => "{key: value, …}".to_owned(),
        },
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
