//! Built-in data sets, written as alpaca JSON. One file a generator and a line in [`generate`].

mod numbers;

use std::fs;
use std::path::Path;

use justtrain_worker_api::{DataLanguage, Problem, ProblemCode};
use serde::Serialize;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Row {
    instruction: String,
    input: String,
    output: String,
}

/// Writes `count` rows of the kind to `output` and returns their number. The same seed gives the same file.
pub fn generate(kind: &str, count: u32, seed: u64, language: DataLanguage, output: &Path) -> Result<u64, Problem> {
    if !(1..=200_000).contains(&count) {
        return Err(invalid("count", &count.to_string(), "1 to 200000"));
    }
    let rows = match kind {
        "numbers" => numbers::rows(count as usize, seed, language),
        other => return Err(invalid("kind", other, "numbers")),
    };
    let mut text = serde_json::to_string_pretty(&rows).expect("texts are JSON");
    text.push('\n');
    let partial = output.with_extension("partial");
    fs::write(&partial, text).and_then(|()| fs::rename(&partial, output)).map_err(|error| {
        Problem::error(
            ProblemCode::DiskFull,
            format!("the data cannot be written: {error}"),
            format!("无法写入数据：{error}"),
        )
        .file(output.display())
        .fix("check that the folder is there and has room", "请检查文件夹是否存在、空间是否足够")
    })?;
    Ok(rows.len() as u64)
}

fn invalid(key: &str, found: &str, expected: &str) -> Problem {
    Problem::error(ProblemCode::InvalidValue, "this data set cannot be made", "无法生成该数据集")
        .key(key)
        .found(found)
        .expected(expected)
}
