//! WordPiece (BERT): `vocab.txt`, one token a line, and how its settings split and fold a text, as transformers' `BertTokenizer`
//! has it.

use std::fs;
use std::path::Path;

use justtrain_worker_api::Problem;
use serde_json::Value;
use tokenizers::decoders::wordpiece::WordPiece as Decoder;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Model};

use super::broken;

/// By the keys of `tokenizer_config.json`.
const SPECIAL: [(&str, &str); 5] = [
    ("pad_token", "[PAD]"),
    ("unk_token", "[UNK]"),
    ("cls_token", "[CLS]"),
    ("sep_token", "[SEP]"),
    ("mask_token", "[MASK]"),
];

/// transformers' `BertTokenizer` has these where its settings name none.
pub(super) fn default_token(key: &str) -> Option<&'static str> {
    SPECIAL.iter().find(|(known, _)| *known == key).map(|(_, token)| *token)
}

pub(super) fn read(path: &Path, config: &Value) -> Result<tokenizers::Tokenizer, Problem> {
    let at = |problem: Problem| problem.file(path.display());
    let text = fs::read_to_string(path).map_err(|error| at(broken(error)))?;
    let token = |key: &str| {
        let written = &config[key];
        let written = written.as_str().or(written["content"].as_str());
        written.or(default_token(key)).unwrap_or_default().to_owned()
    };
    let vocab: Vocab = (0..).zip(text.lines()).map(|(id, token)| (token.to_owned(), id)).collect();
    let model = WordPiece::builder().vocab(vocab).unk_token(token("unk_token")).build().map_err(broken)?;
    let mark = |key: &str| {
        let token = token(key);
        let id = model.token_to_id(&token).ok_or_else(|| at(broken(format!("there is no token {token}"))))?;
        Ok::<_, Problem>((token, id))
    };
    let (sep, cls) = (mark("sep_token")?, mark("cls_token")?);
    let special: Vec<AddedToken> = SPECIAL
        .iter()
        .map(|(key, _)| token(key))
        .filter(|token| model.token_to_id(token).is_some())
        .map(|token| AddedToken::from(token, true))
        .collect();
    let flag = |key: &str| config[key].as_bool();
    let lowercase = flag("do_lower_case").unwrap_or(true);
    let mut inner = tokenizers::Tokenizer::new(model);
    let normalizer =
        BertNormalizer::new(true, flag("tokenize_chinese_chars").unwrap_or(true), flag("strip_accents"), lowercase);
    inner.with_normalizer(Some(normalizer)).map_err(broken)?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    inner.with_post_processor(Some(BertProcessing::new(sep, cls)));
    inner.with_decoder(Some(Decoder::default()));
    inner.add_special_tokens(special).map_err(broken)?;
    Ok(inner)
}
