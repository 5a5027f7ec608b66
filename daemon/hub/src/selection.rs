//! Which files of a repository or a folder make the model: one format of the weights, and what belongs to it.

use std::collections::HashSet;

use justtrain_worker_api::{Problem, ProblemCode};

/// What a person wants and does not want, as patterns with `*` and `?`. Empty lists leave the choice to us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Only these files, together with the configuration and the licence beside them.
    pub allow: Vec<String>,
    /// None of these, whatever else says so.
    pub ignore: Vec<String>,
}

/// The files of `model` to take, out of `paths`.
///
/// # Errors
/// `FILE_FORMAT` where there are only pickles, or no weights that can be taken as they are.
pub(crate) fn choose(model: &str, paths: &[&str], selection: &Selection) -> Result<HashSet<String>, Problem> {
    let wanted = |path: &&str| !matches(&selection.ignore, path);
    let offered: Vec<&str> = paths.iter().copied().filter(wanted).collect();
    // Subfolders hold other formats of the same weights, unless a person says otherwise.
    let candidates: Vec<&str> = match selection.allow.is_empty() {
        true => offered.iter().copied().filter(|path| !path.contains('/')).collect(),
        false => offered.iter().copied().filter(|path| matches(&selection.allow, path)).collect(),
    };
    let weights = weights(&candidates);
    if weights.is_empty() {
        return Err(no_weights(model, &offered, selection));
    }
    if let [first, second, ..] = weights[..]
        && first.ends_with(".gguf")
        && !same_split(first, second)
    {
        return Err(several(model, &weights));
    }
    let gguf = weights[0].ends_with(".gguf");
    let beside = |path: &&str| !path.contains('/') && (is_licence(path) || (!gguf && belongs_beside_weights(path)));
    let indices = duplicate_indices(&weights);
    let beside = offered.iter().copied().filter(beside).filter(|path| !indices.contains(path));
    Ok(weights.iter().copied().chain(beside).map(str::to_owned).collect())
}

/// The best format among `files`: safetensors before GGUF; of several copies in safetensors, the one that
/// transformers loads.
fn weights<'a>(files: &[&'a str]) -> Vec<&'a str> {
    let safetensors: Vec<_> = files.iter().copied().filter(|path| path.ends_with(".safetensors")).collect();
    if safetensors.contains(&"model.safetensors") {
        return vec!["model.safetensors"];
    }
    let shards: Vec<_> = safetensors.iter().copied().filter(|path| is_shard(path)).collect();
    if !shards.is_empty() {
        return shards;
    }
    if !safetensors.is_empty() {
        return safetensors;
    }
    files.iter().copied().filter(|path| path.ends_with(".gguf")).collect()
}

/// `model-00001-of-00004.safetensors`.
fn is_shard(path: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    path.strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|rest| rest.split_once("-of-"))
        .is_some_and(|(number, count)| digits(number) && digits(count))
}

/// Two pieces of one file: `NAME-00001-of-00002.gguf`.
fn same_split(first: &str, second: &str) -> bool {
    let stem = |path: &str| path.rsplit_once("-of-").and_then(|(front, _)| Some(front.rsplit_once('-')?.0.to_owned()));
    stem(first).is_some() && stem(first) == stem(second)
}

/// The index of shards that are not taken would send a reader to files that are not there.
fn duplicate_indices(weights: &[&str]) -> Vec<&'static str> {
    if weights == ["model.safetensors"] { vec!["model.safetensors.index.json"] } else { Vec::new() }
}

/// Configuration, tokenizer and template; no pictures, no other framework's weights.
fn belongs_beside_weights(path: &str) -> bool {
    let other_weights = ["pytorch_model.bin.index.json", "tf_model.h5.index.json", "flax_model.msgpack.index.json"];
    !other_weights.contains(&path)
        && ([".json", ".jinja", ".txt"].iter().any(|ending| path.ends_with(ending))
            || matches!(path, "tokenizer.model" | "spiece.model"))
}

fn is_licence(path: &str) -> bool {
    let upper = path.to_ascii_uppercase();
    ["LICENSE", "LICENCE", "COPYING", "NOTICE", "USE_POLICY"].iter().any(|start| upper.starts_with(start))
}

/// PyTorch's own formats: reading one runs whatever program is in it.
fn is_pickle(path: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|ending| path.ends_with(ending))
}

