//! A small tokenizer of each kind against transformers, out of each form that models keep it in
//! (`scripts/golden/tokenizer_kinds.py`).

use std::fs;
use std::path::{Path, PathBuf};

use justtrain_data::{ChatTemplate, Tokenizer};
use justtrain_weights::gguf::Gguf;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[derive(Deserialize)]
struct Goldens {
    /// Of all lines together.
    tokens: usize,
    /// For each line, a hash of its ids and of the text that they decode to.
    lines: Vec<u32>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizers")
}

fn json<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// FNV-1a.
fn hash(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn assert_same(name: &str, tokenizer: &Tokenizer, lines: &[String], goldens: &Goldens) {
    let mut tokens = 0;
    for (line, &golden) in lines.iter().zip(&goldens.lines) {
        let ids = tokenizer.encode(line).unwrap().ids;
        let text = tokenizer.decode(&ids).unwrap();
        tokens += ids.len();
        let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).chain(text.bytes());
        assert_eq!(hash(bytes), golden, "{name}: {line:?} became {ids:?} and then {text:?}");
    }
    assert_eq!(tokens, goldens.tokens, "{name}");
}

#[test]
fn each_kind_tokenises_as_transformers_does_from_each_of_its_files() {
    let lines: Vec<String> = json(&fixtures().join("lines.json"));
    let kinds: Vec<PathBuf> =
        fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    assert_eq!((lines.len(), kinds.len()), (2000, 17));
    let mut without_gguf = Vec::new();
    for kind in kinds {
        let name = kind.file_name().unwrap().to_str().unwrap();
        let goldens: Goldens = json(&kind.join("goldens.json"));
        assert_eq!(goldens.lines.len(), lines.len());
        let folder = Tokenizer::open_folder(&kind).unwrap();
        assert_same(&format!("{name}, folder"), &folder, &lines, &goldens);
        let Ok(gguf) = Gguf::open(&kind.join("vocab.gguf")) else {
            without_gguf.push(name.to_owned());
            continue;
        };
        let gguf = Tokenizer::open_gguf(&gguf).unwrap();
        assert_same(&format!("{name}, GGUF"), &gguf, &lines, &goldens);
        assert_eq!(gguf.vocab_size(), folder.vocab_size(), "{name}");
        assert_eq!((gguf.bos_token(), gguf.eos_token()), (Some("<s>"), Some("</s>")), "{name}");
        let saved = tempfile::tempdir().unwrap();
        gguf.save(saved.path(), &ChatTemplate::new("", &gguf).unwrap()).unwrap();
        assert_same(&format!("{name}, saved"), &Tokenizer::open_folder(saved.path()).unwrap(), &lines, &goldens);
    }
    without_gguf.sort();
    assert_eq!(without_gguf, ["bert-cased", "bert-uncased", "llama-spm-first", "t5"]);
}

#[derive(Deserialize)]
struct Marked {
    text: String,
    pair: Option<String>,
    longest: usize,
    ids: Vec<u32>,
    types: Vec<u32>,
}

/// A classifier's input: marks around a text or a pair, cut as transformers cuts.
#[test]
fn texts_and_pairs_are_marked_and_cut_as_transformers_does() {
    for kind in ["bert-cased", "bert-uncased"] {
        let folder = fixtures().join(kind);
        let tokenizer = Tokenizer::open_folder(&folder).unwrap();
        // transformers finds its marks beside a tuned model, too.
        let saved = tempfile::tempdir().unwrap();
        tokenizer.save(saved.path(), &ChatTemplate::new("", &tokenizer).unwrap()).unwrap();
        let settings: Value = json(&saved.path().join("tokenizer_config.json"));
        for (key, token) in [("cls_token", "[CLS]"), ("sep_token", "[SEP]"), ("pad_token", "[PAD]")] {
            assert_eq!(settings[key], token);
        }
        let goldens: Vec<Marked> = json(&folder.join("marked.json"));
        assert!(goldens.len() > 20);
        for Marked { text, pair, longest, ids, types } in goldens {
            let (found, found_types) = tokenizer.encode_marked(&text, pair.as_deref(), longest).unwrap();
            assert_eq!(found, ids, "{text:?} {pair:?} {longest}");
            let types = if pair.is_some() { types } else { Vec::new() };
            assert_eq!(found_types, types, "{text:?} {pair:?} {longest}");
        }
    }
}

/// Tokenizers that are not in the repository (`scripts/golden/published.py`).
#[test]
#[ignore = "needs the folder that JUSTTRAIN_TOKENIZERS names"]
fn published_tokenizers_tokenise_as_transformers_does() {
    let folder = PathBuf::from(std::env::var_os("JUSTTRAIN_TOKENIZERS").expect("JUSTTRAIN_TOKENIZERS names a folder"));
    for kind in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let name = kind.file_name().unwrap().to_str().unwrap();
        let own = Some(kind.join("lines.json")).filter(|path| path.is_file());
        let lines: Vec<String> = json(&own.unwrap_or_else(|| fixtures().join("lines.json")));
        let goldens: Goldens = json(&kind.join("goldens.json"));
        assert_same(&format!("{name}, folder"), &Tokenizer::open_folder(&kind).unwrap(), &lines, &goldens);
        let gguf = kind.join("vocab.gguf");
        if gguf.is_file() {
            let gguf = Tokenizer::open_gguf(&Gguf::open(&gguf).unwrap()).unwrap();
            assert_same(&format!("{name}, GGUF"), &gguf, &lines, &goldens);
        }
    }
}
