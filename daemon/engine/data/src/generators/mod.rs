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
    let mut partial = output.as_os_str().to_owned();
    partial.push(".partial");
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

#[cfg(test)]
mod tests {
    use justtrain_worker_api::{DataFile, FormatName};

    use super::*;
    use crate::read_conversations;

    #[test]
    fn a_set_is_a_data_file_that_we_read() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("numbers.json");
        for language in [DataLanguage::En, DataLanguage::Zh] {
            assert_eq!(generate("numbers", 50, 1, language, &output).unwrap(), 50);
            let loaded = read_conversations(&DataFile { path: output.clone(), format: None }).unwrap();
            assert_eq!((loaded.format, loaded.conversations.len(), loaded.problems), (FormatName::Alpaca, 50, vec![]));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the set is left");
    }

    #[test]
    fn what_cannot_be_made_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("x.json");
        let problem = generate("letters", 5, 1, DataLanguage::En, &output).unwrap_err();
        assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::InvalidValue, Some("kind")));
        let problem = generate("numbers", 0, 1, DataLanguage::En, &output).unwrap_err();
        assert_eq!((problem.code, problem.key.as_deref()), (ProblemCode::InvalidValue, Some("count")));
        let nowhere = folder.path().join("nowhere/x.json");
        assert_eq!(generate("numbers", 5, 1, DataLanguage::En, &nowhere).unwrap_err().code, ProblemCode::DiskFull);
        assert!(!output.exists());
    }
}
