//! A tokenizer out of a Hugging Face folder: `tokenizer.json`, or what came before it: SentencePiece's
//! `tokenizer.model`, T5's `spiece.model`, `vocab.json` and `merges.txt`, or BERT's `vocab.txt`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use justtrain_worker_api::{Problem, ProblemCode};
use serde_json::Value;
use tokenizers::models::bpe::Vocab;
use tokenizers::{AddedToken, ModelWrapper};

use super::byte_level::{self, parse_merges};
use super::sentencepiece::DummyPrefix;
use super::splitting::Splitting;
use super::{SpecialTokens, Tokenizer, broken, sentencepiece_model, t5, wordpiece};

pub(super) fn open(folder: &Path) -> Result<Tokenizer, Problem> {
    let config = read_json(&folder.join("tokenizer_config.json"))?;
    let mut inner = open_pipeline(folder, &config)?;
    // Files saved after a training run often carry that run's truncation and padding; cutting is `cutoff_len`'s work.
    inner.with_truncation(None).map_err(broken)?;
    inner.with_padding(None);
    add_tokens(&mut inner, folder, &config)?;
    let map = read_json(&folder.join("special_tokens_map.json"))?;
    // Older files hold an object with the token's flags, newer ones the text alone.
    let text = |value: &Value| value.as_str().or(value["content"].as_str()).map(str::to_owned);
    let default = |key: &str| {
        let token = match inner.get_model() {
            ModelWrapper::WordPiece(_) => wordpiece::default_token(key),
            ModelWrapper::Unigram(_) if folder.join(t5::FILE).is_file() => t5::default_token(key),
            _ => None,
        };
        token.filter(|token| inner.token_to_id(token).is_some())
    };
    let special = |key: &str| {
        let written = text(&config[key]).or_else(|| text(&map[key]));
        written.or_else(|| default(key).map(str::to_owned))
    };
    let special = SpecialTokens {
        bos: special("bos_token"),
        eos: special("eos_token"),
        pad: special("pad_token"),
        unknown: special("unk_token"),
        cls: special("cls_token"),
        sep: special("sep_token"),
        mask: special("mask_token"),
    };
    // One id, or a list of them.
    let end = &read_json(&folder.join("generation_config.json"))?["eos_token_id"];
    let end_ids = end.as_array().map_or(std::slice::from_ref(end), Vec::as_slice);
    let end_ids = end_ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect();
    Ok(Tokenizer::new(inner, special, end_ids))
}

fn open_pipeline(folder: &Path, config: &Value) -> Result<tokenizers::Tokenizer, Problem> {
    let path = folder.join("tokenizer.json");
    if path.is_file() {
        return tokenizers::Tokenizer::from_file(&path).map_err(|error| broken(error).file(path.display()));
    }
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    let model = folder.join("tokenizer.model");
    if model.is_file() {
        // Llama's class starts only the text with a space since `legacy: false`; all others start every part of it so.
        let prefix = match class.starts_with("Llama") && !config["legacy"].as_bool().unwrap_or(false) {
            true => DummyPrefix::First,
            false => DummyPrefix::Always,
        };
        return sentencepiece_model::read(&model, prefix)?.build();
    }
    let model = folder.join(t5::FILE);
    if model.is_file() {
        return t5::read(&model, config);
    }
    let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if vocab.is_file() && merges.is_file() {
        let splitting = Splitting::named(if class.starts_with("Qwen2") { "qwen2" } else { "gpt-2" })?;
        return open_vocabulary(&vocab, &merges, splitting);
    }
    let vocab = folder.join("vocab.txt");
    if vocab.is_file() {
        return wordpiece::read(&vocab, config);
    }
    Err(Problem::error(ProblemCode::FileNotFound, "the model brings no tokenizer", "模型没有附带分词器")
        .file(path.display())
        .expected("tokenizer.json, tokenizer.model, spiece.model, vocab.txt, or vocab.json with merges.txt")
        .fix("download the model again with its tokenizer.json", "请重新下载模型，并包含 tokenizer.json"))
}

/// The two files of GPT-2, OPT and the first Qwen 2 models.
fn open_vocabulary(vocab: &Path, merges: &Path, splitting: Splitting) -> Result<tokenizers::Tokenizer, Problem> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| broken(error).file(path.display()));
    let map: BTreeMap<String, u32> =
        serde_json::from_str(&read(vocab)?).map_err(|error| broken(error).file(vocab.display()))?;
    let text = read(merges)?;
    // The first line may say the version.
    let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
    let merges = parse_merges(lines).map_err(|problem| problem.file(merges.display()))?;
    byte_level::build(map.into_iter().collect::<Vocab>(), merges, splitting)
}

/// Tokens that only the settings name: `added_tokens_decoder` (id → token) of `tokenizer_config.json`, or the older
/// `added_tokens.json` (token → id). Their ids follow the vocabulary's, so they are added in that order.
fn add_tokens(inner: &mut tokenizers::Tokenizer, folder: &Path, config: &Value) -> Result<(), Problem> {
    let mut tokens: BTreeMap<u32, AddedToken> = BTreeMap::new();
    for (text, id) in read_json(&folder.join("added_tokens.json"))?.as_object().into_iter().flatten() {
        if let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) {
            tokens.insert(id, AddedToken::from(text.clone(), false).normalized(true));
        }
    }
    for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        let (Ok(id), Some(text)) = (id.parse(), token["content"].as_str()) else { continue };
        let flag = |name: &str| token[name].as_bool().unwrap_or(false);
        let added = AddedToken::from(text, flag("special"))
            .normalized(flag("normalized"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"))
            .single_word(flag("single_word"));
        tokens.insert(id, added);
    }
    inner.add_tokens(tokens.values().cloned()).map_err(broken)?;
    match tokens.iter().find(|(id, token)| inner.token_to_id(&token.content) != Some(**id)) {
        None => Ok(()),
        Some((id, token)) => Err(broken(format!("the added token {} is not number {id}", token.content))
            .file(folder.join("tokenizer_config.json").display())),
    }
}

/// A JSON file that not every model has; null where it is not there.
fn read_json(path: &Path) -> Result<Value, Problem> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| broken(error).file(path.display())),
        Err(_) => Ok(Value::Null),
    }
}