fn no_weights(model: &str, offered: &[&str], selection: &Selection) -> Problem {
    let pickles: Vec<_> = offered.iter().copied().filter(|path| is_pickle(path)).collect();
    if !pickles.is_empty() {
        return Problem::error(
            ProblemCode::FileFormat,
            format!("{model} has its weights as PyTorch pickles only, and reading a pickle runs whatever is in it"),
            format!("{model} 只有 PyTorch pickle 格式的权重，读取这种文件会执行其中的代码"),
        )
        .found(pickles.join(", "))
        .expected("*.safetensors, or a .gguf file")
        .fix(
            "look for a safetensors or GGUF copy with `justtrain models search`; or, where you trust its author, convert it with transformers: AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(FOLDER), then `justtrain models import FOLDER`",
            "可用 `justtrain models search` 查找 safetensors 或 GGUF 版本；若信任作者，可用 transformers 转换：AutoModelForCausalLM.from_pretrained(模型).save_pretrained(目录)，再执行 `justtrain models import 目录`",
        );
    }
    let found = if offered.is_empty() { "no files".to_owned() } else { clipped(offered) };
    let problem = Problem::error(
        ProblemCode::FileFormat,
        format!("{model} has no weights that can be taken as they are"),
        format!("{model} 中没有可直接使用的权重"),
    )
    .found(found);
    match selection.allow.is_empty() {
        true => problem.expected("*.safetensors with config.json, or one .gguf file"),
        false => problem.expected(format!("a .safetensors or .gguf file like {}", selection.allow.join(", "))),
    }
}

fn several(model: &str, ggufs: &[&str]) -> Problem {
    Problem::error(
        ProblemCode::FileFormat,
        format!("{model} has several GGUF files, each a whole model"),
        format!("{model} 有多个 GGUF 文件，每个都是完整的模型"),
    )
    .found(clipped(ggufs))
    .expected("one of them")
    .fix(
        format!("name one: `justtrain models pull {model} --allow {}`", ggufs[0]),
        format!("请指定其中一个：`justtrain models pull {model} --allow {}`", ggufs[0]),
    )
}

/// The first few names.
fn clipped(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown}, … ({} in all)", names.len()) } else { shown }
}

fn matches(patterns: &[String], path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    patterns.iter().any(|pattern| {
        let whole = if pattern.contains('/') { path } else { name };
        glob(pattern.as_bytes(), whole.as_bytes())
    })
}

/// `*` stands for any characters, `?` for one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => glob(rest, text) || (!text.is_empty() && glob(pattern, &text[1..])),
        (Some((b'?', rest)), Some((_, text))) => glob(rest, text),
        (Some((letter, rest)), Some((found, text))) => letter == found && glob(rest, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(paths: &[&str], selection: &Selection) -> Result<Vec<String>, Problem> {
        let mut chosen: Vec<_> = choose("org/m", paths, selection)?.into_iter().collect();
        chosen.sort();
        Ok(chosen)
    }

    fn allow(pattern: &str) -> Selection {
        Selection { allow: vec![pattern.into()], ignore: Vec::new() }
    }

    #[test]
    fn safetensors_win_over_every_other_format_and_come_with_their_licence() {
        let all = [
            "LICENSE.md",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model.fp16.safetensors",
            "model.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
            "x.gguf",
        ];
        let expected = ["LICENSE.md", "config.json", "model.safetensors", "tokenizer.json"];
        assert_eq!(chosen(&all, &Selection::default()).unwrap(), expected);
    }

    #[test]
    fn shards_come_with_their_index_and_without_a_second_copy() {
        let all = [
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        let expected = [all[0], all[2], all[3], all[4]];
        assert_eq!(chosen(&all, &Selection::default()).unwrap(), expected);
    }

    #[test]
    fn one_gguf_is_taken_and_of_several_one_must_be_named() {
        let one = ["LICENSE", "README.md", "a.gguf", "config.json"];
        assert_eq!(chosen(&one, &Selection::default()).unwrap(), ["LICENSE", "a.gguf"]);
        let several = ["a-Q4_K_M.gguf", "a-Q8_0.gguf", "sub/b.gguf"];
        let problem = chosen(&several, &Selection::default()).unwrap_err();
        assert!(problem.fix.en.contains("--allow a-Q4_K_M.gguf"), "{problem}");
        assert_eq!(chosen(&several, &allow("*q8_0*")).unwrap_err().code, ProblemCode::FileFormat);
        assert_eq!(chosen(&several, &allow("*Q8_0*")).unwrap(), ["a-Q8_0.gguf"]);
        assert_eq!(chosen(&several, &allow("sub/*")).unwrap(), ["sub/b.gguf"]);
        let ignored = Selection { allow: Vec::new(), ignore: vec!["*Q8*".into()] };
        assert_eq!(chosen(&several, &ignored).unwrap(), ["a-Q4_K_M.gguf"]);
        let split = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        assert_eq!(chosen(&split, &Selection::default()).unwrap(), split);
    }

    #[test]
    fn pickles_alone_are_refused_with_the_way_out() {
        let problem = chosen(&["config.json", "pytorch_model.bin"], &Selection::default()).unwrap_err();
        assert!(problem.message.en.contains("pickle") && problem.fix.en.contains("models import"), "{problem}");
    }

    #[test]
    fn patterns_are_those_of_a_shell() {
        for (pattern, text, fits) in [
            ("*.gguf", "a.gguf", true),
            ("a?c*", "abcd", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("a", "b", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }
}
