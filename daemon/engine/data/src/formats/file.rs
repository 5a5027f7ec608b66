//! JSON and JSONL files as lists of rows.

use std::fs;
use std::io;
use std::path::Path;

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;

/// Every row of a file; never none.
pub(super) fn read_rows(path: &Path) -> Result<Vec<Value>, Problem> {
    let bytes = fs::read(path).map_err(|error| cannot_read(path, &error))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() as u64 + 1;
        let mut problem = Problem::error(ProblemCode::FileFormat, "the file is not UTF-8 text", "文件不是 UTF-8 文本")
            .file(path.display())
            .expected("JSON in UTF-8")
            .fix("save the file again with the encoding UTF-8", "请以 UTF-8 编码重新保存文件");
        problem.line = Some(line);
        problem
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rows = match text.trim_start().chars().next() {
        None => return Err(empty(path)),
        Some('[') => serde_json::from_str::<Vec<Value>>(text).map_err(|error| syntax(path, text, &error))?,
        Some('{') => read_objects(path, text)?,
        Some(other) => {
            return Err(Problem::error(ProblemCode::Syntax, "this is not JSON", "这不是合法的 JSON")
                .file(path.display())
                .at(1, 1)
                .found(format!("{other:?}"))
                .expected("[ for a list of rows, or { for one row a line")
                .fix("save the data as JSON or JSONL", "请把数据保存为 JSON 或 JSONL"));
        }
    };
    if rows.is_empty() { Err(empty(path)) } else { Ok(rows) }
}

/// One object a line; or a single object over several lines.
fn read_objects(path: &Path, text: &str) -> Result<Vec<Value>, Problem> {
    let mut rows = Vec::new();
    for (number, line) in (1u64..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(line) {
            Ok(row) => rows.push(row),
            Err(_) if rows.is_empty() => {
                return serde_json::from_str(text).map(|row| vec![row]).map_err(|error| syntax(path, text, &error));
            }
            Err(error) => {
                let mut problem = syntax(path, line, &error).row(rows.len() as u64 + 1);
                problem.line = Some(number);
                return Err(problem);
            }
        }
    }
    Ok(rows)
}

/// `error` is of parsing `text`. serde_json counts columns in bytes; people count characters.
fn syntax(path: &Path, text: &str, error: &serde_json::Error) -> Problem {
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default().as_bytes();
    let before = &line[..error.column().saturating_sub(1).min(line.len())];
    let column = String::from_utf8_lossy(before).chars().count() as u64 + 1;
    let reason = error.to_string();
    let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
    Problem::error(ProblemCode::Syntax, "the JSON is broken here", "JSON 在此处有语法错误")
        .file(path.display())
        .at(error.line() as u64, column)
        .found(reason)
        .fix("correct the file at this place", "请在该位置更正文件")
}

fn empty(path: &Path) -> Problem {
    Problem::error(ProblemCode::FileEmpty, "the file holds no rows", "文件中没有数据行")
        .file(path.display())
        .expected("at least one row")
        .fix("put your data in this file, or name another one", "请在文件中写入数据，或指定其他文件")
}

fn cannot_read(path: &Path, error: &io::Error) -> Problem {
    let problem = match error.kind() {
        io::ErrorKind::NotFound => Problem::error(ProblemCode::FileNotFound, "there is no such file", "文件不存在"),
        _ => Problem::error(
            ProblemCode::FileNotFound,
            format!("the file cannot be read: {error}"),
            format!("无法读取文件：{error}"),
        ),
    };
    problem.file(path.display()).fix("check the path", "请检查路径")
}
