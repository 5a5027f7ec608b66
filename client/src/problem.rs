//! One problem on one line: place, what is wrong, found, expected, fix.

use justtrain_proto::v1::{Problem, Severity};
use serde_json::{Map, Value};

use crate::text::{Lang, say};

pub(crate) fn is_error(problem: &Problem) -> bool {
    problem.severity() != Severity::Warning
}

/// `data.json: line 3, column 7, row 2, key "output": message (found X, expected Y); fix: Z`.
pub(crate) fn line(problem: &Problem, lang: Lang) -> String {
    let mut line = String::new();
    let colon = match lang {
        Lang::En => ": ",
        Lang::Zh => "：",
    };
    if !problem.file.is_empty() {
        line += &problem.file;
        line += colon;
    }
    let places = places(problem, lang);
    if !places.is_empty() {
        line += &places;
        line += colon;
    }
    line += lang.pick_opt(&problem.message);
    let (found, expected) = (&problem.found, &problem.expected);
    line += &match (found.is_empty(), expected.is_empty()) {
        (false, false) => say!(lang, " (found {found}, expected {expected})", "（实际为 {found}，应为 {expected}）"),
        (false, true) => say!(lang, " (found {found})", "（实际为 {found}）"),
        (true, false) => say!(lang, " (expected {expected})", "（应为 {expected}）"),
        (true, true) => String::new(),
    };
    let fix = lang.pick_opt(&problem.fix);
    if !fix.is_empty() {
        line += &say!(lang, "; fix: {fix}", "；解决办法：{fix}");
    }
    line
}

fn places(problem: &Problem, lang: Lang) -> String {
    let Problem { line, column, row, key, .. } = problem;
    let mut places = Vec::new();
    if *line > 0 {
        places.push(say!(lang, "line {line}", "第 {line} 行"));
    }
    if *column > 0 {
        places.push(say!(lang, "column {column}", "第 {column} 列"));
    }
    if *row > 0 {
        places.push(say!(lang, "row {row}", "第 {row} 条数据"));
    }
    if !key.is_empty() {
        places.push(say!(lang, "key \"{key}\"", "键“{key}”"));
    }
    places.join(match lang {
        Lang::En => ", ",
        Lang::Zh => "，",
    })
}

/// The fields that are known; unknown ones are left out.
pub(crate) fn json(problem: &Problem, lang: Lang) -> Value {
    let mut object = Map::new();
    let severity = if is_error(problem) { "error" } else { "warning" };
    object.insert("code".into(), problem.code.clone().into());
    object.insert("severity".into(), severity.into());
    object.insert("message".into(), lang.pick_opt(&problem.message).into());
    let texts = [
        ("file", problem.file.as_str()),
        ("key", &problem.key),
        ("found", &problem.found),
        ("expected", &problem.expected),
        ("fix", lang.pick_opt(&problem.fix)),
    ];
    let numbers = [("line", problem.line), ("column", problem.column), ("row", problem.row)];
    object
        .extend(texts.iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| ((*name).into(), (*text).into())));
    object.extend(
        numbers.iter().filter(|(_, number)| *number > 0).map(|(name, number)| ((*name).into(), (*number).into())),
    );
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use justtrain_proto::v1::Text;

    use super::*;

    fn text(en: &str, zh: &str) -> Option<Text> {
        Some(Text { en: en.into(), zh: zh.into() })
    }

    fn example() -> Problem {
        Problem {
            code: "NO_ANSWER".into(),
            severity: Severity::Error.into(),
            message: text("row without an answer", "这条数据没有答案"),
            file: "data.json".into(),
            line: 3,
            row: 2,
            key: "output".into(),
            found: "\"\"".into(),
            expected: "text".into(),
            fix: text("write an answer", "填写答案"),
            ..Problem::default()
        }
    }

    #[test]
    fn everything_known_is_on_the_line() {
        assert_eq!(
            line(&example(), Lang::En),
            r#"data.json: line 3, row 2, key "output": row without an answer (found "", expected text); fix: write an answer"#
        );
        assert_eq!(
            line(&example(), Lang::Zh),
            "data.json：第 3 行，第 2 条数据，键“output”：这条数据没有答案（实际为 \"\"，应为 text）；解决办法：填写答案"
        );
    }

    #[test]
    fn json_leaves_out_what_is_unknown() {
        let json = json(&example(), Lang::En);
        assert_eq!(json["row"], 2);
        assert!(json.get("column").is_none());
    }
}
